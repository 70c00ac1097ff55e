//! Reuse, limits and dead connections.

use crate::support::{
    JSON, OK_BODY, answer, answering, call, chat, chat_stream, events, open, options, sent, server,
    text, upstream,
};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};
use tidegate_core::{Clock, Kind, Operation, Retry};
use tidegate_upstream::Options;
use tokio::sync::{Barrier, Notify};

#[tokio::test]
async fn calls_one_after_the_other_share_a_connection() {
    let server = answering(answer("200 OK", JSON, OK_BODY)).await;
    let upstream = upstream(&server);
    for _ in 0..20 {
        let reply = chat(&upstream).await.unwrap();
        assert_eq!(reply.usage.unwrap().total(), 7);
        assert_eq!(text(reply).await.unwrap(), OK_BODY);
    }
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn chunked_answers_and_streams_share_a_connection_too() {
    let server = server(|mut connection| async move {
        while let Some(request) = connection.request().await {
            let (kind, body) = if request.head.contains("accept: text/event-stream") {
                ("text/event-stream", "data: {}\n\ndata: [DONE]\n\n")
            } else {
                ("application/json", "{}")
            };
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n\r\n"
            );
            connection.send(format!("{head}{:x}\r\n{body}\r\n0\r\n\r\n", body.len())).await;
        }
    })
    .await;
    let upstream = upstream(&server);
    for _ in 0..5 {
        assert_eq!(text(chat(&upstream).await.unwrap()).await.unwrap(), "{}");
        assert!(text(chat_stream(&upstream).await.unwrap()).await.unwrap().ends_with("[DONE]\n\n"));
    }
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn the_request_is_the_callers_with_our_model_and_key() {
    let server = server(|mut connection| async move {
        while let Some(request) = connection.request().await {
            assert_eq!(request.text(), r#"{"model":"real","messages":[]}"#);
            assert!(request.head.starts_with("post /v1/chat/completions http/1.1\r\n"));
            for header in [
                "host: 127.0.0.1:",
                "authorization: bearer sk-1",
                "content-type: application/json",
                "content-length: 30",
                "x-request-id: req-1",
                "x-attempt: 2",
                "x-tidegate-timeout: 5",
                "x-mine: yes",
                "user-agent: tidegate/",
                "accept-encoding: gzip, br, zstd",
            ] {
                assert!(
                    request.head.contains(&format!("\r\n{header}")),
                    "{header}: {}",
                    request.head
                );
            }
            connection.send(answer("200 OK", JSON, "{}")).await;
        }
    })
    .await;
    let headers = [("X-Mine".to_owned(), "yes".to_owned())].into();
    let upstream = open(Options { headers, ..options(server.address) });
    chat(&upstream).await.unwrap();
}

#[tokio::test]
async fn five_hundred_calls_on_exactly_fifty_connections() {
    const CONNECTIONS: usize = 50;
    // Nobody is answered before fifty are here, so fifty connections there must be.
    let all_here = Arc::new(Barrier::new(CONNECTIONS));
    let server = server(move |mut connection| {
        let all_here = Arc::clone(&all_here);
        async move {
            while connection.request().await.is_some() {
                all_here.wait().await;
                connection.send(answer("200 OK", JSON, OK_BODY)).await;
            }
        }
    })
    .await;
    let upstream =
        Arc::new(open(Options { max_connections: CONNECTIONS, ..options(server.address) }));
    let calls: Vec<_> = (0..500)
        .map(|_| {
            let upstream = Arc::clone(&upstream);
            tokio::spawn(async move { text(chat(&upstream).await.unwrap()).await.unwrap() })
        })
        .collect();
    for call in calls {
        assert_eq!(call.await.unwrap(), OK_BODY);
    }
    assert_eq!(server.connections(), CONNECTIONS);
    assert_eq!(server.most_open.load(Ordering::SeqCst), CONNECTIONS);
}

#[tokio::test(start_paused = true)]
async fn waiting_for_a_connection_ends_with_the_attempt() {
    let server = server(|mut connection| async move {
        connection.request().await;
        connection.closed().await;
    })
    .await;
    let upstream = Arc::new(open(Options { max_connections: 1, ..options(server.address) }));
    let first = tokio::spawn({
        let upstream = Arc::clone(&upstream);
        async move { chat(&upstream).await }
    });
    while server.connections() == 0 {
        tokio::task::yield_now().await;
    }
    let error = chat(&upstream).await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (Kind::UpstreamTimeout(Clock::Total), Retry::Unsent));
    assert!(error.message().contains("max_connections"), "{error}");
    first.abort();
}

#[tokio::test]
async fn a_connection_the_server_closed_is_not_used_again() {
    let closed = Arc::new(Notify::new());
    let told = Arc::clone(&closed);
    let server = server(move |mut connection| {
        let told = Arc::clone(&told);
        async move {
            connection.request().await;
            connection.send(answer("200 OK", JSON, OK_BODY)).await;
            drop(connection);
            told.notify_one();
        }
    })
    .await;
    let upstream = upstream(&server);
    for _ in 0..5 {
        chat(&upstream).await.unwrap();
        closed.notified().await;
        // Lets the runtime look at its sockets.
        for _ in 0..200 {
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(server.connections(), 5);
}

#[tokio::test]
async fn a_connection_closed_by_its_header_is_not_kept() {
    let server = answering(answer("200 OK", "connection: close\r\n", OK_BODY)).await;
    let upstream = upstream(&server);
    for _ in 0..3 {
        chat(&upstream).await.unwrap();
    }
    assert_eq!(server.connections(), 3);
}

#[tokio::test]
async fn a_refusal_keeps_the_connection() {
    let server = answering(answer("429 Too Many Requests", "retry-after: 1\r\n", "{}")).await;
    let upstream = upstream(&server);
    for _ in 0..3 {
        assert_eq!(chat(&upstream).await.unwrap_err().kind(), Kind::UpstreamCapacity);
    }
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn a_server_that_is_not_there() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let call = call(Operation::ChatCompletions, false);
    let (reply, was_written) = sent(&open(options(address)), &call).await;
    let error = reply.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (Kind::Unavailable, Retry::Unsent));
    assert!(error.message().contains(&address.to_string()), "{error}");
    assert!(!was_written);
}

#[tokio::test]
async fn no_more_than_max_idle_are_kept() {
    let open_now = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&open_now);
    let all_here = Arc::new(Barrier::new(8));
    let server = server(move |mut connection| {
        let (counter, all_here) = (Arc::clone(&counter), Arc::clone(&all_here));
        async move {
            counter.fetch_add(1, Ordering::SeqCst);
            while connection.request().await.is_some() {
                all_here.wait().await;
                connection.send(answer("200 OK", JSON, OK_BODY)).await;
            }
            counter.fetch_sub(1, Ordering::SeqCst);
        }
    })
    .await;
    let upstream = Arc::new(open(Options { max_idle: 2, ..options(server.address) }));
    futures_util::future::join_all((0..8).map(|_| chat(&upstream))).await;
    while open_now.load(Ordering::SeqCst) > 2 {
        tokio::task::yield_now().await;
    }
    assert_eq!(open_now.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_half_read_stream_is_not_kept() {
    let server = server(|mut connection| async move {
        while connection.request().await.is_some() {
            connection.send(events("data: {\"a\":1}\n\n")).await;
            connection.closed().await;
        }
    })
    .await;
    let upstream = upstream(&server);
    for _ in 0..3 {
        drop(chat_stream(&upstream).await.unwrap());
    }
    assert_eq!(server.connections(), 3);
}
