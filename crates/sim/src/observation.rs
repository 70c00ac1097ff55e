//! One request's way into the ledger, whichever way it ends.

use crate::{
    ledger::{Key, LedgerEntry, Outcome, Path, Phase},
    server::Sim,
};
use http::HeaderMap;
use std::sync::Arc;

/// Longest id kept of a request header.
const MAX_ID_BYTES: usize = 128;

/// An open ledger entry; dropping it closes it. Dropped before [`Observation::end`] it says
/// that the caller went away.
#[derive(Debug)]
pub(crate) struct Observation {
    sim: Arc<Sim>,
    pub(crate) entry: LedgerEntry,
    ended: bool,
}

impl Observation {
    pub(crate) fn open(sim: &Arc<Sim>, path: Path, headers: &HeaderMap) -> Self {
        sim.ledger.lock().open();
        let entry = LedgerEntry {
            seq: 0,
            id: header(headers, "x-request-id"),
            key: header(headers, "x-custom-id").map_or(Key::Body(0), Key::Custom),
            attempt: header(headers, "x-attempt").and_then(|attempt| attempt.parse().ok()),
            path,
            model: sim.no_model(),
            start_us: sim.micros(),
            end_us: 0,
            status: 0,
            outcome: Outcome::Ok,
            why: "",
            phase: Phase::Reading,
            cancelled: false,
            bytes_in: 0,
            bytes_out: 0,
            prompt_tokens: 0,
            completion_tokens: 0,
            chunks: 0,
        };
        Self { sim: Arc::clone(sim), entry, ended: false }
    }

    pub(crate) const fn sim(&self) -> &Arc<Sim> {
        &self.sim
    }

    /// The body is `bytes` long and hashes to `hash`.
    pub(crate) fn received(&mut self, bytes: usize, hash: u64) {
        self.entry.bytes_in = u32::try_from(bytes).unwrap_or(u32::MAX);
        if let Key::Body(key) = &mut self.entry.key {
            *key = hash;
        }
    }

    pub(crate) fn sent(&mut self, bytes: usize) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.entry.bytes_out = self.entry.bytes_out.saturating_add(bytes);
    }

    pub(crate) const fn met(&mut self, outcome: Outcome, why: &'static str) {
        self.entry.outcome = outcome;
        self.entry.why = why;
    }

    /// All that was to be sent is sent, or a fault has cut it: what follows is no cancel.
    pub(crate) const fn end(&mut self) {
        self.ended = true;
    }
}

impl Drop for Observation {
    fn drop(&mut self) {
        let entry = &mut self.entry;
        if self.ended {
            entry.phase = Phase::Done;
        } else {
            entry.cancelled = true;
            if entry.outcome == Outcome::Ok {
                entry.outcome = Outcome::Cancelled;
            }
        }
        entry.end_us = self.sim.micros();
        let entry = LedgerEntry {
            id: entry.id.take(),
            key: std::mem::replace(&mut entry.key, Key::Body(0)),
            model: Arc::clone(&entry.model),
            ..*entry
        };
        self.sim.ledger.lock().close(entry);
    }
}

fn header(headers: &HeaderMap, name: &'static str) -> Option<Box<str>> {
    let value = headers.get(name)?.to_str().ok()?;
    (value.len() <= MAX_ID_BYTES).then(|| value.into())
}
