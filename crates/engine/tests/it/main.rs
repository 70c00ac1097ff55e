//! The engine ring: scripted providers, virtual time, the trace is the assertion.

mod cancel;
mod driver;
mod house;
mod limits;
mod retries;
mod streams;
mod timeouts;
