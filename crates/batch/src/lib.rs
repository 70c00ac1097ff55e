//! A file of calls in, a file of answers out: nothing lost, nothing paid twice.
//!
//! ```text
//! input --> Request --> run: dispatch --> Answer::call --> row --> journal --> output
//!  (input/*, template)        |  resume, equal rows, budget,         |           (assembled,
//!                             |  stops, progress                     +-- resume   renamed)
//! ```
//!
//! The front knows only [`tidegate_core::Answer`]: the engine finds limits, retries and
//! classifies; this crate decides which rows go, keeps what came back, and says how it went.
//! [`run`] reads top to bottom as the life of a job.

mod body;
mod failure;
mod files;
mod images;
mod input;
mod job;
mod journal;
mod lock;
mod manifest;
mod order;
mod output;
mod plan;
mod progress;
mod request;
mod run;
mod schema;
mod status;
mod summary;
mod template;

pub use failure::Failure;
pub use files::{Files, Written};
pub use input::{GroupBy, InputError, InputOptions};
pub use job::{Confirm, Format, Job, MaxErrors, Only, Order, Prices, Surroundings};
pub use manifest::Manifest;
pub use plan::{Cost, ModelPlan, Plan, Range, plan_input};
pub use progress::Progress;
pub use run::run;
pub use status::{Status, status};
pub use summary::{End, Finished, Summary};
