//! The HTTP front: OpenAI's API on our own accept loop (SPEC §4).
//!
//! A request becomes a [`tidegate_core::Call`], the answer of an [`Answer`] becomes a response;
//! nothing here knows who answers. hyper parses and frames; everything hyper leaves open is
//! closed here: timers, limits, strict checks, cancellation and drain.
//!
//! Read in this order: `accept` (the loop and the drain), `connection` (one connection and its
//! clocks), `service` (one request from head to answer) with `routes` and `table` (what is where),
//! then `strict`, `intake`, `refusal` and `outcome` for the details of each step, `shown` for what
//! of a caller's words is repeated, `idempotency` for calls that are sent again, and `coding`,
//! `compress` and `decompress` for bodies in other forms. `admin` is what the operators' port
//! answers instead: on the same loop, clocks and checks.
//!
//! [`Answer`]: tidegate_core::Answer

mod accept;
mod admin;
mod body;
mod coding;
mod compress;
mod connection;
mod decompress;
mod idempotency;
mod intake;
mod oauth;
mod options;
mod outcome;
mod problem;
mod pulse;
mod refusal;
mod request_id;
mod routes;
mod service;
mod shown;
mod socket;
mod strict;
mod table;
mod tls;
pub mod usage;

pub use accept::{Drained, serve, serve_connection};
pub use admin::{Admin, KeyView, operators_routes, serve_admin};
pub use idempotency::{Idempotency, IdempotencyOptions};
pub use options::{Compression, Options, Tls};
pub use refusal::{Refusals, Refused};
pub use routes::callers_routes;
pub use service::Callers;
pub use table::Listed;
