//! The simulator over in-memory connections, under a paused clock.

#![expect(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod cancel;
mod control;
mod faults;
mod plain;
mod sockets;
mod streams;
mod time;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use tidegate_sim::{Distribution, Faults, LedgerEntry, Options, Sim};
use tokio::time::Instant;

/// 100 ms to the first token, 10 ms between tokens, four slots.
fn options() -> Options {
    Options { ttft: fixed(100), itl: fixed(10), slots: 4, queue: 4, ..Options::default() }
}

fn fixed(millis: u64) -> Distribution {
    Distribution::Fixed(Duration::from_millis(millis))
}

fn faulty(faults: Faults) -> Arc<Sim> {
    Sim::new(Options { faults, ..options() })
}

/// A chat whose answer is cut after `max_tokens`.
fn chat(text: &str, max_tokens: u32) -> Value {
    json!({"model": "sim-small", "max_tokens": max_tokens,
           "messages": [{"role": "user", "content": text}]})
}

fn streamed(mut body: Value) -> Value {
    body["stream"] = true.into();
    body
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Bytes,
    /// From sending the request to the last byte.
    took: Duration,
    /// Whether the body ended before its end.
    is_broken: bool,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// Payloads of the events.
    fn events(&self) -> Vec<&str> {
        let text = std::str::from_utf8(&self.body).unwrap();
        let events = text.split_terminator("\n\n");
        let data = |event: &str| event.lines().last().unwrap().strip_prefix("data: ").is_some();
        assert!(text.is_empty() || events.clone().all(data), "{text}");
        events.map(|event| event.rsplit_once("data: ").unwrap().1).collect()
    }
}

/// Sends a request on a connection of its own; `Err` when no head comes.
async fn send(sim: &Arc<Sim>, request: Request<Full<Bytes>>) -> hyper::Result<Response<Incoming>> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(sim.connect())).await?;
    tokio::spawn(connection);
    sender.send_request(request).await
}

fn request(path: &str, body: &Value) -> Request<Full<Bytes>> {
    Request::post(path).header("host", "sim").body(body.to_string().into()).unwrap()
}

async fn try_post(sim: &Arc<Sim>, path: &str, body: &Value) -> hyper::Result<Answer> {
    let start = Instant::now();
    let response = send(sim, request(path, body)).await?;
    Ok(finish(response, start).await)
}

async fn finish(response: Response<Incoming>, start: Instant) -> Answer {
    let (head, mut body) = response.into_parts();
    let mut answer = Answer {
        status: head.status.as_u16(),
        headers: head.headers,
        body: Bytes::new(),
        took: Duration::ZERO,
        is_broken: false,
    };
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => bytes.extend(frame.into_data().unwrap()),
            Err(_) => {
                answer.is_broken = true;
                break;
            }
        }
    }
    answer.body = bytes.into();
    answer.took = start.elapsed();
    answer
}

async fn post(sim: &Arc<Sim>, path: &str, body: &Value) -> Answer {
    try_post(sim, path, body).await.unwrap()
}

async fn ask(sim: &Arc<Sim>, body: &Value) -> Answer {
    post(sim, "/v1/chat/completions", body).await
}

async fn get(sim: &Arc<Sim>, path: &str) -> Answer {
    let request = Request::get(path).header("host", "sim").body(Full::default()).unwrap();
    let response = send(sim, request).await.unwrap();
    finish(response, Instant::now()).await
}

/// The one entry of the ledger, once the server's side of the connection is over.
async fn only_entry(sim: &Arc<Sim>) -> LedgerEntry {
    tokio::time::sleep(Duration::from_millis(1)).await;
    let ledger = sim.ledger();
    assert_eq!(ledger.len(), 1, "{ledger:?}");
    ledger.into_iter().next().unwrap()
}
