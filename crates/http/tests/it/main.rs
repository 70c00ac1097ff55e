//! The front against a stub answer: over memory with a paused clock where time matters, over
//! real sockets where the system's behaviour does.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod admin;
mod compression;
mod hangup;
mod headers;
mod limits;
mod refusals;
mod routes;
mod serving;
mod streaming;
mod strict;
mod stub;
