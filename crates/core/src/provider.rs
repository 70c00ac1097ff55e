//! What the engine calls: one dialect spoken to one upstream.

use crate::{BoxFuture, Call, Reply, Result};
use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
};

/// One try of a call at one target.
#[derive(Clone, Copy, Debug)]
pub struct Attempt<'a> {
    /// The call it belongs to.
    pub call: &'a Call,
    /// The upstream's own name of the model.
    pub model: &'a str,
    /// Which attempt of the call this is; the first is 1.
    pub number: u32,
    /// How long opening a connection may take.
    pub connect_timeout: Duration,
    /// When this attempt must have ended, the last byte included.
    pub deadline: Instant,
    /// Where the provider says that it writes the request, and takes it back if a connection gives
    /// it back unread: while it is set the upstream may read it, and an attempt that is given up is
    /// paid for. `None` where nobody asks.
    pub written: Option<&'a AtomicBool>,
}

impl Attempt<'_> {
    /// The request is about to be written: there is a connection.
    pub fn is_being_written(&self) {
        if let Some(written) = self.written {
            written.store(true, Relaxed);
        }
    }
}

/// Speaks one dialect to one upstream and classifies any failure, where it is known.
///
/// `send` returns
///
/// - for a unary call, when the whole answer is here (or its first mebibyte, the rest streaming);
/// - for a stream, when the first event that carries output is here, and no error came before it:
///   nothing has been passed to the caller yet, so the attempt may still fail over.
///
/// Before it writes the request it calls [`Attempt::is_being_written`]: an attempt that is given up
/// or times out before counts for nothing.
///
/// Dropping the future, or the reply's body, cancels the attempt: the upstream sees its
/// connection or stream close.
pub trait Provider: Send + Sync + 'static {
    /// Sends one attempt.
    ///
    /// # Errors
    ///
    /// A classified [`crate::Error`]: kind, class, origin, retry.
    fn send<'a>(&'a self, attempt: Attempt<'a>) -> BoxFuture<'a, Result<Reply>>;
}
