//! What the generator counts is what the server saw.

use super::*;
use tidegate_bench::{Phase, discover_model};

#[tokio::test]
async fn a_closed_loop_agrees_with_the_ledger() {
    for stream in [false, true] {
        let sim = Sim::new(sim_options());
        let report = answered(&sim, closed(8), stream, 200).await;
        let seen = sim.totals();
        assert_eq!((report.requests.measured, report.requests.ok), (200, 200));
        assert_eq!((seen.requests, seen.ok, seen.in_flight), (200, 200, 0));
        assert_eq!(seen.peak_in_flight, report.requests.peak_in_flight);
        assert!(report.requests.peak_in_flight <= 8);
        assert_eq!(report.tokens.output, seen.completion_tokens);
        assert_eq!(report.tokens.input, seen.prompt_tokens);
        assert_eq!(report.tokens.answers_without_usage, 0);
        let received = report.rates.bytes_received * report.elapsed_s;
        assert_eq!(received.round() as u64, seen.bytes_out);
        let sent = report.rates.bytes_sent * report.elapsed_s;
        assert_eq!(sent.round() as u64, seen.bytes_in);
        assert_eq!(report.latency.first_token.is_some(), stream);
        // One connection per request at once, used again and again.
        assert!(report.latency.connect.as_ref().is_none_or(|connect| connect.count <= 8));
        assert!(report.warnings.is_empty(), "{:?}", report.warnings);
    }
}

#[tokio::test]
async fn an_open_loop_agrees_with_the_ledger() {
    let sim = Sim::new(sim_options());
    let target = Target::parse(&format!("http://{}", listen(&sim).await)).unwrap();
    let load = Load::Open { per_second: 400.0, arrivals: Arrivals::Poisson, max_in_flight: 1000 };
    let warmup = Duration::from_millis(200);
    let options = Options { requests: Some(300), warmup, ..options(target, load, true) };
    let report = ran(options).await;
    let Report { requests, .. } = &report;
    assert_eq!((requests.measured, requests.ok, requests.dropped), (300, 300, 0));
    assert!(requests.warmup > 0);
    assert_eq!(sim.totals().requests, 300 + requests.warmup);
    assert_eq!(report.series.iter().map(|second| second.offered).sum::<u64>(), 300);
    // Whenever they were answered: all were.
    assert!(
        report.series.iter().all(|second| second.kept == second.offered),
        "{:?}",
        report.series
    );
}

#[tokio::test]
async fn http2_agrees_with_the_ledger() {
    for (stream, load) in [(false, closed(8)), (true, open(2000.0))] {
        let sim = Sim::new(sim_options());
        let target = Target::parse(&format!("http://{}", listen(&sim).await)).unwrap();
        let target = target.with_http2();
        let options = Options { requests: Some(250), ..options(target, load, stream) };
        let report = ran(options).await;
        let seen = sim.totals();
        assert_eq!((report.requests.ok, seen.ok, seen.requests), (250, 250, 250));
        assert_eq!(report.tokens.output, seen.completion_tokens);
        assert_eq!(report.setup.protocol, "h2");
        // A hundred in flight share a connection; the first was opened before the run.
        let connects = report.latency.connect.map_or(0, |times| times.count);
        assert!(connects <= (report.requests.peak_in_flight - 1) / 100, "{connects}");
    }
}

#[tokio::test]
async fn more_streams_than_a_connection_takes_open_another() {
    let sim = Sim::new(SimOptions { ttft: fixed(300), slots: 1000, ..sim_options() });
    let target = Target::parse(&format!("http://{}", listen(&sim).await)).unwrap().with_http2();
    let options = Options { requests: Some(250), ..options(target, closed(250), false) };
    let report = ran(options).await;
    assert_eq!((report.requests.ok, sim.totals().peak_in_flight), (250, 250));
    assert_eq!(report.latency.connect.unwrap().count, 2, "100 streams on each of three");
}

#[tokio::test(start_paused = true)]
async fn every_endpoint_answers() {
    for (operation, stream) in [
        (Operation::ChatCompletions, true),
        (Operation::Completions, true),
        (Operation::Responses, true),
        (Operation::Responses, false),
        (Operation::Embeddings, false),
    ] {
        let sim = Sim::new(sim_options());
        let shape = Shape { operation, ..shape(stream) };
        let report = ran(Options {
            operation,
            bodies: Bodies::prompt("a wave", &shape),
            requests: Some(10),
            ..options(local(&sim), closed(2), stream)
        })
        .await;
        assert_eq!(report.requests.ok, 10, "{operation:?}: {:?}", report.samples);
        assert_eq!(report.tokens.answers_without_usage, 0, "{operation:?}");
        let tokens = report.latency.first_token.map_or(0, |times| times.count);
        assert_eq!(tokens, if stream { 10 } else { 0 }, "{operation:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn times_are_those_of_the_server() {
    let sim = Sim::new(sim_options());
    let slo = "ttft=25ms,tpot=2ms".parse().unwrap();
    let report = ran(Options {
        duration: Duration::from_secs(10),
        slo: Some(slo),
        ..options(local(&sim), open(20.0), true)
    })
    .await;
    assert_eq!((report.requests.ok, report.requests.within_slo), (200, 200));
    assert_eq!(report.rates.goodput, Some(20.0));
    let near = |times: &Option<tidegate_bench::Summary>, millis: f64| {
        let times = times.as_ref().unwrap();
        assert!((times.p50_ms - millis).abs() <= 2.0 && times.max_ms <= millis + 4.0, "{times:?}");
    };
    near(&report.latency.first_token, 20.0);
    near(&report.latency.inter_token, 1.0);
    near(&report.latency.per_output_token, 1.0);
    assert_eq!(report.rates.offered, Some(20.0));
    assert_eq!(report.series.len(), 10);
}

#[tokio::test(start_paused = true)]
async fn what_is_beyond_the_bound_is_dropped_and_told() {
    let sim = Sim::new(SimOptions { ttft: fixed(10_000), ..sim_options() });
    let load = Load::Open { per_second: 10.0, arrivals: Arrivals::Uniform, max_in_flight: 5 };
    let report =
        ran(Options { duration: Duration::from_secs(5), ..options(local(&sim), load, false) })
            .await;
    assert_eq!((report.requests.ok, report.requests.dropped), (5, 45));
    assert_eq!((sim.totals().requests, sim.totals().peak_in_flight), (5, 5));
    let warning = &report.warnings[0];
    assert!(warning.contains("45 of 50 requests were DROPPED"), "{warning}");
    assert!(warning.contains("--max-in-flight"), "{warning}");
}

#[tokio::test(start_paused = true)]
async fn rates_that_miss_slow_answers_say_so() {
    let sim = Sim::new(SimOptions { ttft: fixed(4000), ..sim_options() });
    let load =
        || Options { duration: Duration::from_secs(10), ..options(local(&sim), closed(2), false) };
    let cold = ran(load()).await;
    // Those that end in the 12th second began in the window.
    assert_eq!((cold.requests.ok, cold.rates.ok), (6, 0.4));
    assert!(cold.warnings[0].contains("--warmup 7s"), "{:?}", cold.warnings);
    // In every second of it two were in flight, though none was sent in most.
    assert!(cold.series[..10].iter().all(|second| second.in_flight == 2), "{:?}", cold.series);
    let warm = ran(Options { warmup: Duration::from_secs(6), ..load() }).await;
    assert!(warm.warnings.is_empty(), "{:?}", warm.warnings);
}

#[tokio::test(start_paused = true)]
async fn a_stopped_run_reports_what_it_saw() {
    let sim = Sim::new(SimOptions { ttft: fixed(8000), slots: 4, ..sim_options() });
    let stop = CancellationToken::new();
    let mut phases = Vec::new();
    let on_tick = |at: &tidegate_bench::Snapshot| {
        phases.push(at.phase);
        if at.elapsed > Duration::from_secs(30) {
            stop.cancel();
        }
    };
    let report = run(options(local(&sim), closed(8), false), stop.clone(), on_tick).await.unwrap();
    assert!(report.ended_early && report.requests.ok >= 8);
    // 30.25 s in, requests of 8 s: none of those in flight ends within the grace of 2 s but the
    // four whose turn ends at 32 s.
    assert_eq!(report.requests.unfinished, 4);
    assert!((30.0..31.0).contains(&report.elapsed_s));
    assert_eq!((phases[0], *phases.last().unwrap()), (Phase::Window, Phase::Drain));
}

#[tokio::test]
async fn models_are_asked_for() {
    let sim = Sim::new(sim_options());
    let mut target = Target::parse(&format!("http://{}/v1", listen(&sim).await)).unwrap();
    let model = discover_model(&mut target, &Headers::new()).await;
    assert_eq!(model, Ok("sim-small".into()));
}
