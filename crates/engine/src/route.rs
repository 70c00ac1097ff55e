//! Routing: model → targets, and which of them takes the next attempt.

use crate::{
    Limiters, Model, Parts, PartsError, Upstream,
    account::Books,
    attempt::{Tries, now},
    gate::{Breakers, Gate},
    limits::{self, Amount, Party},
    mirror::Mirror,
};
use parking_lot::{Mutex, RwLock};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};
use tidegate_core::{
    Call, Error, Kind, MirrorState, ModelInfo, Origin, Price, Provider, Result, Tenant,
    TokenEstimate,
};
use tidegate_policy::{
    balance::{self, Balancer, Candidate},
    breaker,
    canary::{self, Match},
    hedge::Hedge,
    retry::Place,
    timeout,
};

/// Models a pass-through upstream may be asked for; beyond it unknown names are refused.
const MAX_PASSED_THROUGH: usize = 1_000;

/// Every model's way to its upstreams.
pub(crate) struct Routes {
    routes: HashMap<Arc<str>, Arc<Route>>,
    order: Vec<ModelInfo>,
    any_model: Option<AnyModel>,
}

/// By upstream and its own name of the model.
type Gates = BTreeMap<(Arc<str>, Arc<str>), Arc<Gate>>;

/// By the upstreams' own names of models.
type Prices = BTreeMap<Arc<str>, Price>;

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

/// One target: an upstream under one of its model names.
pub(crate) struct Target {
    pub(crate) upstream: Arc<str>,
    pub(crate) model: Arc<str>,
    pub(crate) provider: Arc<dyn Provider>,
    pub(crate) gate: Arc<Gate>,
    /// What its tokens cost; `None` when nobody knows.
    pub(crate) price: Option<Price>,
}

/// The upstream that takes every model nobody configured, under the caller's own name for it.
struct AnyModel {
    name: Arc<str>,
    upstream: Upstream,
    limiters: Limiters,
    limit: Option<Arc<Party>>,
    /// Those of the configured models: the same upstream model is limited once.
    gates: Gates,
    routes: RwLock<HashMap<Arc<str>, Arc<Route>>>,
    prices: Prices,
}

impl Routes {
    pub(crate) fn new(
        parts: &Parts,
        books: &Arc<Books>,
        limits: &limits::Table,
    ) -> Result<Self, PartsError> {
        let created =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        // Scope of state: one gate per (upstream, upstream model), shared by every model that
        // leads there.
        let mut gates = Gates::new();
        let mut routes = HashMap::new();
        let mut order = Vec::new();
        for (name, model) in &parts.models {
            let route = Route::new(name, model, parts, books, limits, &mut gates)?;
            let owned_by = route.targets[0].upstream.clone();
            order.push(ModelInfo { id: name.clone(), owned_by, created });
            routes.insert(name.clone(), Arc::new(route));
        }
        for (name, model) in &parts.models {
            if let Some(unknown) = model.fallback.iter().find(|to| !routes.contains_key(*to)) {
                return Err(PartsError(format!(
                    "model `{name}` falls back to no known model: `{unknown}`"
                )));
            }
        }
        let any_model = match &parts.any_model {
            None => None,
            Some(name) => Some(AnyModel {
                name: name.clone(),
                upstream: parts
                    .upstreams
                    .get(name)
                    .ok_or_else(|| PartsError(format!("no upstream is called `{name}`")))?
                    .clone(),
                limiters: parts.limiters.clone(),
                limit: limits.upstream(name),
                gates,
                routes: RwLock::default(),
                prices: parts.prices.clone(),
            }),
        };
        Ok(Self { routes, order, any_model })
    }

    /// The way of `call`, if its tenant may use the model.
    pub(crate) fn find(&self, call: &Call) -> Result<Arc<Route>> {
        let allowed = call.tenant.may_use(&call.model);
        let route = match (self.routes.get(&call.model), &self.any_model) {
            (Some(route), _) if allowed => Some(route.clone()),
            (None, Some(any)) if allowed => any.route(&call.model),
            (None, None) => None,
            _ => {
                let message = format!("this key may not use the model `{}`", call.model);
                return Err(
                    Error::new(Kind::ModelNotAllowed, Origin::Caller, message).with_param("model")
                );
            }
        };
        let Some(route) = route else {
            let message = format!(
                "the model `{}` does not exist; GET /v1/models lists those there are",
                call.model
            );
            return Err(
                Error::new(Kind::ModelNotFound, Origin::Caller, message).with_param("model")
            );
        };
        Ok(route)
    }

    /// `call`'s tokens, its prompt counted as the model's upstreams do.
    pub(crate) fn estimate(&self, call: &Call) -> TokenEstimate {
        if let Some(route) = self.routes.get(&call.model) {
            return route.estimate(call);
        }
        let passed = self.any_model.as_ref();
        let passed = passed.and_then(|any| any.routes.read().get(&call.model).cloned());
        passed.map_or(call.tokens, |route| route.estimate(call))
    }

    /// The way of a fallback model, which was checked to be there.
    pub(crate) fn named(&self, model: &str) -> Option<Arc<Route>> {
        self.routes.get(model).cloned()
    }

    pub(crate) fn models(&self, tenant: &Tenant) -> Vec<ModelInfo> {
        self.order.iter().filter(|model| tenant.may_use(&model.id)).cloned().collect()
    }

    /// What became of the copies of each mirrored model's calls.
    pub(crate) fn mirrors(&self) -> Vec<MirrorState> {
        let mirrored = |model: &ModelInfo| {
            let mirror = self.routes.get(&model.id)?.mirror.as_ref()?;
            Some(mirror.state(model.id.clone()))
        };
        self.order.iter().filter_map(mirrored).collect()
    }

    /// Copies under way to the mirrors of all models.
    pub(crate) fn copies(&self) -> usize {
        self.routes.values().filter_map(|route| route.mirror.as_ref()).map(Mirror::copies).sum()
    }

    /// How far the busiest line is beyond the delay it allows.
    pub(crate) fn pressure(&self, now: Instant) -> f64 {
        self.gates().iter().map(|gate| gate.pressure(now)).fold(0.0, f64::max)
    }

    /// Every gate once, in the order of the models that lead to it.
    pub(crate) fn gates(&self) -> Vec<Arc<Gate>> {
        let mut gates: Vec<Arc<Gate>> = Vec::new();
        let passed: Vec<_> = self
            .any_model
            .iter()
            .flat_map(|any| any.routes.read().values().cloned().collect::<Vec<_>>())
            .collect();
        let named = self.order.iter().filter_map(|model| self.routes.get(&model.id));
        let targets = |route| {
            let Route { targets, mirror, .. }: &Route = route;
            targets.iter().chain(mirror.as_ref().map(Mirror::target))
        };
        for target in named.chain(&passed).flat_map(|route| targets(route)) {
            if !gates.iter().any(|gate| Arc::ptr_eq(gate, &target.gate)) {
                gates.push(target.gate.clone());
            }
        }
        gates
    }
}

impl Route {
    fn new(
        name: &str,
        model: &Model,
        parts: &Parts,
        books: &Arc<Books>,
        limits: &limits::Table,
        gates: &mut Gates,
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
        let mut targets = Vec::new();
        for target in &model.targets {
            let upstream = parts.upstreams.get(&target.upstream).ok_or_else(|| {
                let unknown = &target.upstream;
                PartsError(format!("model `{name}` names no known upstream: `{unknown}`"))
            })?;
            let key = (target.upstream.clone(), target.model.clone());
            let gate = gates.entry(key).or_insert_with_key(|(upstream_name, model)| {
                let limit = limits.upstream(upstream_name);
                Gate::open(upstream_name, model, upstream, &parts.limiters, limit)
            });
            let price = target.price.or_else(|| parts.prices.get(&target.model).copied());
            let name = &target.upstream;
            targets.push(Target::new(name, &target.model, upstream, gate.clone(), price));
        }
        let weights = model.targets.iter().map(|target| target.weight).collect();
        let mut route = Self::over(targets, weights, model);
        if let Some(mirror) = &model.mirror {
            let upstream = parts.upstreams.get(&mirror.upstream).ok_or_else(|| {
                let unknown = &mirror.upstream;
                PartsError(format!("model `{name}` mirrors to no known upstream: `{unknown}`"))
            })?;
            let key = (mirror.upstream.clone(), mirror.model.clone());
            let gate = gates.entry(key).or_insert_with_key(|(upstream_name, model)| {
                let limit = limits.upstream(upstream_name);
                Gate::open(upstream_name, model, upstream, &parts.limiters, limit)
            });
            let price = mirror.price.or_else(|| parts.prices.get(&mirror.model).copied());
            let name = &mirror.upstream;
            let target = Target::new(name, &mirror.model, upstream, gate.clone(), price);
            route.mirror = Some(Mirror::new(target, books.clone(), mirror.options.clone()));
        }
        Ok(route)
    }

    fn over(targets: Vec<Target>, weights: Vec<u32>, model: &Model) -> Self {
        Self {
            targets,
            weights,
            mirror: None,
            matches: model.targets.iter().map(|target| target.matches.clone()).collect(),
            timeouts: model.timeouts,
            hedge: model.hedge.enabled.then(|| Mutex::new(Hedge::new(model.hedge.clone()))),
            fallback: model.fallback.clone(),
            balancer: Mutex::new(Balancer::new(model.balance)),
            by_prefix: model.balance == balance::Options::PrefixHash,
        }
    }

    /// Most of what its targets take `call` for: nobody knows yet which it will be.
    fn estimate(&self, call: &Call) -> TokenEstimate {
        let estimates = self.targets.iter().map(|target| target.gate.estimate(call));
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
        // A model of the pass-through upstream has one target and no list of matches.
        let all = self.matches.is_empty();
        let fits = |found: &Match| found.fits(&call.tenant.id, |name| call.header(name));
        let eligible = canary::eligible(&self.matches, fits);
        move |index| all || eligible(index)
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

impl Target {
    fn new(
        name: &Arc<str>,
        model: &Arc<str>,
        upstream: &Upstream,
        gate: Arc<Gate>,
        price: Option<Price>,
    ) -> Self {
        Self {
            upstream: name.clone(),
            model: model.clone(),
            provider: upstream.provider.clone(),
            gate,
            price,
        }
    }
}

impl AnyModel {
    fn route(&self, model: &Arc<str>) -> Option<Arc<Route>> {
        if let Some(route) = self.routes.read().get(model) {
            return Some(route.clone());
        }
        let mut routes = self.routes.write();
        if routes.len() >= MAX_PASSED_THROUGH && !routes.contains_key(model) {
            return None;
        }
        let route = routes.entry(model.clone()).or_insert_with(|| {
            let gate = self.gates.get(&(self.name.clone(), model.clone())).cloned();
            let gate = gate.unwrap_or_else(|| {
                let limit = self.limit.clone();
                Gate::open(&self.name, model, &self.upstream, &self.limiters, limit)
            });
            let price = self.prices.get(model).copied();
            let target = Target::new(&self.name, model, &self.upstream, gate, price);
            Arc::new(Route::over(vec![target], vec![1], &Model::default()))
        });
        Some(route.clone())
    }
}
