//! What the simulator saw: one entry per request, and exact totals.
//!
//! # Why
//!
//! Tests compare it with what the caller believes: calls sent twice, cancelled ones that went
//! on, rows that were never asked for. Entries are compact and in a ring, so a million-row run
//! can be checked without the rig being the largest process of the test.

use serde::{Serialize, Serializer};
use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::Arc,
};

/// Entries per piece of the ring: growing never moves more than this.
const SEGMENT: usize = 4096;

/// One request, as it ended.
#[derive(Clone, Debug, PartialEq)]
pub struct LedgerEntry {
    /// Position in the order of ending, from 0.
    pub seq: u64,
    /// `x-request-id` as sent.
    pub id: Option<Box<str>>,
    /// What makes two requests the same call.
    pub key: Key,
    /// `x-attempt` as sent.
    pub attempt: Option<u16>,
    /// Which endpoint.
    pub path: Path,
    /// Model as asked for.
    pub model: Arc<str>,
    /// Microseconds from the simulator's start to the request's head.
    pub start_us: u64,
    /// Microseconds from the simulator's start to its end.
    pub end_us: u64,
    /// HTTP status sent, 0 when the head was never sent.
    pub status: u16,
    /// How it ended.
    pub outcome: Outcome,
    /// The fault or limit that decided it, or empty: the fault's field without `_rate`, or
    /// `rate`, `tokens`, `concurrency`, `queue`, `key`, `invalid`, `model`.
    pub why: &'static str,
    /// Where it was when it ended.
    pub phase: Phase,
    /// Whether the caller went away first; then `end_us` is when.
    pub cancelled: bool,
    /// Body bytes received.
    pub bytes_in: u32,
    /// Body bytes sent.
    pub bytes_out: u32,
    /// Prompt tokens.
    pub prompt_tokens: u32,
    /// Answer tokens produced.
    pub completion_tokens: u32,
    /// Token events sent.
    pub chunks: u32,
}

/// What makes two requests the same call.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// The `x-custom-id` header.
    Custom(Box<str>),
    /// First 64 bits of the body's BLAKE3 hash.
    Body(u64),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Custom(id) => f.write_str(id),
            Self::Body(hash) => write!(f, "{hash:016x}"),
        }
    }
}

/// An endpoint that answers like a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Path {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completions,
    /// `/v1/embeddings`
    Embeddings,
    /// `/v1/responses`
    Responses,
    /// `/inference`
    Inference,
    /// `/v1/analyze`
    Analyze,
    /// `/recommend`
    Recommend,
}

impl Path {
    const ALL: [Self; 7] = [
        Self::Chat,
        Self::Completions,
        Self::Embeddings,
        Self::Responses,
        Self::Inference,
        Self::Analyze,
        Self::Recommend,
    ];

    /// As in the request line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
            Self::Embeddings => "/v1/embeddings",
            Self::Responses => "/v1/responses",
            Self::Inference => "/inference",
            Self::Analyze => "/v1/analyze",
            Self::Recommend => "/recommend",
        }
    }

    pub(crate) fn read(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.as_str() == path)
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Answered in full.
    Ok,
    /// Answered with a refusal: a limit, the queue, the key, the request itself.
    Refused,
    /// Met a fault.
    Fault,
    /// The caller went away.
    Cancelled,
}

/// Where a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Its body is being read.
    Reading,
    /// It waits for a slot.
    Queued,
    /// It has a slot and no token yet (a stream), or no answer yet (unary).
    FirstToken,
    /// Its answer is being sent.
    Answering,
    /// It is over.
    Done,
}

impl Serialize for LedgerEntry {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Line<'a> {
            seq: u64,
            id: Option<&'a str>,
            key: String,
            attempt: Option<u16>,
            path: &'static str,
            model: &'a str,
            start: f64,
            end: f64,
            status: Option<u16>,
            outcome: Outcome,
            why: Option<&'static str>,
            phase: Phase,
            cancelled: bool,
            cancelled_at: Option<f64>,
            bytes_in: u32,
            bytes_out: u32,
            prompt_tokens: u32,
            completion_tokens: u32,
            chunks: u32,
        }
        let end = self.end_us as f64 / 1000.0;
        Line {
            seq: self.seq,
            id: self.id.as_deref(),
            key: self.key.to_string(),
            attempt: self.attempt,
            path: self.path.as_str(),
            model: &self.model,
            start: self.start_us as f64 / 1000.0,
            end,
            status: (self.status != 0).then_some(self.status),
            outcome: self.outcome,
            why: (!self.why.is_empty()).then_some(self.why),
            phase: self.phase,
            cancelled: self.cancelled,
            cancelled_at: self.cancelled.then_some(end),
            bytes_in: self.bytes_in,
            bytes_out: self.bytes_out,
            prompt_tokens: self.prompt_tokens,
            completion_tokens: self.completion_tokens,
            chunks: self.chunks,
        }
        .serialize(to)
    }
}

/// Exact counts over all requests, dropped entries included.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Requests whose head was read.
    pub requests: u64,
    /// Requests not ended yet.
    pub in_flight: u64,
    /// Most requests there ever were at once.
    pub peak_in_flight: u64,
    /// Slots taken now.
    pub busy_slots: u64,
    /// Requests waiting for a slot now.
    pub queued: u64,
    /// Ended as [`Outcome::Ok`].
    pub ok: u64,
    /// Ended as [`Outcome::Refused`].
    pub refused: u64,
    /// Ended as [`Outcome::Fault`].
    pub fault: u64,
    /// Ended as [`Outcome::Cancelled`].
    pub cancelled: u64,
    /// By status; `0` is no head sent.
    pub by_status: BTreeMap<u16, u64>,
    /// Body bytes received.
    pub bytes_in: u64,
    /// Body bytes sent.
    pub bytes_out: u64,
    /// Prompt tokens of all requests.
    pub prompt_tokens: u64,
    /// Answer tokens produced.
    pub completion_tokens: u64,
    /// Token events sent.
    pub chunks: u64,
    /// Entries the ring dropped.
    pub dropped: u64,
}

/// The ring and the totals.
#[derive(Debug)]
pub(crate) struct Ledger {
    segments: VecDeque<Vec<LedgerEntry>>,
    /// Sequence number of the first entry kept.
    first: u64,
    /// Sequence number of the next entry.
    next: u64,
    capacity: u64,
    totals: Totals,
}

impl Ledger {
    pub(crate) fn new(capacity: usize) -> Self {
        let totals = Totals::default();
        Self { segments: VecDeque::new(), first: 0, next: 0, capacity: capacity as u64, totals }
    }

    /// A request has come.
    pub(crate) fn open(&mut self) {
        self.totals.requests += 1;
        self.totals.in_flight += 1;
        self.totals.peak_in_flight = self.totals.peak_in_flight.max(self.totals.in_flight);
    }

    /// A request has ended.
    pub(crate) fn close(&mut self, mut entry: LedgerEntry) {
        let totals = &mut self.totals;
        totals.in_flight -= 1;
        *match entry.outcome {
            Outcome::Ok => &mut totals.ok,
            Outcome::Refused => &mut totals.refused,
            Outcome::Fault => &mut totals.fault,
            Outcome::Cancelled => &mut totals.cancelled,
        } += 1;
        *totals.by_status.entry(entry.status).or_default() += 1;
        totals.bytes_in += u64::from(entry.bytes_in);
        totals.bytes_out += u64::from(entry.bytes_out);
        totals.prompt_tokens += u64::from(entry.prompt_tokens);
        totals.completion_tokens += u64::from(entry.completion_tokens);
        totals.chunks += u64::from(entry.chunks);
        entry.seq = self.next;
        self.push(entry);
    }

    /// Drops whole segments, so between `capacity` and `capacity` + 4095 entries are kept.
    fn push(&mut self, entry: LedgerEntry) {
        self.next += 1;
        if self.capacity == 0 {
            self.first = self.next;
            self.totals.dropped += 1;
            return;
        }
        match self.segments.back_mut() {
            Some(last) if last.len() < SEGMENT => last.push(entry),
            _ => self.segments.push_back(vec![entry]),
        }
        let oldest = self.segments.front().map_or(0, |oldest| oldest.len() as u64);
        if self.segments.len() > 1 && self.next - self.first - oldest >= self.capacity {
            self.segments.pop_front();
            self.first += oldest;
            self.totals.dropped += oldest;
        }
    }

    /// Entries from `seq` on, oldest first.
    pub(crate) fn since(&self, seq: u64) -> impl Iterator<Item = &LedgerEntry> {
        let skip = usize::try_from(seq.saturating_sub(self.first)).unwrap_or(usize::MAX);
        let within = skip % SEGMENT;
        self.segments.iter().skip(skip / SEGMENT).flatten().skip(within)
    }

    /// Forgets everything but the requests still in flight.
    pub(crate) fn clear(&mut self) {
        let in_flight = self.totals.in_flight;
        self.totals = Totals {
            requests: in_flight,
            in_flight,
            peak_in_flight: in_flight,
            ..Totals::default()
        };
        self.segments.clear();
        self.first = self.next;
    }

    pub(crate) const fn totals(&self) -> &Totals {
        &self.totals
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> LedgerEntry {
        LedgerEntry {
            seq: 0,
            id: None,
            key: Key::Body(7),
            attempt: None,
            path: Path::Chat,
            model: "m".into(),
            start_us: 1500,
            end_us: 2500,
            status: 200,
            outcome: Outcome::Ok,
            why: "",
            phase: Phase::Done,
            cancelled: false,
            bytes_in: 1,
            bytes_out: 2,
            prompt_tokens: 3,
            completion_tokens: 4,
            chunks: 0,
        }
    }

    #[test]
    fn the_oldest_are_dropped_and_counted() {
        let mut ledger = Ledger::new(5000);
        for _ in 0..20_000 {
            ledger.open();
            ledger.close(entry());
        }
        let kept: Vec<u64> = ledger.since(0).map(|entry| entry.seq).collect();
        assert!((5000..5000 + SEGMENT).contains(&kept.len()), "{}", kept.len());
        assert_eq!(kept.last(), Some(&19_999));
        assert!(kept.is_sorted() && ledger.totals().dropped == 20_000 - kept.len() as u64);
        assert_eq!(
            ledger.since(19_998).map(|entry| entry.seq).collect::<Vec<_>>(),
            [19_998, 19_999]
        );
        assert_eq!((ledger.totals().ok, ledger.totals().in_flight), (20_000, 0));
    }

    #[test]
    fn entries_are_compact() {
        assert!(size_of::<LedgerEntry>() <= 120, "{}", size_of::<LedgerEntry>());
    }

    #[test]
    fn a_line_is_in_milliseconds() {
        let line = serde_json::to_value(entry()).unwrap();
        assert_eq!(line["start"], 1.5);
        assert_eq!(line["key"], "0000000000000007");
        assert_eq!(line["cancelled_at"], serde_json::Value::Null);
    }
}
