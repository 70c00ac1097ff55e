//! A load generator for model APIs.
//!
//! Top to bottom:
//!
//! - [`run`] puts a load on a server and makes a [`Report`] of what came back;
//! - `arrivals` says when requests are due, `pacer` waits for it, `run` sends them;
//! - `exchange` is one request: it reads the answer, takes the times and names how it ended;
//! - `connection` and `client` are sockets, `content` knows a token from an empty event;
//! - `recorder` counts, `verdict` sums up, `report` is what is written, and `text`, `html` and
//!   [`compare`] show it.
//!
//! # Why a client of its own
//!
//! A load generator must not measure itself. There is no pool with a policy here: a request takes
//! an unused connection or opens one, and connection and request are polled by one task.

mod arrivals;
mod bodies;
mod client;
mod compare;
mod connection;
mod content;
mod exchange;
mod html;
mod options;
mod pacer;
mod plot;
mod recorder;
mod report;
mod run;
mod show;
mod target;
mod text;
mod times;
mod verdict;

pub use arrivals::Arrivals;
pub use bodies::{Bodies, Shape};
pub use client::discover_model;
pub use compare::{Comparison, compare};
pub use options::{Headers, Load, Options, Slo};
pub use report::{
    Latencies, Rates, Refusals, Report, Requests, Sample, Second, Setup, Summary, Tokens,
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
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Invalid(why) | Self::Unreachable(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for Error {}
