//! Every fault, as a caller meets it.

use crate::*;
use tidegate_sim::{Outcome, RetryAfterForm};

async fn fault_of(sim: &Arc<Sim>, why: &str) -> LedgerEntry {
    let entry = only_entry(sim).await;
    assert_eq!((entry.outcome, entry.why), (Outcome::Fault, why));
    entry
}

#[tokio::test(start_paused = true)]
async fn a_share_of_errors() {
    let sim = faulty(Faults { error_rate: 1.0, error_status: 502, ..Faults::default() });
    let answer = ask(&sim, &chat("x", 1)).await;
    assert_eq!((answer.status, &answer.json()["error"]["type"]), (502, &"server_error".into()));
    fault_of(&sim, "error").await;
}

#[tokio::test(start_paused = true)]
async fn a_repeated_request_draws_anew_and_runs_repeat() {
    let mut runs = Vec::new();
    for _ in 0..2 {
        let sim = faulty(Faults { error_rate: 0.5, ..Faults::default() });
        let mut statuses = Vec::new();
        for _ in 0..40 {
            statuses.push(ask(&sim, &chat("x", 1)).await.status);
        }
        assert!(statuses.contains(&200) && statuses.contains(&500), "{statuses:?}");
        runs.push(statuses);
    }
    assert_eq!(runs[0], runs[1]);
}

#[tokio::test(start_paused = true)]
async fn a_numbered_attempt_decides_alone() {
    let sim = faulty(Faults { error_rate: 0.5, ..Faults::default() });
    let mut statuses = Vec::new();
    for _ in 0..10 {
        let mut numbered = request("/v1/chat/completions", &chat("x", 1));
        numbered.headers_mut().insert("x-attempt", "3".parse().unwrap());
        numbered.headers_mut().insert("x-custom-id", "row-1".parse().unwrap());
        numbered.headers_mut().insert("x-request-id", "abc".parse().unwrap());
        let response = send(&sim, numbered).await.unwrap();
        assert_eq!(response.headers()["x-request-id"], "abc");
        statuses.push(finish(response, Instant::now()).await.status);
    }
    statuses.dedup();
    assert_eq!(statuses.len(), 1);
    let entry = &sim.ledger()[0];
    assert_eq!((entry.attempt, entry.key.to_string().as_str()), (Some(3), "row-1"));
    assert_eq!(entry.id.as_deref(), Some("abc"));
}

#[tokio::test(start_paused = true)]
async fn quota_says_so_and_not_when() {
    let sim = faulty(Faults { quota_rate: 1.0, ..Faults::default() });
    let answer = ask(&sim, &chat("x", 1)).await;
    assert_eq!((answer.status, answer.header("retry-after")), (429, ""));
    assert_eq!(answer.json()["error"]["code"], "insufficient_quota");
}

#[tokio::test(start_paused = true)]
async fn a_reset_has_no_answer() {
    let sim = faulty(Faults { reset_rate: 1.0, ..Faults::default() });
    assert!(try_post(&sim, "/v1/chat/completions", &chat("x", 1)).await.is_err());
    let entry = fault_of(&sim, "reset").await;
    assert_eq!((entry.status, entry.cancelled), (0, false));
}

#[tokio::test(start_paused = true)]
async fn a_stall_lasts_until_the_caller_goes() {
    let sim = faulty(Faults { stall_rate: 1.0, ..Faults::default() });
    let call = chat("x", 1);
    let answer = tokio::time::timeout(Duration::from_secs(3600), ask(&sim, &call)).await;
    assert!(answer.is_err());
    let entry = fault_of(&sim, "stall").await;
    assert!(entry.cancelled && entry.end_us >= 3_600_000_000);
}

#[tokio::test(start_paused = true)]
async fn a_stall_in_the_middle_gives_some_tokens() {
    for body in [streamed(chat("x", 8)), chat("x", 8)] {
        let sim = faulty(Faults { stall_mid_rate: 1.0, ..Faults::default() });
        let response = send(&sim, request("/v1/chat/completions", &body)).await.unwrap();
        let finish = finish(response, Instant::now());
        assert!(tokio::time::timeout(Duration::from_secs(3600), finish).await.is_err());
        let entry = fault_of(&sim, "stall_mid").await;
        assert!(entry.cancelled && entry.bytes_out > 0 && sim.totals().busy_slots == 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_truncated_answer_breaks_in_the_middle() {
    let sim = faulty(Faults { truncate_rate: 1.0, ..Faults::default() });
    let answer = ask(&sim, &streamed(chat("x", 8))).await;
    assert!(answer.is_broken && answer.status == 200);
    assert_eq!(answer.events().len(), 5, "the role and half of the tokens");
    let entry = fault_of(&sim, "truncate").await;
    assert_eq!((entry.completion_tokens, entry.cancelled), (4, false));

    let sim = faulty(Faults { truncate_rate: 1.0, ..Faults::default() });
    let answer = ask(&sim, &chat("x", 8)).await;
    let told: usize = answer.header("content-length").parse().unwrap();
    assert!(answer.is_broken && !answer.body.is_empty() && answer.body.len() < told);
    fault_of(&sim, "truncate").await;
}

#[tokio::test(start_paused = true)]
async fn an_unterminated_stream_ends_cleanly_too_early() {
    let sim = faulty(Faults { unterminated_rate: 1.0, ..Faults::default() });
    let answer = ask(&sim, &streamed(chat("x", 8))).await;
    assert!(!answer.is_broken && answer.events().len() == 5);
    assert!(!answer.events().contains(&"[DONE]"));
    fault_of(&sim, "unterminated").await;
}

#[tokio::test(start_paused = true)]
async fn a_malformed_answer_is_no_json() {
    let sim = faulty(Faults { malformed_rate: 1.0, ..Faults::default() });
    let answer = ask(&sim, &streamed(chat("x", 8))).await;
    let is_bad = |data: &&&str| **data != "[DONE]" && serde_json::from_str::<Value>(data).is_err();
    assert_eq!(answer.events().iter().filter(is_bad).count(), 1);
    assert_eq!(answer.events().last(), Some(&"[DONE]"));
    fault_of(&sim, "malformed").await;

    let sim = faulty(Faults { malformed_rate: 1.0, ..Faults::default() });
    let answer = ask(&sim, &chat("x", 8)).await;
    assert!(!answer.is_broken && serde_json::from_slice::<Value>(&answer.body).is_err());
}

#[tokio::test(start_paused = true)]
async fn an_error_event_ends_a_stream() {
    let sim = faulty(Faults { error_event_rate: 1.0, ..Faults::default() });
    let answer = ask(&sim, &streamed(chat("x", 8))).await;
    let last: Value = serde_json::from_str(answer.events().last().unwrap()).unwrap();
    assert_eq!(last["error"]["type"], "server_error");
    fault_of(&sim, "error_event").await;

    let body = json!({"model": "m", "input": "x", "stream": true});
    let answer = post(&sim, "/v1/responses", &body).await;
    let last: Value = serde_json::from_str(answer.events().last().unwrap()).unwrap();
    assert_eq!((&last["type"], &last["code"]), (&"error".into(), &"server_error".into()));
}

#[tokio::test(start_paused = true)]
async fn garbage_ignores_the_format() {
    let sim = faulty(Faults { garbage_rate: 1.0, ..Faults::default() });
    let mut body = chat("x", 100);
    body["response_format"] = json!({"type": "json_object"});
    let answer = ask(&sim, &body).await.json();
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(serde_json::from_str::<Value>(text).is_err());
    fault_of(&sim, "garbage").await;
}

#[tokio::test(start_paused = true)]
async fn slow_heads_and_bodies_take_their_time() {
    let sim = faulty(Faults { slow_headers: fixed(5000), ..Faults::default() });
    let start = Instant::now();
    let body = streamed(chat("x", 1));
    let response = send(&sim, request("/v1/chat/completions", &body)).await.unwrap();
    assert_eq!(start.elapsed(), Duration::from_secs(5));
    drop(response);

    let sim = faulty(Faults { slow_body: fixed(1000), ..Faults::default() });
    let answer = ask(&sim, &chat("x", 1)).await;
    assert_eq!(answer.took, Duration::from_millis(8100), "eight pieces");
    assert_eq!(answer.json()["object"], "chat.completion");
    let answer = ask(&sim, &streamed(chat("x", 2))).await;
    assert!(answer.took >= Duration::from_secs(3), "{:?}", answer.took);

    let sim = faulty(Faults { slowdown: 3.0, ..Faults::default() });
    assert_eq!(ask(&sim, &chat("x y", 3)).await.took, Duration::from_millis(360));
}

#[tokio::test(start_paused = true)]
async fn a_wrong_key_is_refused() {
    let faults = json!({"api_key": "right"});
    let sim = faulty(serde_json::from_value(faults).unwrap());
    assert_eq!(ask(&sim, &chat("x", 1)).await.status, 401);
    assert_eq!(get(&sim, "/v1/models").await.status, 401);
    for (name, value) in
        [("authorization", "Bearer right"), ("x-api-key", "right"), ("api-key", "right")]
    {
        let mut keyed = request("/v1/chat/completions", &chat("x", 1));
        keyed.headers_mut().insert(name, value.parse().unwrap());
        assert_eq!(send(&sim, keyed).await.unwrap().status(), 200, "{name}");
    }
    let mut wrong = request("/v1/chat/completions", &chat("x", 1));
    wrong.headers_mut().insert("authorization", "Bearer wrong".parse().unwrap());
    assert_eq!(send(&sim, wrong).await.unwrap().status(), 401);
}

#[tokio::test(start_paused = true)]
async fn refusals_say_when_in_the_form_asked_for() {
    for (form, name, value) in [
        (RetryAfterForm::Seconds, "retry-after", "2"),
        (RetryAfterForm::Ms, "retry-after-ms", "1500"),
        (RetryAfterForm::Garbage, "retry-after", "soon"),
        (RetryAfterForm::None, "retry-after", ""),
    ] {
        let sim = faulty(Faults {
            rate: Some(0.001),
            retry_after: Duration::from_millis(1500),
            retry_after_form: form,
            ..Faults::default()
        });
        ask(&sim, &chat("x", 1)).await;
        let refused = ask(&sim, &chat("x", 1)).await;
        assert_eq!((refused.status, refused.header(name)), (429, value), "{form:?}");
    }
}
