//! The invariants I1–I8 of a job's files, checked against what was asked and what was answered.

use crate::stub::{Bench, Stub, echo};
use std::collections::HashSet;
use tidegate_batch::{Failure, Files, Finished, Format, status};

/// Checks a finished job of [`Bench::lines`] with `rows` rows, killed `kills` times with at most
/// `in_flight` rows in flight.
#[track_caller]
pub(crate) fn check(
    bench: &Bench,
    finished: &Finished,
    stub: &Stub,
    rows: usize,
    kills: usize,
    in_flight: usize,
) {
    // I3 is checked by reading: every line is JSON, the last ends in a newline.
    let output = bench.rows("data.out.jsonl");
    let summary = &finished.summary;
    assert_eq!(output.len(), rows, "I4: a line for each row");
    assert_eq!(summary.ok + summary.failed, rows as u64, "I4: counts are lines");
    let mut ids = HashSet::new();
    let (mut input_tokens, mut output_tokens) = (0, 0);
    for (number, row) in output.iter().enumerate() {
        let id = row["custom_id"].as_str().unwrap();
        assert_eq!(id, format!("r{number}"), "I2: no foreign ids, in order");
        assert!(ids.insert(id.to_owned()), "I1: {id} once");
        assert_eq!(row["index"], number);
        if row["status"] == "ok" {
            let expected: serde_json::Value =
                serde_json::from_str(&echo(&format!("p{number}"))).unwrap();
            assert_eq!(row["response"]["body"], expected, "I5: its own answer");
        }
        input_tokens += row["usage"]["input_tokens"].as_u64().unwrap_or(0);
        output_tokens += row["usage"]["output_tokens"].as_u64().unwrap_or(0);
    }
    let repeated = stub.count() - stub.calls.lock().unwrap().iter().collect::<HashSet<_>>().len();
    assert!(repeated <= kills * in_flight, "I6: {repeated} calls repeated");
    assert_eq!(
        (summary.usage.input_tokens, summary.usage.output_tokens),
        (input_tokens, output_tokens),
        "I7: the sum over accepted answers"
    );
}

/// Rows the journal has, for I8.
pub(crate) fn acknowledged(bench: &Bench) -> Result<u64, Failure> {
    let files = Files::of(&bench.input, None, Format::Auto)?;
    status(&files).map(|status| status.ok + status.failed)
}
