//! One request and its answer: the times, the bytes and the tokens, and how it ended.

use crate::{
    client::Client,
    connection::{Connection, Failure},
};
use bytes::Bytes;
use http::{Response, StatusCode, header::CONTENT_TYPE};
use hyper::body::Incoming;
use serde::{Deserialize, de::IgnoredAny};
use std::{error::Error as _, io, time::Duration};
use tidegate_core::Usage;
use tidegate_wire::{classify, sse::Scanner, usage};
use tokio::time::{Instant, timeout_at};

/// Bytes of an unary answer that are looked into; more are counted only.
const MAX_BODY_BYTES: usize = 16 << 20;
/// Gaps between tokens kept per answer; more are not recorded.
const MAX_GAPS: usize = 16_384;
/// Longest message kept of an error.
const MAX_MESSAGE_CHARS: usize = 160;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Answered in full.
    Ok,
    /// 429.
    RateLimited,
    /// 503, and 529, which means the same.
    Unavailable,
    /// Any other 4xx.
    Rejected,
    /// Any other 5xx.
    Failed,
    /// No connection came about.
    Connect,
    /// The connection ended before an answer.
    Reset,
    /// Out of time.
    Timeout,
    /// An error event inside a stream.
    StreamError,
    /// The answer broke off.
    Truncated,
    /// An answer that is none: a redirect, not JSON, not a stream.
    Invalid,
}

impl Class {
    pub(crate) const ALL: [Self; 11] = [
        Self::Ok,
        Self::RateLimited,
        Self::Unavailable,
        Self::Rejected,
        Self::Failed,
        Self::Connect,
        Self::Reset,
        Self::Timeout,
        Self::StreamError,
        Self::Truncated,
        Self::Invalid,
    ];

    /// The word used in reports.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::RateLimited => "429",
            Self::Unavailable => "503",
            Self::Rejected => "4xx",
            Self::Failed => "5xx",
            Self::Connect => "connect",
            Self::Reset => "reset",
            Self::Timeout => "timeout",
            Self::StreamError => "stream_error",
            Self::Truncated => "truncated",
            Self::Invalid => "invalid",
        }
    }

    /// Whether the server sent it away to protect itself.
    pub(crate) const fn is_refusal(self) -> bool {
        matches!(self, Self::RateLimited | Self::Unavailable)
    }

    const fn of(status: StatusCode) -> Self {
        match status.as_u16() {
            200..=299 => Self::Ok,
            429 => Self::RateLimited,
            503 | 529 => Self::Unavailable,
            400..=499 => Self::Rejected,
            500..=599 => Self::Failed,
            _ => Self::Invalid,
        }
    }
}

/// What is known of a request when it has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) class: Class,
    /// What went wrong, in words.
    pub(crate) message: Option<String>,
    pub(crate) at: Instant,
    /// How long a new connection took, when one was needed.
    pub(crate) connect: Option<Duration>,
    /// Whether a head came at all.
    pub(crate) is_answered: bool,
    pub(crate) has_retry_after: bool,
    pub(crate) first_token: Option<Instant>,
    pub(crate) last_token: Option<Instant>,
    /// Events with a token in them.
    pub(crate) token_events: u64,
    /// Microseconds between them.
    pub(crate) gaps: Vec<u32>,
    pub(crate) usage: Option<Usage>,
    /// Body bytes.
    pub(crate) received_bytes: u64,
    pub(crate) sent_bytes: u64,
}

/// Sends `body` and reads the answer, within `patience`.
pub(crate) async fn exchange(client: &Client, body: Bytes, patience: Duration) -> Ended {
    let began = Instant::now();
    let mut seen = Ended {
        class: Class::Timeout,
        message: None,
        at: began,
        connect: None,
        is_answered: false,
        has_retry_after: false,
        first_token: None,
        last_token: None,
        token_events: 0,
        gaps: Vec::new(),
        usage: None,
        received_bytes: 0,
        sent_bytes: body.len() as u64,
    };
    seen.class = match timeout_at(began + patience, send(client, body, &mut seen)).await {
        Ok(class) => class,
        Err(_) => seen.said(Class::Timeout, waited_for(&seen)),
    };
    seen.at = Instant::now();
    seen
}

const fn waited_for(seen: &Ended) -> &'static str {
    match (seen.is_answered, seen.first_token) {
        (false, _) => "no answer in time",
        (true, None) => "no token, or no end of the body, in time",
        (true, Some(_)) => "no end of the stream in time",
    }
}

async fn send(client: &Client, body: Bytes, seen: &mut Ended) -> Class {
    let mut connection = match client.take() {
        Some(connection) => connection,
        None => match open(client, seen).await {
            Ok(connection) => connection,
            Err(class) => return class,
        },
    };
    let mut answer = connection.exchange(client.request(body.clone())).await;
    if matches!(answer, Err(Failure::Unsent(_))) && seen.connect.is_none() {
        // The server closed it while it was unused: every client opens another.
        connection = match open(client, seen).await {
            Ok(connection) => connection,
            Err(class) => return class,
        };
        answer = connection.exchange(client.request(body)).await;
    }
    match answer {
        Ok(response) => read(client, connection, response, seen).await,
        Err(Failure::Unsent(error) | Failure::Broken(error)) => {
            seen.said(Class::Reset, &reason(error.as_ref()))
        }
    }
}

async fn open(client: &Client, seen: &mut Ended) -> Result<Box<Connection>, Class> {
    let before = Instant::now();
    match client.open().await {
        Ok(connection) => {
            seen.connect = Some(before.elapsed());
            Ok(connection)
        }
        Err(why) => Err(seen.said(Class::Connect, &why)),
    }
}

async fn read(
    client: &Client,
    connection: Box<Connection>,
    response: Response<Incoming>,
    seen: &mut Ended,
) -> Class {
    seen.is_answered = true;
    let (head, body) = response.into_parts();
    let class = Class::of(head.status);
    if class == Class::Ok && client.is_stream {
        let kind = head.headers.get(CONTENT_TYPE).map_or(&b""[..], |kind| kind.as_bytes());
        if !kind.starts_with(b"text/event-stream") {
            return seen.said(Class::Invalid, "the answer to a streaming request is no stream");
        }
        return read_events(client, connection, body, seen).await;
    }
    seen.has_retry_after =
        ["retry-after", "retry-after-ms"].iter().any(|name| head.headers.contains_key(*name));
    let (whole, is_cut) = read_whole(client, connection, body, seen).await;
    if class != Class::Ok {
        let words = format!("status {}{}", head.status.as_u16(), words(&whole));
        return seen.said(class, &client.redacted(&words));
    }
    if let Some(why) = is_cut {
        return seen.said(Class::Truncated, &why);
    }
    if whole.len() < MAX_BODY_BYTES && serde_json::from_slice::<IgnoredAny>(&whole).is_err() {
        return seen.said(Class::Invalid, "the answer is not JSON");
    }
    seen.usage = usage::read(&whole);
    Class::Ok
}

/// Reads a body to its end; the second is why it has none.
async fn read_whole(
    client: &Client,
    mut connection: Box<Connection>,
    mut body: Incoming,
    seen: &mut Ended,
) -> (Bytes, Option<String>) {
    let mut whole = Bytes::new();
    let mut grown = Vec::new();
    loop {
        let chunk = match connection.chunk(&mut body).await {
            Some(Ok(chunk)) => chunk,
            Some(Err(error)) => return (whole, Some(reason(error.as_ref()))),
            None => break,
        };
        seen.received_bytes += chunk.len() as u64;
        if whole.is_empty() && grown.is_empty() {
            whole = chunk;
            continue;
        }
        if grown.is_empty() {
            grown.extend_from_slice(&std::mem::take(&mut whole));
        }
        let room = MAX_BODY_BYTES.saturating_sub(grown.len());
        grown.extend_from_slice(&chunk[..chunk.len().min(room)]);
    }
    client.give_back(connection);
    (if grown.is_empty() { whole } else { grown.into() }, None)
}

async fn read_events(
    client: &Client,
    mut connection: Box<Connection>,
    mut body: Incoming,
    seen: &mut Ended,
) -> Class {
    let mut scanner = Scanner::default();
    let mut end = None;
    loop {
        let chunk = match connection.chunk(&mut body).await {
            Some(Ok(chunk)) => chunk,
            // All has been said: how the connection ends does not matter.
            Some(Err(_)) if end == Some(Class::Ok) => return Class::Ok,
            Some(Err(error)) if end.is_none() => {
                return seen.said(Class::Truncated, &reason(error.as_ref()));
            }
            Some(Err(_)) => break,
            None => {
                scanner.finish(|event| seen.event(client, event, &mut end));
                client.give_back(connection);
                break;
            }
        };
        seen.received_bytes += chunk.len() as u64;
        seen.at = Instant::now();
        if scanner.push(&chunk, |event| seen.event(client, event, &mut end)).is_err() {
            return seen.said(Class::Invalid, "an event is longer than 1 MiB");
        }
    }
    end.unwrap_or_else(|| seen.said(Class::Truncated, "the stream ended without [DONE]"))
}

impl Ended {
    /// Takes note of an event that came at `self.at`; `end` is what the stream came to so far.
    fn event(&mut self, client: &Client, event: &[u8], end: &mut Option<Class>) {
        if end.is_some_and(|class| class != Class::Ok) {
            return;
        }
        if client.content.is_complete(event) {
            *end = Some(Class::Ok);
        } else if !(event.starts_with(b"{") && event.ends_with(b"}")) {
            *end = Some(self.said(Class::Invalid, "an event of the stream is not JSON"));
        } else if client.content.is_failed(event) || classify::error_event(event).is_some() {
            let words = format!("an error event{}", words(event));
            *end = Some(self.said(Class::StreamError, &client.redacted(&words)));
        }
        if client.content.has_token(event) {
            self.token();
        }
        if let Some(usage) = usage::read(event) {
            self.usage = Some(usage);
        }
    }

    fn token(&mut self) {
        self.token_events += 1;
        match self.last_token.replace(self.at) {
            None => self.first_token = Some(self.at),
            Some(last) if self.gaps.len() < MAX_GAPS => {
                let gap = self.at.duration_since(last).as_micros();
                self.gaps.push(u32::try_from(gap).unwrap_or(u32::MAX));
            }
            Some(_) => {}
        }
    }

    fn said(&mut self, class: Class, why: &str) -> Class {
        let is_long = why.chars().nth(MAX_MESSAGE_CHARS).is_some();
        let mut message: String = why.chars().take(MAX_MESSAGE_CHARS).collect();
        if is_long {
            message.push('…');
        }
        self.message = Some(message);
        class
    }
}

/// What an error body or event says, behind a colon; nothing when it says nothing.
fn words(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Body {
        error: Said,
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Said {
        Object { message: String },
        Text(String),
    }
    match serde_json::from_slice::<Body>(body).map(|body| body.error) {
        Ok(Said::Object { message } | Said::Text(message)) => format!(": {message}"),
        Err(_) => String::new(),
    }
}

/// The innermost cause, in words.
fn reason(error: Option<&hyper::Error>) -> String {
    let Some(error) = error else { return "the connection ended".into() };
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(io) = cause.downcast_ref::<io::Error>() {
            return io.to_string();
        }
        source = cause.source();
    }
    error.to_string()
}
