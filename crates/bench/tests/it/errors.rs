//! Every way a request can fail has its class.

use super::*;
use tidegate_core::Secret;

const N: u64 = 40;

/// All of the requests meet the fault, and nothing else.
async fn check(faults: Faults, stream: bool, class: &str) -> Report {
    let sim = faulty(faults);
    let report = answered(&sim, closed(4), stream, N).await;
    assert_eq!(count(&report, class), N, "{class}: {:?} {:?}", report.classes, report.samples);
    assert_eq!((report.requests.failed, report.requests.ok), (N, 0));
    assert_eq!(report.classes.values().sum::<u64>(), N);
    assert!(sim.totals().requests >= N);
    report
}

fn status(error_status: u16) -> Faults {
    Faults { error_rate: 1.0, error_status, ..Faults::default() }
}

#[tokio::test]
async fn refusals_have_times_of_their_own() {
    for (code, class) in [(429, "429"), (503, "503"), (529, "503")] {
        let report = check(status(code), false, class).await;
        assert_eq!(report.refusals.count, N);
        assert_eq!(report.latency.refusal.as_ref().unwrap().count, N);
        assert!(report.latency.total.is_none() && report.latency.failure.is_none());
        assert!(report.samples[0].message.starts_with(&format!("status {code}: ")));
    }
    let sim = faulty(Faults { rate: Some(0.001), burst: Some(1), ..Faults::default() });
    let report = answered(&sim, closed(1), false, N).await;
    assert_eq!((count(&report, "ok"), count(&report, "429")), (1, N - 1));
    assert_eq!(report.refusals.with_retry_after, N - 1);
}

#[tokio::test]
async fn other_statuses() {
    check(status(404), true, "4xx").await;
    check(status(500), true, "5xx").await;
}

#[tokio::test]
async fn connections_that_break() {
    check(Faults { reset_rate: 1.0, ..Faults::default() }, false, "reset").await;
    check(Faults { truncate_rate: 1.0, ..Faults::default() }, false, "truncated").await;
    check(Faults { truncate_rate: 1.0, ..Faults::default() }, true, "truncated").await;
}

#[tokio::test]
async fn streams_that_go_wrong() {
    check(Faults { unterminated_rate: 1.0, ..Faults::default() }, true, "truncated").await;
    check(Faults { error_event_rate: 1.0, ..Faults::default() }, true, "stream_error").await;
    check(Faults { malformed_rate: 1.0, ..Faults::default() }, true, "invalid").await;
    check(Faults { malformed_rate: 1.0, ..Faults::default() }, false, "invalid").await;
}

#[tokio::test(start_paused = true)]
async fn silence_is_a_timeout() {
    for faults in [
        Faults { stall_rate: 1.0, ..Faults::default() },
        Faults { stall_mid_rate: 1.0, ..Faults::default() },
    ] {
        let sim = faulty(faults.clone());
        let options = Options { requests: Some(N), ..options(local(&sim), closed(4), true) };
        let report = ran(options).await;
        assert_eq!(count(&report, "timeout"), N, "{:?}", report.samples);
        assert!(report.warnings[0].contains("--timeout 20 s"), "{:?}", report.warnings);
        // One kind of silence has begun to speak.
        assert_eq!(report.has_answers(), faults.stall_mid_rate > 0.0);
        let failure = report.latency.failure.as_ref().unwrap();
        assert!((19_990.0..20_050.0).contains(&failure.p50_ms), "{failure:?}");
        assert_eq!(sim.totals().requests, N);
    }
}

#[tokio::test]
async fn shares_add_up() {
    let sim = faulty(Faults {
        error_rate: 0.2,
        error_status: 503,
        reset_rate: 0.1,
        truncate_rate: 0.1,
        ..Faults::default()
    });
    let report = answered(&sim, open(2000.0), true, 500).await;
    let seen = sim.totals();
    assert_eq!(report.requests.measured, 500);
    assert_eq!(count(&report, "ok"), seen.ok);
    assert_eq!(count(&report, "503"), seen.by_status[&503]);
    assert_eq!(count(&report, "reset"), seen.by_status[&0]);
    assert_eq!(count(&report, "truncated"), seen.by_status[&200] - seen.ok);
    assert!(report.has_answers() && (0.3..0.5).contains(&report.error_share()));
}

#[tokio::test]
async fn nobody_there() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let options = options(Target::parse(&url).unwrap(), closed(1), false);
    let refused = run(options, CancellationToken::new(), |_| ()).await;
    assert!(matches!(&refused, Err(Error::Unreachable(why)) if why.contains(&url)), "{refused:?}");
}

#[tokio::test]
async fn the_key_is_sent_and_never_shown() {
    let key = || Secret::new("canary-key".to_owned());
    for (api_key, class) in [(key(), "ok"), (Secret::new("other".to_owned()), "4xx")] {
        let sim = faulty(Faults { api_key: Some(api_key), ..Faults::default() });
        let target = Target::parse(&format!("http://{}", listen(&sim).await)).unwrap();
        let report = ran(Options {
            headers: Headers::new().with_key(key()).unwrap(),
            requests: Some(3),
            ..options(target, closed(1), false)
        })
        .await;
        assert_eq!(count(&report, class), 3);
        assert!(!report.to_json().contains("canary") && !report.to_html().contains("canary"));
    }
}

#[tokio::test]
async fn options_that_cannot_be_say_which() {
    let sim = Sim::new(sim_options());
    let good = || options(local(&sim), closed(1), false);
    for (bad, says) in [
        (Options { load: open(0.0), ..good() }, "--rate"),
        (Options { load: closed(0), ..good() }, "--concurrency"),
        (Options { model: String::new(), ..good() }, "--model"),
        (Options { duration: Duration::ZERO, ..good() }, "--duration"),
        (Options { timeout: Duration::ZERO, ..good() }, "--timeout"),
        (Options { requests: Some(0), ..good() }, "--requests"),
        (Options { slo: Some("ttft=1s".parse().unwrap()), ..good() }, "--stream"),
        (Options { stream: true, operation: Operation::Embeddings, ..good() }, "--stream"),
    ] {
        let refused = run(bad, CancellationToken::new(), |_| ()).await;
        assert!(matches!(&refused, Err(Error::Invalid(why)) if why.contains(says)), "{refused:?}");
    }
}
