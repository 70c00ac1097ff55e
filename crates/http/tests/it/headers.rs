//! Headers in and out.

use crate::stub::{Act, BODY, Stub, exchange, json, memory, post, read_until};
use std::time::Duration;
use tidegate_core::{Allowance, Error, Kind, Origin, Priority, RateLimits, Retry};
use tidegate_http::Options;
use tokio::{io::AsyncWriteExt as _, time::Instant};

const CHAT: &str = "/v1/chat/completions";

#[tokio::test(start_paused = true)]
async fn what_the_caller_says_of_its_call_is_kept() {
    let stub = Stub::fine();
    let headers =
        "X-Request-Id: mine-1\r\nx-tidegate-priority: bulk\r\nx-tidegate-timeout: 250ms\r\n";
    let before = Instant::now().into_std();
    let said = exchange(&stub, post(CHAT, headers, BODY)).await;
    assert_eq!(said.header("x-request-id"), Some("mine-1"));
    let call = stub.calls.lock().unwrap().pop().unwrap();
    assert_eq!((&*call.id, call.priority), ("mine-1", Priority::Bulk));
    assert_eq!(call.deadline - before, Duration::from_millis(250));

    let before = Instant::now().into_std();
    let said = exchange(&stub, post(CHAT, "X-Request-Id: <script>\r\n", BODY)).await;
    let call = stub.calls.lock().unwrap().pop().unwrap();
    assert_eq!(call.deadline - before, Duration::from_secs(600));
    assert_eq!(said.header("x-request-id"), Some(&*call.id));
    assert!(call.id.starts_with("req-"), "{}", call.id);
}

#[tokio::test(start_paused = true)]
async fn a_call_carries_the_headers_that_routing_looks_at_and_no_other() {
    let stub = Stub::fine();
    let routed_headers = vec!["X-Canary".to_owned(), "x-absent".to_owned()];
    let options = Options { routed_headers, ..Options::default() };
    let headers = "x-canary: 1\r\nx-other: 2\r\nx-stainless-retry-count: 2\r\n";
    let (mut io, _stop) = memory(&stub, options);
    io.write_all(post(CHAT, headers, BODY).as_bytes()).await.unwrap();
    read_until(&mut io, "ok").await;
    let call = stub.calls.lock().unwrap().pop().unwrap();
    assert_eq!((call.header("x-canary"), call.headers.len()), (Some("1"), 1));
    assert_eq!(call.client_retries, 2);

    exchange(&stub, post(CHAT, "x-stainless-retry-count: no\r\nx-canary: 1\r\n", BODY)).await;
    let call = stub.calls.lock().unwrap().pop().unwrap();
    assert_eq!((call.headers.len(), call.client_retries), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn an_answer_says_who_gave_it_and_what_is_left() {
    let stub = Stub::new(|_, ended| {
        let mut reply = json("{}", ended);
        let upstreams = Allowance { limit: Some(9), remaining: Some(9), reset: None };
        reply.limits = RateLimits { requests: upstreams, tokens: upstreams };
        reply.served.tenant.requests =
            Allowance { limit: Some(60), remaining: Some(59), reset: Some(Duration::from_secs(1)) };
        Act::Reply(reply)
    });
    let said = exchange(&stub, post(CHAT, "", BODY)).await;
    for (name, value) in [
        ("x-tidegate-upstream", Some("up")),
        ("x-tidegate-attempts", Some("2")),
        ("x-tidegate-overhead-ms", Some("0.000")),
        ("x-ratelimit-limit-requests", Some("60")),
        ("x-ratelimit-remaining-requests", Some("59")),
        ("x-ratelimit-reset-requests", Some("1s")),
        ("x-ratelimit-limit-tokens", None),
        ("retry-after", None),
        ("x-should-retry", None),
    ] {
        assert_eq!(said.header(name), value, "{name} in {said:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn each_failure_has_its_status_and_says_whether_to_retry() {
    let limited = RateLimits {
        tokens: Allowance { limit: Some(100), remaining: Some(0), reset: None },
        ..RateLimits::default()
    };
    for (kind, attempts, wait, status, code, retry_after, again) in [
        (Kind::InvalidRequest, 0, None, 400, "invalid_request_error", None, "false"),
        (Kind::BudgetExceeded, 0, None, 402, "budget_exceeded", None, "false"),
        (Kind::ModelNotAllowed, 0, None, 403, "model_not_allowed", None, "false"),
        (Kind::ModelNotFound, 0, None, 404, "model_not_found", None, "false"),
        (Kind::RateLimited, 0, Some(1500), 429, "rate_limit_exceeded", Some("2"), "true"),
        (Kind::ConcurrencyLimited, 0, None, 429, "concurrency_limit_exceeded", Some("1"), "true"),
        (Kind::Overloaded, 0, None, 503, "overloaded", Some("1"), "true"),
        (Kind::UpstreamCapacity, 3, Some(7000), 503, "no_upstream_available", Some("7"), "false"),
        (Kind::Unavailable, 0, None, 503, "no_upstream_available", Some("1"), "true"),
        (Kind::Upstream, 3, None, 502, "upstream_error", None, "false"),
        (Kind::DeadlineExceeded, 1, None, 504, "deadline_exceeded", None, "false"),
        (Kind::Internal, 0, None, 500, "internal_error", None, "false"),
    ] {
        let stub = Stub::new(move |_, _| {
            let mut error = Error::new(kind, Origin::Gateway, "why").with_tenant_limits(limited);
            if attempts > 0 {
                error = error.after_attempts(attempts, "up".into());
            }
            if let Some(wait) = wait {
                error = error.with_retry(Retry::After(Duration::from_millis(wait)));
            }
            Act::Fail(error)
        });
        let said = exchange(&stub, post(CHAT, "", BODY)).await;
        assert_eq!((said.status, &*said.code()), (status, code), "{kind:?}");
        assert_eq!(said.json()["error"]["message"], "why");
        assert_eq!(said.header("retry-after"), retry_after, "{kind:?}");
        assert_eq!(said.header("retry-after-ms").is_some(), retry_after.is_some());
        assert_eq!(said.header("x-should-retry"), Some(again), "{kind:?}");
        assert_eq!(said.header("x-ratelimit-remaining-tokens"), Some("0"));
        let expected = (attempts > 0).then(|| attempts.to_string());
        assert_eq!(said.header("x-tidegate-attempts"), expected.as_deref());
        // The body was read, so the connection can be used again.
        assert_eq!(said.header("connection"), None, "{kind:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_one_callers_500() {
    let stub = Stub::new(|_, _| Act::Panic);
    let said = exchange(&stub, post(CHAT, "", BODY)).await;
    assert_eq!((said.status, &*said.code()), (500, "internal_error"));
    assert!(!said.body.contains("scripted"));
}
