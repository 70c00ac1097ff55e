//! Jobs against a scripted engine, in virtual time.

#![expect(clippy::unwrap_used, reason = "a test panics where it fails")]

mod crash;
mod formats;
mod invariants;
mod money;
mod rows;
mod stops;
mod stub;
