//! One request and its answer: the times, the bytes and the tokens, and how it ended.

use crate::{
    alarm::Alarm,
    channel::{Channel, Lost, Sent},
    client::Client,
    connection::{Connection, Cut, Failure},
    content::Event,
    head::Head,
    json::{self, Counts},
};
use serde::Deserialize;
use std::time::Duration;
use tidegate_wire::sse::Scanner;
use tokio::time::Instant;

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
    /// An answer that is none: a redirect, not JSON, not a stream, an error with status 200.
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

    const fn of(status: u16) -> Self {
        match status {
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
    pub(crate) usage: Option<Counts>,
    /// Body bytes.
    pub(crate) received_bytes: u64,
    pub(crate) sent_bytes: u64,
}

impl Ended {
    const fn nothing_yet(at: Instant) -> Self {
        Self {
            class: Class::Timeout,
            message: None,
            at,
            connect: None,
            is_answered: false,
            has_retry_after: false,
            first_token: None,
            last_token: None,
            token_events: 0,
            gaps: Vec::new(),
            usage: None,
            received_bytes: 0,
            sent_bytes: 0,
        }
    }
}

/// What a worker keeps from one request to the next.
#[derive(Default)]
pub(crate) struct Kept {
    connection: Option<Connection>,
    alarm: Alarm,
    scratch: Vec<u8>,
}

impl Kept {
    pub(crate) fn of(connection: Option<Connection>) -> Self {
        Self { connection, ..Self::default() }
    }
}

/// Sends request `number` and reads the answer, within `patience`.
pub(crate) async fn exchange(
    client: &Client,
    number: u64,
    patience: Duration,
    began: Instant,
    kept: &mut Kept,
) -> Ended {
    let Kept { connection, alarm, scratch } = kept;
    let mut seen = Ended::nothing_yet(began);
    let answered = send(client, number, connection, scratch, &mut seen);
    seen.class = match alarm.within(began + patience, answered).await {
        Some(class) => class,
        None => seen.said(Class::Timeout, waited_for(&seen)),
    };
    // An answer that is complete ended when its last bytes came.
    if seen.class != Class::Ok {
        seen.at = Instant::now();
    }
    seen
}

const fn waited_for(seen: &Ended) -> &'static str {
    match (seen.is_answered, seen.first_token) {
        (false, _) => "no answer in time",
        (true, None) => "no token, or no end of the body, in time",
        (true, Some(_)) => "no end of the stream in time",
    }
}

async fn send(
    client: &Client,
    number: u64,
    kept: &mut Option<Connection>,
    scratch: &mut Vec<u8>,
    seen: &mut Ended,
) -> Class {
    let sent = Sent { connect: &mut seen.connect, bytes: &mut seen.sent_bytes };
    let (head, channel) = match Channel::send(client, number, kept.take(), scratch, sent).await {
        Ok(answer) => answer,
        Err(Lost::Unconnected(why)) => return seen.said(Class::Connect, &why),
        Err(Lost::Failed(Failure::Unsent(why) | Failure::Broken(why))) => {
            return seen.said(Class::Reset, &why);
        }
        Err(Lost::Failed(Failure::Odd(why))) => return seen.said(Class::Invalid, why),
    };
    seen.is_answered = true;
    seen.has_retry_after = head.has_retry_after;
    let class = Class::of(head.status);
    if class != Class::Ok || !client.is_stream {
        return read_whole(client, head, class, channel, kept, seen).await;
    }
    if !head.is_event_stream {
        return seen.said(Class::Invalid, "the answer to a streaming request is no stream");
    }
    read_events(client, channel, kept, seen).await
}

/// Reads a body to its end and judges it; where it came in one piece, where it lies.
async fn read_whole(
    client: &Client,
    head: Head,
    class: Class,
    mut channel: Channel,
    kept: &mut Option<Connection>,
    seen: &mut Ended,
) -> Class {
    let mut grown = Vec::new();
    let (cut, whole) = loop {
        match channel.chunk().await {
            Ok(None) => {
                seen.at = channel.read_at();
                break (None, None);
            }
            Err(cut) => break (Some(cut), None),
            Ok(Some(piece)) => {
                seen.received_bytes += piece.len() as u64;
                seen.at = channel.read_at();
                if grown.is_empty() && channel.is_at_end() {
                    break (None, Some(piece));
                }
                let bytes = channel.bytes(piece);
                let room = MAX_BODY_BYTES - grown.len();
                grown.extend_from_slice(&bytes[..bytes.len().min(room)]);
            }
        }
    };
    let body = whole.map_or(&grown[..], |piece| channel.bytes(piece));
    let class = match cut {
        _ if class != Class::Ok => {
            let words = format!("status {}{}", head.status, words(body));
            seen.said(class, &client.redacted(&words))
        }
        Some(cut) => seen.cut(cut),
        None => seen.body(client, body),
    };
    *kept = channel.into_kept();
    class
}

async fn read_events(
    client: &Client,
    mut channel: Channel,
    kept: &mut Option<Connection>,
    seen: &mut Ended,
) -> Class {
    let mut scanner = Scanner::default();
    let mut end = None;
    loop {
        match channel.chunk().await {
            Ok(Some(piece)) => {
                seen.received_bytes += piece.len() as u64;
                seen.at = channel.read_at();
                let bytes = channel.bytes(piece);
                if scanner.push(bytes, |event| seen.event(client, event, &mut end)).is_err() {
                    return seen.said(Class::Invalid, "an event is longer than 1 MiB");
                }
            }
            Ok(None) => {
                seen.at = channel.read_at();
                scanner.finish(|event| seen.event(client, event, &mut end));
                *kept = channel.into_kept();
                break;
            }
            // All has been said: how the connection ends does not matter.
            Err(_) if end.is_some() => break,
            Err(cut) => return seen.cut(cut),
        }
    }
    end.unwrap_or_else(|| seen.said(Class::Truncated, "the stream ended without [DONE]"))
}

impl Ended {
    /// Judges the whole body of an answer with status 200.
    fn body(&mut self, client: &Client, body: &[u8]) -> Class {
        // One that was not kept whole is not looked into.
        if body.len() >= MAX_BODY_BYTES {
            return Class::Ok;
        }
        let Some(facts) = json::read(body, &[]) else {
            return self.said(Class::Invalid, "the answer is not JSON");
        };
        if facts.is_error {
            let words = format!("an error with status 200{}", words(body));
            return self.said(Class::Invalid, &client.redacted(&words));
        }
        self.usage = facts.usage;
        Class::Ok
    }

    fn cut(&mut self, cut: Cut) -> Class {
        match cut {
            Cut::Off(why) => self.said(Class::Truncated, &why),
            Cut::Odd(why) => self.said(Class::Invalid, why),
        }
    }

    /// Takes note of an event that came at `self.at`; `end` is what the stream came to so far.
    fn event(&mut self, client: &Client, event: &[u8], end: &mut Option<Class>) {
        if end.is_some_and(|class| class != Class::Ok) {
            return;
        }
        let facts = match client.content.event(event) {
            Event::Complete(facts) => {
                *end = Some(Class::Ok);
                facts
            }
            Event::Part(facts) => facts,
            Event::Failed(facts) => {
                let words = format!("an error event{}", words(event));
                *end = Some(self.said(Class::StreamError, &client.redacted(&words)));
                facts
            }
            Event::Odd => {
                *end = Some(self.said(Class::Invalid, "an event of the stream is not JSON"));
                return;
            }
        };
        if facts.has_token {
            self.token();
        }
        self.usage = facts.usage.or(self.usage);
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
        error: Option<Said>,
        /// Of an event of type `error`.
        message: Option<String>,
        /// Of an event of type `response.failed`.
        response: Option<Box<Body>>,
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Said {
        Object { message: String },
        Text(String),
    }
    fn message(body: Body) -> Option<String> {
        let said = body.error.map(|(Said::Object { message } | Said::Text(message))| message);
        said.or(body.message).or_else(|| message(*body.response?))
    }
    let said = serde_json::from_slice::<Body>(body).ok().and_then(message);
    said.map_or_else(String::new, |said| format!(": {said}"))
}
