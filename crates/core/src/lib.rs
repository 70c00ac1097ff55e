//! The words every crate shares: a call, its reply, how it can fail, and the three seams.
//!
//! Nothing here touches a runtime, a clock, a socket or a serializer. The crate is small and
//! boring on purpose: everything rebuilds when it changes.
//!
//! The three seams are object-safe traits held as `Arc<dyn …>`:
//!
//! - [`Answer`]: what a front calls (the engine, or a stub in a front's tests);
//! - [`Provider`]: what the engine calls (a dialect over sockets, or a script in a test);
//! - [`Store`]: shared state (memory, SQLite; later Redis and PostgreSQL).

mod answer;
mod call;
mod error;
mod key;
mod ledger;
mod money;
mod provider;
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
pub use error::{Class, Clock, Error, Kind, Origin, Result, Retry, UpstreamAnswer};
pub use key::{
    BudgetsChange, Change, Former, KeyChange, KeyRecord, KeyState, Keys, LimitsChange, Minted,
};
pub use ledger::{Cause, Entry, Group, Ledger, UsageQuery, UsageRow};
pub use money::{Money, Price};
pub use provider::{Attempt, Provider};
pub use replay::{Begun, Ended, Execution, KeptAnswer, ReplayKey, Replays, Unkept};
pub use reply::{Body, ContentType, Lease, Meter, Reply, Served, Usage};
pub use secret::Secret;
pub use store::Store;
pub use tenant::{Budgets, Limits, Scope, Tenant};
pub use tokens::{Grant, Identity, Tokens, is_token};

pub use futures_util::future::BoxFuture;
pub use futures_util::stream::BoxStream;
