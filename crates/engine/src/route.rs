//! Routing: one model's targets, and which of them takes the next attempt.

mod any_model;
mod routes;
mod target;

pub(crate) use routes::Routes;
pub(crate) use target::Target;

use crate::{
    Model, PartsError,
    account::Books,
    attempt::{Tries, now},
    gate::Breakers,
    limits::Amount,
    mirror::Mirror,
};
use parking_lot::Mutex;
use std::sync::Arc;
use target::Targets;
use tidegate_core::{Call, TokenEstimate};
use tidegate_policy::{
    balance::{self, Balancer, Candidate},
    breaker,
    canary::{self, Match},
    hedge::Hedge,
    retry::Place,
    timeout,
};

/// No more than this share of a model's targets is left alone because of open breakers.
const MAX_EJECTED: f64 = 0.5;

/// One model's targets.
pub(crate) struct Route {
    pub(crate) targets: Vec<Target>,
    pub(crate) timeouts: timeout::Options,
    /// `None` when it is off.
    pub(crate) hedge: Option<Mutex<Hedge>>,
    /// Models that answer when all targets are spent, in order.
    pub(crate) fallback: Vec<Arc<str>>,
    /// Where copies of its calls go.
    pub(crate) mirror: Option<Mirror>,
    weights: Vec<u32>,
    /// The calls each target is for.
    matches: Vec<Option<Match>>,
    balancer: Mutex<Balancer>,
    /// Whether calls belong together by their prompts.
    by_prefix: bool,
}

/// Where the next attempt goes.
#[derive(Clone, Copy)]
pub(crate) struct Pick<'r> {
    pub(crate) target: &'r Target,
    pub(crate) breakers: Breakers,
}

impl Route {
    fn new(
        name: &str,
        model: &Model,
        targets: &mut Targets,
        books: &Arc<Books>,
    ) -> Result<Self, PartsError> {
        let (count, most) = (model.targets.len(), Tries::MAX_TARGETS);
        if count > most {
            return Err(PartsError(format!(
                "model `{name}` has {count} targets; {most} is the most"
            )));
        }
        if model.targets.iter().all(|target| target.weight == 0) {
            return Err(PartsError(format!("model `{name}` has no target with a weight")));
        }
        let mut to = |does: &str, upstream: &Arc<str>, model: &Arc<str>, price| {
            targets.target(upstream, model, price).ok_or_else(|| {
                PartsError(format!("model `{name}` {does} no known upstream: `{upstream}`"))
            })
        };
        let mut route = Self {
            targets: Vec::new(),
            weights: Vec::new(),
            matches: Vec::new(),
            mirror: None,
            timeouts: model.timeouts,
            hedge: model.hedge.enabled.then(|| Mutex::new(Hedge::new(model.hedge.clone()))),
            fallback: model.fallback.clone(),
            balancer: Mutex::new(Balancer::new(model.balance)),
            by_prefix: model.balance == balance::Options::PrefixHash,
        };
        for target in &model.targets {
            route.targets.push(to("names", &target.upstream, &target.model, target.price)?);
            route.weights.push(target.weight);
            route.matches.push(target.matches.clone());
        }
        if let Some(mirror) = &model.mirror {
            let target = to("mirrors to", &mirror.upstream, &mirror.model, mirror.price)?;
            route.mirror = Some(Mirror::new(target, books.clone(), mirror.options.clone()));
        }
        Ok(route)
    }

    /// The largest of its targets' estimates of `call`: nobody knows yet which one it will go to.
    fn estimate(&self, call: &Call) -> TokenEstimate {
        let mut counted = None;
        let estimates =
            self.targets.iter().map(|target| match target.counted(call, &mut counted) {
                Some(input) => TokenEstimate { input, ..call.tokens },
                None => target.gate.estimate(call),
            });
        estimates.max_by_key(|estimate| estimate.input).unwrap_or(call.tokens)
    }

    /// What `call` may take of limits: at the dearest target, as nobody knows which it will be.
    pub(crate) fn needs(&self, call: &Call) -> Amount {
        let needs = self.targets.iter().map(|target| Amount::of(call.tokens, target.price));
        needs.max_by_key(|needs| needs.cost).unwrap_or_default()
    }

    /// Where the next attempt goes: to a target not tried yet, before one that was.
    pub(crate) fn pick(
        &self,
        call: &Call,
        tries: &Tries,
        roll: impl Fn() -> f64,
    ) -> Option<Pick<'_>> {
        let may = self.eligible(call);
        if let [target] = &self.targets[..] {
            return may(0).then_some(Pick { target, breakers: Breakers::Bind });
        }
        let (candidates, breakers) = self.candidates(&may);
        let key = self.key(call);
        let mut balancer = self.balancer.lock();
        let picked = balancer
            .pick(&candidates, key, &roll, |index| may(index) && !tries.was_tried(index))
            .or_else(|| balancer.pick(&candidates, key, &roll, &may))
            // Every breaker is open: whoever is asked says when to come again.
            .or_else(|| balance::weighted(&self.weights, roll(), &may))?;
        Some(Pick { target: &self.targets[picked], breakers })
    }

    /// A target not tried yet whose breaker lets attempts pass, for a hedge.
    pub(crate) fn pick_untried(
        &self,
        call: &Call,
        tries: &Tries,
        roll: impl Fn() -> f64,
    ) -> Option<&Target> {
        let may = self.eligible(call);
        let (candidates, _) = self.candidates(&may);
        let open =
            |index: usize| may(index) && !tries.was_tried(index) && candidates[index].share > 0.0;
        let picked = self.balancer.lock().pick(&candidates, self.key(call), roll, open)?;
        Some(&self.targets[picked])
    }

    /// Which targets `call` may go to, by their matches.
    fn eligible<'a>(&'a self, call: &'a Call) -> impl Fn(usize) -> bool + 'a {
        let fits = |found: &Match| found.fits(&call.tenant.id, |name| call.header(name));
        canary::eligible(&self.matches, fits)
    }

    /// How every target is doing, and whether so many of those a call `may` go to are open that
    /// no breaker binds.
    fn candidates(&self, may: impl Fn(usize) -> bool) -> (Vec<Candidate>, Breakers) {
        let now = now();
        let mut candidates: Vec<_> = self
            .targets
            .iter()
            .zip(&self.weights)
            .map(|(target, weight)| {
                let health = target.gate.health(now);
                Candidate {
                    weight: *weight,
                    share: health.share,
                    in_flight: health.in_flight,
                    cost: health.cost,
                }
            })
            .collect();
        let used = candidates.iter().enumerate();
        let used = used.filter(|(index, candidate)| candidate.weight > 0 && may(*index));
        let (open, all) = used.fold((0, 0), |(open, all), (_, candidate)| {
            (open + usize::from(candidate.share <= 0.0), all + 1)
        });
        if !breaker::panicking(open, all, MAX_EJECTED) {
            return (candidates, Breakers::Bind);
        }
        candidates.iter_mut().for_each(|candidate| candidate.share = 1.0);
        (candidates, Breakers::Ignored)
    }

    /// Which calls belong together, where that matters.
    fn key(&self, call: &Call) -> u64 {
        if self.by_prefix { balance::key(&call.tenant.id, call.payload.bytes()) } else { 0 }
    }

    /// Whether `pick` is of a target that was tried. Not every untried one is picked: one whose
    /// breaker is open is left alone while another may be asked.
    pub(crate) fn place(&self, pick: Pick<'_>, tries: &Tries) -> Place {
        let tried = tries.was_tried(self.position(pick.target));
        if tried { Place::Same } else { Place::Elsewhere }
    }

    /// Position of `target`, for [`Tries`].
    pub(crate) fn position(&self, target: &Target) -> usize {
        self.targets.iter().position(|other| std::ptr::eq(other, target)).unwrap_or_default()
    }
}
