//! Who calls, and what callers do: wait, read slowly, hang up in any phase.

use super::{
    dice::Dice,
    plan::{Planned, limits},
    watch::{Over, Watch},
};
use futures_util::StreamExt;
use std::{sync::Arc, time::Duration};
use tidegate_core::{
    Body, Budgets, Call, Limits, Money, Patience, Priority, Scope, Tenant, TokenEstimate,
};
use tidegate_engine::Engine;
use tidegate_testkit::script::{call, streaming, within};
use tokio::time::{sleep, timeout};

/// Draws the calls of one scenario; hedges have to be earned by many.
pub(super) fn calls(dice: &mut Dice, hedged: bool) -> Vec<Planned> {
    let tenants = tenants(dice);
    let count = if hedged { dice.number(25..45) } else { dice.number(4..15) };
    let within_ms = dice.one(&[20, 400, 400, 1_500]);
    // Most scenarios lie within one window of the retry budget, whose bound is exact then.
    let (starts_ms, longest_ms) =
        if dice.chance(0.1) { (20_000, 40_000) } else { (within_ms, 8_000) };
    (0..count).map(|number| planned(dice, number, &tenants, starts_ms, longest_ms)).collect()
}

fn planned(
    dice: &mut Dice,
    number: u32,
    tenants: &[Arc<Tenant>],
    starts_ms: u64,
    longest_ms: u64,
) -> Planned {
    let starts = dice.millis(0..starts_ms);
    let left = match dice.number(0..100) {
        0 => Duration::ZERO,
        1..20 => dice.millis(1..200),
        20..60 => dice.millis(200..2_000),
        _ => dice.millis(2_000..longest_ms),
    };
    let model = match dice.number(0..100) {
        0..85 => "chat",
        85..92 => "small",
        92..97 => "tiny",
        _ => "other",
    };
    let shape = if dice.chance(0.5) { streaming(model) } else { call(model) };
    let canary = dice.chance(0.25).then(|| ("X-Canary".into(), "1".into()));
    let call = Call {
        id: number.to_string().into(),
        tenant: dice.one(tenants),
        priority: dice.one(&[Priority::Interactive, Priority::Default, Priority::Bulk]),
        patience: dice.either(0.25, Patience::Free, Patience::Counted),
        tokens: TokenEstimate {
            input: dice.number(1..60).into(),
            output: dice.number(0..60).into(),
        },
        headers: canary.into_iter().collect(),
        client_retries: dice.one(&[0, 0, 0, 0, 0, 0, 0, 0, 1, 3]),
        deadline: within(starts + left),
        ..shape
    };
    let hangs_up = match dice.number(0..100) {
        0..3 => Some(Duration::ZERO),
        3..15 => Some(dice.millis(0..60)),
        15..30 => Some(dice.millis(0..2_000)),
        _ => None,
    };
    let pauses = if dice.chance(0.1) { dice.millis(1..100) } else { Duration::ZERO };
    let hangs_up_first = hangs_up.is_some_and(|after| !after.is_zero()) && dice.chance(0.6);
    Planned { call, starts, deadline: starts + left, hangs_up, hangs_up_first, pauses }
}

fn tenants(dice: &mut Dice) -> Vec<Arc<Tenant>> {
    let free = Tenant::local();
    let scope = Scope::Models(vec!["chat".into(), "tiny".into()]);
    let mut all = vec![
        Tenant { id: "named".into(), team: Some("crew".into()), ..free.clone() },
        Tenant { id: "scoped".into(), team: Some("crew".into()), scope, ..free.clone() },
        Tenant { id: "by-default".into(), limits: None, ..free.clone() },
        free.clone(),
        free.clone(),
        free.clone(),
    ];
    if dice.chance(0.3) {
        let budgets = budgets(dice);
        all.push(Tenant { id: "frugal".into(), budgets, ..free.clone() });
    }
    if dice.chance(0.5) {
        all.push(Tenant { id: "limited".into(), limits: Some(limits(dice)), ..free.clone() });
        all.push(Tenant { id: "lonely".into(), limits: Some(lonely()), ..free });
    }
    all.into_iter().map(Arc::new).collect()
}

/// Enough for a few calls, which cost some cents each.
fn budgets(dice: &mut Dice) -> Budgets {
    let day = Money::from_pico(u64::from(dice.number(1..60)) * 10_000_000_000);
    Budgets { day: Some(day), hard: dice.chance(0.5), ..Budgets::default() }
}

fn lonely() -> Limits {
    Limits { concurrency: Some(1), ..Limits::default() }
}

/// Makes the call and reads its answer, unless the caller hangs up before.
pub(super) async fn make(number: usize, engine: &Engine, planned: &Planned, watch: &Watch) {
    sleep(planned.starts).await;
    watch.called(number);
    let whole = async {
        match engine.call(planned.call.clone()).await {
            Err(error) => watch.over(number, Over::Refused(&error)),
            Ok(reply) => {
                watch.replied(number, &reply);
                read(number, reply.body, planned.pauses, watch).await;
            }
        }
    };
    match planned.hangs_up {
        None => return whole.await,
        Some(after) if planned.hangs_up_first => {
            tokio::select! {
                biased;
                () = sleep(after) => {}
                () = whole => return,
            }
        }
        Some(after) => {
            if timeout(after, whole).await.is_ok() {
                return;
            }
        }
    }
    watch.over(number, Over::HungUp);
}

async fn read(number: usize, mut body: Body, pauses: Duration, watch: &Watch) {
    loop {
        match body.next().await {
            Some(Ok(_)) => watch.chunk(number),
            // The body is still there: what it held is not.
            None => return watch.over(number, Over::Answered),
            Some(Err(error)) => {
                drop(body);
                return watch.over(number, Over::Broken(&error));
            }
        }
        if !pauses.is_zero() {
            sleep(pauses).await;
        }
    }
}
