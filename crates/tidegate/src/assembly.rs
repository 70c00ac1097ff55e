//! From configuration and flags to a client: the gateway's and the batch runner's way to it.

use crate::{
    config::{self, Environment, Loaded, Sources},
    money,
};
use anyhow::Context;
use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};
use tidegate_auth::{Authority, Fetch, MAX_DOCUMENT_BYTES};
use tidegate_batch::Prices;
use tidegate_core::{Answer, Price, Secret, Store, Tokens};
use tidegate_engine::{Earlier, Records};
use tidegate_policy::{concurrency, setting::SecretRef, timeout};
use tidegate_sdk::{
    Builder, Client, ModelSettings, Protocol, Settings, TargetSettings, UpstreamSettings,
};
use tidegate_sim::Sim;
use tidegate_store::ledger::Recorder;

/// The model the built-in simulated server answers for.
pub(crate) const SIMULATED_MODEL: &str = "sim-small";
/// Name of the upstream a command makes when no configuration names one.
const SIMULATED: &str = "sim";
const FROM_FLAGS: &str = "upstream";

/// The gateway's client. `books` are its ledger, and what was spent of budgets before.
///
/// # Errors
///
/// Names the upstream, model or key at fault.
pub(crate) fn for_serve(
    loaded: &Loaded,
    store: Arc<dyn Store>,
    tokens: Arc<dyn Tokens>,
    records: Option<Records>,
    books: Option<(Arc<Recorder>, Vec<Earlier>)>,
) -> anyhow::Result<Client> {
    let mut settings = with_keys(loaded);
    if is_empty(&settings) {
        add_simulated_model(&mut settings);
    }
    let prices = loaded.prices.clone();
    let mut builder = builder(settings).store(store).tokens(tokens).prices(prices);
    builder = builder.alerts(Arc::new(|alert| tracing::warn!("{}", money::shown(&alert))));
    if let Some(records) = records {
        builder = builder.records(records);
    }
    if let Some((ledger, spent)) = books {
        builder = builder.ledger(ledger).spent(spent);
    }
    builder.build().context("putting the gateway together")
}

/// What issues tokens for the keys of `store`, and knows them. Reads and writes the data
/// directory.
///
/// # Errors
///
/// Names the file at fault.
pub(crate) fn tokens(
    loaded: &Loaded,
    address: SocketAddr,
    store: Arc<dyn Store>,
) -> tidegate_core::Result<Authority> {
    let server = &loaded.config.server;
    let scheme = if server.tls.is_some() { "https" } else { "http" };
    // Tokens outlive a restart, and a free port does not: what was configured is the name.
    let named = if server.listen.port() == 0 { address } else { server.listen };
    let own_url = format!("{scheme}://{named}");
    let fetch: Fetch = Arc::new(|url| {
        Box::pin(
            async move { tidegate_upstream::fetch(&url, MAX_DOCUMENT_BYTES, FETCH_PATIENCE).await },
        )
    });
    Authority::open(&server.data_dir, &loaded.config.oauth, &own_url, store, &fetch)
}

/// Longest that the keys of an issuer may take to come.
const FETCH_PATIENCE: Duration = Duration::from_secs(5);

/// What the command line of `tidegate batch` says about where rows go.
#[derive(Debug, Default)]
pub(crate) struct BatchUpstream {
    /// `--base-url`, or the environment's.
    pub(crate) base_url: Option<String>,
    /// Our key there.
    pub(crate) api_key: Option<Secret<String>>,
    /// Attempts in flight; `None` finds the number.
    pub(crate) concurrency: Option<u32>,
    /// Requests per minute, as told.
    pub(crate) rpm: Option<f64>,
    /// Tokens per minute, as told.
    pub(crate) tpm: Option<u64>,
    /// Requests per second, as told.
    pub(crate) max_qps: Option<f64>,
    /// Attempts of one row.
    pub(crate) max_attempts: u32,
    /// Where a configuration is looked for.
    pub(crate) sources: Sources,
}

/// An engine for a batch, and what is known of its models.
pub(crate) struct Assembled {
    /// Answers the rows.
    pub(crate) answer: Arc<dyn Answer>,
    /// The model of rows that name none.
    pub(crate) default_model: Option<String>,
    /// What the configured models cost.
    pub(crate) prices: Prices,
    /// Where rows go, in words.
    pub(crate) destination: String,
}

/// The batch runner's client: `--base-url`, else the configuration, else `OPENAI_BASE_URL`, else
/// the built-in simulated model.
///
/// # Errors
///
/// [`config::Problems`] for a bad configuration; otherwise names what could not be opened.
pub(crate) fn for_batch(
    flags: &BatchUpstream,
    environment: &Environment,
) -> anyhow::Result<Assembled> {
    let loaded = config::load(&flags.sources, environment)?;
    let configured = with_keys(&loaded);
    let prices = prices(&configured, &loaded.prices);
    let from_environment = environment.variable("OPENAI_BASE_URL").filter(|url| !url.is_empty());
    let way = match (flags.base_url.as_deref(), from_environment) {
        (Some(base_url), _) => Way::to(base_url, flags),
        (None, _) if !is_empty(&configured) => Way::through(configured),
        (None, Some(base_url)) => Way::to(base_url, flags),
        (None, None) => Way::to_the_simulated_model(),
    };
    let mut settings = way.settings;
    for upstream in settings.upstreams.values_mut() {
        told(upstream, flags);
    }
    for model in settings.models.values_mut() {
        // A row's own timeout is its deadline; no clock meant for callers cuts it shorter.
        model.timeouts.total = model.timeouts.total.max(timeout::Options::default().total);
    }
    settings.retry.max_attempts = flags.max_attempts;
    let mut builder = builder(settings).prices(loaded.prices);
    if let Some(concurrency) = flags.concurrency {
        // The job bounds its rows itself; the gateway's own bound is for callers.
        builder = builder.max_in_flight((concurrency as usize).max(10_000) + 1);
    }
    if let Some(name) = way.any_model {
        builder = builder.any_model(name);
    }
    let client = builder.build().context("opening the upstream")?;
    Ok(Assembled {
        answer: client.answer(),
        default_model: way.default_model,
        prices,
        destination: way.destination,
    })
}

/// Where a batch's rows go.
struct Way {
    settings: Settings,
    /// The upstream that takes models nobody configured.
    any_model: Option<&'static str>,
    default_model: Option<String>,
    destination: String,
}

impl Way {
    fn to(base_url: &str, flags: &BatchUpstream) -> Self {
        let upstream = UpstreamSettings {
            base_url: base_url.to_owned(),
            api_key: flags.api_key.clone().map(SecretRef::Literal),
            ..UpstreamSettings::default()
        };
        let mut settings = Settings::default();
        settings.upstreams.insert(FROM_FLAGS.into(), upstream);
        // With one server there is nowhere else to go, and the job itself stops when nobody answers.
        settings.breaker.failures = 0;
        let destination = base_url.to_owned();
        Self { settings, any_model: Some(FROM_FLAGS), default_model: None, destination }
    }

    fn through(configured: Settings) -> Self {
        let mut models = configured.models.keys();
        let default_model = match (models.next(), models.next()) {
            (Some(only), None) => Some(only.clone()),
            _ => None,
        };
        let upstreams: Vec<_> = configured.upstreams.keys().cloned().collect();
        let destination = upstreams.join(", ");
        Self { settings: configured, any_model: None, default_model, destination }
    }

    fn to_the_simulated_model() -> Self {
        let mut settings = Settings::default();
        add_simulated_model(&mut settings);
        Self {
            settings,
            any_model: Some(SIMULATED),
            default_model: Some(SIMULATED_MODEL.to_owned()),
            destination: "the built-in simulated model".to_owned(),
        }
    }
}

/// What a batch's models cost: where a model's targets differ, what the dearest does. A model that
/// nobody configured costs what the list says.
fn prices(settings: &Settings, listed: &BTreeMap<Arc<str>, Price>) -> Prices {
    let mut known = listed.clone();
    for (name, model) in &settings.models {
        let all: Option<Vec<Price>> =
            money::targets(name, model, listed).map(|target| target.price).collect();
        let dearest = all.and_then(|all| {
            all.into_iter().max_by_key(|price| (price.base().output, price.base().input))
        });
        match dearest {
            Some(price) => drop(known.insert(name.as_str().into(), price)),
            None => drop(known.remove(name.as_str())),
        }
    }
    Arc::new(move |model| known.get(model).copied())
}

/// Lays the limits the command line told over an upstream's own.
fn told(upstream: &mut UpstreamSettings, flags: &BatchUpstream) {
    if let Some(fixed) = flags.concurrency {
        upstream.max_concurrency = concurrency::Options::Fixed(fixed);
        upstream.connection.max_connections =
            upstream.connection.max_connections.max(fixed as usize);
        upstream.connection.max_idle = upstream.connection.max_idle.max(fixed as usize);
    }
    let lower = |told: Option<f64>, own: Option<f64>| match (told, own) {
        (Some(told), Some(own)) => Some(told.min(own)),
        (told, own) => told.or(own),
    };
    upstream.requests_per_minute = lower(flags.rpm, upstream.requests_per_minute);
    upstream.requests_per_second = lower(flags.max_qps, upstream.requests_per_second);
    upstream.tokens_per_minute = flags.tpm.or(upstream.tokens_per_minute);
}

fn builder(settings: Settings) -> Builder {
    let needs_simulator =
        settings.upstreams.values().any(|upstream| upstream.protocol == Protocol::Sim);
    let builder = Client::builder().settings(settings);
    if !needs_simulator {
        return builder;
    }
    let sim = Sim::new(tidegate_sim::Options::embedded());
    builder.simulator(Arc::new(move || sim.connect()))
}

fn is_empty(settings: &Settings) -> bool {
    settings.upstreams.is_empty() && settings.models.is_empty()
}

/// With nothing configured there is still something to try.
fn add_simulated_model(settings: &mut Settings) {
    let upstream = UpstreamSettings { protocol: Protocol::Sim, ..UpstreamSettings::default() };
    settings.upstreams.insert(SIMULATED.into(), upstream);
    let target = TargetSettings {
        upstream: SIMULATED.into(),
        model: None,
        price: None,
        weight: 1,
        matches: None,
    };
    let model = ModelSettings { targets: vec![target], ..ModelSettings::default() };
    settings.models.insert(SIMULATED_MODEL.into(), model);
}

/// The settings with the secrets they refer to in place.
fn with_keys(loaded: &Loaded) -> Settings {
    let mut settings = loaded.config.settings();
    for (name, upstream) in &mut settings.upstreams {
        upstream.api_key = loaded.api_keys.get(name).cloned().map(SecretRef::Literal);
        if let (Some(oauth), Some(secret)) =
            (&mut upstream.oauth, loaded.client_secrets.get(name).cloned())
        {
            oauth.client_secret = SecretRef::Literal(secret);
        }
    }
    settings
}
