//! The assembly over the simulated model server: no sockets, virtual time.
#![expect(clippy::unwrap_used, reason = "what a test rests on may panic")]

use futures_util::{StreamExt, stream};
use std::{sync::Arc, time::Duration};
use tidegate_core::{Call, Patience};
use tidegate_policy::{concurrency, rate_limit::Algorithm};
use tidegate_sdk::{
    Client, LimitSettings, LimitsSettings, ModelSettings, Operation, Protocol, Settings,
    TargetSettings, UpstreamSettings, blocking,
};
use tidegate_sim::{Faults, Options, Sim};
use tidegate_testkit::script::{call, within};
use tokio::time::Instant;

fn settings(change: impl FnOnce(&mut UpstreamSettings)) -> Settings {
    let mut upstream = UpstreamSettings { protocol: Protocol::Sim, ..UpstreamSettings::default() };
    change(&mut upstream);
    let target = TargetSettings {
        upstream: "sim".into(),
        model: None,
        price: None,
        weight: 1,
        matches: None,
    };
    let mut settings = Settings::default();
    settings.upstreams.insert("sim".into(), upstream);
    settings
        .models
        .insert("sim-small".into(), ModelSettings { targets: vec![target], ..Default::default() });
    settings
}

fn client(sim: &Arc<Sim>, settings: Settings) -> Client {
    let sim = sim.clone();
    let simulator = Arc::new(move || sim.connect());
    Client::builder().settings(settings).simulator(simulator).seed(7).build().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_call_is_answered_as_json() {
    let client = client(&Sim::new(Options::default()), settings(|_| ()));
    let body = serde_json::json!({
        "model": "sim-small",
        "messages": [{ "role": "user", "content": "hello" }],
    });
    let answer = client.json(Operation::ChatCompletions, &body).await.unwrap();
    assert_eq!(answer["object"], "chat.completion");
    let error = client.json(Operation::ChatCompletions, &serde_json::json!({})).await.unwrap_err();
    assert_eq!(error.param(), Some("model"));
}

#[test]
fn threads_without_a_runtime_have_a_client_too() {
    let sim = Sim::new(Options::default());
    let builder = Client::builder().settings(settings(|_| ()));
    let client = blocking::Client::new(builder.simulator(Arc::new(move || sim.connect()))).unwrap();
    std::thread::scope(|threads| {
        for n in 0..4 {
            let client = &client;
            threads.spawn(move || {
                let body =
                    serde_json::json!({ "model": "sim-small", "input": format!("text {n}") });
                let answer = client.json(Operation::Embeddings, &body).unwrap();
                assert_eq!(answer["object"], "list");
            });
        }
    });
}

#[tokio::test(start_paused = true)]
async fn a_timeout_without_end_is_none() {
    let client = client(&Sim::new(Options::default()), settings(|_| ()));
    let client = client.with_timeout(Duration::MAX);
    let body = serde_json::json!({ "model": "sim-small", "input": "text" });
    client.json(Operation::Embeddings, &body).await.unwrap();
}

#[test]
fn a_rate_nothing_can_pass_is_named() {
    for rate in [0.0, -1.0, f64::NAN] {
        let broken = settings(|upstream| upstream.requests_per_minute = Some(rate));
        let sim = Sim::new(Options::default());
        let simulator = Arc::new(move || sim.connect());
        let built = Client::builder().settings(broken).simulator(simulator).build();
        let error = built.err().unwrap().to_string();
        assert!(error.contains("upstreams.sim.requests_per_minute"), "{error}");
    }
}

#[test]
fn a_limit_nothing_can_pass_is_named() {
    let limits = |change: fn(&mut LimitSettings)| {
        let mut broken = settings(|_| ());
        change(broken.limits.models.entry("sim-small".into()).or_default());
        let sim = Sim::new(Options::default());
        let simulator = Arc::new(move || sim.connect());
        let built = Client::builder().settings(broken).simulator(simulator).build();
        built.map(|_| ()).map_err(|error| error.to_string())
    };
    assert_eq!(limits(|limits| limits.cost_per_minute = Some(0.5)), Ok(()));
    let none = limits(|limits| limits.concurrency = Some(0)).unwrap_err();
    assert!(none.starts_with("limits.models.sim-small.concurrency: 0 would"), "{none}");
    for usd in [0.0, -1.0, f64::NAN, 1e9] {
        let mut written = LimitSettings { cost_per_minute: Some(usd), ..Default::default() };
        assert_eq!(written.problems()[0].0, "cost_per_minute", "{usd}");
        written.burst = Some(Duration::ZERO);
        assert_eq!(written.problems().len(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn limits_are_kept_as_they_are_written() {
    let settings = |change: fn(&mut LimitsSettings)| {
        let at_once = |upstream: &mut UpstreamSettings| {
            upstream.max_concurrency = concurrency::Options::Fixed(100);
        };
        let mut settings = settings(at_once);
        change(&mut settings.limits);
        settings
    };
    for (settings, expected) in [
        (
            settings(|limits| {
                let written = LimitSettings { requests_per_minute: Some(60), ..Default::default() };
                limits.models.insert("sim-small".into(), written);
            }),
            60,
        ),
        (
            settings(|limits| {
                let written = LimitSettings {
                    requests_per_minute: Some(60),
                    burst: Some(Duration::from_secs(5)),
                    ..Default::default()
                };
                limits.upstreams.insert("sim".into(), written);
            }),
            5,
        ),
        (
            settings(|limits| {
                let written = LimitSettings {
                    requests_per_minute: Some(60),
                    algorithm: Algorithm::LeakyBucket,
                    ..Default::default()
                };
                // It comes before the local caller's own, which has no limits.
                limits.callers.insert("local".into(), written);
            }),
            1,
        ),
    ] {
        let client = client(&Sim::new(Options::default()), settings);
        let body = serde_json::json!({ "model": "sim-small", "input": "text" });
        let calls = (0..100).map(|_| client.json(Operation::Embeddings, &body));
        let answers = futures_util::future::join_all(calls).await;
        let passed = answers.iter().filter(|answer| answer.is_ok()).count();
        assert_eq!(passed, expected);
    }
}

#[test]
fn what_does_not_fit_together_is_named() {
    let mut broken = settings(|_| ());
    broken.models.get_mut("sim-small").unwrap().targets[0].upstream = "gone".into();
    let error = Client::builder().settings(broken).build().err().unwrap();
    assert!(error.to_string().contains("sim"), "{error}");
}

/// Calls 2,000 rows as a batch does against a hidden rate; calls per row, time against the ideal.
async fn meet(rate: u32, change: impl FnOnce(&mut UpstreamSettings)) -> (f64, f64) {
    let faults = Faults { rate: Some(f64::from(rate)), ..Faults::default() };
    let sim = Sim::new(Options {
        ttft: "50ms".parse().unwrap(),
        itl: "0ms".parse().unwrap(),
        slots: 1000,
        faults,
        ..Options::default()
    });
    let answer = client(&sim, settings(change)).answer();
    let started = Instant::now();
    let rows = stream::iter(0..2000).map(|n| {
        let row = Call {
            id: format!("row-{n}").into(),
            patience: Patience::Free,
            deadline: within(Duration::from_secs(600)),
            ..call("sim-small")
        };
        answer.call(row)
    });
    let lost = rows
        .buffer_unordered(1024)
        .filter(|reply| std::future::ready(reply.is_err()))
        .count()
        .await;
    assert_eq!(lost, 0, "rows lost");
    let calls = sim.totals().requests as f64 / 2000.0;
    let ideal = (2000.0 - f64::from(rate)) / f64::from(rate);
    (calls, started.elapsed().as_secs_f64() / ideal)
}

#[track_caller]
fn within_bounds((calls, time): (f64, f64)) {
    assert!(calls <= 1.05 && time <= 1.1, "{calls:.3} x calls, {time:.3} x ideal time");
}

#[tokio::test(start_paused = true)]
async fn a_hidden_limit_is_met_without_being_told() {
    for rate in [40, 100] {
        within_bounds(meet(rate, |_| ()).await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_told_limit_is_kept() {
    for rate in [40, 100] {
        let told = |upstream: &mut UpstreamSettings| {
            upstream.requests_per_minute = Some(f64::from(rate) * 60.0);
        };
        within_bounds(meet(rate, told).await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_fixed_concurrency_meets_a_hidden_limit_too() {
    let fixed = |upstream: &mut UpstreamSettings| {
        upstream.max_concurrency = concurrency::Options::Fixed(50);
    };
    within_bounds(meet(100, fixed).await);
}

#[tokio::test(start_paused = true)]
async fn openais_models_are_counted_by_their_own_tokenizer_where_it_is_compiled_in() {
    let mut settings = settings(|_| ());
    let mut model = settings.models["sim-small"].clone();
    model.targets[0].model = Some("text-embedding-3-small".into());
    settings.models.insert("embed".into(), model);
    let few = LimitSettings { tokens_per_minute: Some(150), ..LimitSettings::default() };
    settings.limits.models.insert("embed".into(), few);
    // A hundred long words: a token each, and three by their bytes.
    let body = serde_json::json!({ "model": "embed", "input": "information ".repeat(100) });
    let client = client(&Sim::new(Options::default()), settings);
    let answered = client.json(Operation::Embeddings, &body).await;
    assert_eq!(answered.is_ok(), cfg!(feature = "tokens-exact"), "{answered:?}");
}
