//! A load generator for model APIs.
//!
//! Top to bottom:
//!
//! - [`run`] puts a load on a server and makes a [`Report`] of what came back;
//! - `arrivals` says when requests are due, `pacer` waits for it, `line` hands them to workers;
//! - `worker` sends one request after the other, on one connection;
//! - `exchange` is one request: it reads the answer, takes the times and names how it ended;
//! - `channel` is what it goes over: `connection` (HTTP/1.1, with `head`) or `http2`;
//! - `requests` and `bodies` are what is sent, `content` knows a token from an empty event, by `json`;
//! - `recorder` counts, `generator` watches the tool itself, `verdict` sums up, `report` is what is
//!   written, and `text`, `html` and [`compare`] show it.
//!
//! # Why a client of its own
//!
//! A load generator must not measure itself. There is no pool with a policy here: a worker has a
//! connection or opens one, and polls it itself; what is sent was written before the run, and an
//! answer is looked at where it lies in the buffer.
//!
//! # Cost
//!
//! 20,000 instructions per request with an answer of 700 bytes, 8,000 per event of a stream. Most of
//! the time is the system's: see `docs/bench.md`.

mod alarm;
mod arrivals;
mod bodies;
mod channel;
mod client;
mod compare;
mod connection;
mod content;
mod exchange;
mod generator;
mod head;
mod html;
mod http2;
mod json;
mod limits;
mod line;
mod options;
mod pacer;
mod plot;
mod recorder;
mod report;
mod requests;
mod run;
mod show;
mod target;
mod text;
mod times;
mod verdict;
mod worker;

pub use arrivals::Arrivals;
pub use bodies::{Bodies, Shape};
pub use client::discover_model;
pub use compare::{Comparison, compare};
pub use limits::raise_file_limit;
pub use options::{Headers, Load, Options, Slo};
pub use report::{
    Generator, Latencies, Rates, Refusals, Report, Requests, Sample, Second, Setup, Summary, Tokens,
};
pub use run::{Phase, Snapshot, run};
pub use target::Target;

/// Why there is no report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// An option or a file cannot be used; says which and what to do.
    Invalid(String),
    /// Nobody answers at the target.
    Unreachable(String),
    /// The server does not let us in.
    Refused(String),
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Invalid(why) | Self::Unreachable(why) | Self::Refused(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for Error {}
