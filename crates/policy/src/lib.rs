//! Decisions without I/O: each module is one policy with its options, its rule and its tests.
//!
//! Time and chance are arguments: nothing here reads a clock or draws a number of its own.

pub mod balance;
pub mod breaker;
pub mod canary;
pub mod concurrency;
pub mod hedge;
pub mod load;
pub mod memory;
pub mod pacer;
mod quantile;
pub mod queue;
pub mod rate_limit;
pub mod retry;
pub mod retry_budget;
pub mod setting;
pub mod spacing;
pub mod timeout;
