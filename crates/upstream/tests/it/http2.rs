//! HTTP/2 by prior knowledge: streams shared, connections added, cancels seen.

use crate::support::{OK_BODY, Server, chat, chat_stream, open, options, server, text};
use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    Request, Response, body::Frame, body::Incoming, server::conn::http2, service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::{convert::Infallible, future::Future, sync::Arc};
use tidegate_core::{Kind, Retry};
use tidegate_upstream::{Options, Upstream};
use tokio::sync::{Barrier, Notify};

pub(crate) type Answer = Response<BoxBody<Bytes, Infallible>>;

pub(crate) fn ok() -> Answer {
    Response::new(Full::from(OK_BODY).boxed())
}

pub(crate) async fn serve<F, Fut>(max_streams: u32, answer: F) -> Server
where
    F: Fn(Request<Incoming>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Answer> + Send + 'static,
{
    server(move |connection| {
        let answer = answer.clone();
        async move {
            let service = service_fn(move |request| {
                let answered = answer(request);
                async move { Ok::<_, Infallible>(answered.await) }
            });
            let _ = http2::Builder::new(TokioExecutor::new())
                .max_concurrent_streams(max_streams)
                .serve_connection(TokioIo::new(connection.io), service)
                .await;
        }
    })
    .await
}

fn upstream(server: &Server) -> Arc<Upstream> {
    Arc::new(open(Options { http2: true, ..options(server.address) }))
}

#[tokio::test]
async fn calls_share_a_connection() {
    let server = serve(100, |request| async move {
        assert_eq!(request.uri().path(), "/v1/chat/completions");
        assert_eq!(request.headers()["content-length"], "30");
        assert!(!request.headers().contains_key("host"));
        ok()
    })
    .await;
    let upstream = upstream(&server);
    let replies = futures_util::future::join_all((0..50).map(|_| chat(&upstream))).await;
    for reply in replies {
        assert_eq!(text(reply.unwrap()).await.unwrap(), OK_BODY);
    }
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn more_calls_than_streams_open_more_connections() {
    // All must be in flight at once.
    let all_here = Arc::new(Barrier::new(35));
    let server = serve(10, move |_| {
        let all_here = Arc::clone(&all_here);
        async move {
            all_here.wait().await;
            ok()
        }
    })
    .await;
    let upstream = upstream(&server);
    let replies = futures_util::future::join_all((0..35).map(|_| chat(&upstream))).await;
    assert!(replies.iter().all(Result::is_ok));
    assert!((4..=6).contains(&server.connections()), "{}", server.connections());
}

#[tokio::test]
async fn the_limit_on_connections_holds() {
    let server = serve(5, |_| async { ok() }).await;
    let limited = open(Options { http2: true, max_connections: 2, ..options(server.address) });
    let replies = futures_util::future::join_all((0..200).map(|_| chat(&limited))).await;
    assert!(replies.iter().all(Result::is_ok));
    assert!(server.connections() <= 2);
}

#[tokio::test]
async fn a_cancel_resets_the_stream_and_keeps_the_connection() {
    struct Told(Arc<Notify>);
    impl Drop for Told {
        fn drop(&mut self) {
            self.0.notify_one();
        }
    }
    let (begun, cancelled) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (telling, told) = (Arc::clone(&begun), Arc::clone(&cancelled));
    let server = serve(100, move |request| {
        let (begun, told) = (Arc::clone(&telling), Told(Arc::clone(&told)));
        async move {
            let wants_stream = request.headers()["accept"] == "text/event-stream";
            begun.notify_one();
            if !wants_stream {
                std::future::pending::<()>().await;
            }
            let first = Ok(Frame::data(Bytes::from_static(b"data: 1\n\n")));
            let rest = stream::once(async move {
                let _told = told;
                std::future::pending().await
            });
            let body = StreamBody::new(futures_util::StreamExt::chain(stream::iter([first]), rest));
            let mut answer = Response::new(BodyExt::boxed(SyncBody::new(body)));
            answer.headers_mut().insert("content-type", "text/event-stream".parse().unwrap());
            answer
        }
    })
    .await;
    let upstream = upstream(&server);
    for _ in 0..3 {
        let unary = tokio::spawn({
            let upstream = Arc::clone(&upstream);
            async move { chat(&upstream).await }
        });
        begun.notified().await;
        unary.abort();
        cancelled.notified().await;

        let reply = chat_stream(&upstream).await.unwrap();
        begun.notified().await;
        drop(reply);
        cancelled.notified().await;
    }
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn a_server_that_says_goodbye_loses_no_call() {
    let server = server(|connection| async move {
        let answered = Arc::new(Notify::new());
        let telling = Arc::clone(&answered);
        let service = service_fn(move |_| {
            telling.notify_one();
            async { Ok::<_, Infallible>(ok()) }
        });
        let serving = http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(connection.io), service);
        let mut serving = std::pin::pin!(serving);
        tokio::select! {
            _ = serving.as_mut() => return,
            () = answered.notified() => serving.as_mut().graceful_shutdown(),
        }
        let _ = serving.await;
    })
    .await;
    let upstream = upstream(&server);
    for _ in 0..20 {
        for reply in futures_util::future::join_all((0..5).map(|_| chat(&upstream))).await {
            // Turned away unprocessed is the worst that may happen.
            let retry = reply.err().map(|error| error.retry());
            assert!(matches!(retry, None | Some(Retry::Unsent)), "{retry:?}");
        }
    }
    assert!(server.connections() > 1);
}

#[tokio::test]
async fn a_server_that_speaks_http1_only_is_unavailable() {
    let server = server(|mut connection| async move {
        connection.send("HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n").await;
    })
    .await;
    let upstream = upstream(&server);
    let replies = futures_util::future::join_all((0..20).map(|_| chat(&upstream))).await;
    for reply in replies {
        let error = reply.unwrap_err();
        assert!(matches!(error.kind(), Kind::Unavailable | Kind::Upstream), "{error:?}");
        assert_ne!(error.retry(), Retry::Never);
    }
}

/// Lets a body that is only `Send` be boxed as `Sync`: it is only ever polled by one task.
struct SyncBody<B>(std::sync::Mutex<std::pin::Pin<Box<B>>>);

impl<B> SyncBody<B> {
    fn new(body: B) -> Self {
        Self(std::sync::Mutex::new(Box::pin(body)))
    }
}

impl<B: hyper::body::Body> hyper::body::Body for SyncBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        self.get_mut().0.get_mut().unwrap().as_mut().poll_frame(cx)
    }
}
