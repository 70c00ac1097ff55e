//! What the other crates test with; a dev-dependency and nothing else.
//!
//! - [`script`]: a provider that plays a written script, for the engine in virtual time;
//! - [`trace`]: what happened when, compared as text;
//! - [`ledger`]: the invariants I1–I8 over a batch's files and the simulator's ledger;
//! - [`forge`]: tokens that no gateway may take;
//! - [`proxy`]: a TCP proxy whose faults are switched while it runs;
//! - [`process`]: the real binary as a child process.
//!
//! These are the hands of tests, so they panic where a test would: a bad script, a line that
//! never comes, a trace that differs.

pub mod forge;
pub mod ledger;
pub mod process;
pub mod proxy;
pub mod script;
pub mod trace;

mod step;
