//! `Idempotency-Key`: one execution, the same answer to every repeat.

mod left;

use crate::stub::{
    Act, BODY, Ended, KEY, MAX_ANSWER, OTHER_KEY, Said, Server, Stub, exchange, get, memory, post,
    read_all, reply,
};
use bytes::Bytes;
use futures_util::{StreamExt as _, future::join_all, stream};
use std::sync::Arc;
use tidegate_core::{
    Begun, Body, BoxFuture, ContentType, Error, Kind, Origin, ReplayKey, Replays, Result,
};
use tidegate_http::{Idempotency, Options};
use tokio::{io::AsyncWriteExt as _, sync::Notify};

const CHAT: &str = "/v1/chat/completions";

fn keyed(key: &str, body: &str) -> String {
    post(CHAT, &format!("Idempotency-Key: {key}\r\nConnection: close\r\n"), body)
}

fn executions(stub: &Stub) -> usize {
    stub.calls.lock().unwrap().len()
}

/// Answers with the number of the call.
fn counting() -> Arc<Stub> {
    let count = std::sync::atomic::AtomicUsize::new(0);
    Stub::new(move |_, ended| {
        let number = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let body = Body::whole(format!("{{\"number\":{number}}}").into());
        Act::Reply(reply(ContentType::Json, body.holding(Box::new(ended))))
    })
}

#[tokio::test(start_paused = true)]
async fn a_repeat_gets_the_answer_of_the_first() {
    let stub = counting();
    let first = exchange(&stub, keyed("k-1", BODY)).await;
    assert_eq!(first.header("idempotency-replayed"), None);
    for id in ["a", "b"] {
        let request = keyed("k-1", BODY).replace("Host:", &format!("x-request-id: {id}\r\nHost:"));
        let again = exchange(&stub, request).await;
        assert_eq!((again.status, &again.body), (first.status, &first.body));
        assert_eq!(again.header("content-type"), first.header("content-type"));
        assert_eq!(again.header("idempotency-replayed"), Some("true"));
        assert_eq!(again.header("x-request-id"), Some(id), "the repeat's own");
    }
    assert_eq!(executions(&stub), 1);
    assert_ne!(exchange(&stub, keyed("k-2", BODY)).await.body, first.body);
    assert_ne!(exchange(&stub, post(CHAT, "", BODY)).await.body, first.body);
    assert_eq!(executions(&stub), 3);
}

#[tokio::test(start_paused = true)]
async fn a_token_got_the_answer_of_a_model_it_may_not_use() {
    let stub = counting();
    let first = exchange(&stub, keyed("k", BODY)).await;
    let narrow = |key: &str| keyed(key, BODY).replace(KEY, "a.narrow.token");
    let said = exchange(&stub, narrow("k")).await;
    assert_eq!(said.header("idempotency-replayed"), None);
    assert_ne!(said.body, first.body, "it is the engine that answers, with a refusal");
    // Nor is what it is told the answer to those who may.
    exchange(&stub, narrow("new")).await;
    let wide = exchange(&stub, keyed("new", BODY)).await;
    assert_eq!((wide.status, wide.header("idempotency-replayed")), (200, None));
    assert_eq!(executions(&stub), 4);
}

#[tokio::test]
async fn of_fifty_at_once_one_is_carried_out() {
    let go = Arc::new(Notify::new());
    let gate = go.clone();
    let stub = Stub::new(move |_, ended| {
        let gate = gate.clone();
        let body = stream::once(async move {
            gate.notified().await;
            let _ended = ended;
            Ok(Bytes::from_static(b"{\"ok\":true}"))
        });
        Act::Reply(reply(ContentType::Json, Body::stream(body)))
    });
    let server = Server::start(&stub, Options::default()).await;
    let ask = async || {
        let mut io = server.connect().await;
        io.write_all(keyed("k", BODY).as_bytes()).await.unwrap();
        Said::parse(&read_all(&mut io).await)
    };
    let first = ask();
    let others = async {
        Stub::wait(&stub.begun, 1).await;
        let others = join_all((0..49).map(|_| ask())).await;
        go.notify_one();
        others
    };
    let (first, others) = tokio::join!(first, others);
    assert_eq!(first.status, 200);
    for other in others {
        assert_eq!((other.status, &*other.code()), (409, "idempotency_in_progress"));
        assert_eq!(other.header("retry-after"), Some("1"));
        assert_eq!(other.header("x-should-retry"), Some("true"));
    }
    let late = ask().await;
    assert_eq!(late.header("idempotency-replayed"), Some("true"));
    assert!(first.body.contains("{\"ok\":true}") && late.body.contains("{\"ok\":true}"));
    assert_eq!(executions(&stub), 1);
    server.stop().await;
}

#[tokio::test(start_paused = true)]
async fn another_request_under_a_known_key_is_refused() {
    let stub = counting();
    exchange(&stub, keyed("k", BODY)).await;
    let elsewhere = keyed("k", BODY).replace(CHAT, "/v1/completions");
    let queried = keyed("k", BODY).replace(CHAT, &format!("{CHAT}?a=1"));
    for other in [keyed("k", &BODY.replace("hi", "ho")), elsewhere, queried] {
        let said = exchange(&stub, other).await;
        assert_eq!((said.status, &*said.code()), (422, "idempotency_mismatch"));
        assert_eq!(said.header("x-should-retry"), Some("false"));
    }
    // What says how long to wait, or how often it was asked, is no part of the request.
    let patient = keyed("k", BODY).replace(
        "Host:",
        "x-tidegate-timeout: 5\r\nx-stainless-retry-count: 1\r\nx-tidegate-priority: bulk\r\nHost:",
    );
    assert_eq!(exchange(&stub, patient).await.header("idempotency-replayed"), Some("true"));
    assert_eq!(executions(&stub), 1);
}

#[tokio::test(start_paused = true)]
async fn headers_that_choose_the_target_are_part_of_the_request() {
    let stub = counting();
    let options = Options { routed_headers: vec!["x-canary".into()], ..Options::default() };
    let ask = async |canary: &str| {
        let (mut io, _stop) = memory(&stub, options.clone());
        let request = keyed("k", BODY).replace("Host:", &format!("x-canary: {canary}\r\nHost:"));
        io.write_all(request.as_bytes()).await.unwrap();
        Said::parse(&read_all(&mut io).await).status
    };
    assert_eq!([ask("1").await, ask("2").await, ask("1").await], [200, 422, 200]);
}

#[tokio::test(start_paused = true)]
async fn a_key_is_its_callers_own() {
    let stub = counting();
    let mine = exchange(&stub, keyed("k", BODY)).await;
    let theirs = keyed("k", BODY).replace(KEY, OTHER_KEY);
    let first = exchange(&stub, &theirs).await;
    assert_eq!(first.header("idempotency-replayed"), None);
    assert_ne!(first.body, mine.body);
    assert_eq!(exchange(&stub, &theirs).await.body, first.body);
    let other = theirs.replace("hi", "ho");
    assert_eq!(exchange(&stub, other).await.status, 422);
    assert_eq!(executions(&stub), 2);
}

#[tokio::test(start_paused = true)]
async fn what_is_no_key_is_refused_by_name() {
    let stub = counting();
    let long = "x".repeat(256);
    for bad in ["", "two words", "\u{e4}", "tab\tbed", &long, "a\r\nIdempotency-Key: b"] {
        let said = exchange(&stub, keyed(bad, BODY)).await;
        assert_eq!(said.status, 400, "{bad}");
        assert_eq!(said.json()["error"]["param"], "idempotency-key", "{bad}");
    }
    assert_eq!(executions(&stub), 0);
    for good in ["x", "\"8e03978e-40d5-43dd-bc93-6894a57f9324\"", &long[1..]] {
        assert_eq!(exchange(&stub, keyed(good, BODY)).await.status, 200, "{good}");
    }
    // A request that is not carried out has no use for a key, good or bad.
    let models = get("/v1/models").replace("Host:", "Idempotency-Key: two words\r\nHost:");
    assert_eq!(exchange(&stub, models).await.status, 200);
}

/// A stream with a multi-byte character cut in two.
fn events(ended: Ended) -> Act {
    let chunks = [&b"data: {\"a\":\"\xc3"[..], b"\xa4\"}\n\n", b"", b"data: [DONE]\n\n"];
    let chunks = stream::iter(chunks.map(|chunk| Ok(Bytes::from_static(chunk))));
    Act::Reply(reply(ContentType::EventStream, Body::stream(chunks).holding(Box::new(ended))))
}

const EVENTS: &str = "data: {\"a\":\"\u{e4}\"}\n\ndata: [DONE]\n\n";

/// The body of an HTTP/1.0 answer: what is streamed ends with the connection.
async fn plain(stub: &Arc<Stub>, request: &str) -> Said {
    exchange(stub, request.replace("HTTP/1.1", "HTTP/1.0")).await
}

#[tokio::test(start_paused = true)]
async fn a_stream_is_replayed_as_a_stream() {
    let stub = Stub::new(|_, ended| events(ended));
    for replayed in [None, Some("true"), Some("true")] {
        let said = plain(&stub, &keyed("k", BODY)).await;
        assert_eq!((said.status, &*said.body), (200, EVENTS));
        assert_eq!(said.header("content-type"), Some("text/event-stream"));
        assert_eq!(said.header("cache-control"), Some("no-cache"));
        assert_eq!(said.header("idempotency-replayed"), replayed);
    }
    assert_eq!(executions(&stub), 1);
}

#[tokio::test(start_paused = true)]
async fn refusals_that_would_come_again_are_kept_and_others_are_not() {
    for (kind, kept) in [
        (Kind::ModelNotFound, true),
        (Kind::Rejected, true),
        (Kind::RateLimited, false),
        (Kind::Overloaded, false),
        (Kind::Upstream, false),
        (Kind::DeadlineExceeded, false),
    ] {
        let stub = Stub::new(move |_, _| Act::Fail(Error::new(kind, Origin::Upstream, "no")));
        let first = exchange(&stub, keyed("k", BODY)).await;
        let again = exchange(&stub, keyed("k", BODY)).await;
        assert_eq!((first.status, &first.body), (again.status, &again.body), "{kind:?}");
        assert_eq!(first.header("x-should-retry"), again.header("x-should-retry"), "{kind:?}");
        assert_eq!(again.header("idempotency-replayed").is_some(), kept, "{kind:?}");
        assert_eq!(executions(&stub), if kept { 1 } else { 2 }, "{kind:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_broke_off_is_not_kept_and_does_not_look_finished() {
    let stub = Stub::new(|_, ended| {
        let error = Error::new(Kind::Upstream, Origin::Upstream, "it broke off");
        let chunks = stream::iter([Ok(Bytes::from_static(b"data: 1\n\n")), Err(error)]);
        let body = Body::stream(chunks).holding(Box::new(ended));
        Act::Reply(reply(ContentType::EventStream, body))
    });
    for _ in 0..2 {
        let said = plain(&stub, &keyed("k", BODY)).await;
        assert!(said.body.starts_with("data: 1\n\ndata: {\"error\""), "{said:?}");
        assert_eq!(said.header("idempotency-replayed"), None);
    }
    assert_eq!(executions(&stub), 2);
}

#[tokio::test(start_paused = true)]
async fn an_execution_that_panics_is_an_error_and_not_kept() {
    let stub = Stub::new(|_, _| Act::Panic);
    for _ in 0..2 {
        let said = exchange(&stub, keyed("k", BODY)).await;
        assert_eq!((said.status, &*said.code()), (500, "internal_error"));
    }
    assert_eq!(executions(&stub), 2);
}

#[tokio::test(start_paused = true)]
async fn a_stream_whose_task_is_gone_does_not_look_finished() {
    let stub = Stub::new(|_, ended| {
        let first = stream::iter([Ok(Bytes::from_static(b"data: 1\n\n"))]);
        let panics = stream::once(async { panic!("scripted") });
        let body = Body::stream(first.chain(panics)).holding(Box::new(ended));
        Act::Reply(reply(ContentType::EventStream, body))
    });
    let said = plain(&stub, &keyed("k", BODY)).await;
    assert!(said.body.starts_with("data: 1\n\ndata: {\"error\""), "{said:?}");
}

#[tokio::test(start_paused = true)]
async fn an_answer_too_long_to_keep_is_given_once() {
    let whole = Stub::new(|_, ended| {
        let body = Body::whole(vec![b' '; MAX_ANSWER + 1].into());
        Act::Reply(reply(ContentType::Json, body.holding(Box::new(ended))))
    });
    let streamed = Stub::new(|_, ended| {
        let chunks = stream::iter((0..=MAX_ANSWER).map(|_| Ok(Bytes::from_static(b" "))));
        let body = Body::stream(chunks).holding(Box::new(ended));
        Act::Reply(reply(ContentType::EventStream, body))
    });
    for stub in [whole, streamed] {
        let first = plain(&stub, &keyed("k", BODY)).await;
        assert_eq!((first.status, first.body.len()), (200, MAX_ANSWER + 1));
        let again = exchange(&stub, keyed("k", BODY)).await;
        assert_eq!((again.status, &*again.code()), (409, "idempotency_not_replayable"));
        assert_eq!(again.header("x-should-retry"), Some("false"));
        assert_eq!(again.header("retry-after"), None);
        assert_eq!(executions(&stub), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn refusals_of_the_key_are_told_and_replays_are_not() {
    let stub = counting();
    exchange(&stub, keyed("k", BODY)).await;
    exchange(&stub, keyed("k", BODY)).await;
    assert!(stub.refused.lock().unwrap().is_empty());
    exchange(&stub, keyed("k", &BODY.replace("hi", "ho"))).await;
    let told: Vec<_> = stub.refused.lock().unwrap().iter().map(|told| told.code).collect();
    assert_eq!(told, ["idempotency_mismatch"]);
}

#[tokio::test(start_paused = true)]
async fn without_a_keeper_the_header_means_nothing() {
    let stub = counting();
    *stub.idempotency.lock().unwrap() = None;
    for _ in 0..2 {
        let said = exchange(&stub, keyed("two words", BODY)).await;
        assert_eq!((said.status, said.header("idempotency-replayed")), (200, None));
    }
    assert_eq!(executions(&stub), 2);
}

/// Says the same of every key.
struct Says(fn() -> Result<Begun>);

impl Replays for Says {
    fn begin(&self, _: ReplayKey) -> BoxFuture<'_, Result<Begun>> {
        Box::pin(std::future::ready((self.0)()))
    }

    fn sweep(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_noted_or_given_now_is_not_carried_out() {
    let stub = counting();
    let full =
        || Err(Error::new(Kind::Internal, Origin::Gateway, "/secret/path: the disk is full"));
    for (says, words) in
        [(Says(full), "cannot be noted now"), (Says(|| Ok(Begun::Busy)), "answered")]
    {
        *stub.idempotency.lock().unwrap() = Some(Idempotency::new(Arc::new(says), 10));
        let said = exchange(&stub, keyed("k", BODY)).await;
        assert_eq!((said.status, &*said.code()), (503, "idempotency_unavailable"));
        assert_eq!(said.header("x-should-retry"), Some("true"));
        assert_eq!(said.header("retry-after"), Some("1"));
        assert!(said.body.contains(words), "{}", said.body);
        assert!(!said.body.contains("disk"), "the file is nobody's business: {}", said.body);
    }
    assert_eq!(executions(&stub), 0);
    assert_eq!(exchange(&stub, post(CHAT, "", BODY)).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_replay_is_compressed_as_its_own_request_asks() {
    let stub = Stub::new(|_, ended| {
        let body = Body::whole(vec![b' '; MAX_ANSWER].into()).holding(Box::new(ended));
        Act::Reply(reply(ContentType::Json, body))
    });
    let first = exchange(&stub, keyed("k", BODY)).await;
    assert_eq!(first.header("content-length"), Some("1000"));
    let gzip =
        keyed("k", BODY).replace("Host:", "accept-encoding: gzip;q=1, identity;q=0\r\nHost:");
    let (mut io, _stop) = memory(&stub, Options::default());
    io.write_all(gzip.as_bytes()).await.unwrap();
    let mut said = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(&mut io, &mut said).await.unwrap();
    let head = String::from_utf8_lossy(&said);
    assert!(head.contains("content-encoding: gzip") && head.contains("idempotency-replayed: true"));
    assert_eq!(executions(&stub), 1);
}
