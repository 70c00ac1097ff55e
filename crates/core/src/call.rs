//! One operation asked of the engine.

use crate::Tenant;
use bytes::Bytes;
use std::{ops::Range, sync::Arc, time::Instant};

/// One logical request from a caller, with all the attempts it may take.
#[derive(Clone, Debug)]
pub struct Call {
    /// Id shown to the caller (`x-request-id`) and in every log line.
    pub id: Arc<str>,
    /// Which of the API's operations is asked for.
    pub operation: Operation,
    /// Model name as the caller wrote it, before routing.
    pub model: Arc<str>,
    /// The body in the caller's dialect, passed through as sent.
    pub payload: Payload,
    /// Whether the caller asked for a stream of events.
    pub stream: bool,
    /// Estimated tokens, reserved before the call and settled after it.
    pub tokens: TokenEstimate,
    /// Tokens that one answer may have at most; `None` where the caller set no maximum.
    pub max_output: Option<u64>,
    /// How many answers are asked for, at least 1.
    pub choices: u64,
    /// Who asks.
    pub tenant: Arc<Tenant>,
    /// How urgent it is.
    pub priority: Priority,
    /// The instant after which no answer is of use to the caller.
    pub deadline: Instant,
    /// What a capacity refusal does to this call.
    pub patience: Patience,
    /// The way it came in.
    pub front: Front,
    /// The request's headers that routing looks at, name and value; mostly none.
    pub headers: Vec<(Box<str>, Box<str>)>,
    /// How often the caller's own client has sent this request before.
    pub client_retries: u32,
}

impl Call {
    /// Answer tokens it may have at most, of all its answers together, where one that the caller
    /// set no maximum for may have `unlimited`.
    pub const fn most_output(&self, unlimited: u64) -> u64 {
        let one = match self.max_output {
            Some(most) => most,
            None => unlimited,
        };
        one.saturating_mul(self.choices)
    }

    /// The value of a header that routing looks at, by its name in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(its_name, _)| its_name.eq_ignore_ascii_case(name));
        found.map(|(_, value)| &**value)
    }
}

/// An operation of the API, the same on both sides of the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operation {
    /// `POST /v1/chat/completions`
    ChatCompletions,
    /// `POST /v1/completions`
    Completions,
    /// `POST /v1/embeddings`
    Embeddings,
    /// `POST /v1/responses`
    Responses,
}

impl Operation {
    /// Every operation, for tables and tests.
    pub const ALL: [Self; 4] =
        [Self::ChatCompletions, Self::Completions, Self::Embeddings, Self::Responses];

    /// Path below a base URL that already ends in `/v1`.
    pub const fn path(self) -> &'static str {
        match self {
            Self::ChatCompletions => "/chat/completions",
            Self::Completions => "/completions",
            Self::Embeddings => "/embeddings",
            Self::Responses => "/responses",
        }
    }

    /// The operation whose full path (`/v1/chat/completions`) is `path`.
    pub fn from_path(path: &str) -> Option<Self> {
        let below = path.strip_prefix("/v1")?;
        Self::ALL.into_iter().find(|operation| operation.path() == below)
    }

    /// Name in logs and metrics, after OpenTelemetry's `gen_ai.operation.name`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ChatCompletions => "chat",
            Self::Completions => "text_completion",
            Self::Embeddings => "embeddings",
            Self::Responses => "responses",
        }
    }
}

/// A JSON body as the caller sent it, and where in it the model's name stands.
///
/// # Why
///
/// Rebuilding a body from a typed struct loses the fields the struct does not know. The engine
/// only ever replaces the model's name, so the bytes around it are shared, not copied.
#[derive(Clone, Debug)]
pub struct Payload {
    bytes: Bytes,
    model: Range<usize>,
    opening: Option<usize>,
}

impl Payload {
    /// A body whose model name is the JSON string (quotes included) at `model`.
    ///
    /// # Panics
    ///
    /// When `model` lies outside `bytes`: the range comes from the parser that read them.
    pub fn new(bytes: Bytes, model: Range<usize>) -> Self {
        assert!(model.start <= model.end && model.end <= bytes.len(), "model lies in the body");
        Self { bytes, model, opening: None }
    }

    /// The same, with what may be asked for on the caller's behalf: the usage of its stream.
    ///
    /// `opening` is the length of the body up to and with its opening brace, behind which the
    /// member that asks is written; `None` where the caller has said whether it wants the usage,
    /// or where no stream tells it on request.
    ///
    /// # Panics
    ///
    /// When it lies behind the model's name: it comes from the parser that read both.
    #[must_use]
    pub fn asking(mut self, opening: Option<usize>) -> Self {
        assert!(opening.is_none_or(|len| len <= self.model.start), "members stand in the braces");
        self.opening = opening;
        self
    }

    /// Length of the body up to and with its opening brace, where its stream's usage may be asked
    /// for on the caller's behalf.
    pub const fn opening(&self) -> Option<usize> {
        self.opening
    }

    /// The body as the caller sent it.
    pub const fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Length in bytes, as sent.
    pub const fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there are no bytes at all.
    pub const fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The body with `quoted` (a JSON string, quotes included) as its model, in three pieces.
    ///
    /// The first and last share the caller's bytes. When the name is the same already, the
    /// whole body is the first piece.
    pub fn with_model(&self, quoted: Bytes) -> [Bytes; 3] {
        if self.bytes[self.model.clone()] == quoted {
            return [self.bytes.clone(), Bytes::new(), Bytes::new()];
        }
        [self.bytes.slice(..self.model.start), quoted, self.bytes.slice(self.model.end..)]
    }
}

/// Tokens a call is expected to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenEstimate {
    /// Prompt tokens.
    pub input: u64,
    /// Answer tokens, at most (`max_tokens`) or as expected.
    pub output: u64,
}

impl TokenEstimate {
    /// Input and output together.
    pub const fn total(self) -> u64 {
        self.input.saturating_add(self.output)
    }
}

/// How urgent a call is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Priority {
    /// A person waits for it.
    Interactive,
    /// Nothing was said.
    #[default]
    Default,
    /// Nobody waits: batch, prefetch.
    Bulk,
}

impl Priority {
    /// The word used in headers, logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Interactive => "interactive",
            Self::Default => "default",
            Self::Bulk => "bulk",
        }
    }
}

/// What a capacity refusal (429, 503, 529) from an upstream does to a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Patience {
    /// It counts as an attempt: a caller is waiting.
    #[default]
    Counted,
    /// It costs no attempt: the call waits at the upstream's gate until its deadline.
    Free,
}

/// The way a call came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Front {
    /// The HTTP gateway.
    Http,
    /// A file of calls.
    Batch,
    /// The Rust or Python client.
    Sdk,
}

impl Front {
    /// The word used in logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Batch => "batch",
            Self::Sdk => "sdk",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_round_trip() {
        for operation in Operation::ALL {
            let path = format!("/v1{}", operation.path());
            assert_eq!(Operation::from_path(&path), Some(operation));
        }
        assert_eq!(Operation::from_path("/v1/chat/completions/"), None);
        assert_eq!(Operation::from_path("/chat/completions"), None);
    }

    #[test]
    fn only_the_model_is_replaced() {
        let body = Bytes::from_static(br#"{"x":1,"model":"a","y":2}"#);
        let payload = Payload::new(body.clone(), 15..18);
        assert_eq!(
            payload.with_model(Bytes::from_static(b"\"bb\"")).concat(),
            br#"{"x":1,"model":"bb","y":2}"#
        );
        assert_eq!(payload.with_model(Bytes::from_static(b"\"a\""))[0].as_ptr(), body.as_ptr());
    }
}
