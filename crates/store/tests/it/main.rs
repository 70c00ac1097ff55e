//! Every store behaves the same; what only SQLite can get wrong has its own module.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod keys;
mod ledger;
mod notes;
mod outages;
mod postgres;
mod replays;
mod sqlite;
mod suite;
