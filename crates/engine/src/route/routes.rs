//! Every model's route.

use super::{Route, any_model::AnyModel, target::Targets};
use crate::{Parts, PartsError, account::Books, gate::Gate, limits, mirror::Mirror};
use std::{
    collections::HashMap,
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};
use tidegate_core::{
    Call, Error, Kind, MirrorState, ModelInfo, Origin, Result, Tenant, TokenEstimate,
};

/// Every model's route.
pub(crate) struct Routes {
    routes: HashMap<Arc<str>, Arc<Route>>,
    order: Vec<ModelInfo>,
    any_model: Option<AnyModel>,
}

impl Routes {
    pub(crate) fn new(
        parts: &Parts,
        books: &Arc<Books>,
        limits: &limits::Table,
    ) -> Result<Self, PartsError> {
        let created =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let mut targets = Targets::new(parts, limits);
        let mut routes = HashMap::new();
        let mut order = Vec::new();
        for (name, model) in &parts.models {
            let route = Route::new(name, model, &mut targets, books)?;
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
        let passed =
            parts.any_model.as_ref().map(|upstream| AnyModel::new(upstream, targets, books));
        let any_model = passed.transpose()?;
        Ok(Self { routes, order, any_model })
    }

    /// The route of `call`, if its tenant may use the model.
    pub(crate) fn find(&self, call: &Call) -> Result<Arc<Route>> {
        let named = self.routes.get(&call.model);
        let is_known = named.is_some() || self.any_model.is_some();
        if is_known && !call.tenant.may_use(&call.model) {
            let message = format!("this key may not use the model `{}`", call.model);
            return Err(
                Error::new(Kind::ModelNotAllowed, Origin::Caller, message).with_param("model")
            );
        }
        let passed = || self.any_model.as_ref()?.route(&call.model);
        named.cloned().or_else(passed).ok_or_else(|| {
            let message = format!(
                "the model `{}` does not exist; GET /v1/models lists those there are",
                call.model
            );
            Error::new(Kind::ModelNotFound, Origin::Caller, message).with_param("model")
        })
    }

    /// `call`'s tokens, its prompt counted as the model's upstreams do.
    pub(crate) fn estimate(&self, call: &Call) -> TokenEstimate {
        if let Some(route) = self.routes.get(&call.model) {
            return route.estimate(call);
        }
        let passed = self.any_model.as_ref().and_then(|any| any.known(&call.model));
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
        let passed: Vec<_> = self.any_model.iter().flat_map(AnyModel::routes).collect();
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
