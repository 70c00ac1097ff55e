//! Bytes to types and back: what is read of a request or an answer, and how errors, events and
//! batch lines are written.
//!
//! Nothing here touches a socket, a clock or an HTTP library: headers come in as a closure from
//! name to value, the time is an argument. Bodies are looked into, never rebuilt: every reader
//! borrows, and skips what it does not need.

pub mod batch_line;
pub mod classify;
pub mod content;
pub mod error_body;
pub mod json;
pub mod prices;
pub mod rate_limits;
pub mod request;
pub mod retry_after;
pub mod sieve;
pub mod sse;
pub mod usage;
