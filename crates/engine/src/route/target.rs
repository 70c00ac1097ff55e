//! Targets: upstreams under their names of models, each with what stands before it.

use crate::{
    Limiters, Parts, Upstream,
    gate::Gate,
    limits::{self, Party},
};
use std::{collections::BTreeMap, ptr::fn_addr_eq, sync::Arc};
use tidegate_core::{Call, CountTokens, Price, Provider, Tokenizers};

/// One target: an upstream under one of its model names.
pub(crate) struct Target {
    pub(crate) upstream: Arc<str>,
    pub(crate) model: Arc<str>,
    pub(crate) provider: Arc<dyn Provider>,
    pub(crate) gate: Arc<Gate>,
    /// What its tokens cost; `None` when nobody knows.
    pub(crate) price: Option<Price>,
    /// The model's own tokenizer; mostly none.
    count: Option<CountTokens>,
}

impl Target {
    /// Tokens of `call`'s prompt by the model's own tokenizer. `last` keeps the tokenizer that was
    /// asked last and its answer: a model's targets mostly share one, and need not count again.
    pub(super) fn counted(
        &self,
        call: &Call,
        last: &mut Option<(CountTokens, Option<u64>)>,
    ) -> Option<u64> {
        let count = self.count?;
        match *last {
            Some((same, tokens)) if fn_addr_eq(same, count) => tokens,
            _ => last.insert((count, count(call.operation, call.payload.bytes()))).1,
        }
    }
}

/// Makes targets. State has its scope here: one gate per upstream and its own name of the model,
/// shared by every model that leads there.
pub(super) struct Targets {
    upstreams: BTreeMap<Arc<str>, (Upstream, Option<Arc<Party>>)>,
    limiters: Limiters,
    /// By the upstreams' own names of models.
    prices: BTreeMap<Arc<str>, Price>,
    tokenizers: Option<Tokenizers>,
    gates: BTreeMap<(Arc<str>, Arc<str>), Arc<Gate>>,
}

impl Targets {
    pub(super) fn new(parts: &Parts, limits: &limits::Table) -> Self {
        let limited = |(name, upstream): (&Arc<str>, &Upstream)| {
            (name.clone(), (upstream.clone(), limits.upstream(name)))
        };
        Self {
            upstreams: parts.upstreams.iter().map(limited).collect(),
            limiters: parts.limiters.clone(),
            prices: parts.prices.clone(),
            tokenizers: parts.tokenizers,
            gates: BTreeMap::new(),
        }
    }

    pub(super) fn has_upstream(&self, name: &str) -> bool {
        self.upstreams.contains_key(name)
    }

    /// `model` at `upstream`, at its `own` price or that of the list; `None` where there is no
    /// such upstream.
    pub(super) fn target(
        &mut self,
        upstream: &Arc<str>,
        model: &Arc<str>,
        own: Option<Price>,
    ) -> Option<Target> {
        let (parts, limit) = self.upstreams.get(upstream)?;
        let gate = self
            .gates
            .entry((upstream.clone(), model.clone()))
            .or_insert_with(|| Gate::open(upstream, model, parts, &self.limiters, limit.clone()));
        Some(Target {
            upstream: upstream.clone(),
            model: model.clone(),
            provider: parts.provider.clone(),
            gate: gate.clone(),
            price: own.or_else(|| self.prices.get(model).copied()),
            count: self.tokenizers.and_then(|of| of(model)),
        })
    }
}
