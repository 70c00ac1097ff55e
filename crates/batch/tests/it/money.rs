//! `--max-cost`: spent to the last row that fits, never beyond what is in flight.

use crate::stub::{Bench, Step};
use tidegate_batch::End;

#[tokio::test(start_paused = true)]
async fn the_budget_stops_the_job_and_counts_earlier_runs() {
    // A row costs $5: 3 + 2 tokens at $1 each; before anything is known, some $50 is reserved.
    let bench = Bench::lines(200);
    let stub = bench.stub(|_, _| Step::Echo);
    let job = |cap| {
        let mut job = bench.job();
        (job.concurrency, job.max_cost) = (Some(4), Some(cap));
        job
    };
    let finished = bench.run(job(1000.0), &stub).await.unwrap();
    assert_eq!((finished.exit_code(), &finished.end), (5, &End::Budget));
    let spent = finished.summary.cost.unwrap();
    assert!((800.0..=1000.0).contains(&spent), "{spent}");
    assert_eq!(spent, 5.0 * stub.count() as f64);

    let calls = stub.count();
    let finished = bench.run(job(spent), &stub).await.unwrap();
    assert_eq!((finished.exit_code(), stub.count()), (5, calls));
    let finished = bench.run(job(5000.0), &stub).await.unwrap();
    assert_eq!((finished.exit_code(), stub.count()), (0, 200));
    assert_eq!(finished.summary.cost, Some(1000.0));
}

#[tokio::test(start_paused = true)]
async fn an_unknown_price_is_told_before_any_call() {
    let mut bench = Bench::lines(2);
    bench.price = None;
    let stub = bench.stub(|_, _| Step::Echo);
    let mut job = bench.job();
    job.max_cost = Some(1.0);
    let refused = bench.run(job, &stub).await.unwrap_err();
    assert_eq!((refused.exit_code(), stub.count()), (2, 0));
    assert!(refused.to_string().contains("--price-input"), "{refused}");

    // Without a cap it is unknown, not free.
    let finished = bench.run(bench.job(), &stub).await.unwrap();
    assert_eq!(finished.summary.cost, None);
    assert_eq!(bench.rows("data.out.jsonl")[0]["cost"], serde_json::Value::Null);
}
