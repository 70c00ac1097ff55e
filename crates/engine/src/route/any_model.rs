//! The upstream that takes every model nobody configured.

use super::{Route, target::Targets};
use crate::{Model, PartsError, account::Books, parts};
use parking_lot::RwLock;
use std::{collections::HashMap, sync::Arc};

/// Models a pass-through upstream may be asked for; beyond it unknown names are refused.
const MAX_PASSED_THROUGH: usize = 1_000;

/// The upstream that takes every model nobody configured, under the caller's own name for it.
pub(super) struct AnyModel {
    upstream: Arc<str>,
    books: Arc<Books>,
    passed: RwLock<Passed>,
}

/// The models it was asked for.
struct Passed {
    routes: HashMap<Arc<str>, Arc<Route>>,
    targets: Targets,
}

impl AnyModel {
    pub(super) fn new(
        upstream: &Arc<str>,
        targets: Targets,
        books: &Arc<Books>,
    ) -> Result<Self, PartsError> {
        if !targets.has_upstream(upstream) {
            return Err(PartsError(format!("no upstream is called `{upstream}`")));
        }
        let passed = RwLock::new(Passed { routes: HashMap::new(), targets });
        Ok(Self { upstream: upstream.clone(), books: books.clone(), passed })
    }

    /// The route of `model`; `None` where it is new and there are too many already.
    pub(super) fn route(&self, model: &Arc<str>) -> Option<Arc<Route>> {
        if let Some(route) = self.known(model) {
            return Some(route);
        }
        let Passed { routes, targets } = &mut *self.passed.write();
        if routes.len() >= MAX_PASSED_THROUGH && !routes.contains_key(model) {
            return None;
        }
        let route = routes.entry(model.clone()).or_insert_with(|| {
            let target = parts::Target {
                upstream: self.upstream.clone(),
                model: model.clone(),
                weight: 1,
                price: None,
                matches: None,
            };
            let one = Model { targets: vec![target], ..Model::default() };
            let route = Route::new(model, &one, targets, &self.books);
            Arc::new(route.expect("the upstream is there, and its target has a weight"))
        });
        Some(route.clone())
    }

    /// The route of `model`, if it was asked for before.
    pub(super) fn known(&self, model: &str) -> Option<Arc<Route>> {
        self.passed.read().routes.get(model).cloned()
    }

    /// The routes of all that were asked for.
    pub(super) fn routes(&self) -> Vec<Arc<Route>> {
        self.passed.read().routes.values().cloned().collect()
    }
}
