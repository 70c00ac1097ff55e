//! `tidegate keys`: the callers' keys, in the state of the data directory.
//!
//! A running gateway notices a change within a second; nothing needs a restart. The admin port's
//! `/admin/keys` does the same through the same [`Keys`].

mod rights;
mod table;

use crate::{
    config::{self, Environment, Sources, hint},
    output,
};
use anyhow::Context;
use jiff::Timestamp;
use rights::{Clear, Rights, plain_name};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use tidegate_core::{Error, KeyChange, KeyRecord, Keys, Kind, Minted};
use tidegate_http::KeyView;
use tidegate_policy::setting;
use tidegate_store::{Sqlite, key};

/// Exit code of what cannot succeed as it was asked.
const USAGE: u8 = 2;

/// Makes, lists, shows, changes, revokes and rotates callers' keys
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  tidegate keys create --name ci --team search --models chat,embed --expires 30d
  tidegate keys create --name app --rpm 600 --budget-month 250 --budget-day 12.50 --hard
  tidegate keys list
  tidegate keys update 4kQ0tGm2xZ8b --rpm 1200 --clear budget-day
  tidegate keys rotate 4kQ0tGm2xZ8b --grace 24h
  tidegate keys revoke 4kQ0tGm2xZ8b

Exit codes: 0 done; 1 the state cannot be read or written; 2 no such key, or a value it may not have.")]
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
    Create {
        /// What it is for
        #[arg(long, default_value = "default", value_parser = plain_name)]
        name: String,
        #[command(flatten)]
        rights: Rights,
        /// As a JSON object with the key in it
        #[arg(long)]
        json: bool,
    },
    /// Lists the keys; the secrets are not kept, so they cannot be shown
    List {
        /// As a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Shows one key
    Show {
        /// Id of the key, as `keys list` shows it
        id: String,
        /// As a JSON object
        #[arg(long)]
        json: bool,
    },
    /// Changes what a key may do: what is named, and nothing else
    Update {
        /// Id of the key, as `keys list` shows it
        id: String,
        /// What it is for
        #[arg(long, value_parser = plain_name)]
        name: Option<String>,
        #[command(flatten)]
        rights: Rights,
        /// What to take away, separated by commas: a bound that is cleared binds no more; `limits`
        /// goes back to the configuration's
        #[arg(long, value_delimiter = ',', value_name = "WHAT")]
        clear: Vec<Clear>,
        /// As a JSON object
        #[arg(long)]
        json: bool,
    },
    /// Ends a key: running gateways refuse it within a second
    Revoke {
        /// Id of the key, as `keys list` shows it
        id: String,
    },
    /// Gives a key a new secret and prints it; id, rights and what it has spent stay
    Rotate {
        /// Id of the key, as `keys list` shows it
        id: String,
        /// How long the old secret stays good beside it, like 24h, at most 90d [default: not at all]
        #[arg(long, value_name = "DURATION", value_parser = setting::parse_duration)]
        grace: Option<Duration>,
        /// As a JSON object with the key in it
        #[arg(long)]
        json: bool,
    },
}

pub(crate) fn run(args: Args) -> anyhow::Result<u8> {
    let place = match find_state(&args) {
        Ok(place) => place,
        Err(problems) => return Ok(problems.report()),
    };
    let makes_state = matches!(args.action, Action::Create { .. });
    if !makes_state && !Sqlite::path_in(&place.data_dir).exists() {
        if let Action::List { json: true } = args.action {
            output::data("[]\n")?;
        }
        output::note(&format!(
            "{} holds no state yet: make a key with `tidegate keys create`, or name the right \
             directory with --data-dir",
            place.data_dir.display()
        ));
        return Ok(if matches!(args.action, Action::List { .. }) { 0 } else { USAGE });
    }
    let store = Sqlite::open(&place.data_dir)?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let done = runtime.block_on(act(&store, args.action, &place));
    match done {
        // What was asked for is at fault, not the state.
        Err(error) => match error.downcast_ref::<Error>() {
            Some(refused) if refused.kind() == Kind::InvalidRequest => {
                output::note(&format!("error: {}", refused.message()));
                Ok(USAGE)
            }
            _ => Err(error),
        },
        done => done,
    }
}

async fn act(store: &dyn Keys, action: Action, place: &State) -> anyhow::Result<u8> {
    let now = unix(Timestamp::now())?;
    match action {
        Action::Create { name, rights, json } => {
            place.warn_of_unknown(rights.models());
            let change = KeyChange { name: Some(name.into()), ..rights.change(&[], now) };
            let made = store.create_key(change).await?;
            let what = format!("key {} made", made.1.id);
            hand_out(&made, &what, json, now, &place.data_dir)
        }
        Action::List { json } => list(store, json, now).await,
        Action::Show { id, json } => show(store.key(id_in(&id)).await?, &id, json, now),
        Action::Update { id, name, rights, clear, json } => {
            place.warn_of_unknown(rights.models());
            let change = KeyChange { name: name.map(Into::into), ..rights.change(&clear, now) };
            if change == KeyChange::default() {
                output::note("nothing to change: name what, like --rpm 600 or --clear expires");
                return Ok(USAGE);
            }
            show(store.update_key(id_in(&id), change).await?, &id, json, now)
        }
        Action::Revoke { id } => revoke(store, id_in(&id)).await,
        Action::Rotate { id, grace, json } => {
            let id = id_in(&id);
            let Some(rotated) = store.rotate_key(id, grace.unwrap_or_default()).await? else {
                return unknown(id);
            };
            let what = match rotated.1.former {
                Some(_) => format!(
                    "key {id} has a new secret; the old one is good for {} more",
                    setting::show_duration(grace.unwrap_or_default())
                ),
                None => format!("key {id} has a new secret; the old one ends within a second"),
            };
            hand_out(&rotated, &what, json, now, &place.data_dir)
        }
    }
}

/// Where the state is, and the models there are (none known when the directory was named).
struct State {
    data_dir: PathBuf,
    models: Vec<String>,
}

impl State {
    /// A model may be configured later, so this is no error.
    fn warn_of_unknown(&self, models: &[String]) {
        for model in models.iter().map(|model| model.trim()) {
            if !self.models.is_empty() && !self.models.iter().any(|known| known == model) {
                let hint = hint(model, self.models.iter().map(String::as_str), "models");
                output::note(&format!("warning: no model `{model}` is configured{hint}"));
            }
        }
    }
}

fn find_state(args: &Args) -> Result<State, config::Problems> {
    if let Some(data_dir) = &args.data_dir {
        return Ok(State { data_dir: data_dir.clone(), models: Vec::new() });
    }
    let config = config::load_without_secrets(&args.sources, &Environment::current())?;
    Ok(State { data_dir: config.server.data_dir, models: config.models.into_keys().collect() })
}

/// The one moment a key is shown: data on standard output, the explanation beside it.
fn hand_out(
    (secret, record): &Minted,
    what: &str,
    json: bool,
    now: u64,
    data_dir: &Path,
) -> anyhow::Result<u8> {
    let text = if json {
        serde_json::to_string_pretty(&KeyView::new(record, now).with_secret(secret))?
    } else {
        secret.expose().clone()
    };
    output::data(&format!("{text}\n"))?;
    output::note(&format!(
        "{what} in {}; it is not shown again, only its hash is kept",
        data_dir.display()
    ));
    Ok(0)
}

async fn list(store: &dyn Keys, json: bool, now: u64) -> anyhow::Result<u8> {
    let keys = store.keys().await?;
    let text = if json {
        let views: Vec<KeyView<'_>> = keys.iter().map(|key| KeyView::new(key, now)).collect();
        serde_json::to_string_pretty(&views)? + "\n"
    } else {
        table::of(&keys, now)
    };
    output::data(&text)?;
    Ok(0)
}

fn show(record: Option<KeyRecord>, id: &str, json: bool, now: u64) -> anyhow::Result<u8> {
    let Some(record) = record else { return unknown(id_in(id)) };
    let text = if json {
        serde_json::to_string_pretty(&KeyView::new(&record, now))? + "\n"
    } else {
        table::sheet(&record, now)
    };
    output::data(&text)?;
    Ok(0)
}

async fn revoke(store: &dyn Keys, id: &str) -> anyhow::Result<u8> {
    if store.revoke_key(id).await? {
        output::note(&format!("key {id} is revoked; running gateways refuse it within a second"));
        return Ok(0);
    }
    unknown(id)
}

fn unknown(id: &str) -> anyhow::Result<u8> {
    output::note(&format!("there is no key of {}: see `tidegate keys list`", said_id(id)));
    Ok(USAGE)
}

/// What is longer than an id may be a secret that was pasted without its beginning.
fn said_id(id: &str) -> String {
    if id.len() <= 12 { format!("the id `{id}`") } else { "that id".to_owned() }
}

/// The id in what was typed: an id, or (pasted by mistake) a whole key, of which nothing more
/// may be repeated.
fn id_in(typed: &str) -> &str {
    let typed = typed.trim();
    let rest = typed.strip_prefix(key::PREFIX).unwrap_or(typed);
    key::id_of(typed).unwrap_or_else(|| rest.split('-').next().unwrap_or_default())
}

fn unix(time: Timestamp) -> anyhow::Result<u64> {
    u64::try_from(time.as_second()).context("the clock is before 1970")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pasted_key_is_cut_to_its_id() {
        let (secret, record) = key::mint("a", 0).unwrap();
        assert_eq!(id_in(secret.expose()), &*record.id);
        assert_eq!(id_in(&format!("{}x", secret.expose())), &*record.id);
        assert_eq!(id_in(&record.id), &*record.id);
        assert_eq!(id_in(&format!("tg-{}", record.id)), &*record.id);
    }

    #[test]
    fn a_secret_pasted_without_its_beginning_was_repeated() {
        let (secret, record) = key::mint("a", 0).unwrap();
        let tail = secret.expose().rsplit('-').next().unwrap();
        assert_eq!(said_id(id_in(tail)), "that id");
        assert_eq!(said_id(&record.id), format!("the id `{}`", record.id));
    }
}
