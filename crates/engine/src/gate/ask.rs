//! What a gate has to know of an attempt.

use super::Breakers;
use crate::limits::Amount;
use std::time::Instant;
use tidegate_core::{Call, Patience, Price, Priority, TokenEstimate};
use tidegate_policy::timeout;

/// An attempt that asks to pass.
#[derive(Clone, Copy)]
pub(super) struct Ask {
    pub(super) number: u32,
    pub(super) class: Priority,
    pub(super) tokens: TokenEstimate,
    pub(super) price: Option<Price>,
    pub(super) body_bytes: usize,
    pub(super) stream: bool,
    pub(super) deadline: Instant,
    pub(super) clocks: timeout::Options,
    pub(super) breakers: Breakers,
    pub(super) is_patient: bool,
    /// The upstream's limits count it.
    pub(super) is_limited: bool,
    /// The caller's own client has sent it before.
    pub(super) is_again: bool,
}

impl Ask {
    pub(super) fn of(
        call: &Call,
        price: Option<Price>,
        number: u32,
        clocks: &timeout::Options,
        breakers: Breakers,
    ) -> Self {
        Self {
            number,
            class: call.priority,
            tokens: call.tokens,
            price,
            body_bytes: call.payload.len(),
            stream: call.stream,
            deadline: call.deadline,
            clocks: *clocks,
            breakers,
            is_patient: call.patience == Patience::Free,
            is_limited: true,
            is_again: call.client_retries > 0,
        }
    }

    /// What it takes of the upstream's limits.
    pub(super) fn needs(&self) -> Amount {
        Amount::of(self.tokens, self.price)
    }
}
