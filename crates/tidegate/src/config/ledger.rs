//! Where the account of every attempt is kept.

use super::{Config, check::Findings, environment::Environment, secret};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use tidegate_core::Secret;
use tidegate_policy::setting::{self, SecretRef};
use tidegate_store::ledger::{Books, Database};

/// The environment variable that names a PostgreSQL database by custom.
const VARIABLE: &str = "DATABASE_URL";

/// Where the account of every attempt is kept: tokens and cost, by caller and model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Ledger {
    /// Whether `serve` keeps one. Budgets are then counted on over a restart. Default true.
    pub(crate) enabled: bool,
    /// A PostgreSQL database, like "postgres://tidegate:PASSWORD@db.internal:5432/tidegate". Default: that of the environment's `DATABASE_URL`, else the file `ledger.sqlite` in `server.data_dir`.
    pub(crate) url: Option<SecretRef>,
    /// How long entries are kept, like "400days". Default: for ever. Budgets in all count what is kept.
    #[serde(with = "setting::opt_duration")]
    #[schemars(with = "Option<String>")]
    pub(crate) retention: Option<Duration>,
}

impl Default for Ledger {
    fn default() -> Self {
        Self { enabled: true, url: None, retention: None }
    }
}

/// The database that was chosen; `None` when there is to be no ledger.
pub(super) fn database(
    config: &Config,
    environment: &Environment,
    findings: &mut Findings<'_>,
) -> Option<Database> {
    let path = ["ledger", "url"];
    if config.ledger.retention.is_some_and(|kept| kept.is_zero()) {
        findings.problem(&["ledger", "retention"], "0 would keep nothing: set enabled = false");
    }
    if !config.ledger.enabled {
        return None;
    }
    let url = if config.ledger.url.is_some() {
        secret::ledger_url(config, environment, findings)?
    } else {
        match environment.variable(VARIABLE).filter(|url| !url.is_empty()) {
            None => return Some(Database::Sqlite),
            Some(url) if is_postgres(url) => Secret::new(url.to_owned()),
            Some(_) => {
                let message = "$DATABASE_URL is no address of a PostgreSQL database, so the \
                               ledger is kept in server.data_dir";
                findings.warning(&path, message);
                return Some(Database::Sqlite);
            }
        }
    };
    let database = Database::Postgres(url);
    if let Err(error) = Books::of(&config.server.data_dir, &database) {
        let from = if config.ledger.url.is_some() { "" } else { "$DATABASE_URL: " };
        findings.problem(&path, format!("{from}{}", error.message()));
    }
    Some(database)
}

fn is_postgres(url: &str) -> bool {
    url.starts_with("postgres://") || url.starts_with("postgresql://")
}
