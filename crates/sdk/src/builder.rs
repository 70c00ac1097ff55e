//! From settings to a client: upstreams are opened, secrets resolved, the engine furnished.

use crate::{Client, ModelSettings, OauthSettings, Protocol, Settings, UpstreamSettings};
use std::{collections::BTreeMap, fmt, sync::Arc};
use tidegate_core::{Ledger, Price, Secret, Store, Tokenizers, Tokens};
use tidegate_engine::{
    Alerts, Earlier, Engine, Limiters, Mirror, Model, Parts, Records, Spending, Target, Upstream,
};
use tidegate_policy::{canary, concurrency, pacer, price, setting::SecretRef};
use tidegate_upstream::ClientCredentials;
use tokio::io::DuplexStream;

/// Opens a connection to the simulated model server in this process.
pub type Simulator = Arc<dyn Fn() -> DuplexStream + Send + Sync>;

/// Calls in flight at once that an assembly takes on, unless told otherwise.
const MAX_IN_FLIGHT: usize = 10_000;

/// Puts a [`Client`] together.
pub struct Builder {
    settings: Settings,
    any_model: Option<String>,
    store: Option<Arc<dyn Store>>,
    tokens: Option<Arc<dyn Tokens>>,
    ledger: Option<Arc<dyn Ledger>>,
    earlier: Vec<Earlier>,
    alerts: Option<Alerts>,
    prices: BTreeMap<Arc<str>, Price>,
    records: Option<Records>,
    simulator: Option<Simulator>,
    max_in_flight: usize,
    seed: u64,
}

/// The parts do not fit together, or one could not be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildError(String);

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BuildError {}

impl Builder {
    pub(crate) fn new() -> Self {
        Self {
            settings: Settings::default(),
            any_model: None,
            store: None,
            tokens: None,
            ledger: None,
            earlier: Vec::new(),
            alerts: None,
            prices: BTreeMap::new(),
            records: None,
            simulator: None,
            max_in_flight: MAX_IN_FLIGHT,
            seed: rand::random(),
        }
    }

    /// Uses these upstreams, models and limits.
    #[must_use]
    pub fn settings(mut self, settings: Settings) -> Self {
        self.settings = settings;
        self
    }

    /// Adds one OpenAI-compatible server that takes every model by the caller's name for it.
    #[must_use]
    pub fn openai(mut self, base_url: &str, api_key: Option<Secret<String>>) -> Self {
        let upstream = UpstreamSettings {
            base_url: base_url.into(),
            api_key: api_key.map(SecretRef::Literal),
            ..UpstreamSettings::default()
        };
        self.settings.upstreams.insert("upstream".into(), upstream);
        self.any_model("upstream")
    }

    /// Sends every model not configured to the upstream `name`, by the caller's name for it.
    #[must_use]
    pub fn any_model(mut self, name: &str) -> Self {
        self.any_model = Some(name.into());
        self
    }

    /// Uses `store` for the callers' keys. Default: an empty one in memory.
    #[must_use]
    pub fn store(mut self, store: Arc<dyn Store>) -> Self {
        self.store = Some(store);
        self
    }

    /// Takes tokens as credentials beside keys. Default: keys alone.
    #[must_use]
    pub fn tokens(mut self, tokens: Arc<dyn Tokens>) -> Self {
        self.tokens = Some(tokens);
        self
    }

    /// Writes every attempt to `ledger`. Default: nobody keeps account.
    #[must_use]
    pub fn ledger(mut self, ledger: Arc<dyn Ledger>) -> Self {
        self.ledger = Some(ledger);
        self
    }

    /// Says what was spent of budgets before: what [`tidegate_engine::spent_before`] read from the
    /// ledger. Default: nothing.
    #[must_use]
    pub fn spent(mut self, earlier: Vec<Earlier>) -> Self {
        self.earlier = earlier;
        self
    }

    /// Tells `alerts`, which must not block, when a share of a budget is spent.
    #[must_use]
    pub fn alerts(mut self, alerts: Alerts) -> Self {
        self.alerts = Some(alerts);
        self
    }

    /// What models cost, by the upstreams' own names of them, where the settings do not say.
    #[must_use]
    pub fn prices(mut self, prices: BTreeMap<Arc<str>, Price>) -> Self {
        self.prices = prices;
        self
    }

    /// Sends the record of each ended call to `records`, which must not block.
    #[must_use]
    pub fn records(mut self, records: Records) -> Self {
        self.records = Some(records);
        self
    }

    /// Connects upstreams of protocol "sim" to the simulated model server in this process.
    #[must_use]
    pub fn simulator(mut self, connect: Simulator) -> Self {
        self.simulator = Some(connect);
        self
    }

    /// Calls in flight at once; more are refused. Default 10,000.
    #[must_use]
    pub const fn max_in_flight(mut self, most: usize) -> Self {
        self.max_in_flight = most;
        self
    }

    /// Seeds the engine's chance (jitter, weighted picks). Default: drawn at random.
    #[must_use]
    pub const fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Opens everything. No connection is made yet.
    ///
    /// # Errors
    ///
    /// [`BuildError`] naming the upstream, model or secret at fault.
    pub fn build(self) -> Result<Client, BuildError> {
        let (mut upstreams, mut opened) = (BTreeMap::new(), BTreeMap::new());
        for (name, upstream) in &self.settings.upstreams {
            let (provider, upstream) = self.open(name, upstream)?;
            upstreams.insert(name.as_str().into(), upstream);
            opened.insert(name.as_str().into(), provider);
        }
        let models = self.settings.models.iter();
        let models =
            models.map(|(name, settings)| Ok((name.as_str().into(), model(name, settings)?)));
        let models = models.collect::<Result<_, BuildError>>()?;
        let teams = self.settings.teams.iter();
        let teams = teams.map(|(name, team)| (name.as_str().into(), team.budget.into())).collect();
        let engine = Engine::new(Parts {
            upstreams,
            models,
            any_model: self.any_model.as_deref().map(Into::into),
            store: self.store.unwrap_or_else(|| Arc::new(tidegate_store::Memory::new())),
            tokens: self.tokens,
            ledger: self.ledger,
            spending: Spending {
                teams,
                options: self.settings.budgets,
                earlier: self.earlier,
                alerts: self.alerts,
            },
            prices: self.prices,
            tokenizers: tokenizers(self.any_model.is_some()),
            limits: self.settings.limits.options().map_err(BuildError)?,
            max_in_flight: self.max_in_flight,
            retry: self.settings.retry,
            limiters: Limiters {
                retry_budget: self.settings.retry_budget,
                breaker: self.settings.breaker,
                queue: self.settings.queue,
            },
            load: self.settings.load,
            memory: self.settings.memory,
            records: self.records,
            seed: self.seed,
        });
        let engine = engine.map_err(|error| BuildError(error.to_string()))?;
        Ok(Client::over(Arc::new(engine), opened))
    }

    fn open(
        &self,
        name: &str,
        settings: &UpstreamSettings,
    ) -> Result<(Arc<tidegate_upstream::Upstream>, Upstream), BuildError> {
        check_rates(name, settings)?;
        let mut options = settings.connection.clone();
        options.base_url.clone_from(&settings.base_url);
        let provider = match settings.protocol {
            Protocol::Openai => {
                let key = settings.api_key.as_ref().map(literal).transpose();
                let key =
                    key.map_err(|why| BuildError(format!("upstreams.{name}.api_key {why}")))?;
                let client =
                    settings.oauth.as_ref().map(|oauth| client(name, oauth)).transpose()?;
                let opened = tidegate_upstream::Upstream::open(name.into(), options.clone(), key);
                match client {
                    None => opened,
                    Some(client) => opened.and_then(|opened| opened.with_tokens(client, &options)),
                }
            }
            Protocol::Sim => {
                let connect = self.simulator.clone().ok_or_else(|| {
                    BuildError(format!(
                        "upstreams.{name}: no simulated model server is in this process"
                    ))
                })?;
                if options.base_url.is_empty() {
                    options.base_url = "http://sim/v1".into();
                }
                tidegate_upstream::Upstream::local(name.into(), options, connect)
            }
        };
        let provider =
            provider.map_err(|error| BuildError(format!("upstreams.{name}: {error}")))?;
        let provider = Arc::new(provider);
        let upstream = Upstream {
            provider: provider.clone(),
            concurrency: settings.max_concurrency,
            pacer: pacer::Options {
                requests_per_second: told_rate(settings),
                tokens_per_minute: settings.tokens_per_minute,
                eager: matches!(settings.max_concurrency, concurrency::Options::Fixed(_)),
            },
        };
        Ok((provider, upstream))
    }
}

/// The tokenizers that are compiled in; those of models that nobody configured are loaded now.
#[cfg(feature = "tokens-exact")]
fn tokenizers(any_model: bool) -> Option<Tokenizers> {
    if any_model {
        crate::tokenizer::load();
    }
    Some(crate::tokenizer::of)
}

/// No tokenizer is compiled in.
#[cfg(not(feature = "tokens-exact"))]
const fn tokenizers(_any_model: bool) -> Option<Tokenizers> {
    None
}

/// The model `name`: its targets and its mirror, at their prices.
fn model(name: &str, settings: &ModelSettings) -> Result<Model, BuildError> {
    let path = format!("models.{name}");
    let own = price(settings.price.as_ref(), &path)?;
    let targets = settings.targets.iter().enumerate().map(|(index, target)| {
        let own_there = price(target.price.as_ref(), &format!("{path}.targets.{index}"))?;
        Ok(Target {
            upstream: target.upstream.as_str().into(),
            model: target.model.as_deref().unwrap_or(name).into(),
            price: own_there.or(own),
            weight: target.weight,
            matches: target.matches.clone(),
        })
    });
    let mirror = settings.mirror.as_ref().map(|mirror| {
        Ok(Mirror {
            upstream: mirror.upstream.as_str().into(),
            model: mirror.model.as_deref().unwrap_or(name).into(),
            price: price(mirror.price.as_ref(), &format!("{path}.mirror"))?,
            options: canary::Mirror { share: mirror.share },
        })
    });
    Ok(Model {
        targets: targets.collect::<Result<_, BuildError>>()?,
        timeouts: settings.timeouts,
        balance: settings.balance,
        hedge: settings.hedge.clone(),
        fallback: settings.fallback.iter().map(|name| name.as_str().into()).collect(),
        mirror: mirror.transpose()?,
    })
}

/// What tokens cost, where `path` of the settings says.
fn price(written: Option<&price::Options>, path: &str) -> Result<Option<Price>, BuildError> {
    let price = written.map(price::Options::price).transpose();
    price.map_err(|flaw| BuildError(format!("{path}.price.{flaw}")))
}

fn check_rates(name: &str, settings: &UpstreamSettings) -> Result<(), BuildError> {
    for (field, rate) in [
        ("requests_per_minute", settings.requests_per_minute),
        ("requests_per_second", settings.requests_per_second),
    ] {
        if let Some(rate) = rate.filter(|rate| rate.is_nan() || *rate <= 0.0) {
            let why = "lets nothing through; give a number above 0, or leave it out";
            return Err(BuildError(format!("upstreams.{name}.{field}: {rate} {why}")));
        }
    }
    Ok(())
}

/// The lowest of the rates that were told, in requests per second.
fn told_rate(settings: &UpstreamSettings) -> Option<f64> {
    let per_minute = settings.requests_per_minute.map(|rate| rate / 60.0);
    settings.requests_per_second.into_iter().chain(per_minute).reduce(f64::min)
}

/// Our account at the token endpoint of the upstream `name`.
fn client(name: &str, written: &OauthSettings) -> Result<ClientCredentials, BuildError> {
    let secret = literal(&written.client_secret);
    let secret =
        secret.map_err(|why| BuildError(format!("upstreams.{name}.oauth.client_secret {why}")))?;
    Ok(ClientCredentials {
        token_url: written.token_url.clone(),
        client_id: written.client_id.clone(),
        client_secret: secret,
        scope: written.scope.clone(),
        audience: written.audience.clone(),
        auth: written.auth,
    })
}

/// The secret itself. Whoever read the settings resolves references; a library reads neither
/// environment nor files on its own.
fn literal(secret: &SecretRef) -> Result<Secret<String>, String> {
    match secret {
        SecretRef::Literal(literal) => Ok(literal.clone()),
        SecretRef::Env(_) | SecretRef::File(_) => {
            Err("is a reference: put the key itself there before building".into())
        }
    }
}
