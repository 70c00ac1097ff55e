//! What a simulator is told once, at its start. What can change while it runs is in
//! [`Faults`](crate::Faults).

use crate::{Distribution, Faults};
use serde::{Deserialize, Serialize};

/// Settings of a [`Sim`](crate::Sim).
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Answers, latencies and faults are functions of this and of the request. Default 0.
    pub seed: u64,
    /// Names listed by `GET /v1/models`; the first is the default where a request names none.
    pub models: Vec<String>,
    /// Whether other model names are refused with 404. Default false: any name is answered.
    pub strict_models: bool,
    /// Time from taking a slot to the first token. Default 50 ms.
    pub ttft: Distribution,
    /// Time between two tokens. Default 2 ms.
    pub itl: Distribution,
    /// Mean length of an answer in tokens where the request sets no lower bound; lengths are
    /// spread evenly over half to one and a half of it. Default 24, at least 1.
    pub answer_tokens: u32,
    /// Requests worked on at once. Default 64, at least 1.
    pub slots: usize,
    /// Requests that may wait for a slot, in order of arrival; one more is refused with 503.
    /// Default 10,000.
    pub queue: usize,
    /// Per-token time is multiplied by `1 + batch_slowdown * (busy - 1) / slots`. Default 0.
    pub batch_slowdown: f64,
    /// Length of an embedding where the request does not say. Default 256, 1 to 8192.
    pub dimensions: usize,
    /// Longest request body in bytes; a longer one is refused with 413. Default 64 MiB.
    pub max_body_bytes: usize,
    /// Entries the ledger keeps; the oldest is dropped, and counted, when it is full.
    /// Default 2,000,000 (about 120 bytes each, taken as they come).
    pub ledger_entries: usize,
    /// TCP connections open at once; more wait in the kernel's backlog. Default 20,000.
    pub max_connections: usize,
    /// Faults from the start.
    pub faults: Faults,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            seed: 0,
            models: vec!["sim-small".into(), "sim-large".into(), "sim-embed".into()],
            strict_models: false,
            ttft: Distribution::Fixed(std::time::Duration::from_millis(50)),
            itl: Distribution::Fixed(std::time::Duration::from_millis(2)),
            answer_tokens: 24,
            slots: 64,
            queue: 10_000,
            batch_slowdown: 0.0,
            dimensions: 256,
            max_body_bytes: 64 << 20,
            ledger_entries: 2_000_000,
            max_connections: 20_000,
            faults: Faults::default(),
        }
    }
}

impl Options {
    /// The default model inside another process: as [`Options::default`], with a ledger short
    /// enough to cost nothing.
    pub fn embedded() -> Self {
        Self { ledger_entries: 1_000, ..Self::default() }
    }

    /// Says what is wrong with these settings, if anything is.
    ///
    /// # Errors
    ///
    /// A sentence that names the field and its range.
    pub fn check(&self) -> Result<(), String> {
        if self.slots == 0 || self.slots > 1_000_000 {
            return Err(format!("`slots` is {}: give 1 to 1000000", self.slots));
        }
        if self.answer_tokens == 0 || self.answer_tokens > 100_000 {
            return Err(format!("`answer_tokens` is {}: give 1 to 100000", self.answer_tokens));
        }
        if self.dimensions == 0 || self.dimensions > 8192 {
            return Err(format!("`dimensions` is {}: give 1 to 8192", self.dimensions));
        }
        if self.models.is_empty() {
            return Err("`models` is empty: name at least one".into());
        }
        if self.max_connections == 0 {
            return Err("`max_connections` is 0: give at least 1".into());
        }
        if !(0.0..=1000.0).contains(&self.batch_slowdown) {
            return Err(format!("`batch_slowdown` is {}: give 0 to 1000", self.batch_slowdown));
        }
        self.faults.check()
    }
}
