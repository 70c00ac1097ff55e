//! `tidegate keys`: the callers' keys, in the state of the data directory.
//!
//! A running gateway notices a change within a second; nothing needs a restart.

use crate::{
    config::{self, Environment, Sources, hint},
    output,
};
use anyhow::Context;
use jiff::Timestamp;
use serde::Serialize;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tidegate_core::{KeyRecord, Limits, Scope, Secret, Store};
use tidegate_policy::setting;
use tidegate_store::{Sqlite, key};

/// Makes, lists, revokes and rotates callers' keys
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  tidegate keys create --name ci --team search --models chat,embed --expires 30d
  tidegate keys list
  tidegate keys revoke 4kQ0tGm2xZ8b")]
pub(crate) struct Args {
    #[command(flatten)]
    sources: Sources,
    /// Directory of the state [default: server.data_dir of the configuration]
    #[arg(long, value_name = "DIR", global = true)]
    data_dir: Option<PathBuf>,
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand, Debug)]
enum Action {
    /// Makes a key and prints it, this once, on standard output
    Create(New),
    /// Lists the keys; the secrets are not kept, so they cannot be shown
    List {
        /// As a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Ends a key: running gateways refuse it within a second
    Revoke {
        /// Id of the key, as `keys list` shows it
        id: String,
    },
    /// Makes a key with the same rights, prints it and revokes the old one
    Rotate {
        /// Id of the key, as `keys list` shows it
        id: String,
    },
}

#[derive(clap::Args, Debug)]
struct New {
    /// What it is for
    #[arg(long, default_value = "default", value_parser = plain_name)]
    name: String,
    /// Team it belongs to
    #[arg(long, value_parser = plain_name)]
    team: Option<String>,
    /// Models it may use, separated by commas [default: every model]
    #[arg(long, value_delimiter = ',', value_name = "MODELS")]
    models: Vec<String>,
    /// How long it is valid, like 12h or 30d [default: until it is revoked]
    #[arg(long, value_name = "DURATION", value_parser = setting::parse_duration)]
    expires: Option<Duration>,
    /// Requests per minute [default: the configuration's limits]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rpm: Option<u32>,
    /// Tokens per minute, input and output together [default: the configuration's limits]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    tpm: Option<u64>,
    /// Calls in flight at once [default: the configuration's limits]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    concurrency: Option<u32>,
}

/// A word about a key that will be printed in tables and logs.
fn plain_name(text: &str) -> Result<String, String> {
    let fits = !text.trim().is_empty() && text.len() <= 128 && !text.contains(char::is_control);
    fits.then(|| text.to_owned()).ok_or_else(|| "use 1 to 128 characters on one line".to_owned())
}

pub(crate) fn run(args: Args) -> anyhow::Result<u8> {
    let place = match find_state(&args) {
        Ok(place) => place,
        Err(problems) => return Ok(problems.report()),
    };
    let makes_state = matches!(args.action, Action::Create(_));
    if !makes_state && !Sqlite::path_in(&place.data_dir).exists() {
        output::note(&format!(
            "{} holds no state yet: make a key with `tidegate keys create`, or name the right \
             directory with --data-dir",
            place.data_dir.display()
        ));
        return Ok(if matches!(args.action, Action::List { .. }) { 0 } else { 2 });
    }
    let store = Sqlite::open(&place.data_dir)?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    runtime.block_on(async {
        match args.action {
            Action::Create(new) => create(&store, new, &place).await,
            Action::List { json } => list(&store, json).await,
            Action::Revoke { id } => revoke(&store, id_in(&id)).await,
            Action::Rotate { id } => rotate(&store, id_in(&id)).await,
        }
    })
}

/// Where the state is, and the models there are (none known when the directory was named).
struct State {
    data_dir: PathBuf,
    models: Vec<String>,
}

fn find_state(args: &Args) -> Result<State, config::Problems> {
    if let Some(data_dir) = &args.data_dir {
        return Ok(State { data_dir: data_dir.clone(), models: Vec::new() });
    }
    let config = config::load_without_secrets(&args.sources, &Environment::current())?;
    Ok(State { data_dir: config.server.data_dir, models: config.models.into_keys().collect() })
}

async fn create(store: &dyn Store, new: New, state: &State) -> anyhow::Result<u8> {
    for model in &new.models {
        if !state.models.is_empty() && !state.models.contains(model) {
            let hint = hint(model, state.models.iter().map(String::as_str), "models");
            output::note(&format!("warning: no model `{model}` is configured{hint}"));
        }
    }
    let (secret, record) = mint(&new, Timestamp::now())?;
    let id = record.id.clone();
    store.add_key(record).await?;
    hand_out(&secret, &format!("key {id} made"), &state.data_dir)
}

fn mint(new: &New, now: Timestamp) -> anyhow::Result<(Secret<String>, KeyRecord)> {
    let now = u64::try_from(now.as_second()).context("the clock is before 1970")?;
    let (secret, mut record) = key::mint(&*new.name, now)?;
    record.team = new.team.as_deref().map(Into::into);
    if !new.models.is_empty() {
        record.scope = Scope::Models(new.models.iter().map(|name| name.trim().into()).collect());
    }
    let limits = Limits {
        requests_per_minute: new.rpm,
        tokens_per_minute: new.tpm,
        concurrency: new.concurrency,
        ..Limits::default()
    };
    record.limits = (limits != Limits::default()).then_some(limits);
    record.expires_at = new.expires.map(|valid| now.saturating_add(valid.as_secs()));
    Ok((secret, record))
}

/// The one moment a key is shown: data on standard output, the explanation beside it.
fn hand_out(secret: &Secret<String>, what: &str, data_dir: &Path) -> anyhow::Result<u8> {
    output::data(&format!("{}\n", secret.expose()))?;
    output::note(&format!(
        "{what} in {}; it is not shown again, only its hash is kept",
        data_dir.display()
    ));
    Ok(0)
}

async fn list(store: &dyn Store, json: bool) -> anyhow::Result<u8> {
    let now = Timestamp::now();
    let keys: Vec<Shown> =
        store.keys().await?.iter().map(|record| Shown::new(record, now)).collect();
    output::data(&if json { serde_json::to_string_pretty(&keys)? + "\n" } else { table(&keys) })?;
    Ok(0)
}

async fn revoke(store: &dyn Store, id: &str) -> anyhow::Result<u8> {
    if store.revoke_key(id).await? {
        output::note(&format!("key {id} is revoked; running gateways refuse it within a second"));
        return Ok(0);
    }
    unknown(id)
}

async fn rotate(store: &dyn Store, id: &str) -> anyhow::Result<u8> {
    let keys = store.keys().await?;
    let Some(old) = keys.iter().find(|record| &*record.id == id) else { return unknown(id) };
    let now = Timestamp::now();
    let state = Shown::new(old, now).state;
    if state != "valid" {
        output::note(&format!("key {id} is {state}: make a new one with `tidegate keys create`"));
        return Ok(2);
    }
    let (secret, minted) = key::mint(old.name.clone(), u64::try_from(now.as_second())?)?;
    let new = KeyRecord {
        id: minted.id,
        hash: minted.hash,
        created_at: minted.created_at,
        ..old.clone()
    };
    let new_id = new.id.clone();
    // In this order: stopping half way leaves two keys, never none.
    store.add_key(new).await?;
    output::data(&format!("{}\n", secret.expose()))?;
    store.revoke_key(id).await?;
    output::note(&format!("key {new_id} replaces {id}, which is revoked; it is not shown again"));
    Ok(0)
}

fn unknown(id: &str) -> anyhow::Result<u8> {
    output::note(&format!("there is no key of the id `{id}`: see `tidegate keys list`"));
    Ok(2)
}

/// The id in what was typed: an id, or (pasted by mistake) a whole key, of which nothing more
/// may be repeated.
fn id_in(typed: &str) -> &str {
    let typed = typed.trim();
    let rest = typed.strip_prefix(key::PREFIX).unwrap_or(typed);
    key::id_of(typed).unwrap_or_else(|| rest.split('-').next().unwrap_or_default())
}

/// A key as lists show it.
#[derive(Serialize)]
struct Shown {
    id: Arc<str>,
    name: Arc<str>,
    team: Option<Arc<str>>,
    /// `None` means every model.
    models: Option<Vec<Arc<str>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    requests_per_minute: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens_per_minute: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    concurrency: Option<u32>,
    created_at: String,
    expires_at: Option<String>,
    revoked_at: Option<String>,
    state: &'static str,
}

impl Shown {
    fn new(record: &KeyRecord, now: Timestamp) -> Self {
        let limits = record.limits.unwrap_or_default();
        let expired = record
            .expires_at
            .is_some_and(|at| i64::try_from(at).is_ok_and(|at| at <= now.as_second()));
        Self {
            id: record.id.clone(),
            name: record.name.clone(),
            team: record.team.clone(),
            models: match &record.scope {
                Scope::All => None,
                Scope::Models(models) => Some(models.clone()),
            },
            requests_per_minute: limits.requests_per_minute,
            tokens_per_minute: limits.tokens_per_minute,
            concurrency: limits.concurrency,
            created_at: show_time(record.created_at),
            expires_at: record.expires_at.map(show_time),
            revoked_at: record.revoked_at.map(show_time),
            state: match record.revoked_at {
                Some(_) => "revoked",
                None if expired => "expired",
                None => "valid",
            },
        }
    }

    fn cells(&self) -> [String; 8] {
        let limits = [
            self.requests_per_minute.map(|rpm| format!("{rpm} rpm")),
            self.tokens_per_minute.map(|tpm| format!("{tpm} tpm")),
            self.concurrency.map(|calls| format!("{calls} at once")),
        ];
        let limits: Vec<String> = limits.into_iter().flatten().collect();
        let or = |text: String, none: &str| if text.is_empty() { none.to_owned() } else { text };
        [
            self.id.to_string(),
            self.name.to_string(),
            self.team.as_deref().unwrap_or("-").to_owned(),
            self.models
                .as_ref()
                .map_or_else(|| "all".to_owned(), |models| or(models.join(","), "none")),
            or(limits.join(", "), "default"),
            self.created_at.clone(),
            self.expires_at.clone().unwrap_or_else(|| "never".to_owned()),
            self.state.to_owned(),
        ]
    }
}

fn show_time(unix: u64) -> String {
    let time = i64::try_from(unix).ok().and_then(|unix| Timestamp::from_second(unix).ok());
    time.map_or_else(|| unix.to_string(), |time| time.to_string())
}

fn table(keys: &[Shown]) -> String {
    let head = ["ID", "NAME", "TEAM", "MODELS", "LIMITS", "CREATED", "EXPIRES", "STATE"];
    let rows: Vec<[String; 8]> =
        std::iter::once(head.map(str::to_owned)).chain(keys.iter().map(Shown::cells)).collect();
    let mut width = [0; 8];
    for row in &rows {
        for (width, cell) in width.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(width).map(|(cell, width)| format!("{cell:width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new() -> New {
        New {
            name: "ci".into(),
            team: Some("search".into()),
            models: vec!["chat".into(), " embed".into()],
            expires: Some(Duration::from_secs(30 * 86_400)),
            rpm: Some(60),
            tpm: None,
            concurrency: None,
        }
    }

    #[test]
    fn flags_become_rights() {
        let now = Timestamp::from_second(1_000).unwrap();
        let (_, record) = mint(&new(), now).unwrap();
        assert_eq!(record.scope, Scope::Models(vec!["chat".into(), "embed".into()]));
        assert_eq!(record.expires_at, Some(1_000 + 30 * 86_400));
        assert_eq!(record.limits.unwrap().requests_per_minute, Some(60));
        assert_eq!(record.team.as_deref(), Some("search"));
        let (_, plain) =
            mint(&New { team: None, models: vec![], expires: None, rpm: None, ..new() }, now)
                .unwrap();
        assert_eq!((plain.scope, plain.limits, plain.expires_at), (Scope::All, None, None));
    }

    #[test]
    fn a_list_shows_no_secret_and_no_hash() {
        let now = Timestamp::from_second(1_000).unwrap();
        let (secret, record) = mint(&new(), now).unwrap();
        let keys = [Shown::new(&record, now)];
        let (text, json) = (table(&keys), serde_json::to_string(&keys).unwrap());
        let hidden = &secret.expose()[16..];
        assert!(!text.contains(hidden) && !json.contains(hidden) && !json.contains("hash"));
        assert!(text.contains("chat,embed") && text.contains("60 rpm"), "{text}");
        assert!(text.contains("1970-01-31T00:16:40Z") && text.contains("valid"), "{text}");
    }

    #[test]
    fn states_are_told_apart() {
        let (_, record) = mint(&new(), Timestamp::from_second(0).unwrap()).unwrap();
        let at = |second| Shown::new(&record, Timestamp::from_second(second).unwrap()).state;
        assert_eq!((at(0), at(30 * 86_400)), ("valid", "expired"));
        let revoked = KeyRecord { revoked_at: Some(1), ..record.clone() };
        assert_eq!(Shown::new(&revoked, Timestamp::UNIX_EPOCH).state, "revoked");
    }

    #[test]
    fn a_pasted_key_is_cut_to_its_id() {
        let (secret, record) = key::mint("a", 0).unwrap();
        assert_eq!(id_in(secret.expose()), &*record.id);
        assert_eq!(id_in(&format!("{}x", secret.expose())), &*record.id);
        assert_eq!(id_in(&record.id), &*record.id);
        assert_eq!(id_in(&format!("tg-{}", record.id)), &*record.id);
    }

    #[tokio::test]
    async fn a_rotated_key_keeps_its_rights() {
        let store = tidegate_store::Memory::new();
        let (old_secret, record) = mint(&new(), Timestamp::now()).unwrap();
        let old_id = record.id.clone();
        store.add_key(record.clone()).await.unwrap();
        assert_eq!(rotate(&store, &old_id).await.unwrap(), 0);
        assert!(store.identify(old_secret.expose()).is_none());
        let keys = store.keys().await.unwrap();
        let fresh = keys.iter().find(|key| key.id != old_id).unwrap();
        assert_eq!((&fresh.scope, fresh.limits), (&record.scope, record.limits));
        assert_eq!(fresh.expires_at, record.expires_at);
        assert_eq!(rotate(&store, &old_id).await.unwrap(), 2, "a revoked key is not rotated");
        assert_eq!(revoke(&store, "nobody").await.unwrap(), 2);
    }
}
