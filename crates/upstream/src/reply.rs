//! Makes a reply, or a classified error, of an answer.

use crate::{
    body::Answer,
    decode::Source,
    events::{self, Asked},
    fault,
    sent::Sent,
    unary,
};
use bytes::BytesMut;
use http::{HeaderMap, header};
use std::{borrow::Cow, sync::Arc, time::SystemTime};
use tidegate_core::{Body, Call, ContentType, Error, RateLimits, Reply, Result, Served};
use tidegate_wire::{classify, rate_limits};

/// Bytes kept of the body of a refusal.
const MAX_REFUSAL_BYTES: usize = 64 * 1024;

/// Reads `answer` as far as a provider must: a refusal and a unary answer whole, a stream to its
/// first content. What an upstream says of its error is cleaned of what we `sent`. A stream whose
/// usage we `asked` for passes without the event that tells it.
///
/// # Errors
///
/// What the upstream refused, or why its answer is none.
pub(crate) async fn read(
    answer: Answer,
    call: &Call,
    asked: Asked,
    max_answer_bytes: usize,
    sent: &Sent,
) -> Result<Reply> {
    let Answer { status, headers, body } = answer;
    let encoding = text(&headers, header::CONTENT_ENCODING.as_str());
    let mut source = Source::new(body, encoding)?;
    if !status.is_success() {
        return Err(refusal(status.as_u16(), &headers, &mut source, sent).await);
    }

    let head = Head { status: status.as_u16(), headers: &headers, sent };
    match (call.stream, is_event_stream(&headers)) {
        (true, true) => {
            let (body, meter) = events::read(source, call.operation, asked, sent).await?;
            Ok(Reply { meter: Some(meter), ..head.reply(ContentType::EventStream, body) })
        }
        (false, true) => {
            Err(fault::wrong("the upstream answered with a stream of events; none was asked for"))
        }
        // Some servers answer a stream's request whole: better an answer than none.
        (_, false) => {
            let unary = unary::read(source, max_answer_bytes, sent).await?;
            let reply = head.reply(ContentType::Json, unary.body);
            Ok(Reply { usage: unary.usage, meter: unary.meter, ..reply })
        }
    }
}

struct Head<'a> {
    status: u16,
    headers: &'a HeaderMap,
    sent: &'a Sent,
}

impl Head<'_> {
    fn reply(&self, content_type: ContentType, body: Body) -> Reply {
        Reply {
            status: self.status,
            content_type,
            body,
            usage: None,
            meter: None,
            limits: limits(self.headers),
            upstream_request_id: self.request_id().map(Arc::from),
            served: Served::default(),
        }
    }

    /// The one thing an upstream's headers say that is told as it was said: in the rows of a batch.
    fn request_id(&self) -> Option<&str> {
        self.sent.word(text(self.headers, "x-request-id")?)
    }
}

async fn refusal(status: u16, headers: &HeaderMap, source: &mut Source, sent: &Sent) -> Error {
    let mut body = BytesMut::new();
    // A body that breaks off still says what it said so far.
    while let Some(Ok(chunk)) = source.chunk().await {
        let room = MAX_REFUSAL_BYTES - body.len();
        body.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if body.len() == MAX_REFUSAL_BYTES {
            break;
        }
    }
    let body = match sent.clean(&body) {
        Cow::Borrowed(_) => body.freeze(),
        Cow::Owned(cleaned) => cleaned.into(),
    };
    classify::refusal(status, |name| text(headers, name), body, SystemTime::now())
}

fn limits(headers: &HeaderMap) -> RateLimits {
    // Six names are looked up only where there is one of them.
    if !headers.keys().any(|name| name.as_str().starts_with(rate_limits::PREFIX)) {
        return RateLimits::default();
    }
    rate_limits::read(|name| text(headers, name))
}

fn is_event_stream(headers: &HeaderMap) -> bool {
    const WANTED: &str = "text/event-stream";
    text(headers, header::CONTENT_TYPE.as_str())
        .and_then(|value| value.trim_start().get(..WANTED.len()))
        .is_some_and(|start| start.eq_ignore_ascii_case(WANTED))
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}
