//! Houses whose targets have a price, the ledger they write, and callers who have budgets.

use crate::house::{Home, House};
use futures_util::StreamExt;
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tidegate_core::{
    BoxFuture, Budgets, Call, Entry, Ledger, Limits, Money, Price, Rates, Result, Tenant,
    UsageQuery, UsageRow,
};
use tidegate_policy::hedge;
use tidegate_testkit::script::call;
use tokio::time::timeout;

/// Remembers every entry, and what it was asked.
#[derive(Default)]
pub(crate) struct Written {
    pub(crate) entries: Mutex<Vec<Entry>>,
    pub(crate) asked: Mutex<Vec<UsageQuery>>,
}

impl Ledger for Written {
    fn write(&self, entry: Entry) {
        self.entries.lock().unwrap().push(entry);
    }
    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }
    fn usage<'a>(&'a self, query: &'a UsageQuery) -> BoxFuture<'a, Result<Vec<UsageRow>>> {
        self.asked.lock().unwrap().push(query.clone());
        let row = |name: &str, dollars| UsageRow {
            of: vec![name.into()],
            cost: Money::DOLLAR.times(dollars),
            ..UsageRow::default()
        };
        let mirrored = if query.without_mirrors { 0 } else { 9 };
        let rows = vec![row("", 1), row("x", 5 + mirrored)];
        Box::pin(async move { Ok(rows) })
    }
}

impl Written {
    pub(crate) fn take(&self) -> Vec<Entry> {
        std::mem::take(&mut self.entries.lock().unwrap())
    }

    /// `a #1 first ok 10+16 told $0.000042`, one line per entry.
    pub(crate) fn lines(&self) -> Vec<String> {
        let line = |entry: Entry| {
            let Entry { upstream, attempt, cause, failure, usage, told, cost, .. } = entry;
            let failure = failure.map_or("ok", |class| class.name());
            let told = if told { " told" } else { "" };
            let cost = cost.map_or("unknown".into(), |cost| cost.to_string());
            let cause = cause.name();
            format!(
                "{upstream} #{attempt} {cause} {failure} {}+{}{told} {cost}",
                usage.input, usage.output
            )
        };
        self.take().into_iter().map(line).collect()
    }
}

/// A dollar for a thousand prompt tokens, two for a thousand answer tokens.
pub(crate) const PRICE: Price = Price::flat(Rates::new(INPUT, OUTPUT));
pub(crate) const INPUT: Money = Money::from_pico(1_000_000_000);
pub(crate) const OUTPUT: Money = Money::from_pico(2_000_000_000);

/// A house whose targets all cost [`PRICE`], and its ledger.
pub(crate) fn priced(scripts: &[(&str, &str)]) -> (House, Arc<Written>) {
    let written = Arc::new(Written::default());
    let ledger = written.clone();
    let house = House::new(scripts).parts(|parts| {
        parts.ledger = Some(ledger);
        parts.prices.insert("m".into(), PRICE);
        // Every target in turn.
        parts.models.get_mut("chat").unwrap().targets[0].weight = 1_000_000;
    });
    (house, written)
}

/// One call over `script`, whose caller leaves after `leaves`; what the ledger says of it.
pub(crate) async fn entries(script: &str, call: Call, leaves: Duration) -> String {
    let (house, written) = priced(&[("a", script)]);
    let home = house.parts(|parts| parts.retry.max_attempts = 1).open();
    let whole = async {
        if let Ok(mut reply) = home.engine.call(call).await {
            while reply.body.next().await.is_some() {}
        }
    };
    drop(timeout(leaves, whole).await);
    home.is_empty();
    assert_eq!(home.engine.held().reserved, Money::ZERO);
    written.lines().join(", ")
}

pub(crate) const NEVER: Duration = Duration::from_secs(600);

/// 25 calls were answered, and the next is hedged after 100 ms.
pub(crate) async fn with_a_hedge_earned(upstreams: &[(&str, &str)]) -> (Home, Arc<Written>) {
    let (house, written) = priced(upstreams);
    let home = house
        .parts(|parts| {
            let after = Some(Duration::from_millis(100));
            let chat = parts.models.get_mut("chat").unwrap();
            chat.hedge = hedge::Options { enabled: true, share: 0.05, after };
        })
        .open();
    for _ in 0..25 {
        home.engine.call(call("chat")).await.unwrap();
    }
    written.take();
    (home, written)
}

/// A call of a caller with `budgets` that may cost $0.06 at most: 28 bytes and 16 tokens.
pub(crate) fn by(budgets: Budgets) -> Call {
    let tenant =
        Tenant { id: "k1".into(), limits: Some(Limits::default()), budgets, ..Tenant::local() };
    Call { tenant: Arc::new(tenant), ..call("chat") }
}

pub(crate) fn soft(day: Money) -> Budgets {
    Budgets { day: Some(day), ..Budgets::default() }
}

pub(crate) fn hard(day: Money) -> Budgets {
    Budgets { hard: true, ..soft(day) }
}
