//! The gateway ring: the real binary, real sockets, the simulator as upstream.
#![expect(clippy::unwrap_used, reason = "what a test rests on may panic")]

mod batch;
mod bench;
mod canary;
mod cli;
mod idempotency;
mod identities;
mod keys;
mod kills;
mod money;
mod oauth;
mod rotation;
mod serve;
mod stream_usage;
mod usage;
mod web;
