//! Callers who go away, in each phase.

use crate::*;
use tidegate_sim::{Outcome, Phase};
use tokio::io::AsyncWriteExt;

/// Starts `body`, goes away after `patience`, and gives back the ledger's last entry.
async fn leave(sim: &Arc<Sim>, body: &Value, patience: u64) -> LedgerEntry {
    let call = async {
        let response = send(sim, request("/v1/chat/completions", body)).await.unwrap();
        finish(response, Instant::now()).await
    };
    let patience = Duration::from_millis(patience);
    assert!(tokio::time::timeout(patience, call).await.is_err(), "it answered too early");
    tokio::time::sleep(Duration::from_millis(1)).await;
    let entry = sim.ledger().pop().expect("the cancelled request is in the ledger");
    assert_eq!((entry.outcome, entry.cancelled), (Outcome::Cancelled, true));
    let lasted = Duration::from_micros(entry.end_us - entry.start_us);
    assert!(lasted <= patience + Duration::from_millis(1), "seen at once: {lasted:?}");
    entry
}

#[tokio::test(start_paused = true)]
async fn while_its_body_is_read() {
    let sim = Sim::new(options());
    let mut pipe = sim.connect();
    let head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: sim\r\ncontent-length: 100\r\n\r\n{";
    pipe.write_all(head).await.unwrap();
    tokio::time::sleep(Duration::from_millis(5)).await;
    drop(pipe);
    let entry = only_entry(&sim).await;
    assert_eq!((entry.outcome, entry.phase), (Outcome::Cancelled, Phase::Reading));
}

#[tokio::test(start_paused = true)]
async fn while_queued() {
    let sim = Sim::new(Options { slots: 1, ..options() });
    let busy = Arc::clone(&sim);
    let busy = tokio::spawn(async move { ask(&busy, &chat("the tide", 20)).await.took });
    tokio::time::sleep(Duration::from_millis(10)).await;
    let entry = leave(&sim, &chat("x", 1), 50).await;
    assert_eq!((entry.phase, entry.status), (Phase::Queued, 0));
    assert_eq!(sim.totals().queued, 0);
    assert!(busy.await.unwrap() >= Duration::from_millis(100), "the one at work goes on");
    assert_eq!(ask(&sim, &chat("x", 1)).await.took, Duration::from_millis(100));
}

#[tokio::test(start_paused = true)]
async fn before_the_answer() {
    let sim = Sim::new(Options { slots: 1, ..options() });
    let entry = leave(&sim, &chat("x", 1), 50).await;
    assert_eq!((entry.phase, entry.status, entry.bytes_out), (Phase::FirstToken, 0, 0));
    assert_eq!(sim.totals().busy_slots, 0, "its slot is free again");
}

#[tokio::test(start_paused = true)]
async fn before_the_first_token() {
    let sim = Sim::new(Options { slots: 1, ..options() });
    let entry = leave(&sim, &streamed(chat("x", 1)), 50).await;
    assert_eq!((entry.phase, entry.status, entry.chunks), (Phase::FirstToken, 200, 0));
    assert_eq!(sim.totals().busy_slots, 0);
}

#[tokio::test(start_paused = true)]
async fn in_the_middle_of_a_stream() {
    let sim = Sim::new(Options { slots: 1, ..options() });
    let entry = leave(&sim, &streamed(chat("the tide turns", 20)), 135).await;
    assert_eq!((entry.phase, entry.chunks, entry.completion_tokens), (Phase::Answering, 4, 4));
    assert_eq!(sim.totals().busy_slots, 0);
    let totals = sim.totals();
    assert_eq!((totals.cancelled, totals.in_flight), (1, 0));
}
