//! Decisions without I/O: each module is one policy with its options, its rule and its tests.
//!
//! Time and chance are arguments: nothing here reads a clock or draws a number of its own.

pub mod balance;
pub mod breaker;
pub mod budget;
pub mod canary;
pub mod concurrency;
pub mod estimate;
pub mod hedge;
pub mod load;
pub mod memory;
pub mod pacer;
pub mod price;
mod quantile;
pub mod queue;
pub mod rate_limit;
pub mod retry;
pub mod retry_budget;
pub mod setting;
pub mod spacing;
pub mod throttle;
pub mod timeout;
