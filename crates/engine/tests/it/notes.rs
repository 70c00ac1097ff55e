//! What a hard budget pays for is noted in the ledger before it is sent, and its entry takes the
//! note's place however the attempt ends.

use crate::house::{Home, House};
use futures_util::{StreamExt, future::join_all};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tidegate_core::{
    BoxFuture, Budgets, Call, Class, Entry, Ledger, Money, Noted, Price, Rates, Result, Tenant,
    UsageQuery, UsageRow,
};
use tidegate_engine::Mirror;
use tidegate_policy::{canary, hedge};
use tidegate_testkit::{
    script::{call, streaming},
    trace::Trace,
};
use tokio::time::{sleep, timeout};

/// Tells the trace what it is told, and remembers what is noted.
struct Noting {
    trace: Trace,
    last: AtomicU64,
    open: Mutex<BTreeMap<u64, Entry>>,
    /// Of attempts that were noted, and of others.
    entries: Mutex<(Vec<Entry>, Vec<Entry>)>,
}

impl Ledger for Noting {
    fn write(&self, entry: Entry) {
        self.entries.lock().unwrap().1.push(entry);
    }
    fn begin(&self, most: &Entry) -> Option<Noted> {
        let sequence = self.last.fetch_add(1, Relaxed);
        self.trace.push(format_args!("noted {} #{}", most.upstream, most.attempt));
        self.open.lock().unwrap().insert(sequence, most.clone());
        Some(Noted { sequence, at: most.at, slot: 7 })
    }
    fn end(&self, noted: Noted, entry: Entry) {
        let most = self.open.lock().unwrap().remove(&noted.sequence).unwrap();
        // The same attempt, at less.
        assert_eq!((&most.call, most.attempt, most.at), (&entry.call, entry.attempt, entry.at));
        assert!(entry.cost <= most.cost && entry.cause == most.cause, "{entry:?}");
        assert_eq!((&most.caller, &most.team), (&entry.caller, &entry.team));
        self.entries.lock().unwrap().0.push(entry);
    }
    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }
    fn usage<'a>(&'a self, _: &'a UsageQuery) -> BoxFuture<'a, Result<Vec<UsageRow>>> {
        Box::pin(async { Ok(Vec::new()) })
    }
}

/// A house whose targets all cost a dollar for a thousand tokens, and its ledger.
fn noting(scripts: &[(&str, &str)]) -> (House, Arc<Noting>) {
    let house = House::new(scripts);
    let noting = Arc::new(Noting {
        trace: house.trace.clone(),
        last: AtomicU64::new(0),
        open: Mutex::default(),
        entries: Mutex::default(),
    });
    let ledger = noting.clone();
    let token = Money::from_pico(1_000_000_000);
    let house = house.parts(|parts| {
        parts.ledger = Some(ledger);
        parts.prices.insert("m".into(), Price::flat(Rates::new(token, token)));
        // Every target in turn.
        parts.models.get_mut("chat").unwrap().targets[0].weight = 1_000_000;
    });
    (house, noting)
}

fn by(call: Call, hard: bool) -> Call {
    let budgets = Budgets { day: Some(Money::DOLLAR.times(100)), hard, ..Budgets::default() };
    Call { tenant: Arc::new(Tenant { budgets, ..Tenant::local() }), ..call }
}

/// Calls, reads the answer, and leaves after `leaves`.
async fn make(home: &Home, call: Call, leaves: Duration) {
    let whole = async {
        if let Ok(mut reply) = home.engine.call(call).await {
            while reply.body.next().await.is_some() {}
        }
    };
    drop(timeout(leaves, whole).await);
}

impl Noting {
    /// How many entries there are of attempts that were noted, and of others; nothing is open.
    #[track_caller]
    fn counts(&self) -> (usize, usize) {
        assert!(self.open.lock().unwrap().is_empty(), "every note has its entry");
        let (noted, others) = &*self.entries.lock().unwrap();
        (noted.len(), others.len())
    }
}

const NEVER: Duration = Duration::from_secs(600);
const LEAVES: Duration = Duration::from_millis(25);

#[tokio::test(start_paused = true)]
async fn every_ending_takes_the_place_of_its_note() {
    for (script, is_stream, leaves) in [
        ("ok usage=7+3", false, NEVER),
        ("ok usage=7+3", true, NEVER),
        ("rejected 400", false, NEVER),
        ("refused", false, NEVER),
        ("fault", true, NEVER),
        ("unreachable", false, NEVER),
        ("timeout connect", false, NEVER),
        ("timeout first_token after 10ms", false, NEVER),
        ("slow", false, LEAVES),
        ("slow", true, LEAVES),
        ("stream 9 chunks every 10ms", true, LEAVES),
        ("stream 2 chunks then fault", true, NEVER),
        ("stream stall after 1", true, NEVER),
    ] {
        let (house, noting) = noting(&[("a", script)]);
        let home = house.parts(|parts| parts.retry.max_attempts = 1).open();
        let asked = || if is_stream { streaming("chat") } else { call("chat") };
        make(&home, by(asked(), true), leaves).await;
        assert_eq!(noting.counts(), (1, 0), "{script}");
        let lines = home.trace.lines();
        let place = |what: &str| lines.iter().position(|line| line.contains(what)).unwrap();
        assert!(place("noted a #1") < place("send a #1"), "{script}: {lines:?}");
        make(&home, by(asked(), false), leaves).await;
        assert_eq!(noting.counts(), (1, 1), "a soft budget pays for no note: {script}");
        home.is_empty();
    }
}

#[tokio::test(start_paused = true)]
async fn a_note_says_the_most_that_is_reserved() {
    let (house, noting) = noting(&[("a", "slow")]);
    let home = house.open();
    let asked = by(call("chat"), true);
    let bytes = asked.payload.len() as u64;
    let calling = home.engine.call(asked);
    let looking = async {
        sleep(LEAVES).await;
        let most = noting.open.lock().unwrap().values().next().unwrap().clone();
        assert_eq!((most.usage.input, most.usage.output, most.told), (bytes, 16, false));
        assert_eq!((most.failure, most.took), (Some(Class::Fault), Duration::ZERO));
        assert_eq!(most.cost, Some(home.engine.held().reserved));
    };
    tokio::select! {
        biased;
        _ = calling => panic!("`a` is slow"),
        () = looking => {}
    }
    assert_eq!(noting.counts(), (1, 0), "its caller has left");
}

#[tokio::test(start_paused = true)]
async fn retries_have_notes_of_their_own() {
    let (house, noting) = noting(&[("a", "fault"), ("b", "ok usage=7+3")]);
    let home = house.open();
    make(&home, by(call("chat"), true), NEVER).await;
    assert_eq!(noting.counts(), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn a_hedge_and_its_loser_have_notes_and_a_copy_has_none() {
    let (house, noting) = noting(&[
        ("a", "25 * ok usage=10+16; slow"),
        ("b", "ok after 20ms usage=7+3"),
        ("c", "slow"),
    ]);
    let home = house
        .parts(|parts| {
            let chat = parts.models.get_mut("chat").unwrap();
            chat.targets.truncate(2);
            let after = Some(Duration::from_millis(100));
            chat.hedge = hedge::Options { enabled: true, share: 0.05, after };
            let (upstream, model) = ("c".into(), "m".into());
            let options = canary::Mirror { share: 1.0 };
            chat.mirror = Some(Mirror { upstream, model, price: None, options });
        })
        .open();
    for _ in 0..26 {
        make(&home, by(call("chat"), true), NEVER).await;
    }
    assert_eq!(home.trace.count("send b"), 1);
    assert_eq!(home.trace.count("noted c"), 0, "copies are on nobody's budget");
    drop(home);
    tokio::task::yield_now().await;
    assert_eq!(noting.counts(), (27, 26));
}

#[tokio::test(start_paused = true)]
async fn what_no_budget_has_room_for_is_not_noted() {
    let (house, noting) = noting(&[("a", "ok after 50ms usage=9+16")]);
    let home = house.open();
    let budgets = Budgets { day: Some(Money::DOLLAR), hard: true, ..Budgets::default() };
    let tenant = Arc::new(Tenant { budgets, ..Tenant::local() });
    let calls = (0..100).map(|_| {
        let asked = Call { tenant: tenant.clone(), ..call("chat") };
        make(&home, asked, NEVER)
    });
    join_all(calls).await;
    let sent = home.trace.count("send a");
    assert!(sent > 0 && sent < 100, "{sent}");
    assert_eq!((noting.counts(), home.trace.count("noted a")), ((sent, 0), sent));
}
