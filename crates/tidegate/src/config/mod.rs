//! The configuration: what can be written, and the one place that reads files and environment.
//!
//! The types of most keys are declared where they are used (a policy, the pool, the front); here
//! they are only put together. [`load`] reads every layer, says everything that is wrong at once,
//! each with its file, line and column, and resolves the secrets.
//!
//! ```text
//! defaults < file < profile < environment < flags
//!          layers.rs -> tree.rs -> decode.rs, reader.rs -> Config -> check.rs, secret.rs
//! ```

mod check;
mod decode;
mod environment;
mod layers;
mod ledger;
mod prices;
mod problem;
mod reader;
#[cfg(test)]
mod reference;
mod secret;
#[cfg(test)]
mod tests;
mod tree;

pub(crate) use environment::Environment;
pub(crate) use layers::{Override, Sources};
pub(crate) use problem::{Problem, Problems, hint};
pub(crate) use secret::{Owner, SecretFile};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{
    borrow::Cow,
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};
use tidegate_core::{Price, Secret};
use tidegate_policy::{
    breaker, budget, load, memory, queue, retry, retry_budget, setting::SecretRef,
};
use tidegate_sdk::{LimitsSettings, ModelSettings, Settings, TeamSettings, UpstreamSettings};
use tidegate_store::ledger::Database;

/// The configuration of a gateway.
///
/// Relative paths are taken from the working directory.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// The two ports and where state is kept.
    pub(crate) server: Server,
    /// Model servers and provider accounts, by name.
    pub(crate) upstreams: BTreeMap<String, UpstreamSettings>,
    /// Models callers may ask for, by the name they use.
    pub(crate) models: BTreeMap<String, ModelSettings>,
    /// Limits of callers.
    pub(crate) limits: LimitsSettings,
    /// Teams of callers, by name.
    pub(crate) teams: BTreeMap<String, TeamSettings>,
    /// How budgets of callers and teams are kept.
    pub(crate) budgets: budget::Options,
    /// What models cost that have no price of their own here.
    pub(crate) prices: PriceList,
    /// Tokens that callers may send instead of keys.
    pub(crate) oauth: tidegate_auth::Options,
    /// When and how often a failed attempt is tried again.
    pub(crate) retry: retry::Options,
    /// How many attempts beyond the first an upstream may get.
    pub(crate) retry_budget: retry_budget::Options,
    /// When an upstream that keeps failing is left alone.
    pub(crate) breaker: breaker::Options,
    /// In which order calls wait for an upstream, and which do not.
    pub(crate) queue: queue::Options,
    /// What is done as the load grows.
    pub(crate) load: load::Options,
    /// How much memory calls may hold.
    pub(crate) memory: memory::Options,
    /// What repeats of a call with an `Idempotency-Key` are answered from.
    pub(crate) idempotency: tidegate_http::IdempotencyOptions,
    /// Where the account of every attempt is kept: tokens and cost, by caller and model.
    pub(crate) ledger: ledger::Ledger,
    /// What is written about calls.
    pub(crate) log: Log,
}

/// The two ports and where state is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Server {
    /// Address and port for callers: HTTP/1.1 and HTTP/2. Port 0 takes a free one. Default
    /// "127.0.0.1:8080".
    #[serde(deserialize_with = "read_address")]
    #[schemars(with = "String")]
    pub(crate) listen: SocketAddr,
    /// Address and port for operators: what the upstreams are doing. Port 0 takes a free one,
    /// "off" none. An address that other machines can reach needs `admin_token`. Default
    /// "127.0.0.1:8081".
    pub(crate) admin_listen: AdminListen,
    /// What operators send as `Authorization: Bearer`. Default: none, and the admin port answers
    /// whoever is on this machine.
    pub(crate) admin_token: Option<SecretRef>,
    /// Directory of the state, made if it is not there, for this user only. Default ".tidegate".
    pub(crate) data_dir: PathBuf,
    /// Certificate and key of the callers' port. Default: none, and callers speak plain HTTP.
    pub(crate) tls: Option<tidegate_http::Tls>,
    /// Which answers are compressed for callers that take it, zstd, brotli or gzip by
    /// `Accept-Encoding`: those of at least this size, or "off". Event streams never are. Default
    /// "16KiB", the size from which it saves round trips.
    pub(crate) compression: tidegate_http::Compression,
    /// Limits and timers of the callers' port.
    pub(crate) limits: tidegate_http::Options,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            listen: (Ipv4Addr::LOCALHOST, 8080).into(),
            admin_listen: AdminListen::default(),
            admin_token: None,
            data_dir: ".tidegate".into(),
            tls: None,
            compression: tidegate_http::Compression::default(),
            limits: tidegate_http::Options::default(),
        }
    }
}

/// Where operators are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
#[schemars(with = "String")]
pub(crate) enum AdminListen {
    /// Nowhere.
    Off,
    /// On this address and port.
    At(SocketAddr),
}

impl Default for AdminListen {
    fn default() -> Self {
        Self::At((Ipv4Addr::LOCALHOST, 8081).into())
    }
}

/// What models cost that have no price of their own here.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct PriceList {
    /// LiteLLM's price file, `model_prices_and_context_window.json`: it lists models by the upstreams' own names of them. Read at the start. Default: none.
    pub(crate) file: Option<PathBuf>,
}

/// What is written about calls.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Log {
    /// Where one line per call or refused request goes: "stderr", "off", or the path of a file to
    /// append to. JSON, except on a terminal. Default "stderr".
    pub(crate) access: AccessTo,
    /// What the process says of itself on standard error: "off", "error", "warn", "info", "debug" or "trace". Secrets are in none of it. Default "warn".
    pub(crate) level: Level,
}

/// How much the process says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    /// Nothing.
    Off,
    /// What went wrong on our side.
    Error,
    /// And what an operator should look at.
    #[default]
    Warn,
    /// And what was changed.
    Info,
    /// And why requests were refused.
    Debug,
    /// And all there is.
    Trace,
}

/// Where the access log goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[schemars(with = "String")]
pub(crate) enum AccessTo {
    /// Nowhere.
    Off,
    /// Standard error.
    #[default]
    Stderr,
    /// The end of this file.
    File(PathBuf),
}

impl Config {
    /// What the assembly is made from.
    pub(crate) fn settings(&self) -> Settings {
        Settings {
            upstreams: self.upstreams.clone(),
            models: self.models.clone(),
            limits: self.limits.clone(),
            teams: self.teams.clone(),
            budgets: self.budgets.clone(),
            retry: self.retry.clone(),
            retry_budget: self.retry_budget.clone(),
            breaker: self.breaker.clone(),
            queue: self.queue.clone(),
            load: self.load.clone(),
            memory: self.memory.clone(),
        }
    }

    /// The configuration as it may be printed: what could hold a secret is blacked out.
    pub(crate) fn redacted(&self) -> Self {
        let mut shown = self.clone();
        for upstream in shown.upstreams.values_mut() {
            for value in upstream.connection.headers.values_mut() {
                "[redacted]".clone_into(value);
            }
        }
        shown
    }

    /// What the front is made from.
    pub(crate) fn http_options(&self) -> tidegate_http::Options {
        let targets = self.models.values().flat_map(|model| &model.targets);
        let matches = targets.filter_map(|target| target.matches.as_ref());
        let names = matches.filter_map(|found| Some(found.header.as_ref()?.name.to_lowercase()));
        let routed_headers: std::collections::BTreeSet<_> = names.collect();
        tidegate_http::Options {
            tls: self.server.tls.clone(),
            compression: self.server.compression,
            routed_headers: routed_headers.into_iter().collect(),
            ..self.server.limits.clone()
        }
    }
}

/// A configuration that can be used, with everything it refers to.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) config: Config,
    /// Our keys at the upstreams, by the upstream's name.
    pub(crate) api_keys: BTreeMap<String, Secret<String>>,
    /// Our secrets at the token endpoints of upstreams, by the upstream's name.
    pub(crate) client_secrets: BTreeMap<String, Secret<String>>,
    /// What operators must send.
    pub(crate) admin_token: Option<Secret<String>>,
    /// Those of these secrets that are in files, and read again when they change.
    pub(crate) secret_files: Vec<SecretFile>,
    /// What models cost, by the upstreams' own names of them.
    pub(crate) prices: BTreeMap<Arc<str>, Price>,
    /// Where the ledger is kept; `None` when there is to be none.
    pub(crate) ledger: Option<Database>,
    /// What works but should be looked at.
    pub(crate) warnings: Vec<Problem>,
    /// The files it was read from, in order; none when all is default or environment.
    pub(crate) files: Vec<PathBuf>,
}

/// Reads every layer, checks the result and resolves its secrets.
///
/// # Errors
///
/// Everything that is wrong with it.
pub(crate) fn load(sources: &Sources, environment: &Environment) -> Result<Loaded, Problems> {
    let (mut api_keys, mut admin_token) = (BTreeMap::new(), None);
    let (mut client_secrets, mut secret_files) = (BTreeMap::new(), Vec::new());
    let (mut listed, mut ledger) = (BTreeMap::new(), None);
    let loaded = load_with(sources, environment, |config, findings| {
        ledger = ledger::database(config, environment, findings);
        api_keys = secret::api_keys(config, environment, findings);
        client_secrets = secret::client_secrets(config, environment, findings);
        admin_token = secret::admin_token(config, environment, findings);
        secret_files = secret::files(config, environment);
        listed = prices::read(config, environment, findings);
    })?;
    let prices = listed;
    Ok(Loaded { api_keys, client_secrets, admin_token, secret_files, prices, ledger, ..loaded })
}

/// The configuration alone, for commands that call no upstream: a secret that is not there is
/// none of their business.
///
/// # Errors
///
/// Everything else that is wrong with it.
pub(crate) fn load_without_secrets(
    sources: &Sources,
    environment: &Environment,
) -> Result<Config, Problems> {
    load_with(sources, environment, |_, _| ()).map(|loaded| loaded.config)
}

/// The configuration without its secrets but that of the ledger, and where that is kept.
///
/// # Errors
///
/// Everything that is wrong with these.
pub(crate) fn load_ledger(
    sources: &Sources,
    environment: &Environment,
) -> Result<(Config, Option<Database>), Problems> {
    let mut ledger = None;
    let loaded = load_with(sources, environment, |config, findings| {
        ledger = ledger::database(config, environment, findings);
    })?;
    Ok((loaded.config, ledger))
}

/// The configuration without its secrets, and the prices it refers to.
///
/// # Errors
///
/// Everything that is wrong with these.
pub(crate) fn load_prices(
    sources: &Sources,
    environment: &Environment,
) -> Result<(Config, BTreeMap<Arc<str>, Price>), Problems> {
    let mut listed = BTreeMap::new();
    let loaded = load_with(sources, environment, |config, findings| {
        listed = prices::read(config, environment, findings);
    })?;
    Ok((loaded.config, listed))
}

fn load_with(
    sources: &Sources,
    environment: &Environment,
    look_further: impl FnOnce(&Config, &mut check::Findings<'_>),
) -> Result<Loaded, Problems> {
    let layers = layers::read(sources, environment)?;
    let decoded = decode::decode::<Config>(layers.tree.clone());
    let mut problems = layers.problems;
    problems.extend(decoded.problems);
    let Some(config) = decoded.value else {
        return Err(Problems::none_in(problems).expect_err("what has no problem has a value"));
    };
    let mut findings = check::Findings::new(&layers.tree, &decoded.lost);
    check::check(&config, &mut findings);
    look_further(&config, &mut findings);
    problems.extend(findings.problems);
    Problems::none_in(problems)?;
    let (warnings, files) = (findings.warnings, layers.files);
    Ok(Loaded {
        config,
        api_keys: BTreeMap::new(),
        client_secrets: BTreeMap::new(),
        admin_token: None,
        secret_files: Vec::new(),
        prices: BTreeMap::new(),
        ledger: None,
        warnings,
        files,
    })
}

/// The JSON Schema of the file.
pub(crate) fn schema() -> schemars::Schema {
    schemars::schema_for!(Config)
}

fn read_address<'de, D: Deserializer<'de>>(from: D) -> Result<SocketAddr, D::Error> {
    let text = Cow::<'de, str>::deserialize(from)?;
    parse_address(&text, "").map_err(de::Error::custom)
}

/// IP and port; `or` is what else could have been written.
fn parse_address(text: &str, or: &str) -> Result<SocketAddr, String> {
    let numeric = match text.strip_prefix("localhost:") {
        Some(port) => Cow::Owned(format!("127.0.0.1:{port}")),
        None => Cow::Borrowed(text),
    };
    numeric.parse().map_err(|_| {
        let or_all =
            if text.starts_with(':') { " or, for every interface, \"0.0.0.0:8080\"" } else { "" };
        format!(
            "`{text}` is not an address to listen on: write IP and port, like \
             \"127.0.0.1:8080\"{or_all}{or}"
        )
    })
}

impl<'de> Deserialize<'de> for AdminListen {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(from)?;
        if text == "off" {
            return Ok(Self::Off);
        }
        let address = parse_address(&text, "; \"off\" for no admin port");
        address.map(Self::At).map_err(de::Error::custom)
    }
}

impl Serialize for AdminListen {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Off => to.serialize_str("off"),
            Self::At(address) => address.serialize(to),
        }
    }
}

impl<'de> Deserialize<'de> for AccessTo {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(from)?;
        match &*text {
            "off" => Ok(Self::Off),
            "stderr" => Ok(Self::Stderr),
            path if path.contains(['/', '\\']) => Ok(Self::File(path.into())),
            other => Err(de::Error::custom(format!(
                "`{other}` is neither \"stderr\" nor \"off\" nor a path: write a file of this \
                 directory as \"./{other}\""
            ))),
        }
    }
}

impl Serialize for AccessTo {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Off => to.serialize_str("off"),
            Self::Stderr => to.serialize_str("stderr"),
            Self::File(path) => path.serialize(to),
        }
    }
}
