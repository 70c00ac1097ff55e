//! The gateway's ledger, from the start to its last entry.

use crate::{config::Loaded, output};
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};
use tidegate_core::Ledger;
use tidegate_engine::{Earlier, spent_before};
use tidegate_sdk::Client;
use tidegate_store::ledger::{Database, Recorder};

/// How long after a database did not answer it is asked again what was spent.
const AGAIN: Duration = Duration::from_secs(5);
/// How long the database may take to get what waits when all calls have ended.
const PATIENCE: Duration = Duration::from_secs(5);

/// The ledger, and what was spent of budgets before this start.
pub(crate) type Books = (Arc<Recorder>, Vec<Earlier>);

/// Opens the ledger, where there is to be one, and says what was spent before this start, and
/// whether that is known.
///
/// # Errors
///
/// Says what is in the way, and what to change.
pub(crate) async fn open(loaded: &Loaded) -> Result<(Option<Books>, bool), String> {
    let Some(database) = &loaded.ledger else { return Ok((None, true)) };
    let config = &loaded.config;
    let recorder = Recorder::open(&config.server.data_dir, database, config.ledger.retention)
        .map_err(|error| format!("{} (ledger.enabled = false does without)", error.message()))?;
    if matches!(database, Database::Postgres(_)) {
        output::note(&format!("ledger  {}", recorder.place()));
    }
    let spent = spent_earlier(&recorder, None).await;
    if let Err(error) = &spent {
        // A database that is away stops no gateway.
        output::note(&format!(
            "warning: {}; what was spent of budgets before counts as soon as it answers",
            error.message()
        ));
    }
    let is_known = spent.is_ok();
    Ok((Some((Arc::new(recorder), spent.unwrap_or_default())), is_known))
}

/// What was spent of budgets before, by what the ledger says; before `until`, where that is named.
async fn spent_earlier(
    recorder: &Recorder,
    until: Option<SystemTime>,
) -> tidegate_core::Result<Vec<Earlier>> {
    // What an earlier process left in the journal belongs to it.
    recorder.flush().await?;
    spent_before(recorder, SystemTime::now(), until).await
}

/// Asks a ledger that did not answer at the start again, until it does. What was sent since
/// `started` the gateway has counted itself. Never ends.
pub(crate) async fn catch_up(client: &Client, missing: Option<Arc<Recorder>>, started: SystemTime) {
    if let Some(recorder) = missing {
        let spent = loop {
            tokio::time::sleep(AGAIN).await;
            if let Ok(spent) = spent_earlier(&recorder, Some(started)).await {
                break spent;
            }
        };
        client.resume(spent);
        output::note("what was spent of budgets before is known now");
    }
    std::future::pending().await
}

/// Stores what is left, as far as the database takes it.
pub(crate) async fn finish(recorder: Arc<Recorder>) -> anyhow::Result<()> {
    let left = tokio::task::spawn_blocking(move || recorder.finish(PATIENCE)).await?;
    if left > 0 {
        output::note(&format!(
            "{left} entries of the ledger are in its journal: the next start stores them"
        ));
    }
    Ok(())
}
