//! A simulated model server: OpenAI's endpoints and a few plain JSON ones, deterministic from a
//! seed, with the time, the queue and the faults of a real one.
//!
//! # Why
//!
//! It is the embedded default model (a first run needs no account and no network) and the
//! project's test rig: what it answers is a function of the prompt, when it answers comes from
//! told distributions, and its ledger says what really reached it. A test compares that ledger
//! with what the caller believes.
//!
//! [`Sim::serve`] listens on a socket, [`Sim::connect`] hands out one end of an in-memory pipe;
//! both run the same hyper server, and all waiting goes through tokio's clock, so a paused clock
//! makes an hour of queueing pass at once.
//!
//! # The way of a request
//!
//! ```text
//! server -> call: key -> hidden limits -> fault drawn -> body read -> slot (FIFO queue)
//!                 -> first-token time -> answer, whole or as events -> ledger
//! ```
//!
//! Dropping the handler or the body, in any phase, is how a caller hangs up: the slot is freed
//! and the ledger entry written by [`Drop`].

mod analyze;
mod answer;
mod body;
mod call;
mod chance;
mod chat;
mod completions;
mod control;
mod distribution;
mod embeddings;
mod events;
mod faults;
mod fields;
mod generation;
mod inference;
mod ledger;
mod limits;
mod observation;
mod options;
mod refusal;
mod request;
mod responses;
mod schema;
mod server;
mod slots;
mod socket;
mod tokens;

pub use distribution::Distribution;
pub use faults::{Faults, RetryAfterForm};
pub use ledger::{Key, LedgerEntry, Outcome, Path, Phase, Totals};
pub use options::Options;
pub use server::Sim;
