//! What one call, or one attempt, holds of its parties.

use super::{
    Party, Refusal,
    party::{State, Took, tighter},
};
use parking_lot::MutexGuard;
use std::{sync::Arc, time::Instant};
use tidegate_core::{Money, Price, RateLimits, Result, TokenEstimate, Usage};

/// Parties a call has: its caller, its team, its model. An attempt has one, its upstream.
const OF_A_CALL: usize = 3;

/// Tokens and money.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Amount {
    pub(crate) tokens: u64,
    pub(crate) cost: Money,
}

/// A request, a place and a reservation in each party; dropping it gives the place back.
pub(crate) struct Hold<const PARTIES: usize = OF_A_CALL> {
    held: [Option<(Arc<Party>, Took)>; PARTIES],
    reserved: Amount,
    is_settled: bool,
}

impl Amount {
    /// What an attempt may take, as estimated; money only where there is a price.
    pub(crate) fn of(tokens: TokenEstimate, price: Option<Price>) -> Self {
        let TokenEstimate { input, output } = tokens;
        let cost = price.map(|price| price.of(Usage { input, output, ..Usage::default() }));
        Self { tokens: tokens.total(), cost: cost.unwrap_or_default() }
    }

    pub(super) const fn plus(self, other: Self) -> Self {
        let tokens = self.tokens.saturating_add(other.tokens);
        Self { tokens, cost: self.cost.plus(other.cost) }
    }

    pub(super) const fn minus(self, other: Self) -> Self {
        let tokens = self.tokens.saturating_sub(other.tokens);
        Self { tokens, cost: self.cost.minus(other.cost) }
    }
}

impl Hold {
    /// Takes `needs` from all parties; from none when one refuses. `None` where there is none.
    ///
    /// The parties are of different scopes, in their order.
    pub(super) fn take(
        parties: [Option<Arc<Party>>; OF_A_CALL],
        needs: Amount,
        now: Instant,
    ) -> Result<Option<Self>> {
        if parties.iter().all(Option::is_none) {
            return Ok(None);
        }
        // All are locked until all are asked: nobody sees, or is refused by, what is not taken.
        let mut locked =
            parties.each_ref().map(|party| party.as_ref().map(|party| (party, party.lock())));
        let ask = |(party, state): &(&Arc<Party>, MutexGuard<'_, State>)| {
            party.ask(state, needs, now).err()
        };
        let refusal = locked.iter().flatten().filter_map(ask).reduce(Refusal::or_longer);
        if let Some(refusal) = refusal {
            let told = locked.iter().flatten().map(|(_, state)| state.told(now));
            return Err(refusal.into_error(told.reduce(tighter).unwrap_or_default()));
        }
        let took = locked.each_mut().map(|locked| {
            locked.as_mut().map(|(_, state)| state.take(needs, now)).unwrap_or_default()
        });
        drop(locked);
        let mut took = took.into_iter();
        let held = parties.map(|party| {
            let took = took.next().unwrap_or_default();
            party.map(|party| (party, took))
        });
        Ok(Some(Self { held, reserved: needs, is_settled: false }))
    }
}

impl Hold<1> {
    /// Takes `needs` from the one party that is `locked`, and was asked.
    pub(crate) fn take_locked(
        party: &Arc<Party>,
        mut locked: MutexGuard<'_, State>,
        needs: Amount,
        now: Instant,
    ) -> Self {
        let took = locked.take(needs, now);
        Self { held: [Some((party.clone(), took))], reserved: needs, is_settled: false }
    }
}

impl<const PARTIES: usize> Hold<PARTIES> {
    /// What was reserved.
    pub(crate) const fn reserved(&self) -> Amount {
        self.reserved
    }

    /// Corrects the reservation to what was used, once; what comes after is not heard. Without
    /// it the reservation stands.
    pub(crate) fn settle(&mut self, used: Amount, now: Instant) {
        if std::mem::replace(&mut self.is_settled, true) {
            return;
        }
        for (party, took) in self.held.iter().flatten() {
            party.lock().settle(*took, used, now);
        }
    }

    /// What is left to the caller: of each sort, in the party that has least.
    pub(crate) fn told(&self, now: Instant) -> RateLimits {
        let told = self.held.iter().flatten().map(|(party, _)| party.lock().told(now));
        told.reduce(tighter).unwrap_or_default()
    }
}

impl<const PARTIES: usize> Drop for Hold<PARTIES> {
    fn drop(&mut self) {
        for (party, _) in self.held.iter().flatten() {
            party.lock().leave(self.reserved);
        }
    }
}
