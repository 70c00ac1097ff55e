//! What callers are told of limits, what is reserved and settled, who waits and who goes elsewhere.

use super::*;
use futures_util::{StreamExt, future::join_all};
use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};
use tidegate_core::{Money, Operation, Patience, Price, Rates, Reply, Result, TokenEstimate};
use tidegate_engine::Held;
use tidegate_testkit::script::{streaming, within};
use tokio::time::{Instant, sleep};

/// A repeatable draw.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_041);
        (self.0 >> 33) % bound
    }
}

/// What an answer or a refusal says is left of requests and tokens, in whole calls of `each`.
fn left(result: &Result<Reply>, each: u64) -> u64 {
    let told = match result {
        Ok(reply) => reply.served.tenant,
        Err(error) => error.tenant_limits(),
    };
    let requests = told.requests.remaining.unwrap_or(u64::MAX);
    requests.min(told.tokens.remaining.map_or(u64::MAX, |tokens| tokens / each))
}

#[tokio::test(start_paused = true)]
async fn what_callers_are_told_is_what_is_let_in_next() {
    for (algorithm, seed) in ALGORITHMS.into_iter().flat_map(|a| (0..5).map(move |n| (a, n))) {
        // Every scope is the tightest at some time: they are used by different callers.
        let mut options = Options {
            default: rule(algorithm, Limits { tokens_per_minute: Some(900), ..requests(8) }),
            ..Options::default()
        };
        options.callers.insert("ann".into(), rule(algorithm, requests(20)));
        options.teams.insert("crew".into(), rule(algorithm, requests(16)));
        options.models.insert("chat".into(), rule(algorithm, tokens(2_000)));
        let home = scripted("ok usage=60+40", options);
        let hundred = |id| Call { tokens: TokenEstimate { input: 60, output: 40 }, ..by(id) };
        let mut chance = Chance(seed);
        let mut seen = [0; 2];
        for _ in 0..150 {
            sleep(Duration::from_millis(chance.below(12_000))).await;
            let who = ["ann", "bob"][chance.below(2) as usize];
            let result = home.engine.call(hundred(who)).await;
            let told = left(&result, 100);
            // All at once, at the same moment: as many as there are.
            if chance.below(4) == 0 {
                let passed = async {
                    for passed in 0.. {
                        if home.engine.call(hundred(who)).await.is_err() {
                            return passed;
                        }
                    }
                    0
                };
                let passed = passed.await;
                assert!(told.abs_diff(passed) <= 1, "{algorithm:?}: told {told}, {passed} pass");
                seen[usize::from(passed > 1)] += 1;
            }
        }
        assert!(seen[0] > 0, "{algorithm:?}: {seen:?}");
        assert_eq!(home.engine.held(), Held::default());
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_takes_from_no_scope_and_names_the_longest_wait() {
    for algorithm in ALGORITHMS {
        let mut options = Options { default: rule(algorithm, requests(600)), ..Options::default() };
        options.teams.insert("crew".into(), rule(algorithm, requests(600)));
        options.models.insert("chat".into(), rule(algorithm, requests(2)));
        let home = House::new(&[("a", "ok")])
            .parts(|parts| {
                parts.limits = options;
                parts.models.insert("other".into(), parts.models["chat"].clone());
            })
            .open();
        let mut passed = 0;
        while home.engine.call(by("ann")).await.is_ok() {
            passed += 1;
            // As far apart as a leaky bucket of six hundred a minute lets them.
            sleep(Duration::from_millis(100)).await;
        }
        for _ in 0..50 {
            let error = home.engine.call(by("ann")).await.unwrap_err();
            assert!(error.message().contains("of the model `chat`, which all"), "{error}");
            assert!(error.retry_after().unwrap() > Duration::from_secs(20), "{error:?}");
            assert_eq!(error.tenant_limits().requests.remaining, Some(0));
        }
        let other = home.engine.call(Call { model: "other".into(), ..by("ann") }).await.unwrap();
        let told = other.served.tenant.requests;
        let left = match algorithm {
            Algorithm::TokenBucket => 599,
            Algorithm::LeakyBucket => 0,
            Algorithm::FixedWindow | Algorithm::SlidingWindow => 600 - passed - 1,
        };
        assert_eq!((told.limit, told.remaining), (Some(600), Some(left)), "{algorithm:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_upstream_at_its_limit_is_passed_over() {
    let mut options = Options::default();
    options.upstreams.insert("a".into(), rule(Algorithm::FixedWindow, requests(3)));
    let home = House::new(&[("a", "ok"), ("b", "ok")])
        .parts(|parts| {
            parts.limits = options;
            // The second gets a call only where the first does not take it.
            let targets = &mut parts.models.get_mut("chat").unwrap().targets;
            (targets[0].weight, targets[1].weight) = (1_000_000, 1);
        })
        .open();
    for n in 0..10 {
        let reply = home.engine.call(by("ann")).await.unwrap();
        assert_eq!(&*reply.served.upstream, if n < 3 { "a" } else { "b" }, "call {n}");
        assert_eq!(reply.served.attempts, 1, "what was refused was not sent");
        assert_eq!(reply.served.tenant, Default::default(), "an upstream's is not the caller's");
    }
    assert_eq!(home.engine.held(), Held::default());
}

#[tokio::test(start_paused = true)]
async fn batch_rows_wait_for_limits() {
    for (algorithm, scope) in every_algorithm_and_scope() {
        let home = home(scope.options(rule(algorithm, requests(30))));
        let start = Instant::now();
        let rows = (0..60).map(|_| {
            let deadline = within(Duration::from_secs(600));
            home.engine.call(Call { patience: Patience::Free, deadline, ..by("ann") })
        });
        let replies = join_all(rows).await;
        assert!(replies.iter().all(Result::is_ok), "{algorithm:?} {scope:?}");
        let took = start.elapsed().as_secs();
        assert!((59..=121).contains(&took), "{algorithm:?} {scope:?}: {took} s");
        drop(replies);
        assert_eq!(home.engine.held(), Held::default());
    }
    // What no waiting helps is said at once.
    let home = home(Scope::Model.options(rule(Algorithm::default(), tokens(10))));
    let error = home
        .engine
        .call(Call { patience: Patience::Free, ..by("ann") })
        .await
        .map(|_| ())
        .unwrap_err();
    let says = "this call alone is over the limit of 10 tokens per minute of the model `chat`";
    assert!(error.message().starts_with(says), "{error}");
    assert_eq!(error.retry_after(), None);
}

#[tokio::test(start_paused = true)]
async fn money_is_reserved_and_settled_by_what_was_used() {
    let price = Price::flat(Rates::new(Money::from_pico(1_000_000), Money::from_pico(2_000_000)));
    // A call may cost 10 + 2 × 16 = 42 microdollars, and costs 7 + 2 × 3 = 13.
    let hundred = Limits { cost_per_minute: Money::from_usd(100e-6), ..Limits::default() };
    for scope in SCOPES {
        let home = House::new(&[("a", "ok after 10ms usage=7+3")])
            .parts(|parts| {
                parts.limits = scope.options(rule(Algorithm::FixedWindow, hundred));
                let model = parts.models.get_mut("chat").unwrap();
                model.targets[0].price = Some(price);
            })
            .open();
        let both = join_all((0..3).map(|_| home.engine.call(by("ann")))).await;
        assert_eq!(both.iter().filter(|reply| reply.is_ok()).count(), 2, "{scope:?}");
        let error = both.iter().find_map(|reply| reply.as_ref().err()).unwrap();
        let says = error.message().contains("limit of $0.0001 per minute")
            && error.message().contains(scope.name());
        assert!(says, "{error}");
        drop(both);
        assert_eq!(home.engine.held(), Held::default());
        // 26 are spent; those after each other leave 100 - 13 n.
        let mut more = 0;
        while home.engine.call(by("ann")).await.is_ok() {
            more += 1;
        }
        // The fifth leaves 35, and what was learned of prompts makes the next cost 47.
        assert_eq!(more, 3, "{scope:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_ends_a_call_nothing_stays_reserved() {
    for script in [
        "ok",
        "fault",
        "refused",
        "rejected 400",
        "unreachable",
        "slow",
        "stream 3 chunks every 10ms",
        "stream 2 chunks then fault",
        "stream 2 chunks then stall",
    ] {
        let all = Limits { tokens_per_minute: Some(1_000_000), ..requests(1_000_000) };
        let all = Limits { concurrency: Some(100), cost_per_minute: Some(Money::DOLLAR), ..all };
        let mut options =
            Options { default: rule(Algorithm::SlidingWindow, all), ..Options::default() };
        options.teams.insert("crew".into(), rule(Algorithm::TokenBucket, all));
        options.models.insert("chat".into(), rule(Algorithm::FixedWindow, all));
        options.upstreams.insert("a".into(), rule(Algorithm::LeakyBucket, all));
        let home = scripted(script, options);
        for hangs_up in [1, 15, 10_000] {
            let of = || Call { deadline: within(Duration::from_secs(2)), ..by("ann") };
            let streamed =
                Call { tenant: of().tenant, deadline: of().deadline, ..streaming("chat") };
            for call in [of(), streamed] {
                let whole = async {
                    let Ok(mut reply) = home.engine.call(call).await else { return };
                    let held = home.engine.held();
                    assert_eq!(held.tenant_slots, 1, "{script}");
                    while let Some(Ok(_)) = reply.body.next().await {}
                };
                let _ = tokio::time::timeout(Duration::from_millis(hangs_up), whole).await;
                assert_eq!(home.engine.held(), Held::default(), "{script} {hangs_up}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn prompts_are_counted_as_their_model_counts_them() {
    // The front takes the prompt for a quarter of its bytes; the model counts twice as many.
    let limits = Scope::Model.options(rule(Algorithm::FixedWindow, tokens(600)));
    let home = scripted("ok after 100ms usage=30+0", limits);
    let input = by("ann").payload.len().div_ceil(4) as u64;
    assert!((14..=16).contains(&input), "{input}");
    let at_once = || async {
        sleep(Duration::from_secs(61)).await;
        let call = || Call { tokens: TokenEstimate { input, output: 0 }, ..by("ann") };
        // All of them reserve before one is answered.
        let replies = join_all((0..60).map(|_| home.engine.call(call()))).await;
        replies.iter().filter(|reply| reply.is_ok()).count() as u64
    };
    let passed = at_once().await;
    assert_eq!(passed, 600 / input);
    for _ in 0..25 {
        at_once().await;
    }
    let learned = at_once().await;
    assert!((19..=21).contains(&learned), "{learned} of thirty tokens fit into six hundred");
}

#[tokio::test(start_paused = true)]
async fn a_tokenizer_counts_where_one_is_known_and_only_once() {
    static ASKED: AtomicU64 = AtomicU64::new(0);
    /// Thirty, until the third time: bodies may be too long for it.
    fn thirty(operation: Operation, _: &[u8]) -> Option<u64> {
        assert_eq!(operation, Operation::ChatCompletions);
        (ASKED.fetch_add(1, Relaxed) < 2).then_some(30)
    }
    // Room for two prompts of thirty, and one of fifteen.
    let limits = Scope::Model.options(rule(Algorithm::FixedWindow, tokens(75)));
    let home = House::new(&[("a", "ok after 100ms"), ("b", "ok after 100ms")]).parts(|parts| {
        parts.limits = limits;
        parts.tokenizers = Some(|model| (model == "m").then_some(thirty));
    });
    let home = home.open();
    let call = || Call { tokens: TokenEstimate { input: 15, output: 0 }, ..by("ann") };
    let replies = join_all((0..4).map(|_| home.engine.call(call()))).await;
    let passed: Vec<_> = replies.iter().map(|reply| reply.is_ok()).collect();
    assert_eq!(passed, [true, true, true, false]);
    assert_eq!(ASKED.load(Relaxed), 4, "once per call, however many targets there are");
}

#[tokio::test(start_paused = true)]
async fn a_change_of_a_callers_limits_holds_at_once_and_is_no_fresh_start() {
    let home = home(Options::default());
    let with = |limit| {
        let tenant = Tenant { limits: Some(requests(limit)), ..(*by("ann").tenant).clone() };
        Call { tenant: Arc::new(tenant), ..by("ann") }
    };
    let calls = join_all((0..10).map(|_| home.engine.call(with(4)))).await;
    assert_eq!(calls.iter().filter(|reply| reply.is_ok()).count(), 4);
    let calls = join_all((0..10).map(|_| home.engine.call(with(6)))).await;
    assert_eq!(calls.iter().filter(|reply| reply.is_ok()).count(), 2);
    assert!(home.engine.call(with(2)).await.is_err());
}
