//! State that outlives a call: callers' keys, what attempts used and cost, answers for repeats.
//!
//! [`Memory`] forgets at the end of the process; [`Sqlite`] keeps one file in the data directory
//! and notices what other processes write to it. Both answer [`tidegate_core::Store::identify`]
//! from the same in-memory directory, so the hot path never does I/O. Both pass the behaviour
//! suite in `tests/it`.
//!
//! [`ledger`] keeps what every attempt used and cost, in SQLite or PostgreSQL; [`replay`] the answers
//! of calls with an `Idempotency-Key`, in memory or SQLite.

mod directory;
pub mod key;
pub mod ledger;
mod memory;
pub mod replay;
mod schema;
mod sqlite;

pub use directory::MAX_KEYS;
pub use memory::Memory;
pub use sqlite::Sqlite;
