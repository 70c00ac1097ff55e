//! Jobs against a scripted engine, in virtual time.

mod crash;
mod formats;
mod invariants;
mod money;
mod rows;
mod stops;
mod stub;
