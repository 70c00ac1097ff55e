//! What becomes of single rows: answers, errors, equal rows, bad output, bad lines.

use crate::{
    invariants::check,
    stub::{Bench, Step, line, lines},
};
use std::{fs, time::Duration};
use tidegate_batch::{End, Only};
use tidegate_core::{Clock, Kind};
use tokio::time::Instant;

#[tokio::test(start_paused = true)]
async fn concurrency_is_what_was_said() {
    let bench = Bench::lines(20);
    let stub = bench.stub(|_, _| Step::Echo);
    let mut job = bench.job();
    job.concurrency = Some(4);
    let started = Instant::now();
    let finished = bench.run(job, &stub).await.unwrap();
    // Five rounds of 50 ms; the journal's own threads may let virtual time slip a little.
    assert!(started.elapsed() >= Duration::from_millis(250));
    check(&bench, &finished, &stub, 20, 0, 4);
    assert_eq!(finished.summary.latency_ms.p50.map(f64::round), Some(51.0));
    assert_eq!(finished.summary.cost, Some(100.0));
}

#[tokio::test(start_paused = true)]
async fn failed_rows_are_rows() {
    let bench = Bench::lines(6);
    let stub = bench.stub(|prompt, _| match prompt {
        "p1" => Step::Fail(Kind::Rejected),
        "p3" => Step::Fail(Kind::UpstreamTimeout(Clock::Total)),
        _ => Step::Echo,
    });
    let finished = bench.run(bench.job(), &stub).await.unwrap();
    assert_eq!((finished.exit_code(), &finished.end), (3, &End::Complete));
    check(&bench, &finished, &stub, 6, 0, 0);
    let rows = bench.rows("data.out.jsonl");
    assert_eq!(rows[1]["error"]["class"], "caller");
    assert_eq!(rows[1]["response"]["status_code"], 400);
    assert_eq!(rows[3]["error"]["code"], "upstream_timeout");
    assert_eq!(rows[3]["error"]["retryable"], true);
    assert_eq!(bench.rows("data.errors.jsonl").len(), 2);

    // The same again calls nothing; retry calls what it is told to.
    assert_eq!(bench.run(bench.job(), &stub).await.unwrap().exit_code(), 3);
    assert_eq!(stub.count(), 6);
    let again = bench.stub(|_, _| Step::Echo);
    let mut job = bench.job();
    job.retry = Some(Only::Class("timeout".into()));
    let finished = bench.run(job, &again).await.unwrap();
    assert_eq!((finished.summary.ok, finished.summary.failed), (5, 1));
    assert_eq!(*again.calls.lock().unwrap(), ["p3"]);
    assert_eq!(finished.summary.failed_by_class["caller"], 1);
    let mut job = bench.job();
    job.retry = Some(Only::All);
    assert_eq!(bench.run(job, &again).await.unwrap().exit_code(), 0);
    assert!(!bench.path("data.errors.jsonl").exists());
    assert_eq!(bench.rows("data.out.jsonl").len(), 6);
}

fn deterministic(id: &str, prompt: &str) -> String {
    line(id, prompt).replace("\"model\":\"m\"", "\"model\":\"m\",\"temperature\":0")
}

#[tokio::test(start_paused = true)]
async fn equal_rows_are_called_once() {
    let text: String =
        (0..9).map(|n| deterministic(&format!("r{n}"), &format!("p{}", n % 3))).collect();
    let bench = Bench::new("data.jsonl", &text);
    // The first call of p2 fails: the next of its rows has its turn.
    let stub = bench.stub(|prompt, nth| match (prompt, nth) {
        ("p2", 0) => Step::Fail(Kind::Upstream),
        _ => Step::Echo,
    });
    let finished = bench.run(bench.job(), &stub).await.unwrap();
    assert_eq!((finished.summary.ok, finished.summary.failed), (8, 1));
    assert_eq!((finished.summary.cached, stub.count()), (5, 4));
    let rows = bench.rows("data.out.jsonl");
    assert_eq!((&rows[3]["cached"], &rows[3]["cost"]), (&true.into(), &0.into()));
    assert_eq!(rows[3]["custom_id"], "r3");
    assert_eq!(rows[3]["response"], rows[0]["response"]);

    // A row that is added later is answered from the journal.
    fs::write(&bench.input, text + &deterministic("r9", "p1")).unwrap();
    let finished = bench.run(bench.job(), &stub).await.unwrap();
    assert_eq!((finished.summary.ok, stub.count()), (9, 4));
    assert_eq!(bench.rows("data.out.jsonl")[9]["cached"], true);
}

#[tokio::test(start_paused = true)]
async fn equal_rows_may_differ_unless_told() {
    let text: String = (0..4).map(|n| line(&format!("r{n}"), "same")).collect();
    for (dedup, calls) in [(false, 4), (true, 1)] {
        let bench = Bench::new("data.jsonl", &text);
        let stub = bench.stub(|_, _| Step::Echo);
        let mut job = bench.job();
        job.dedup = dedup;
        assert_eq!(bench.run(job, &stub).await.unwrap().summary.ok, 4);
        assert_eq!(stub.count(), calls);
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_breaks_the_schema_is_asked_for_again() {
    const GOOD: &str = r#"{"choices":[{"message":{"content":"{\"n\":1}"}}]}"#;
    const WRONG: &str = r#"{"choices":[{"message":{"content":"{\"n\":\"x\"}"}}]}"#;
    let bench = Bench::lines(3);
    let schema = bench.path("schema.json");
    fs::write(
        &schema,
        r#"{"type":"object","properties":{"n":{"type":"integer"}},"required":["n"],"additionalProperties":false}"#,
    )
    .unwrap();
    let stub = bench.stub(|prompt, nth| match (prompt, nth) {
        ("p0", 0) => Step::Body(WRONG),
        ("p1", 0) => Step::Body("<html>"),
        ("p2", _) => Step::Body(WRONG),
        _ => Step::Body(GOOD),
    });
    let mut job = bench.job();
    (job.input.schema, job.max_attempts) = (Some(schema), 3);
    let finished = bench.run(job, &stub).await.unwrap();
    assert_eq!((finished.summary.ok, finished.summary.failed), (2, 1));
    let rows = bench.rows("data.out.jsonl");
    assert_eq!((&rows[0]["attempts"], &rows[1]["attempts"]), (&2.into(), &2.into()));
    assert_eq!(rows[0]["usage"]["output_tokens"], 4);
    assert_eq!(
        (&rows[2]["attempts"], &rows[2]["error"]["class"]),
        (&3.into(), &"bad_output".into())
    );
    assert_eq!(finished.summary.attempts, 7);
}

#[tokio::test(start_paused = true)]
async fn bad_lines_stop_the_job_before_any_call() {
    let text = lines(0..2) + "{\"custom_id\": nonsense\n" + &lines(3..4);
    let bench = Bench::new("data.jsonl", &text);
    let stub = bench.stub(|_, _| Step::Echo);
    let refused = bench.run(bench.job(), &stub).await.unwrap_err();
    assert_eq!((refused.exit_code(), stub.count()), (2, 0));
    let refused = refused.to_string();
    assert!(refused.contains("line 3, column") && refused.contains("--skip-invalid"), "{refused}");
    assert!(!bench.path("data.run").exists());

    let job = || {
        let mut job = bench.job();
        job.skip_invalid = true;
        job
    };
    let finished = bench.run(job(), &stub).await.unwrap();
    assert_eq!((finished.exit_code(), finished.summary.ok), (3, 3));
    let rows = bench.rows("data.out.jsonl");
    assert_eq!((rows.len(), &rows[2]["error"]["class"]), (4, &"invalid".into()));
    assert_eq!(bench.run(job(), &stub).await.unwrap().end, End::AlreadyComplete);

    // Once mended, the row is called.
    fs::write(&bench.input, lines(0..4)).unwrap();
    let finished = bench.run(job(), &stub).await.unwrap();
    assert_eq!((finished.exit_code(), stub.count()), (0, 4));
}
