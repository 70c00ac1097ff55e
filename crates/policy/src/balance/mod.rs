//! Balance: which target of a model takes the next attempt.
//!
//! # Why
//!
//! One model is served by several servers or accounts, in shares that were asked for (weights),
//! and they are not equally well at every moment. Random choice sends as much to the slow one as
//! to the others; "always the best" makes all gateways run to the same one at once. The default
//! compares two drawn at random, which is nearly as good as comparing all and never herds
//! (Mitzenmacher, "The power of two choices").
//!
//! An attempt after a failure prefers a target the call has not tried: the same server would most
//! likely fail the same way. That is the engine's `open`.
//!
//! # Weights
//!
//! Every rule respects them, and a breaker's slow start with them: a target's weight counts times
//! its [`Candidate::share`]. A weight of zero parks a target without removing it. Where the
//! weights of two targets differ, somebody has decided their shares, so a difference in load or
//! latency below [`MARKED`] does not overrule it.

mod ewma;
mod least_inflight;
mod p2c;
mod prefix_hash;
mod round_robin;
mod weighted;

pub use ewma::Ewma;
pub use prefix_hash::key;
pub use weighted::weighted;

use round_robin::RoundRobin;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How many times the load of the other a target with a weight of its own must have to lose an
/// attempt that its weight had won.
const MARKED: f64 = 2.0;

/// How a model's attempts are spread over its targets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Options {
    /// The better of two drawn by weight, by latency times attempts in flight. The default.
    #[default]
    P2cEwma,
    /// The one with the fewest attempts in flight.
    LeastInflight,
    /// One after the other.
    RoundRobin,
    /// At random.
    Weighted,
    /// The same prompt prefix of the same caller to the same server, for its prefix cache, unless
    /// that one has a quarter more than its share in flight.
    PrefixHash,
}

/// What is known of one target when an attempt is to be sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Its share of the model's traffic, relative to the others' weights; 0 parks it.
    pub weight: u32,
    /// How much of that it gets at the moment, from 0 to 1: `Breaker::share`.
    pub share: f64,
    /// Attempts in flight there.
    pub in_flight: u32,
    /// What an attempt there costs, in seconds: [`Ewma::cost`].
    pub cost: f64,
}

impl Candidate {
    fn weight(&self) -> f64 {
        f64::from(self.weight) * self.share.clamp(0.0, 1.0)
    }
}

/// Picks the targets of one model.
#[derive(Debug)]
pub struct Balancer {
    options: Options,
    round_robin: RoundRobin,
}

impl Balancer {
    /// A balancer that has picked nothing.
    pub const fn new(options: Options) -> Self {
        Self { options, round_robin: RoundRobin::new() }
    }

    /// Picks one of the candidates that `open` says may be taken, or `None` when there is none.
    ///
    /// `key` says which calls belong together, for prefix-hash: see [`key`]. `roll` draws evenly
    /// from `[0, 1)`. Candidates keep their positions from call to call.
    pub fn pick(
        &mut self,
        candidates: &[Candidate],
        key: u64,
        mut roll: impl FnMut() -> f64,
        open: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let weight = |index: usize| if open(index) { candidates[index].weight() } else { 0.0 };
        let field = Field { candidates, weight: &weight };
        match self.options {
            Options::P2cEwma => p2c::pick(&field, roll(), roll()),
            Options::LeastInflight => least_inflight::pick(&field, roll()),
            Options::RoundRobin => self.round_robin.pick(&field),
            Options::Weighted => field.draw(roll()),
            Options::PrefixHash => prefix_hash::pick(&field, key),
        }
    }
}

/// The candidates of one pick; one that may not be taken has a weight of zero.
struct Field<'a> {
    candidates: &'a [Candidate],
    weight: &'a dyn Fn(usize) -> f64,
}

impl Field<'_> {
    fn len(&self) -> usize {
        self.candidates.len()
    }

    fn weight(&self, index: usize) -> f64 {
        (self.weight)(index)
    }

    /// Positions that may be picked.
    fn open(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.len()).filter(|index| self.weight(*index) > 0.0)
    }

    fn total_weight(&self) -> f64 {
        (0..self.len()).map(|index| self.weight(index)).sum()
    }

    /// Attempts in flight at those that may be picked.
    fn in_flight(&self) -> f64 {
        self.open().map(|index| f64::from(self.candidates[index].in_flight)).sum()
    }

    /// One in proportion to the weights.
    fn draw(&self, roll: f64) -> Option<usize> {
        weighted::draw(self.len(), |index| self.weight(index), roll)
    }

    /// Whether `other` is so much less loaded than `index` that it takes its place.
    fn yields(&self, index: usize, other: usize, load: impl Fn(usize) -> f64) -> bool {
        let margin = if self.weight(index) == self.weight(other) { 1.0 } else { MARKED };
        load(index) > margin * load(other)
    }
}

#[cfg(test)]
mod tests;
