//! The way of a call, from admission to settle.
//!
//! Start with [`Engine::call`]: it reads from top to bottom as a table of contents. A call moves
//! right, a reply moves left, and nothing calls back.

mod admit;
mod attempt;
mod call;
mod flow;
mod gate;
mod hedge;
mod load;
mod mirror;
mod parts;
mod route;
mod settle;
mod tenants;

pub use admit::Held;
pub use call::Engine;
pub use parts::{Limiters, Mirror, Model, Parts, PartsError, Target, Upstream};
pub use settle::{Outcome, Record, Records};
