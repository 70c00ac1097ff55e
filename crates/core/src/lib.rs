//! The words every crate shares: a call, its reply, how it can fail, and the seams.
//!
//! Nothing here touches a runtime, a clock, a socket or a serializer. The crate is small and
//! boring on purpose: everything rebuilds when it changes.
//!
//! The seams are object-safe traits held as `Arc<dyn …>`. Two are of the way of a call:
//!
//! - [`Answer`]: what a front calls (the engine, or a stub in a front's tests);
//! - [`Provider`]: what the engine calls (a dialect over sockets, or a script in a test).
//!
//! The others are of what outlives a call:
//!
//! - [`Store`]: who the callers are, answered from memory (SQLite behind it);
//! - [`Keys`]: what administrators do with callers' keys, on the command line and the admin port;
//! - [`Tokens`]: credentials beside keys, issued by us or by others;
//! - [`Ledger`]: what every attempt used and cost (memory, SQLite, PostgreSQL);
//! - [`Replays`]: the answers of calls with an `Idempotency-Key` (memory, SQLite).

mod answer;
mod call;
mod count;
mod error;
mod key;
mod ledger;
mod money;
mod provider;
mod redact;
mod replay;
mod reply;
mod secret;
mod store;
mod tenant;
mod tokens;

pub use answer::{
    Allowance, Answer, BoundBy, BreakerState, MirrorState, ModelInfo, RateLimits, UpstreamState,
};
pub use call::{Call, Front, Operation, Patience, Payload, Priority, TokenEstimate};
pub use count::{CountTokens, Tokenizers};
pub use error::{Class, Clock, Error, Kind, Origin, Result, Retry, UpstreamAnswer};
pub use key::{
    BudgetsChange, Change, Former, KeyChange, KeyRecord, KeyState, Keys, LimitsChange, Minted,
    is_plain_line,
};
pub use ledger::{Cause, Entry, Group, Ledger, Noted, UsageQuery, UsageRow};
pub use money::{Money, Price, Rates, Step};
pub use provider::{Attempt, Provider};
pub use redact::redact;
pub use replay::{Begun, Ended, Execution, KeptAnswer, ReplayKey, Replays, Unkept};
pub use reply::{Body, ContentType, Lease, Meter, Reply, Served, Usage};
pub use secret::Secret;
pub use store::Store;
pub use tenant::{Budgets, Limits, Scope, Tenant};
pub use tokens::{Grant, Identity, Tokens, is_token};

pub use futures_util::future::BoxFuture;
pub use futures_util::stream::BoxStream;
