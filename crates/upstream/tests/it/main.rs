//! An upstream against servers written for each test: raw bytes over loopback sockets and pipes.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod answers;
mod cancel;
mod compressed_requests;
mod compression;
mod connections;
mod credential;
mod held;
mod http2;
mod local;
mod reflected;
mod stream_usage;
mod support;
mod tls;
