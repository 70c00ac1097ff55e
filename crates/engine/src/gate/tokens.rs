//! How many tokens a prompt has for this upstream's model, as learned from its answers.

use super::Gate;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use tidegate_core::{Call, TokenEstimate};
use tidegate_policy::estimate::BytesPerToken;

/// What was learned, without a lock: of two answers that tell at once, one may go unheard.
#[derive(Default)]
pub(super) struct Learned {
    /// Zero until something was told.
    ratio: AtomicU64,
}

impl Learned {
    fn ratio(&self) -> Option<BytesPerToken> {
        let bits = self.ratio.load(Relaxed);
        (bits != 0).then(|| BytesPerToken::from_bits(bits))
    }
}

impl Gate {
    /// `call`'s tokens, its prompt counted as this upstream does.
    pub(crate) fn estimate(&self, call: &Call) -> TokenEstimate {
        let learned = self.learned.ratio().map(|ratio| ratio.tokens(call.payload.len()));
        TokenEstimate { input: learned.unwrap_or(call.tokens.input), ..call.tokens }
    }

    /// Learns from an answer to a body of so many bytes.
    pub(super) fn learn_tokens(&self, body_bytes: usize, told: u64) {
        let mut ratio = self.learned.ratio().unwrap_or_else(BytesPerToken::assumed);
        ratio.told(body_bytes, told);
        self.learned.ratio.store(ratio.to_bits(), Relaxed);
    }
}
