//! The configuration: what can be written, and the one place that reads files and environment.
//!
//! The types of most keys are declared where they are used (a policy, the pool, the front); here
//! they are only put together. [`load()`] reads every layer, says everything that is wrong at once,
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
mod log;
mod prices;
mod problem;
mod reader;
#[cfg(test)]
mod reference;
mod secret;
mod server;
#[cfg(test)]
mod tests;
mod tree;

pub(crate) use environment::Environment;
pub(crate) use layers::{Override, Sources};
pub(crate) use log::{AccessTo, Level};
pub(crate) use problem::{Problem, Problems, hint};
pub(crate) use secret::{Owner, SecretFile};
pub(crate) use server::{AdminListen, Server};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::PathBuf, sync::Arc};
use tidegate_core::{Price, Secret};
use tidegate_policy::{breaker, budget, load, memory, queue, retry, retry_budget};
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
    pub(crate) prices: prices::PriceList,
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
    pub(crate) log: log::Log,
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
    let (read, (ledger, secrets, prices)) = read(sources, environment, |config, findings| {
        (
            ledger::database(config, environment, findings),
            secret::all(config, environment, findings),
            prices::read(config, environment, findings),
        )
    })?;
    Ok(Loaded {
        api_keys: secrets.api_keys,
        client_secrets: secrets.client_secrets,
        admin_token: secrets.admin_token,
        secret_files: secret::files(&read.config, environment),
        prices,
        ledger,
        config: read.config,
        warnings: read.warnings,
        files: read.files,
    })
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
    read(sources, environment, |_, _| ()).map(|(read, ())| read.config)
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
    let (read, ledger) = read(sources, environment, |config, findings| {
        ledger::database(config, environment, findings)
    })?;
    Ok((read.config, ledger))
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
    let (read, listed) =
        read(sources, environment, |config, findings| prices::read(config, environment, findings))?;
    Ok((read.config, listed))
}

/// A configuration without anything it refers to.
struct Read {
    config: Config,
    warnings: Vec<Problem>,
    files: Vec<PathBuf>,
}

/// Reads every layer and checks the result; `look_further` looks at what it refers to.
fn read<R>(
    sources: &Sources,
    environment: &Environment,
    look_further: impl FnOnce(&Config, &mut check::Findings<'_>) -> R,
) -> Result<(Read, R), Problems> {
    let layers = layers::read(sources, environment)?;
    let decoded = decode::decode::<Config>(layers.tree.clone());
    let mut problems = layers.problems;
    problems.extend(decoded.problems);
    let Some(config) = decoded.value else {
        return Err(Problems::none_in(problems).expect_err("what has no problem has a value"));
    };
    let mut findings = check::Findings::new(&layers.tree, &decoded.lost);
    check::check(&config, &mut findings);
    let found = look_further(&config, &mut findings);
    problems.extend(findings.problems);
    Problems::none_in(problems)?;
    Ok((Read { config, warnings: findings.warnings, files: layers.files }, found))
}

/// The JSON Schema of the file.
pub(crate) fn schema() -> schemars::Schema {
    schemars::schema_for!(Config)
}
