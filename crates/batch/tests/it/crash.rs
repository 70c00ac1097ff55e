//! A job cut off anywhere and started again loses nothing and repeats only what was in flight.

use crate::{
    invariants::{acknowledged, check},
    stub::{Bench, Step, line, lines},
};
use std::{fs, time::Duration};
use tidegate_batch::{End, Order};
use tokio::time::timeout;

#[tokio::test(start_paused = true)]
async fn dropped_again_and_again() {
    let bench = Bench::lines(300);
    let stub = bench.stub(|_, _| Step::Echo);
    let job = || {
        let mut job = bench.job();
        job.concurrency = Some(16);
        job
    };
    let mut kills = 0;
    let mut before = 0;
    for after in [10, 60, 75, 130, 260, 51, 149, 330] {
        if timeout(Duration::from_millis(after), bench.run(job(), &stub)).await.is_ok() {
            break;
        }
        kills += 1;
        let now = acknowledged(&bench).unwrap();
        assert!(now >= before, "I8: {before} rows were in the journal, now {now}");
        before = now;
        assert!(!bench.path("data.out.jsonl").exists());
    }
    assert!(kills >= 5 && before > 0);
    let finished = bench.run(job(), &stub).await.unwrap();
    assert_eq!(finished.end, End::Complete);
    check(&bench, &finished, &stub, 300, kills, 16);
}

#[tokio::test(start_paused = true)]
async fn dropped_in_completion_order() {
    let bench = Bench::lines(60);
    let stub = bench.stub(|_, _| Step::Echo);
    let job = || {
        let mut job = bench.job();
        (job.concurrency, job.order) = (Some(7), Order::Completion);
        job
    };
    assert!(timeout(Duration::from_millis(170), bench.run(job(), &stub)).await.is_err());
    // As a kill would leave it.
    let out = bench.path("data.out.jsonl");
    let torn = fs::read_to_string(&out).unwrap() + "{\"index\":5";
    fs::write(&out, torn).unwrap();
    let finished = bench.run(job(), &stub).await.unwrap();
    assert_eq!(finished.exit_code(), 0);
    let mut ids: Vec<_> =
        bench.rows("data.out.jsonl").iter().map(|row| row["index"].as_u64().unwrap()).collect();
    ids.sort_unstable();
    assert_eq!(ids, (0..60).collect::<Vec<_>>());
    // Streamed to its end, it is as done as an assembled one.
    let calls = stub.count();
    assert_eq!(bench.run(job(), &stub).await.unwrap().end, End::AlreadyComplete);
    assert_eq!(stub.count(), calls);
}

#[tokio::test(start_paused = true)]
async fn a_finished_job_calls_nothing() {
    let bench = Bench::lines(5);
    let stub = bench.stub(|_, _| Step::Echo);
    assert_eq!(bench.run(bench.job(), &stub).await.unwrap().exit_code(), 0);
    let first = fs::read(bench.path("data.out.jsonl")).unwrap();
    assert!(!bench.path("data.errors.jsonl").exists());

    let finished = bench.run(bench.job(), &stub).await.unwrap();
    assert_eq!((finished.end, stub.count()), (End::AlreadyComplete, 5));

    // The output is made again from the journal when it is gone.
    fs::remove_file(bench.path("data.out.jsonl")).unwrap();
    bench.run(bench.job(), &stub).await.unwrap();
    assert_eq!(fs::read(bench.path("data.out.jsonl")).unwrap(), first);
    assert_eq!(stub.count(), 5);
}

#[tokio::test(start_paused = true)]
async fn changed_added_and_removed_rows() {
    let bench = Bench::lines(4);
    let stub = bench.stub(|_, _| Step::Echo);
    bench.run(bench.job(), &stub).await.unwrap();

    // Row 1 asks something else, row 2 has another id, row 4 is new.
    let text = lines(0..1) + &line("r1", "other") + &line("renamed", "p2") + &lines(3..5);
    fs::write(&bench.input, text).unwrap();
    let finished = bench.run(bench.job(), &stub).await.unwrap();
    assert_eq!(finished.summary.ok, 5);
    assert_eq!(stub.calls.lock().unwrap()[4..], ["other", "p2", "p4"]);
    let rows = bench.rows("data.out.jsonl");
    assert_eq!(rows[1]["response"]["body"]["choices"][0]["message"]["content"], "echo other");
    assert_eq!(rows[2]["custom_id"], "renamed");

    fs::write(&bench.input, lines(0..1)).unwrap();
    let finished = bench.run(bench.job(), &stub).await.unwrap();
    assert_eq!((finished.summary.rows, stub.count()), (1, 7));
    assert_eq!(bench.rows("data.out.jsonl").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn files_of_others_are_left_alone() {
    let bench = Bench::lines(2);
    let stub = bench.stub(|_, _| Step::Echo);
    let out = bench.path("data.out.jsonl");
    fs::write(&out, "mine").unwrap();
    let refused = bench.run(bench.job(), &stub).await.unwrap_err();
    assert_eq!(refused.exit_code(), 2);
    assert!(refused.to_string().contains("--overwrite"), "{refused}");
    assert_eq!(fs::read(&out).unwrap(), b"mine");
    assert!(!bench.path("data.run").exists());

    // The error file is one as well: a job without failures would remove it.
    fs::remove_file(&out).unwrap();
    fs::write(bench.path("data.errors.jsonl"), "mine too").unwrap();
    let refused = bench.run(bench.job(), &stub).await.unwrap_err().to_string();
    assert!(refused.contains("data.errors.jsonl exists"), "{refused}");
    assert_eq!(fs::read(bench.path("data.errors.jsonl")).unwrap(), b"mine too");

    let mut job = bench.job();
    job.overwrite = true;
    bench.run(job, &stub).await.unwrap();
    assert_eq!(bench.rows("data.out.jsonl").len(), 2);

    // Changed by its user since.
    fs::write(&out, "mine again").unwrap();
    let refused = bench.run(bench.job(), &stub).await.unwrap_err().to_string();
    assert!(refused.contains("was changed since"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn a_damaged_manifest_costs_no_answers() {
    let bench = Bench::lines(3);
    let stub = bench.stub(|_, _| Step::Echo);
    bench.run(bench.job(), &stub).await.unwrap();
    let manifest = bench.path("data.run/manifest.json");
    fs::write(&manifest, "{").unwrap();
    let refused = bench.run(bench.job(), &stub).await.unwrap_err().to_string();
    assert!(refused.contains("remove it and pass --overwrite"), "{refused}");

    // As it says.
    fs::remove_file(&manifest).unwrap();
    let mut job = bench.job();
    job.overwrite = true;
    let finished = bench.run(job, &stub).await.unwrap();
    assert_eq!((finished.end, stub.count()), (End::AlreadyComplete, 3));
}

#[tokio::test(start_paused = true)]
async fn one_process_at_a_time() {
    let bench = Bench::lines(2);
    let stub = bench.stub(|_, _| Step::Echo);
    let (first, second) =
        tokio::join!(bench.run(bench.job(), &stub), bench.run(bench.job(), &stub));
    assert_eq!(first.unwrap().exit_code(), 0);
    let refused = second.unwrap_err().to_string();
    assert!(refused.contains("is running this job"), "{refused}");
}
