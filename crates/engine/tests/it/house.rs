//! What every scenario starts from: an engine over scripted upstreams, its trace, its records.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};
use tidegate_core::{BoxFuture, Call, KeyRecord, Provider, Reply, Result, Store, Tenant};
use tidegate_engine::{
    Engine, Limiters, Model, Outcome, Parts, Record, Spending, Target, Upstream, limits,
};
use tidegate_policy::{
    balance, breaker, concurrency, load, memory, pacer, queue, retry, retry_budget, timeout,
};
use tidegate_testkit::{script::Scripted, trace::Trace};

/// A store that knows nobody: identity is the fronts' and the store's business.
pub(crate) struct Nobody;

impl Store for Nobody {
    fn identify(&self, _: &str) -> Option<Arc<Tenant>> {
        None
    }
    fn tenant(&self, _: &str) -> Option<Arc<Tenant>> {
        None
    }
    fn expires_at(&self, _: &str) -> Option<u64> {
        None
    }
    fn keys(&self) -> BoxFuture<'_, Result<Vec<KeyRecord>>> {
        Box::pin(async { Ok(Vec::new()) })
    }
    fn add_key(&self, _: KeyRecord) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }
    fn revoke_key<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<bool>> {
        Box::pin(async { Ok(false) })
    }
    fn refresh(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }
}

/// An engine being furnished.
pub(crate) struct House {
    pub(crate) trace: Trace,
    pub(crate) parts: Parts,
    records: Arc<Mutex<Vec<Record>>>,
}

/// The furnished engine.
pub(crate) struct Home {
    pub(crate) engine: Arc<Engine>,
    pub(crate) trace: Trace,
    records: Arc<Mutex<Vec<Record>>>,
}

impl House {
    /// The model `chat` with one target per `(name, script)`, all of weight 1.
    pub(crate) fn new(upstreams: &[(&str, &str)]) -> Self {
        let trace = Trace::start();
        let scripted =
            upstreams.iter().map(|(name, script)| (*name, Scripted::new(name, &trace, script)));
        let upstreams: Vec<_> =
            scripted.map(|(name, provider)| (name, provider as Arc<dyn Provider>)).collect();
        Self::over(trace, upstreams)
    }

    /// The same over any providers.
    pub(crate) fn over(trace: Trace, providers: Vec<(&str, Arc<dyn Provider>)>) -> Self {
        let records = Arc::new(Mutex::new(Vec::new()));
        let sink = records.clone();
        let targets = providers
            .iter()
            .map(|(name, _)| Target {
                upstream: (*name).into(),
                model: "m".into(),
                price: None,
                weight: 1,
                matches: None,
            })
            .collect();
        let model = Model { targets, balance: balance::Options::Weighted, ..Model::default() };
        let upstreams = providers
            .into_iter()
            .map(|(name, provider)| {
                let upstream = Upstream {
                    provider,
                    concurrency: concurrency::Options::Fixed(100),
                    pacer: pacer::Options { eager: true, ..pacer::Options::default() },
                };
                (name.into(), upstream)
            })
            .collect();
        let parts = Parts {
            store: Arc::new(Nobody),
            tokens: None,
            upstreams,
            models: BTreeMap::from([("chat".into(), model)]),
            any_model: None,
            ledger: None,
            spending: Spending::default(),
            prices: BTreeMap::new(),
            tokenizers: None,
            limits: limits::Options::default(),
            max_in_flight: 1000,
            retry: retry::Options::default(),
            load: load::Options::default(),
            memory: memory::Options::default(),
            // Off, so that each scenario shows one policy; `breakers` turns it on.
            limiters: Limiters {
                retry_budget: retry_budget::Options::default(),
                breaker: breaker::Options { failures: 0, ..breaker::Options::default() },
                queue: queue::Options::default(),
            },
            records: Some(Arc::new(move |record| sink.lock().unwrap().push(*record))),
            seed: 7,
        };
        Self { trace, parts, records }
    }

    pub(crate) fn timeouts(mut self, change: impl FnOnce(&mut timeout::Options)) -> Self {
        change(&mut self.parts.models.get_mut("chat").unwrap().timeouts);
        self
    }

    pub(crate) fn upstreams(mut self, change: impl Fn(&mut Upstream)) -> Self {
        self.parts.upstreams.values_mut().for_each(change);
        self
    }

    pub(crate) fn breakers(self) -> Self {
        self.parts(|parts| parts.limiters.breaker = breaker::Options::default())
    }

    pub(crate) fn parts(mut self, change: impl FnOnce(&mut Parts)) -> Self {
        change(&mut self.parts);
        self
    }

    pub(crate) fn open(self) -> Home {
        let engine = Arc::new(Engine::new(self.parts).unwrap());
        Home { engine, trace: self.trace, records: self.records }
    }
}

impl Home {
    /// Calls, reads the body to its end, and traces how it ended.
    pub(crate) async fn call(&self, call: Call) -> Result<Reply> {
        let result = self.engine.call(call).await;
        match &result {
            Ok(reply) => {
                let served = &reply.served;
                self.trace
                    .push(format_args!("reply by {} after {}", served.upstream, served.attempts));
            }
            Err(error) => {
                self.trace.push(format_args!("{:?} after {}", error.kind(), error.attempts()));
            }
        }
        result
    }

    /// How many attempts the first upstream may have in flight.
    pub(crate) fn limit(&self) -> u32 {
        use tidegate_core::Answer;
        self.engine.upstreams()[0].concurrency
    }

    /// The records written so far.
    pub(crate) fn records(&self) -> Vec<Record> {
        self.records.lock().unwrap().clone()
    }

    /// How the calls ended, in order.
    pub(crate) fn outcomes(&self) -> Vec<Outcome> {
        self.records().iter().map(|record| record.outcome).collect()
    }

    /// Nothing is held any more: no slot of ours, none at any upstream, nobody in line.
    #[track_caller]
    pub(crate) fn is_empty(&self) {
        use tidegate_core::Answer;
        assert_eq!(self.engine.in_flight(), 0, "slots of our own");
        for state in self.engine.upstreams() {
            assert_eq!((state.in_flight, state.waiting), (0, 0), "at {}", state.upstream);
        }
    }
}
