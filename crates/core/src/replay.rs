//! What one execution of a request left behind, so that a repeat of it gets the same answer.

use crate::{BoxFuture, Result};
use bytes::Bytes;
use std::{fmt, sync::Arc, time::Duration};

/// Keeps the answers of requests that carry an `Idempotency-Key`, across restarts too.
///
/// # Why
///
/// A caller whose connection breaks does not know whether its request was carried out, and paid
/// for. With a key it may ask again: the request is carried out at most once in the time answers
/// are kept, and the repeat gets the answer of the first, byte for byte
/// (draft-ietf-httpapi-idempotency-key-header).
///
/// Who is asked does I/O, so only requests that carry a key ask.
pub trait Replays: Send + Sync + 'static {
    /// Begins the execution of a request, or says what became of the one that has its key.
    ///
    /// A [`Begun::Fresh`] is durable: if the process ends now, its successor knows of it.
    ///
    /// # Errors
    ///
    /// When that cannot be written: the request must then not be carried out.
    fn begin(&self, key: ReplayKey) -> BoxFuture<'_, Result<Begun>>;

    /// Forgets what is older than answers are kept. To be called about once a minute.
    ///
    /// # Errors
    ///
    /// When the state cannot be written; nothing is lost by it.
    fn sweep(&self) -> BoxFuture<'_, Result<()>>;
}

/// Names an execution: who asked under which key, and for what.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ReplayKey {
    /// Hash of the caller alone: when there are too many keys, those of the caller with most make
    /// room, so that nobody's flood has another's request carried out twice.
    pub caller: u64,
    /// Hash of the caller and its key.
    pub id: [u8; 32],
    /// Hash of everything in the request that shapes its answer.
    pub request: [u8; 32],
}

impl fmt::Debug for ReplayKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, ..] = self.id;
        write!(f, "ReplayKey({a:02x}{b:02x}{c:02x}{d:02x}…)")
    }
}

/// What is known of a key.
pub enum Begun {
    /// Nothing: the request is to be carried out, and its end told.
    Fresh(Box<dyn Execution>),
    /// It is being carried out, for so long now.
    Running(Duration),
    /// It was, with this answer.
    Done(KeptAnswer),
    /// It was, and its answer is there, but too many long ones are being given again just now.
    Busy,
    /// Another request has this key.
    Mismatch,
    /// It was, and there is no answer to give again.
    Unkept(Unkept),
}

/// The right to carry a request out. Dropped, nothing is kept and the next one does.
pub trait Execution: Send + Sync {
    /// Keeps how it ended; on return that is durable.
    ///
    /// # Errors
    ///
    /// When it cannot be written: repeats are then told that there is no answer.
    fn finish(self: Box<Self>, ended: Ended) -> BoxFuture<'static, Result<()>>;
}

/// How an execution ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With an answer to be given again.
    Answered(KeptAnswer),
    /// With one that cannot be, for this reason.
    Unkept(Unkept),
}

/// An answer as it was given.
#[derive(Clone, PartialEq, Eq)]
pub struct KeptAnswer {
    /// HTTP status.
    pub status: u16,
    /// What the body is, as the header said it.
    pub content_type: Arc<str>,
    /// The body, uncompressed.
    pub body: Bytes,
}

impl fmt::Debug for KeptAnswer {
    /// The body is the caller's alone.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeptAnswer({}, {}, {} bytes)", self.status, self.content_type, self.body.len())
    }
}

/// Why there is no answer to give again though the request was carried out, or may have been.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unkept {
    /// The process ended before the execution did, or its end could not be written.
    Interrupted,
    /// It was longer than answers that are kept.
    TooLong,
    /// It made room for later ones.
    PushedOut,
}
