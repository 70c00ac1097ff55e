//! A caller who goes away: the upstream sees its connection close, in every phase.

use crate::support::{JSON, chat, chat_stream, events, open, options, server};
use futures_util::StreamExt;
use std::sync::Arc;
use tidegate_upstream::Options;
use tokio::sync::Notify;

/// Runs a server that sends `start` and then waits for the caller to leave.
async fn check(start: Vec<u8>, stream: bool) {
    let (sent, left) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (telling_sent, telling_left) = (Arc::clone(&sent), Arc::clone(&left));
    let server = server(move |mut connection| {
        let (sent, left) = (Arc::clone(&telling_sent), Arc::clone(&telling_left));
        let start = start.clone();
        async move {
            connection.request().await;
            connection.send(start).await;
            sent.notify_one();
            connection.closed().await;
            left.notify_one();
        }
    })
    .await;
    // With one connection, the slot must come back as well.
    let upstream = Arc::new(open(Options { max_connections: 1, ..options(server.address) }));
    for _ in 0..3 {
        let upstream = Arc::clone(&upstream);
        let call = tokio::spawn(async move {
            let reply = if stream { chat_stream(&upstream).await } else { chat(&upstream).await };
            let mut body = reply.unwrap().body;
            while body.next().await.is_some() {}
        });
        sent.notified().await;
        call.abort();
        left.notified().await;
        assert!(call.await.unwrap_err().is_cancelled());
    }
}

#[tokio::test]
async fn before_the_head() {
    check(vec![], false).await;
    check(vec![], true).await;
}

#[tokio::test]
async fn inside_the_head() {
    check(b"HTTP/1.1 200 OK\r\ncontent-".to_vec(), false).await;
}

#[tokio::test]
async fn inside_a_unary_answer() {
    check(format!("HTTP/1.1 200 OK\r\n{JSON}content-length: 100\r\n\r\n{{").into_bytes(), false)
        .await;
}

#[tokio::test]
async fn before_the_first_event() {
    check(events(": ping\n\n"), true).await;
}

#[tokio::test]
async fn before_the_first_content() {
    check(events("data: {\"choices\":[{\"delta\":{\"role\":\"assistant\"}}]}\n\n"), true).await;
}

#[tokio::test]
async fn inside_a_stream() {
    check(events("data: 1\n\ndata: "), true).await;
}

#[tokio::test]
async fn inside_a_refusal() {
    check(b"HTTP/1.1 500 Oops\r\ncontent-length: 100\r\n\r\nx".to_vec(), false).await;
}
