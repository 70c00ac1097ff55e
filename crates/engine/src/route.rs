//! Routing: model → targets, and which of them takes the next attempt.

use crate::{Parts, PartsError, Upstream, attempt::Tries, gate::Gate};
use parking_lot::RwLock;
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};
use tidegate_core::{Call, Error, Kind, ModelInfo, Origin, Provider, Result, Tenant};
use tidegate_policy::{balance, retry::Place, retry_budget, timeout};

/// Models a pass-through upstream may be asked for; beyond it unknown names are refused.
const MAX_PASSED_THROUGH: usize = 1_000;

/// Every model's way to its upstreams.
pub(crate) struct Routes {
    routes: HashMap<Arc<str>, Arc<Route>>,
    order: Vec<ModelInfo>,
    any_model: Option<AnyModel>,
}

/// One model's targets.
pub(crate) struct Route {
    pub(crate) targets: Vec<Target>,
    pub(crate) timeouts: timeout::Options,
    weights: Vec<u32>,
}

/// One target: an upstream under one of its model names.
pub(crate) struct Target {
    pub(crate) upstream: Arc<str>,
    pub(crate) model: Arc<str>,
    pub(crate) provider: Arc<dyn Provider>,
    pub(crate) gate: Arc<Gate>,
}

/// The upstream that takes every model nobody configured, under the caller's own name for it.
struct AnyModel {
    name: Arc<str>,
    upstream: Upstream,
    budget: retry_budget::Options,
    routes: RwLock<HashMap<Arc<str>, Arc<Route>>>,
}

impl Routes {
    pub(crate) fn new(parts: &Parts) -> Result<Self, PartsError> {
        let created =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        // Scope of state: one gate per (upstream, upstream model), shared by every model that
        // leads there.
        let mut gates = BTreeMap::new();
        let mut routes = HashMap::new();
        let mut order = Vec::new();
        for (name, model) in &parts.models {
            if model.targets.iter().all(|target| target.weight == 0) {
                return Err(PartsError(format!("model `{name}` has no target with a weight")));
            }
            let mut targets = Vec::new();
            for target in &model.targets {
                let upstream = parts.upstreams.get(&target.upstream).ok_or_else(|| {
                    PartsError(format!(
                        "model `{name}` names no known upstream: `{}`",
                        target.upstream
                    ))
                })?;
                let key = (target.upstream.clone(), target.model.clone());
                let gate = gates.entry(key).or_insert_with_key(|(upstream_name, model)| {
                    Gate::open(upstream_name, model, upstream, &parts.retry_budget)
                });
                targets.push(Target::new(&target.upstream, &target.model, upstream, gate.clone()));
            }
            let weights = model.targets.iter().map(|target| target.weight).collect();
            let owned_by = model.targets[0].upstream.clone();
            order.push(ModelInfo { id: name.clone(), owned_by, created });
            let route = Route { targets, timeouts: model.timeouts.clone(), weights };
            routes.insert(name.clone(), Arc::new(route));
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
                budget: parts.retry_budget.clone(),
                routes: RwLock::default(),
            }),
        };
        Ok(Self { routes, order, any_model })
    }

    /// The way of `call`, if its tenant may use the model.
    pub(crate) fn find(&self, call: &Call) -> Result<Arc<Route>> {
        let route = match (self.routes.get(&call.model), &self.any_model) {
            (Some(route), _) => Some(route.clone()),
            (None, Some(any)) => any.route(&call.model),
            (None, None) => None,
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
        if !call.tenant.may_use(&call.model) {
            let message = format!("this key may not use the model `{}`", call.model);
            return Err(
                Error::new(Kind::ModelNotAllowed, Origin::Caller, message).with_param("model")
            );
        }
        Ok(route)
    }

    pub(crate) fn models(&self, tenant: &Tenant) -> Vec<ModelInfo> {
        self.order.iter().filter(|model| tenant.may_use(&model.id)).cloned().collect()
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
        for target in named.chain(&passed).flat_map(|route| &route.targets) {
            if !gates.iter().any(|gate| Arc::ptr_eq(gate, &target.gate)) {
                gates.push(target.gate.clone());
            }
        }
        gates
    }
}

impl Route {
    /// The next target: by weight, one not tried yet before one that was.
    pub(crate) fn pick(&self, tries: &Tries, roll: impl Fn() -> f64) -> Option<&Target> {
        if let [only] = &self.targets[..] {
            return Some(only);
        }
        balance::weighted(&self.weights, roll(), |index| !tries.was_tried(index))
            .or_else(|| balance::weighted(&self.weights, roll(), |_| true))
            .map(|index| &self.targets[index])
    }

    /// Whether the next attempt can go to a target not tried yet.
    pub(crate) fn next_place(&self, tries: &Tries) -> Place {
        let fresh = (0..self.targets.len()).any(|n| self.weights[n] > 0 && !tries.was_tried(n));
        if fresh { Place::Elsewhere } else { Place::Same }
    }

    /// Position of `target`, for [`Tries`].
    pub(crate) fn position(&self, target: &Target) -> usize {
        self.targets.iter().position(|other| std::ptr::eq(other, target)).unwrap_or_default()
    }
}

impl Target {
    fn new(name: &Arc<str>, model: &Arc<str>, upstream: &Upstream, gate: Arc<Gate>) -> Self {
        Self {
            upstream: name.clone(),
            model: model.clone(),
            provider: upstream.provider.clone(),
            gate,
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
            let timeouts = timeout::Options::default();
            let gate = Gate::open(&self.name, model, &self.upstream, &self.budget);
            let target = Target::new(&self.name, model, &self.upstream, gate);
            Arc::new(Route { targets: vec![target], timeouts, weights: vec![1] })
        });
        Some(route.clone())
    }
}
