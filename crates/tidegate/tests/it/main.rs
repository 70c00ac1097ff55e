//! The gateway ring: the real binary, real sockets, the simulator as upstream.

mod batch;
mod cli;
mod serve;
mod web;
