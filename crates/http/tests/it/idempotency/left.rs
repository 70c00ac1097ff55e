//! Callers that leave before their answer ends: it goes on without them.

use super::{executions, keyed, plain};
use crate::stub::{
    Act, BODY, Said, Server, Stub, exchange, json, memory, read_all, read_until, reply,
};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use std::{sync::Arc, time::Duration};
use tidegate_core::{Body, ContentType};
use tidegate_http::Options;
use tokio::{io::AsyncWriteExt as _, sync::Notify};

/// Hangs until told, then streams two events with a pause between them.
fn paused(go: &Arc<Notify>, rest: usize) -> Arc<Stub> {
    let go = go.clone();
    Stub::new(move |_, ended| {
        let go = go.clone();
        let first = stream::iter([Ok(Bytes::from_static(b"data: 1\n\n"))]);
        let rest = stream::once(async move {
            go.notified().await;
            Ok(Bytes::from(format!("data: {}\n\n", "2".repeat(rest))))
        });
        let body = Body::stream(first.chain(rest)).holding(Box::new(ended));
        Act::Reply(reply(ContentType::EventStream, body))
    })
}

#[tokio::test]
async fn a_caller_that_hangs_up_finds_its_answer_later() {
    let go = Arc::new(Notify::new());
    let stub = paused(&go, 1);
    let server = Server::start(&stub, Options::default()).await;
    let mut io = server.connect().await;
    io.write_all(keyed("k", BODY).as_bytes()).await.unwrap();
    read_until(&mut io, "data: 1").await;
    drop(io);
    let ask = async || {
        let mut io = server.connect().await;
        let request = keyed("k", BODY).replace("HTTP/1.1", "HTTP/1.0");
        io.write_all(request.as_bytes()).await.unwrap();
        Said::parse(&read_all(&mut io).await)
    };
    assert_eq!(ask().await.status, 409);
    go.notify_one();
    Stub::wait(&stub.ended, 1).await;
    let kept = async {
        loop {
            let said = ask().await;
            if said.status == 200 {
                return said;
            }
        }
    };
    let said = tokio::time::timeout(Duration::from_secs(30), kept).await.unwrap();
    assert_eq!(said.body, "data: 1\n\ndata: 2\n\n");
    assert_eq!(said.header("idempotency-replayed"), Some("true"));
    assert_eq!(executions(&stub), 1);
    server.stop().await;
}

#[tokio::test]
async fn a_caller_that_hangs_up_before_the_answer_finds_it_later() {
    let go = Arc::new(Notify::new());
    let gate = go.clone();
    let stub = Stub::new(move |_, ended| {
        let gate = gate.clone();
        Act::After(Box::pin(async move {
            gate.notified().await;
            json(r#"{"ok":1}"#, ended)
        }))
    });
    let server = Server::start(&stub, Options::default()).await;
    let mut io = server.connect().await;
    io.write_all(keyed("k", BODY).as_bytes()).await.unwrap();
    Stub::wait(&stub.begun, 1).await;
    drop(io);
    go.notify_one();
    // The drain waits for it.
    Stub::wait(&stub.ended, 1).await;
    assert_eq!(server.stop().await.cut, 0);
    let said = exchange(&stub, keyed("k", BODY)).await;
    assert_eq!((said.status, &*said.body), (200, r#"{"ok":1}"#));
    assert_eq!(said.header("idempotency-replayed"), Some("true"));
}

#[tokio::test]
async fn nobody_waits_for_an_answer_that_nobody_can_get() {
    let stub = Stub::new(|_, ended| {
        let first = stream::iter([Ok(Bytes::from_static(b"data: 1\n\n"))]);
        let more = stream::repeat_with(|| Ok(Bytes::from_static(b"data: 2\n\n")));
        let more = more.then(|chunk| async {
            tokio::task::yield_now().await;
            chunk
        });
        let body = Body::stream(first.chain(more)).holding(Box::new(ended));
        Act::Reply(reply(ContentType::EventStream, body))
    });
    let server = Server::start(&stub, Options::default()).await;
    let mut io = server.connect().await;
    io.write_all(keyed("k", BODY).as_bytes()).await.unwrap();
    read_until(&mut io, "data: 1").await;
    drop(io);
    Stub::wait(&stub.ended, 1).await;
    server.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_drain_cuts_what_takes_too_long_and_keeps_nothing_of_it() {
    let go = Arc::new(Notify::new());
    let stub = paused(&go, 1);
    let options = Options { drain_timeout: Duration::from_secs(3), ..Options::default() };
    let (mut io, stop) = memory(&stub, options);
    io.write_all(keyed("k", BODY).as_bytes()).await.unwrap();
    read_until(&mut io, "data: 1").await;
    drop(io);
    stop.cancel();
    Stub::wait(&stub.ended, 1).await;
    go.notify_one();
    let said = plain(&stub, &keyed("k", BODY)).await;
    assert_eq!((said.status, said.header("idempotency-replayed")), (200, None));
    assert_eq!(executions(&stub), 2);
}
