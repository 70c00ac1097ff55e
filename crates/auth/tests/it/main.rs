//! Tokens, from the grant to the refusal: over real keys in a real directory.
#![expect(clippy::unwrap_used, reason = "what a test rests on may panic")]

mod gate;
mod hostile;
mod issuers;
mod own;
