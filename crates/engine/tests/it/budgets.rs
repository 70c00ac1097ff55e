//! Budgets that are kept, whatever calls come to.

use crate::{
    house::Home,
    priced::{
        INPUT, NEVER, OUTPUT, PRICE, Written, by, entries, hard, priced, soft, with_a_hedge_earned,
    },
};
use futures_util::{StreamExt, future::join_all};
use std::{
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};
use tidegate_core::{Call, Error, Kind, Money, Rates, Result, Tenant};
use tidegate_engine::{Alert, Payer, Spending, spent_before};
use tidegate_testkit::script::call;
use tokio::time::{sleep, timeout};

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
