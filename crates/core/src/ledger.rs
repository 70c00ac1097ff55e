//! The ledger: what every attempt used and cost.

use crate::{BoxFuture, Class, Money, Operation, Result, Usage};
use std::{sync::Arc, time::Duration, time::SystemTime};

/// Keeps the account of every attempt that was sent.
pub trait Ledger: Send + Sync + 'static {
    /// Takes an entry. Called on the hot path: never blocks, never fails, loses nothing.
    fn write(&self, entry: Entry);

    /// Notes an attempt that is about to be sent, at the most it can come to, where that outlives
    /// this process: if it is killed before [`end`](Self::end), the next one enters it as it is in
    /// `most`. `None` where there is no such place, or no room. Called on the hot path, as `write`.
    fn begin(&self, most: &Entry) -> Option<Noted> {
        let _ = most;
        None
    }

    /// Takes the entry of an attempt that [`begin`](Self::begin) noted, in place of what was noted.
    fn end(&self, noted: Noted, entry: Entry) {
        let _ = noted;
        self.write(entry);
    }

    /// Returns once every entry written before is stored for good.
    ///
    /// # Errors
    ///
    /// When it cannot be stored now; what was written is kept and stored later.
    fn flush(&self) -> BoxFuture<'_, Result<()>>;

    /// Sums over the entries `query` asks for, ordered by their groups.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    fn usage<'a>(&'a self, query: &'a UsageQuery) -> BoxFuture<'a, Result<Vec<UsageRow>>>;
}

/// An attempt that a ledger has noted before it was sent. Dropping it leaves the note.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct Noted {
    /// What names its entry, among those of this process.
    pub sequence: u64,
    /// When it was sent, as was noted: databases keep entries by it, so its entry has it too.
    pub at: SystemTime,
    /// Where it is noted.
    pub slot: u32,
}

/// One attempt: whose, why, where, and what it took. No prompt, no answer, no key.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Id of the call, and which of its attempts this is; the first is 1.
    pub call: Arc<str>,
    /// See `call`.
    pub attempt: u32,
    /// Why it was sent.
    pub cause: Cause,
    /// When it was sent.
    pub at: SystemTime,
    /// From then to its last byte.
    pub took: Duration,
    /// Who asked.
    pub caller: Arc<str>,
    /// The caller's team.
    pub team: Option<Arc<str>>,
    /// What was asked for.
    pub operation: Operation,
    /// The model, as the caller named it.
    pub model: Arc<str>,
    /// Where it was sent.
    pub upstream: Arc<str>,
    /// That upstream's own name of the model.
    pub upstream_model: Arc<str>,
    /// How it failed; `None` when it did not.
    pub failure: Option<Class>,
    /// What it used.
    pub usage: Usage,
    /// Whether the upstream said so; otherwise it was counted as it passed, or estimated.
    pub told: bool,
    /// What that costs; `None` where no price is known.
    pub cost: Option<Money>,
}

/// Why an attempt was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cause {
    /// The first of its call.
    First,
    /// The first of a batch's row.
    Batch,
    /// After a failure, to the same model.
    Retry,
    /// Beside one that was late.
    Hedge,
    /// To another model, after the first one's targets were spent.
    Fallback,
    /// A copy, whose answer nobody sees.
    Mirror,
}

impl Cause {
    /// Every cause, for tables and tests.
    pub const ALL: [Self; 6] =
        [Self::First, Self::Batch, Self::Retry, Self::Hedge, Self::Fallback, Self::Mirror];

    /// The word used in databases, exports and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Batch => "batch",
            Self::Retry => "retry",
            Self::Hedge => "hedge",
            Self::Fallback => "fallback",
            Self::Mirror => "mirror",
        }
    }
}

/// Which entries are summed up, and by what.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct UsageQuery {
    /// From this Unix second on.
    pub from: Option<u64>,
    /// Before this Unix second.
    pub to: Option<u64>,
    /// Before this moment, to the microsecond.
    pub before: Option<SystemTime>,
    /// Of these only, each when named.
    pub caller: Option<Arc<str>>,
    /// See `caller`.
    pub team: Option<Arc<str>>,
    /// See `caller`.
    pub model: Option<Arc<str>>,
    /// See `caller`.
    pub upstream: Option<Arc<str>>,
    /// Without copies to mirrors, which are on nobody's budget.
    pub without_mirrors: bool,
    /// What each row is of; one row in all when empty.
    pub group_by: Vec<Group>,
    /// Rows at most; the rest is left off, oldest days and alphabetically first kept. 0 is
    /// [`UsageQuery::MAX_ROWS`].
    pub limit: u32,
}

impl UsageQuery {
    /// Most rows an answer has, whatever was asked for.
    pub const MAX_ROWS: u32 = 100_000;
}

/// What sums are grouped by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Group {
    /// Who asked.
    Caller,
    /// Whose team.
    Team,
    /// The model as callers name it.
    Model,
    /// Where it was sent.
    Upstream,
    /// Why it was sent.
    Cause,
    /// The day, UTC, as `2026-11-21`.
    Day,
}

impl Group {
    /// Every group, for tables and tests.
    pub const ALL: [Self; 6] =
        [Self::Caller, Self::Team, Self::Model, Self::Upstream, Self::Cause, Self::Day];

    /// The word used in queries, and as the name of the column.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Caller => "caller",
            Self::Team => "team",
            Self::Model => "model",
            Self::Upstream => "upstream",
            Self::Cause => "cause",
            Self::Day => "day",
        }
    }
}

/// One row of sums.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct UsageRow {
    /// What it is of, as many as the query grouped by and in its order; empty where there is none.
    pub of: Vec<String>,
    /// Attempts.
    pub attempts: u64,
    /// Calls: attempts sent first.
    pub calls: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// Tokens used.
    pub usage: Usage,
    /// What it cost, as far as prices are known.
    pub cost: Money,
    /// Attempts with tokens for which no price is known: the cost is without them.
    pub unpriced: u64,
}
