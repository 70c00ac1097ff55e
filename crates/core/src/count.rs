//! Counting a prompt's tokens, where the model's own tokenizer is there.

use crate::Operation;

/// Counts the tokens of the prompt in a body; `None` where that would take too long, or where the
/// body is not of a shape it knows.
///
/// Called once per call, on the hot path: the work must have a bound.
pub type CountTokens = fn(Operation, &[u8]) -> Option<u64>;

/// The tokenizer of a model, by the upstream's own name of it; `None` where none is known.
///
/// Called once for each target when its route is built, so that what must be loaded is loaded then.
pub type Tokenizers = fn(&str) -> Option<CountTokens>;
