//! Sockets out: connections to model servers, and the provider that speaks OpenAI's dialect
//! over them.
//!
//! Top to bottom:
//!
//! - [`Upstream`] is the provider: it writes the request, reads the answer and classifies
//!   whatever goes wrong;
//! - `request` writes requests, `compress` makes their bodies smaller, `stream_usage` asks for
//!   the usage of streams;
//! - `reply`, `unary` and `events` make a reply of an answer, `decode` undoes its compression,
//!   `sent` takes our secrets out of what an upstream says of them;
//! - `pool` lends connections, `body` brings them back, `h1` and `h2` are the two sorts;
//! - `connect` opens them, with `dns` and `tls`;
//! - `control` is the way to servers that are no model servers, `credential` our tokens from one.
//!
//! # Why a pool of our own
//!
//! The stock pool has no limit on connections (racing connects open hundreds where fifty were
//! wanted), no lifetime, and one HTTP/2 connection per host, whatever the server's stream limit.

mod body;
mod compress;
mod connect;
mod control;
mod credential;
mod decode;
mod dns;
mod events;
mod fault;
mod h1;
mod h2;
mod openai;
mod options;
mod pool;
mod reply;
mod request;
mod sent;
mod stream_usage;
mod tls;
mod unary;

pub use control::fetch;
pub use credential::{ClientAuth, ClientCredentials};
pub use openai::Upstream;
pub use options::{CompressRequests, Options, StreamUsage};
