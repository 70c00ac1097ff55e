//! The same rows as JSON lines, a table, or OpenAI's files.

use crate::stub::{Bench, Step};
use std::fs;
use tidegate_batch::{End, Format};
use tidegate_core::{Clock, Kind};

#[tokio::test(start_paused = true)]
async fn openai_lines_go_to_two_files() {
    let bench = Bench::lines(3);
    let stub = bench.stub(|prompt, _| match prompt {
        "p1" => Step::Fail(Kind::Rejected),
        "p2" => Step::Fail(Kind::UpstreamTimeout(Clock::Total)),
        _ => Step::Body(r#"{"id":"x"}"#),
    });
    let mut job = bench.job();
    job.format = Format::OpenAiBatch;
    bench.run(job, &stub).await.unwrap();
    assert_eq!(
        fs::read_to_string(bench.path("data.out.jsonl")).unwrap(),
        "{\"id\":\"batch_req_00000000\",\"custom_id\":\"r0\",\"response\":{\"status_code\":200,\
         \"request_id\":\"req_1\",\"body\":{\"id\":\"x\"}},\"error\":null}\n"
    );
    let errors = bench.rows("data.errors.jsonl");
    assert_eq!(errors[0]["response"]["status_code"], 400);
    assert_eq!(errors[0]["error"], serde_json::Value::Null);
    assert_eq!(errors[1]["response"], serde_json::Value::Null);
    assert_eq!(errors[1]["error"]["code"], "request_timeout");

    // Another format is written from the journal, without a call.
    let finished = bench.run(bench.job(), &stub).await.unwrap();
    assert_eq!((finished.end, stub.count()), (End::AlreadyComplete, 3));
    assert_eq!(bench.rows("data.out.jsonl").len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_table_keeps_its_columns() {
    let bench = Bench::new("data.csv", "text,n\n\"one, two\",1\nthree,2\n");
    let stub = bench.stub(|_, _| Step::Echo);
    let mut job = bench.job();
    job.input.model = Some("m".into());
    job.input.prompt = Some("Say: {{ text }}".into());
    job.output = Some(bench.path("said.csv"));
    bench.run(job, &stub).await.unwrap();
    let text = fs::read_to_string(bench.path("said.csv")).unwrap();
    let rows: Vec<_> = text.lines().collect();
    assert!(rows[0].starts_with("text,n,custom_id,status,answer,error_code"), "{text}");
    assert!(rows[1].starts_with("\"one, two\",1,,ok,\"echo Say: one, two\","), "{text}");
    assert!(rows[2].starts_with("three,2,,ok,echo Say: three,"), "{text}");
    assert!(bench.path("said.run/journal").exists());
}

#[tokio::test(start_paused = true)]
async fn a_table_cannot_be_streamed() {
    let bench = Bench::lines(1);
    let stub = bench.stub(|_, _| Step::Echo);
    let mut job = bench.job();
    job.output = Some(bench.path("x.csv"));
    job.order = tidegate_batch::Order::Completion;
    let refused = bench.run(job, &stub).await.unwrap_err();
    assert_eq!((refused.exit_code(), stub.count()), (2, 0));
}
