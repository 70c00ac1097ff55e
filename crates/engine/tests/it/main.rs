//! The engine ring: scripted providers, virtual time, the trace is the assertion.
#![expect(clippy::unwrap_used, reason = "what a test rests on may panic")]

mod accounts;
mod breakers;
mod budgets;
mod canary;
mod cancel;
mod crowd;
mod discipline;
mod driver;
mod hedges;
mod house;
mod limits;
mod mirror;
mod moves;
mod notes;
mod paid;
mod panics;
mod priced;
mod rates;
mod retries;
mod streams;
mod timeouts;
mod told;
