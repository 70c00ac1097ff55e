//! The way of a call, from admission to settle.
//!
//! Start with [`Engine::call`]: it reads from top to bottom as a table of contents. A call moves
//! right, a reply moves left, and nothing calls back.

mod account;
mod admit;
mod attempt;
mod budgets;
mod call;
mod flow;
mod gate;
mod hedge;
pub mod limits;
mod load;
mod mirror;
mod parts;
mod route;
mod settle;

pub use admit::Held;
pub use budgets::{Alert, Alerts, Earlier, Payer, spent_before};
pub use call::Engine;
pub use parts::{Limiters, Mirror, Model, Parts, PartsError, Spending, Target, Upstream};
pub use settle::{Outcome, Record, Records};
