//! A server that stalls cannot hide it.
//!
//! The server answers in 10 ms, but for one request that takes 2 s; it takes one at a time. Over
//! 10 s at 50 requests per second, users who come during those 2 s, or before the queue they made
//! is gone, wait too: two fifths of all. Whoever only looks at how long requests took once they were sent sees one slow
//! request in five hundred.

use super::*;
use tidegate_bench::Summary;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

const ANSWER: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";

/// Answers in 10 ms, and request 100 in 2 s.
async fn serve(mut socket: DuplexStream) {
    let mut buffer = vec![0; 64 * 1024];
    let mut number = 0;
    while let Ok(1..) = socket.read(&mut buffer).await {
        number += 1;
        let wait = if number == 100 { 2000 } else { 10 };
        tokio::time::sleep(Duration::from_millis(wait)).await;
        socket.write_all(ANSWER.as_bytes()).await.unwrap();
    }
}

async fn measured(load: Load) -> Report {
    let target = Target::local(|| {
        let (near, far) = tokio::io::duplex(64 * 1024);
        tokio::spawn(serve(far));
        near
    });
    let mut options = options(target, load, false);
    options.duration = Duration::from_secs(10);
    ran(options).await
}

fn at(times: &Option<Summary>) -> [f64; 4] {
    let times = times.as_ref().unwrap();
    [times.p50_ms, times.p90_ms, times.p99_ms, times.max_ms].map(f64::round)
}

#[tokio::test(start_paused = true)]
async fn waiting_for_a_stalled_server_counts() {
    let arrivals = Arrivals::Uniform;
    let report = measured(Load::Paced { per_second: 50.0, arrivals, workers: 1 }).await;
    assert_eq!((report.requests.ok, report.requests.dropped), (500, 0));
    let service = at(&report.latency.service);
    assert!(service[2] <= 12.0 && service[3] >= 2000.0, "one in 500 was slow: {service:?}");
    // Of those due in the stall and the time to catch up, each waits 10 ms less than the one
    // before: some 200 of 500 wait between 0 and 2 s.
    let corrected = at(&report.latency.total);
    assert!((1480.0..1520.0).contains(&corrected[1]), "{corrected:?}");
    assert!((1850.0..2010.0).contains(&corrected[2]), "{corrected:?}");
    assert_eq!(report.latency.lag.as_ref().unwrap().count, 500);
}

#[tokio::test(start_paused = true)]
async fn a_closed_loop_does_not_see_it() {
    let report = measured(closed(1)).await;
    let total = at(&report.latency.total);
    assert!(total[2] <= 12.0 && total[3] >= 2000.0, "{total:?}");
    assert_eq!(report.rates.offered, None);
    assert!(report.to_text().contains("closed loop"));
}

#[tokio::test(start_paused = true)]
async fn an_open_loop_sends_on() {
    // One connection stalls; the others are new ones, on which no request is the hundredth.
    let report = measured(open(50.0)).await;
    assert_eq!((report.requests.ok, report.requests.peak_in_flight), (500, 2));
    let [total, service] = [&report.latency.total, &report.latency.service].map(at);
    assert!(total[2] <= 13.0 && total[3] >= 2000.0 && service[3] >= 2000.0, "{total:?}");
}

#[tokio::test(start_paused = true)]
async fn what_still_waits_at_the_end_was_dropped() {
    let arrivals = Arrivals::Uniform;
    let report = measured(Load::Paced { per_second: 400.0, arrivals, workers: 1 }).await;
    // 10 ms each: 100 a second, less the stall, and two seconds of grace.
    assert!((900..=1030).contains(&report.requests.ok), "{:?}", report.requests);
    assert_eq!(report.requests.ok + report.requests.dropped, 4000);
    assert!(report.warnings[0].contains("--concurrency"), "{:?}", report.warnings);
}
