//! Why a job stops early, and that the same command goes on.

use crate::{
    invariants::check,
    stub::{Bench, Step, upstream},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tidegate_batch::{End, MaxErrors};
use tidegate_core::{Clock, Kind, UpstreamState};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Runs the job once more with an engine that answers everything.
async fn goes_on(bench: &mut Bench, left: usize) {
    bench.stop = CancellationToken::new();
    let stub = bench.stub(|_, _| Step::Echo);
    let finished = bench.run(bench.job(), &stub).await.unwrap();
    assert_eq!((finished.exit_code(), stub.count()), (0, left));
    check(bench, &finished, &stub, finished.summary.rows as usize, 0, 0);
}

#[tokio::test(start_paused = true)]
async fn a_refused_credential_stops_the_job() {
    for kind in [Kind::UpstreamCredential, Kind::UpstreamQuota] {
        let mut bench = Bench::lines(40);
        let stub = bench.stub(move |prompt, _| match prompt {
            "p0" | "p1" => Step::Echo,
            _ => Step::Fail(kind),
        });
        let mut job = bench.job();
        job.concurrency = Some(4);
        let finished = bench.run(job, &stub).await.unwrap();
        assert_eq!(finished.exit_code(), 4);
        assert!(matches!(&finished.end, End::Refused(why) if why.contains("said")));
        assert!(stub.count() < 12, "{} calls", stub.count());
        assert_eq!((finished.summary.ok, finished.summary.failed), (2, 0));
        assert!(!bench.path("data.out.jsonl").exists());
        goes_on(&mut bench, 38).await;
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_answers() {
    for rows in [3, 50] {
        let mut bench = Bench::lines(rows);
        let stub = bench.stub(|_, _| Step::Fail(Kind::Unavailable));
        let mut job = bench.job();
        job.concurrency = Some(2);
        let finished = bench.run(job, &stub).await.unwrap();
        assert_eq!(finished.exit_code(), 6);
        assert!(matches!(&finished.end, End::Unreachable(why) if why.contains("Unavailable")));
        assert!(stub.count() <= 7);
        assert_eq!(finished.summary.failed, 0);
        goes_on(&mut bench, rows).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_few_rows_find_out_whether_anybody_answers() {
    let bench = Bench::lines(50);
    let stub = bench.stub(|_, _| Step::Fail(Kind::Unavailable));
    *stub.tells.lock().unwrap() = vec![upstream(0)];
    assert_eq!(bench.run(bench.job(), &stub).await.unwrap().exit_code(), 6);
    assert_eq!(stub.count(), 2);

    // An attempt that stays in flight has reached somebody: the others follow before its answer.
    let stub = bench.stub(|prompt, _| match prompt {
        "p0" | "p1" => Step::Hang,
        _ => Step::Echo,
    });
    *stub.tells.lock().unwrap() = vec![upstream(2)];
    let finished = bench.run(bench.job(), &stub).await.unwrap();
    assert_eq!((finished.summary.ok, finished.summary.failed), (48, 2));
}

#[tokio::test(start_paused = true)]
async fn a_row_nobody_answers_goes_again_when_others_are_answered() {
    let bench = Bench::lines(10);
    let stub = bench.stub(|prompt, nth| match (prompt, nth) {
        ("p1", 0) | ("p2", _) => Step::Fail(Kind::Unavailable),
        _ => Step::Echo,
    });
    let finished = bench.run(bench.job(), &stub).await.unwrap();
    assert_eq!((finished.summary.ok, finished.summary.failed), (9, 1));
    assert_eq!(stub.count(), 12);
    assert_eq!(bench.rows("data.out.jsonl")[2]["error"]["class"], "fault");
}

#[tokio::test(start_paused = true)]
async fn rows_are_left_and_not_failed_when_the_server_dies() {
    for kind in [Kind::Unavailable, Kind::UpstreamTimeout(Clock::Connect)] {
        let mut bench = Bench::lines(40);
        let answered = Arc::new(AtomicUsize::new(0));
        let stub = bench.stub(move |_, _| match answered.fetch_add(1, Ordering::Relaxed) {
            0..20 => Step::Echo,
            _ => Step::Fail(kind),
        });
        let mut job = bench.job();
        job.concurrency = Some(4);
        let finished = bench.run(job, &stub).await.unwrap();
        assert_eq!((finished.exit_code(), finished.summary.failed), (6, 0));
        assert_eq!((finished.summary.ok, finished.summary.left), (20, 20));
        // Each had a second chance.
        assert_eq!(stub.count(), 60);
        goes_on(&mut bench, 20).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_falls_silent_stops_the_job_though_no_row_comes_back() {
    let mut bench = Bench::lines(40);
    let stub = bench.stub(|prompt, _| match prompt {
        "p0" | "p1" | "p2" => Step::Echo,
        _ => Step::Hang,
    });
    let tells = async {
        for attempts in 0.. {
            *stub.tells.lock().unwrap() = vec![UpstreamState { attempts, ..upstream(0) }];
            tokio::time::sleep(Duration::from_millis(700)).await;
        }
    };
    let mut job = bench.job();
    job.concurrency = Some(8);
    let started = Instant::now();
    let finished = tokio::select! {
        finished = bench.run(job, &stub) => finished.unwrap(),
        () = tells => unreachable!("it tells for ever"),
    };
    assert!(started.elapsed() < Duration::from_secs(60));
    assert_eq!((finished.exit_code(), finished.summary.failed), (6, 0));
    let ok = finished.summary.ok as usize;
    goes_on(&mut bench, 40 - ok).await;
}

#[tokio::test(start_paused = true)]
async fn an_interrupt_finishes_what_is_in_flight() {
    let mut bench = Bench::lines(40);
    let stub = bench.stub(|_, _| Step::Echo);
    let mut job = bench.job();
    (job.concurrency, job.arguments) = (Some(8), vec!["batch".into(), "my data.jsonl".into()]);
    let stop = bench.stop.clone();
    let interrupt = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        stop.cancel();
    };
    let (finished, ()) = tokio::join!(bench.run(job, &stub), interrupt);
    let finished = finished.unwrap();
    assert_eq!((finished.exit_code(), finished.summary.ok, stub.count()), (130, 8, 8));
    assert_eq!(finished.resume, "tidegate batch 'my data.jsonl'");
    // No output was written, and none is told of.
    assert_eq!(finished.summary.output, None);
    assert!(!finished.summary.to_string().contains("data.out.jsonl"));
    goes_on(&mut bench, 32).await;
}

#[tokio::test(start_paused = true)]
async fn a_deadline_leaves_the_rest_for_later() {
    let mut bench = Bench::lines(6);
    let stub = bench.stub(|prompt, _| match prompt {
        "p0" | "p1" => Step::Echo,
        _ => Step::Hang,
    });
    let mut job = bench.job();
    (job.concurrency, job.deadline) = (Some(3), Some(Duration::from_secs(5)));
    let finished = bench.run(job, &stub).await.unwrap();
    assert_eq!((finished.exit_code(), &finished.end), (5, &End::Deadline));
    // What was answered is there to use; what was not is marked, not failed.
    let rows = bench.rows("data.out.jsonl");
    assert_eq!((rows.len(), &rows[5]["status"]), (6, &"skipped".into()));
    assert_eq!(rows[5]["custom_id"], "r5");
    assert!(!bench.path("data.errors.jsonl").exists());
    goes_on(&mut bench, 4).await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_row_fails_by_its_own_timeout() {
    let bench = Bench::lines(2);
    let stub = bench.stub(|prompt, _| match prompt {
        "p0" => Step::Hang,
        _ => Step::Echo,
    });
    let mut job = bench.job();
    job.timeout = Duration::from_secs(2);
    let finished = bench.run(job, &stub).await.unwrap();
    assert_eq!((finished.exit_code(), finished.summary.failed_by_class["timeout"]), (3, 1));
}

#[tokio::test(start_paused = true)]
async fn too_many_errors_stop_the_job() {
    let bench = Bench::lines(40);
    let stub = bench.stub(|_, _| Step::Fail(Kind::Rejected));
    let mut job = bench.job();
    (job.concurrency, job.max_errors) = (Some(2), Some(MaxErrors::Rows(5)));
    let finished = bench.run(job, &stub).await.unwrap();
    assert_eq!((finished.exit_code(), &finished.end), (3, &End::Errors));
    assert!((5..8).contains(&finished.summary.failed));
    assert_eq!(bench.rows("data.out.jsonl").len(), 40);
}
