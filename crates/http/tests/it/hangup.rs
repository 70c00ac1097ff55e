//! A caller that goes away cancels its call at once, in every phase. Real sockets: it is the
//! system that tells.

use crate::stub::{Act, BODY, Server, Stub, post, read_until, reply};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use hyper::{Request, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::sync::Arc;
use tidegate_core::{Body, ContentType};
use tidegate_http::Options;
use tokio::io::AsyncWriteExt as _;

const CHAT: &str = "/v1/chat/completions";

fn hanging() -> Arc<Stub> {
    Stub::new(|_, ended| {
        std::mem::forget(ended);
        Act::Hang
    })
}

/// One event, then silence.
fn silent_stream() -> Arc<Stub> {
    Stub::new(|_, ended| {
        let first = stream::iter([Ok(Bytes::from_static(b"data: 1\n\n"))]);
        let body = Body::stream(first.chain(stream::pending())).holding(Box::new(ended));
        Act::Reply(reply(ContentType::EventStream, body))
    })
}

/// How a caller goes away.
#[derive(Clone, Copy)]
enum Leave {
    /// Closes both ways.
    Drop,
    /// Closes its side and waits.
    Fin,
}

async fn leaves(stub: Arc<Stub>, mid_stream: bool, leave: Leave) {
    let server = Server::start(&stub, Options::default()).await;
    let mut io = server.connect().await;
    io.write_all(post(CHAT, "", BODY).as_bytes()).await.unwrap();
    Stub::wait(&stub.begun, 1).await;
    if mid_stream {
        read_until(&mut io, "data: 1").await;
    }
    let kept = match leave {
        Leave::Drop => {
            drop(io);
            None
        }
        Leave::Fin => {
            io.shutdown().await.unwrap();
            Some(io)
        }
    };
    Stub::wait(&stub.ended, 1).await;
    drop(kept);
    let drained = server.stop().await;
    assert_eq!(drained.cut, 0);
}

#[tokio::test]
async fn while_waiting_for_the_answer() {
    leaves(hanging(), false, Leave::Drop).await;
    leaves(hanging(), false, Leave::Fin).await;
}

#[tokio::test]
async fn in_the_middle_of_a_stream() {
    leaves(silent_stream(), true, Leave::Drop).await;
    leaves(silent_stream(), true, Leave::Fin).await;
}

#[tokio::test]
async fn while_sending_the_body() {
    let stub = hanging();
    let server = Server::start(&stub, Options::default()).await;
    let mut io = server.connect().await;
    io.write_all(&post(CHAT, "", BODY).as_bytes()[..150]).await.unwrap();
    drop(io);
    assert_eq!(server.stop().await.cut, 0);
    assert!(stub.calls.lock().unwrap().is_empty());
}

#[tokio::test]
async fn on_http2_one_stream_alone() {
    for (stub, mid_stream) in [(hanging(), false), (silent_stream(), true)] {
        let server = Server::start(&stub, Options::default()).await;
        let io = TokioIo::new(server.connect().await);
        let (mut send, connection) =
            http2::handshake::<_, _, String>(TokioExecutor::new(), io).await.unwrap();
        let connection = tokio::spawn(connection);
        let request = || {
            Request::post(format!("http://gate{CHAT}"))
                .header("x-api-key", crate::stub::KEY)
                .body(BODY.to_owned())
                .unwrap()
        };
        let mut first = Box::pin(send.send_request(request()));
        let mut answer = None;
        if mid_stream {
            answer = Some(first.as_mut().await.unwrap());
        } else {
            tokio::select! {
                _ = &mut first => panic!("it hangs"),
                () = Stub::wait(&stub.begun, 1) => {}
            }
        }
        drop((first, answer));
        Stub::wait(&stub.ended, 1).await;
        // The connection lives on.
        let live = Request::get("http://gate/livez").body(String::new()).unwrap();
        assert_eq!(send.send_request(live).await.unwrap().status(), 200);
        drop(send);
        connection.await.unwrap().unwrap();
        server.stop().await;
    }
}

#[tokio::test]
async fn on_http2_with_its_connection() {
    let stub = hanging();
    let server = Server::start(&stub, Options::default()).await;
    // hyper's client lets a stream finish; a cable that is cut does not.
    let mut socket = server.connect().await;
    let (io, mut cable) = tokio::io::duplex(1 << 10);
    let cable = tokio::spawn(async move {
        let _ = tokio::io::copy_bidirectional(&mut cable, &mut socket).await;
    });
    let (mut send, connection) =
        http2::handshake::<_, _, String>(TokioExecutor::new(), TokioIo::new(io)).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = Request::post(format!("http://gate{CHAT}"))
        .header("x-api-key", crate::stub::KEY)
        .body(BODY.to_owned())
        .unwrap();
    let answer = tokio::spawn(send.send_request(request));
    Stub::wait(&stub.begun, 1).await;
    cable.abort();
    Stub::wait(&stub.ended, 1).await;
    assert!(answer.await.unwrap().is_err());
    let _ = connection.await.unwrap();
    server.stop().await;
}
