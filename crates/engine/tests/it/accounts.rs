//! One entry in the ledger for each attempt that was sent, and budgets that are kept.

use crate::house::{Home, House};
use futures_util::{StreamExt, future::join_all};
use std::{
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};
use tidegate_core::{
    BoxFuture, Budgets, Call, Cause, Class, Entry, Error, Front, Kind, Ledger, Limits, Money,
    Price, Rates, Result, Tenant, UsageQuery, UsageRow,
};
use tidegate_engine::{Alert, Mirror, Payer, Spending, spent_before};
use tidegate_policy::{canary, hedge, retry_budget};
use tidegate_testkit::script::{call, streaming};
use tokio::time::{sleep, timeout};

/// Remembers every entry, and what it was asked.
#[derive(Default)]
pub(crate) struct Written {
    entries: Mutex<Vec<Entry>>,
    asked: Mutex<Vec<UsageQuery>>,
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
    fn take(&self) -> Vec<Entry> {
        std::mem::take(&mut self.entries.lock().unwrap())
    }

    /// `a #1 first ok 10+16 told $0.000042`, one line per entry.
    fn lines(&self) -> Vec<String> {
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
const PRICE: Price = Price::flat(Rates::new(INPUT, OUTPUT));
const INPUT: Money = Money::from_pico(1_000_000_000);
const OUTPUT: Money = Money::from_pico(2_000_000_000);

/// A house whose targets all cost [`PRICE`], and its ledger.
fn priced(scripts: &[(&str, &str)]) -> (House, Arc<Written>) {
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
async fn entries(script: &str, call: Call, leaves: Duration) -> String {
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

const NEVER: Duration = Duration::from_secs(600);

#[tokio::test(start_paused = true)]
async fn every_ending_is_one_entry() {
    let leaves = Duration::from_millis(25);
    for (script, is_stream, leaves, expected) in [
        ("ok usage=7+3", false, NEVER, "ok 7+3 told $0.013"),
        ("ok usage=7+3", true, NEVER, "ok 7+3 told $0.013"),
        ("rejected 400", false, NEVER, "caller 0+0 $0.00"),
        ("refused", false, NEVER, "capacity 0+0 $0.00"),
        ("fault", true, NEVER, "fault 0+0 $0.00"),
        ("credential", false, NEVER, "credential 0+0 $0.00"),
        ("quota", false, NEVER, "quota 0+0 $0.00"),
        ("unreachable", false, NEVER, "fault 0+0 $0.00"),
        ("timeout connect", false, NEVER, "timeout 0+0 $0.00"),
        // The upstream has read the prompt.
        ("slow", true, NEVER, "timeout 10+0 $0.01"),
        ("timeout first_token after 10ms", false, NEVER, "timeout 10+0 $0.01"),
        ("slow", false, leaves, "cancelled 10+0 $0.01"),
        ("slow", true, leaves, "cancelled 10+0 $0.01"),
        // Two chunks have passed, at 10 and 20 ms.
        ("stream 9 chunks every 10ms", true, leaves, "cancelled 10+2 $0.014"),
        ("stream 2 chunks then fault", true, NEVER, "fault 10+2 $0.014"),
        ("stream stall after 1", true, NEVER, "timeout 10+1 $0.012"),
    ] {
        let asked = if is_stream { streaming("chat") } else { call("chat") };
        let written = entries(script, asked, leaves).await;
        assert_eq!(written, format!("a #1 first {expected}"), "{script}, stream: {is_stream}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_nobody_told_or_saw_does_not_stretch_a_hard_budget() {
    let leaves = Duration::from_millis(25);
    let ample = Money::DOLLAR.times(100);
    let bytes = call("chat").payload.len();
    let unlimited = |call| Call { max_output: None, choices: 2, ..call };
    let streaming = |call| Call { stream: true, ..call };
    for (script, asked, leaves, (failure, input, output)) in [
        // The upstream may have been at its last token, and whoever leaves there leaves again.
        ("slow", by(hard(ample)), leaves, ("cancelled", bytes, 16)),
        ("timeout first_token after 10ms", by(hard(ample)), NEVER, ("timeout", bytes, 16)),
        ("slow", unlimited(by(hard(ample))), leaves, ("cancelled", bytes, 2 * 16_384)),
        // Of a stream everything is seen but its prompt, which may be dense.
        ("slow", streaming(by(hard(ample))), leaves, ("cancelled", bytes, 0)),
        ("stream 9 chunks every 10ms", streaming(by(hard(ample))), leaves, ("cancelled", bytes, 2)),
        ("timeout connect", by(hard(ample)), NEVER, ("timeout", 0, 0)),
        ("refused", by(hard(ample)), NEVER, ("capacity", 0, 0)),
        ("ok usage=7+3", by(hard(ample)), NEVER, ("ok", 7, 3)),
        ("slow", by(soft(ample)), leaves, ("cancelled", 10, 0)),
    ] {
        let written = entries(script, asked, leaves).await;
        let expected = format!("a #1 first {failure} {input}+{output} ");
        assert!(written.starts_with(&expected), "{script}: {written}, not {expected}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_entry_says_whose_it_is_and_where_it_went() {
    let (house, written) = priced(&[("a", "ok after 30ms usage=7+3")]);
    let home = house.open();
    let tenant = Tenant { id: "k1".into(), team: Some("search".into()), ..Tenant::local() };
    home.engine.call(Call { tenant: Arc::new(tenant), ..call("chat") }).await.unwrap();
    let entry = written.take().pop().unwrap();
    let words = [&*entry.call, &*entry.caller, entry.team.as_deref().unwrap(), &*entry.model];
    assert_eq!(words, ["call", "k1", "search", "chat"]);
    assert_eq!((&*entry.upstream, &*entry.upstream_model), ("a", "m"));
    assert_eq!(entry.took, Duration::from_millis(30));
    assert!(entry.at <= SystemTime::now());
    assert_eq!(home.records()[0].cost, Some(Money::from_pico(13_000_000_000)));
}

#[tokio::test(start_paused = true)]
async fn what_has_no_price_costs_nobody_knows_what() {
    let (house, written) = priced(&[("a", "ok usage=7+3")]);
    let home = house.parts(|parts| parts.prices.clear()).open();
    home.engine.call(call("chat")).await.unwrap();
    assert_eq!(written.lines(), ["a #1 first ok 7+3 told unknown"]);
    assert_eq!(home.records()[0].cost, None);
}

#[tokio::test(start_paused = true)]
async fn a_target_may_cost_something_else() {
    let (house, written) = priced(&[("a", "ok usage=7+3")]);
    let home = house.parts(|parts| {
        let target = &mut parts.models.get_mut("chat").unwrap().targets[0];
        target.price = Some(Price::flat(Rates::new(INPUT, Money::ZERO)));
    });
    home.open().engine.call(call("chat")).await.unwrap();
    assert_eq!(written.lines(), ["a #1 first ok 7+3 told $0.007"]);
}

#[tokio::test(start_paused = true)]
async fn retries_and_fallbacks_are_entries_of_their_own() {
    let (house, written) = priced(&[("a", "fault"), ("b", "ok usage=7+3")]);
    let home = house
        .parts(|parts| {
            let mut small = parts.models["chat"].clone();
            parts.models.get_mut("chat").unwrap().targets.truncate(1);
            parts.models.get_mut("chat").unwrap().fallback = vec!["small".into()];
            small.targets.remove(0);
            parts.models.insert("small".into(), small);
            parts.retry.max_attempts = 2;
            parts.limiters.retry_budget =
                retry_budget::Options { floor_per_second: 100.0, ..Default::default() };
        })
        .open();
    home.engine.call(Call { front: Front::Batch, ..call("chat") }).await.unwrap();
    assert_eq!(
        written.lines(),
        [
            "a #1 batch fault 0+0 $0.00",
            "a #2 retry fault 0+0 $0.00",
            "b #3 fallback ok 7+3 told $0.013"
        ]
    );
    assert_eq!(home.records()[0].cost, Some(Money::from_pico(13_000_000_000)));
}

/// 25 calls were answered, and the next is hedged after 100 ms.
async fn with_a_hedge_earned(upstreams: &[(&str, &str)]) -> (Home, Arc<Written>) {
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

#[tokio::test(start_paused = true)]
async fn a_hedges_loser_is_paid_for_too() {
    let upstreams = [("a", "25 * ok usage=10+16; slow"), ("b", "ok after 20ms usage=7+3")];
    let (home, written) = with_a_hedge_earned(&upstreams).await;
    let reply = home.engine.call(call("chat")).await.unwrap();
    assert_eq!(&*reply.served.upstream, "b");
    let entries = written.take();
    let of = |entry: &Entry| (entry.cause, entry.failure, entry.usage.output);
    assert_eq!(
        entries.iter().map(of).collect::<Vec<_>>(),
        [(Cause::Hedge, None, 3), (Cause::First, Some(Class::Cancelled), 0)]
    );
    assert!(entries[1].usage.input > 0, "the loser has read the prompt");
    drop(reply);
    assert_eq!(home.records()[25].cost, entries.iter().map(|entry| entry.cost).sum());
    home.is_empty();
}

#[tokio::test(start_paused = true)]
async fn a_mirrors_copy_is_an_entry_and_no_burden_of_its_caller() {
    let (house, written) = priced(&[("a", "ok usage=7+3"), ("b", "ok usage=70+30")]);
    let home = house
        .parts(|parts| {
            let chat = parts.models.get_mut("chat").unwrap();
            chat.targets.truncate(1);
            let (upstream, model) = ("b".into(), "m".into());
            let options = canary::Mirror { share: 1.0 };
            chat.mirror = Some(Mirror { upstream, model, price: None, options });
        })
        .open();
    home.engine.call(by(soft(Money::DOLLAR))).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    let mut lines = written.lines();
    lines.sort();
    assert_eq!(lines, ["a #1 first ok 7+3 told $0.013", "b #1 mirror ok 70+30 told $0.13"]);
    assert_eq!(home.records()[0].cost, Some(Money::from_pico(13_000_000_000)));
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_is_under_way_when_the_engine_goes_is_an_entry() {
    let (house, written) = priced(&[("a", "ok"), ("b", "slow")]);
    let home = house.parts(|parts| {
        let chat = parts.models.get_mut("chat").unwrap();
        chat.targets.truncate(1);
        let (upstream, model) = ("b".into(), "m".into());
        let options = canary::Mirror { share: 1.0 };
        chat.mirror = Some(Mirror { upstream, model, price: None, options });
    });
    let home = home.open();
    home.engine.call(call("chat")).await.unwrap();
    tokio::task::yield_now().await;
    drop(home);
    tokio::task::yield_now().await;
    assert!(written.lines().contains(&"b #1 mirror cancelled 10+0 $0.01".to_owned()));
}

/// A call of a caller with `budgets` that may cost $0.06 at most: 28 bytes and 16 tokens.
fn by(budgets: Budgets) -> Call {
    let tenant =
        Tenant { id: "k1".into(), limits: Some(Limits::default()), budgets, ..Tenant::local() };
    Call { tenant: Arc::new(tenant), ..call("chat") }
}

fn soft(day: Money) -> Budgets {
    Budgets { day: Some(day), ..Budgets::default() }
}

fn hard(day: Money) -> Budgets {
    Budgets { hard: true, ..soft(day) }
}

async fn all_at_once(home: &Home, count: usize, one: impl Fn() -> Call) -> Vec<Error> {
    let calls = (0..count).map(|_| async {
        let mut reply = home.engine.call(one()).await?;
        while reply.body.next().await.is_some() {}
        Ok(())
    });
    join_all(calls).await.into_iter().filter_map(Result::err).collect()
}

fn cost(written: &Written) -> Money {
    written.take().iter().filter_map(|entry| entry.cost).sum()
}

#[tokio::test(start_paused = true)]
async fn a_hard_budget_is_never_overspent() {
    let (house, written) = priced(&[("a", "ok after 50ms usage=9+16")]);
    let home = house.open();
    let mut spent = Money::ZERO;
    for _ in 0..20 {
        let refused = all_at_once(&home, 200, || by(hard(Money::DOLLAR))).await;
        assert!(refused.iter().all(|error| error.kind() == Kind::BudgetExceeded));
        spent = spent.plus(cost(&written));
        assert!(spent <= Money::DOLLAR, "{spent}");
        assert_eq!(home.engine.held().reserved, Money::ZERO);
    }
    // What is left is less than one call may cost.
    let most = INPUT.times(call("chat").payload.len() as u64).plus(OUTPUT.times(16));
    assert!(spent.plus(most) > Money::DOLLAR, "{spent}");
    let error = home.engine.call(by(hard(Money::DOLLAR))).await.unwrap_err();
    let said = error.message();
    assert!(said.contains("of this key") && said.contains("$1.00 for the day"), "{said}");
    assert_eq!((error.attempts(), error.code()), (0, "budget_exceeded"));
    assert_eq!(written.lines().len(), 0, "what is refused is not sent");
}

#[tokio::test(start_paused = true)]
async fn a_soft_budget_is_overspent_by_what_was_in_flight() {
    let (house, written) = priced(&[("a", "ok after 50ms usage=9+16")]);
    let home = house.open();
    let mut spent = Money::ZERO;
    let each = INPUT.times(9).plus(OUTPUT.times(16));
    for _ in 0..20 {
        all_at_once(&home, 10, || by(soft(Money::DOLLAR))).await;
        spent = spent.plus(cost(&written));
        assert!(spent < Money::DOLLAR.plus(each.times(10)), "{spent}");
        assert_eq!(home.engine.held().reserved, Money::ZERO);
    }
    assert!(spent >= Money::DOLLAR, "{spent}");
}

#[tokio::test(start_paused = true)]
async fn a_team_pays_for_all_its_callers() {
    let alerts = Arc::new(Mutex::new(Vec::new()));
    let (house, written) = priced(&[("a", "ok usage=9+16")]);
    let told = alerts.clone();
    let home = house
        .parts(|parts| {
            parts.spending = Spending {
                teams: [("search".into(), hard(Money::DOLLAR))].into(),
                alerts: Some(Arc::new(move |alert| told.lock().unwrap().push(alert))),
                ..Spending::default()
            };
        })
        .open();
    let mut caller = 0;
    let mut one = || {
        caller += 1;
        let id = format!("k{}", caller % 3).into();
        let tenant = Tenant { id, team: Some("search".into()), ..Tenant::local() };
        Call { tenant: Arc::new(tenant), ..call("chat") }
    };
    let mut last = None;
    for _ in 0..60 {
        last = home.engine.call(one()).await.err();
    }
    let said = last.unwrap().message().to_owned();
    assert!(said.contains("the team `search`"), "{said}");
    let spent = cost(&written);
    assert!(spent > Money::from_usd(0.9).unwrap() && spent <= Money::DOLLAR, "{spent}");
    let told: Vec<_> =
        alerts.lock().unwrap().iter().map(|alert: &Alert| alert.crossed.percent).collect();
    assert_eq!(told, [50, 80], "each once");
    assert_eq!(alerts.lock().unwrap()[0].payer, Payer::Team("search".into()));
    assert_eq!(home.engine.held().reserved, Money::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_hard_budget_takes_no_call_of_unknown_price() {
    let (house, written) = priced(&[("a", "ok usage=9+16")]);
    let home = house.parts(|parts| parts.prices.clear()).open();
    let error = home.engine.call(by(hard(Money::DOLLAR))).await.unwrap_err();
    assert_eq!(error.kind(), Kind::BudgetExceeded);
    assert!(error.message().contains("is not known"), "{error}");
    home.engine.call(by(soft(Money::DOLLAR))).await.unwrap();
    assert_eq!(written.lines(), ["a #1 first ok 9+16 told unknown"]);
}

#[tokio::test(start_paused = true)]
async fn a_call_without_a_maximum_reserves_what_its_model_gives_at_most() {
    let (house, _) = priced(&[("a", "slow")]);
    let home = house.open();
    let unlimited = Call { max_output: None, choices: 2, ..by(hard(Money::DOLLAR.times(100))) };
    let bytes = unlimited.payload.len() as u64;
    drop(
        timeout(Duration::from_secs(1), async {
            let calling = home.engine.call(unlimited);
            let looking = async {
                sleep(Duration::from_millis(10)).await;
                let most = INPUT.times(bytes).plus(OUTPUT.times(2 * 16_384));
                assert_eq!(home.engine.held().reserved, most);
            };
            tokio::join!(calling, looking)
        })
        .await,
    );
    assert_eq!(home.engine.held().reserved, Money::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_long_prompt_reserves_and_costs_what_its_step_says() {
    let bytes = call("chat").payload.len() as u64;
    let ten_times = Rates::new(INPUT.times(10), OUTPUT.times(10));
    // The body could be so many tokens, and turned out to be one more or less than the step.
    for (told, rates) in [(bytes - 1, Rates::new(INPUT, OUTPUT)), (bytes, ten_times)] {
        let script = format!("ok after 50ms usage={told}+16");
        let (house, written) = priced(&[("a", &script)]);
        let stepped = PRICE.with_step(bytes - 1, ten_times).unwrap();
        let home = house.parts(|parts| _ = parts.prices.insert("m".into(), stepped)).open();
        let most = ten_times.input.times(bytes).plus(ten_times.output.times(16));
        let error = home.engine.call(by(hard(most.minus(Money::from_pico(1))))).await.unwrap_err();
        assert_eq!(error.kind(), Kind::BudgetExceeded, "the bound is at the dearest step");
        let (answered, reserved) = tokio::join!(home.engine.call(by(hard(most))), async {
            sleep(Duration::from_millis(10)).await;
            home.engine.held().reserved
        });
        answered.unwrap();
        assert_eq!(reserved, most);
        let cost = rates.input.times(told).plus(rates.output.times(16));
        assert_eq!(written.lines(), [format!("a #1 first ok {told}+16 told {cost}")]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_hedge_that_no_budget_pays_for_is_not_sent() {
    let (home, written) =
        with_a_hedge_earned(&[("a", "25 * ok; ok after 500ms"), ("b", "ok")]).await;
    let most = INPUT.times(call("chat").payload.len() as u64).plus(OUTPUT.times(16));
    let reply = home.engine.call(by(hard(most))).await.unwrap();
    assert_eq!((&*reply.served.upstream, reply.served.attempts), ("a", 1));
    assert_eq!(written.take().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_was_spent_before_a_start_counts() {
    let ledger = Written::default();
    let earlier = spent_before(&ledger, SystemTime::now(), None).await.unwrap();
    let asked = ledger.asked.lock().unwrap().clone();
    assert_eq!(asked.len(), 6, "caller and team, for the day, the month and in all");
    let from: Vec<_> = asked.iter().map(|query| query.from.is_some()).collect();
    assert_eq!(from, [true, true, false, true, true, false]);
    // A row for each cause would leave callers out at a sixth of those there may be.
    assert!(asked.iter().all(|query| query.group_by.len() == 1));
    let spent = Money::DOLLAR.times(5);
    for (payer, name) in [(Payer::Caller("x".into()), "caller"), (Payer::Team("x".into()), "team")]
    {
        let found = earlier.iter().find(|earlier| earlier.payer == payer).unwrap();
        assert_eq!((found.spent.day, found.spent.total), (spent, spent), "{name}: no copies");
    }
    assert_eq!(earlier.len(), 2, "nobody is no payer");
    // To the microsecond: what another process spent in the second of this one's start counts.
    let started = SystemTime::now();
    spent_before(&ledger, started, Some(started)).await.unwrap();
    let later = ledger.asked.lock().unwrap().split_off(6);
    assert!(later.iter().all(|query| (query.before, query.to) == (Some(started), None)));

    let (house, _) = priced(&[("a", "ok")]);
    let home = house.parts(|parts| parts.spending.earlier = earlier.clone()).open();
    let of_x = |budgets| {
        let mut call = by(budgets);
        Arc::make_mut(&mut call.tenant).id = "x".into();
        call
    };
    let refused = home.engine.call(of_x(soft(spent))).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::BudgetExceeded);
    home.engine.call(of_x(soft(spent.times(2)))).await.unwrap();
    home.engine.resume(earlier);
    let refused = home.engine.call(of_x(soft(spent.times(2)))).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::BudgetExceeded);
}
