//! Where the input side and the run side of a batch meet: one row, ready to be called.

use bytes::Bytes;
use std::sync::Arc;
use tidegate_core::Operation;

/// One row of the input as a request, built but not yet sent.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// Position in the input, from 0; blank lines do not count.
    pub(crate) index: u64,
    /// The caller's own id of the row, when it gave one.
    pub(crate) custom_id: Option<Arc<str>>,
    /// What is asked for.
    pub(crate) operation: Operation,
    /// Hash of endpoint, model and body: with index and custom_id, it identifies the row.
    pub(crate) hash: RequestHash,
    /// The body to send: valid JSON with a `model`, and no `stream: true`.
    pub(crate) body: Bytes,
    /// Bytes of the body to estimate tokens from: its length, with each image counted as a few
    /// thousand bytes of text instead of its base64.
    pub(crate) counted_bytes: usize,
    /// The row's own columns as one JSON object, kept in the output; `None` for ready-made requests.
    pub(crate) columns: Option<Bytes>,
}

/// First 128 bits of BLAKE3 over endpoint, model and body, each with its length before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct RequestHash(pub(crate) [u8; 16]);

/// A line of the input that is no request, and why.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct BadLine {
    /// Position in the input, from 0, counted like [`Request::index`].
    pub(crate) index: u64,
    /// Line in the file, from 1 (or the image's position in the list).
    pub(crate) line: u64,
    /// Column in the line, from 1, when one is at fault.
    pub(crate) column: Option<u64>,
    /// The row's id, when it could be read.
    pub(crate) custom_id: Option<Arc<str>>,
    /// What is wrong and what to do.
    pub(crate) message: String,
}
