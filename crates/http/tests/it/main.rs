//! The front against a stub answer: over memory with a paused clock where time matters, over
//! real sockets where the system's behaviour does.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod admin;
mod admin_keys;
mod compression;
mod hangup;
mod headers;
mod idempotency;
mod limits;
mod oauth;
mod refusals;
mod routes;
mod serving;
mod streaming;
mod strict;
mod stub;
mod throttle;
mod usage;
