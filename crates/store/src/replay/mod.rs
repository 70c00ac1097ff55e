//! Answers kept for requests that carry an `Idempotency-Key`: in memory, or in a file of the data
//! directory. Both pass the suite in `tests/it/replays.rs`.
//!
//! ```text
//! (nothing) --begin--> running --finish--> done ---ttl---> (nothing)
//!     ^                   |  \                \
//!     '------dropped------'   '--too long,     '--pushed out: the row stays, its answer goes
//!                                process ended
//! ```
//!
//! *Bounds:* answers together are at most `max_bytes`; the oldest make room, and leave a row that
//! says so. Rows are at most `max_keys`; at that the oldest ended ones of the caller that has most
//! are forgotten early: a million cost one caller a minute of requests that are refused, and would
//! have every other's repeats carried out twice.

mod lent;
mod memory;
mod owner;
mod sqlite;
mod table;

pub use memory::Memory;
pub use sqlite::Sqlite;

use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tidegate_core::{Error, Kind, Origin};

/// How long and how much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// From the begin of an execution to its being forgotten. Default 24 hours.
    pub ttl: Duration,
    /// Answers together, in bytes. Default 1 GiB.
    pub max_bytes: u64,
    /// Keys, those without an answer included: about 250 bytes each. Default a million.
    pub max_keys: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { ttl: Duration::from_secs(24 * 3600), max_bytes: 1 << 30, max_keys: 1_000_000 }
    }
}

impl Options {
    /// What began before this has expired.
    fn cutoff(&self, now: i64) -> i64 {
        now.saturating_sub(i64::try_from(self.ttl.as_millis()).unwrap_or(i64::MAX))
    }
}

/// Milliseconds of the wall clock, which outlives a process.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// How long something runs that began then; the clock may have been set back meanwhile.
fn ran(begun_at: i64, now: i64) -> Duration {
    Duration::from_millis(u64::try_from(now.saturating_sub(begun_at)).unwrap_or(0))
}

fn full(max_keys: u64) -> Error {
    let message = format!(
        "{max_keys} requests with an Idempotency-Key are being answered: no more can be kept track of"
    );
    Error::new(Kind::Overloaded, Origin::Gateway, message)
}
