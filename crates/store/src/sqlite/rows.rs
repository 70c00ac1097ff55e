//! Keys as rows: how a record is written and read.

use rusqlite::{Connection, OptionalExtension, Row, named_params, types::Type};
use std::{collections::HashSet, sync::Arc};
use tidegate_core::{Budgets, Former, KeyRecord, Limits, Money, Scope};

/// Adds `record`.
pub(super) fn insert(connection: &Connection, record: &KeyRecord) -> rusqlite::Result<()> {
    write(
        connection,
        record,
        "INSERT INTO keys (id, hash, former_hash, former_until, name, team, models, has_limits,
            requests_per_minute, tokens_per_minute, cost_per_minute, concurrency,
            budget_day, budget_month, budget_total, budget_hard,
            created_at, expires_at, revoked_at)
         VALUES (:id, :hash, :former_hash, :former_until, :name, :team, :models, :has_limits,
            :requests_per_minute, :tokens_per_minute, :cost_per_minute, :concurrency,
            :budget_day, :budget_month, :budget_total, :budget_hard,
            :created_at, :expires_at, :revoked_at)",
    )
}

/// Writes `record` over the one of its id.
pub(super) fn update(connection: &Connection, record: &KeyRecord) -> rusqlite::Result<()> {
    write(
        connection,
        record,
        "UPDATE keys SET hash = :hash, former_hash = :former_hash, former_until = :former_until,
            name = :name, team = :team, models = :models, has_limits = :has_limits,
            requests_per_minute = :requests_per_minute, tokens_per_minute = :tokens_per_minute,
            cost_per_minute = :cost_per_minute, concurrency = :concurrency,
            budget_day = :budget_day, budget_month = :budget_month, budget_total = :budget_total,
            budget_hard = :budget_hard, created_at = :created_at, expires_at = :expires_at,
            revoked_at = :revoked_at
         WHERE id = :id",
    )
}

fn write(connection: &Connection, record: &KeyRecord, sql: &str) -> rusqlite::Result<()> {
    let models = match &record.scope {
        Scope::All => None,
        Scope::Models(models) => Some(
            serde_json::to_string(&models.iter().map(|name| &**name).collect::<Vec<_>>())
                .expect("a list of strings is JSON"),
        ),
    };
    let limits = record.limits.unwrap_or_default();
    let budgets = record.budgets;
    let pico = |money: Option<Money>| money.map(Money::pico);
    connection.prepare_cached(sql)?.execute(named_params! {
        ":id": &*record.id,
        ":hash": record.hash,
        ":former_hash": record.former.map(|former| former.hash),
        ":former_until": record.former.map(|former| former.until),
        ":name": &*record.name,
        ":team": record.team.as_deref(),
        ":models": models,
        ":has_limits": record.limits.is_some(),
        ":requests_per_minute": limits.requests_per_minute,
        ":tokens_per_minute": limits.tokens_per_minute,
        ":cost_per_minute": pico(limits.cost_per_minute),
        ":concurrency": limits.concurrency,
        ":budget_day": pico(budgets.day),
        ":budget_month": pico(budgets.month),
        ":budget_total": pico(budgets.total),
        ":budget_hard": budgets.hard,
        ":created_at": record.created_at,
        ":expires_at": record.expires_at,
        ":revoked_at": record.revoked_at,
    })?;
    Ok(())
}

/// Keys as they were read.
#[derive(Default)]
pub(super) struct Read {
    /// Oldest first.
    pub(super) records: Vec<KeyRecord>,
    /// Ids of those that are there, but damaged.
    pub(super) unreadable: Vec<Arc<str>>,
    /// What is wrong with the first of these.
    pub(super) why: Option<String>,
}

/// The keys that changed after this version, oldest first.
pub(super) fn changed_since(connection: &Connection, version: i64) -> rusqlite::Result<Read> {
    let mut select = connection
        .prepare_cached("SELECT * FROM keys WHERE changed > ?1 ORDER BY created_at, rowid")?;
    let (mut rows, mut words) = (select.query([version])?, Words::default());
    let mut found = Read::default();
    while let Some(row) = rows.next()? {
        match read(row, &mut words) {
            Ok(record) => found.records.push(record),
            Err(cause) => {
                let id: Arc<str> = row.get("id")?;
                found.why.get_or_insert_with(|| format!("{id}: {cause}"));
                found.unreadable.push(id);
            }
        }
    }
    Ok(found)
}

/// Whether there is a key.
pub(super) fn is_there_any(connection: &Connection) -> rusqlite::Result<bool> {
    connection.query_row("SELECT EXISTS (SELECT 1 FROM keys)", [], |row| row.get(0))
}

/// The key of this id.
pub(super) fn one(connection: &Connection, id: &str) -> rusqlite::Result<Option<KeyRecord>> {
    let mut select = connection.prepare_cached("SELECT * FROM keys WHERE id = ?1")?;
    select.query_row([id], |row| read(row, &mut Words::default())).optional()
}

/// Words that were read before: keys name the same teams and models, and each is kept once.
#[derive(Default)]
struct Words(HashSet<Arc<str>>);

impl Words {
    fn share(&mut self, word: String) -> Arc<str> {
        if let Some(known) = self.0.get(&*word) {
            return known.clone();
        }
        let word: Arc<str> = word.into();
        self.0.insert(word.clone());
        word
    }
}

fn read(row: &Row<'_>, words: &mut Words) -> rusqlite::Result<KeyRecord> {
    let money =
        |column| Ok::<_, rusqlite::Error>(row.get::<_, Option<u64>>(column)?.map(Money::from_pico));
    let limits = Limits {
        requests_per_minute: row.get("requests_per_minute")?,
        tokens_per_minute: row.get("tokens_per_minute")?,
        cost_per_minute: money("cost_per_minute")?,
        concurrency: row.get("concurrency")?,
    };
    let budgets = Budgets {
        day: money("budget_day")?,
        month: money("budget_month")?,
        total: money("budget_total")?,
        hard: row.get("budget_hard")?,
    };
    let former: (Option<[u8; 32]>, Option<u64>) =
        (row.get("former_hash")?, row.get("former_until")?);
    Ok(KeyRecord {
        id: row.get("id")?,
        hash: row.get("hash")?,
        former: former.0.zip(former.1).map(|(hash, until)| Former { hash, until }),
        name: row.get("name")?,
        team: row.get::<_, Option<String>>("team")?.map(|team| words.share(team)),
        scope: match row.get::<_, Option<String>>("models")? {
            None => Scope::All,
            Some(models) => Scope::Models(read_models(&models, words)?),
        },
        limits: row.get::<_, bool>("has_limits")?.then_some(limits),
        budgets,
        created_at: row.get("created_at")?,
        expires_at: row.get("expires_at")?,
        revoked_at: row.get("revoked_at")?,
    })
}

fn read_models(text: &str, words: &mut Words) -> rusqlite::Result<Vec<Arc<str>>> {
    let models: Vec<String> = serde_json::from_str(text)
        .map_err(|cause| rusqlite::Error::FromSqlConversionFailure(0, Type::Text, cause.into()))?;
    Ok(models.into_iter().map(|model| words.share(model)).collect())
}
