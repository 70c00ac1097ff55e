//! A gateway that is put together: it greets, serves until it is told to stop, and closes.

use super::Opened;
use crate::{
    access_log::AccessLog,
    assembly, books,
    config::{Loaded, Server},
    output,
    rotation::Rotation,
};
use anyhow::Context;
use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tidegate_auth::Authority;
use tidegate_core::{Answer, KeyChange, Keys, Replays, Secret, Store};
use tidegate_http::{Admin, Callers, Idempotency};
use tidegate_sdk::Client;
use tidegate_store::{Sqlite, ledger::Recorder};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

/// How often the state is looked at for keys another process made or revoked.
const REFRESH: Duration = Duration::from_millis(500);
/// How often kept answers that have expired are deleted.
const SWEEP: Duration = Duration::from_secs(60);
/// How long the access log may take to write what waits when all calls have ended.
const LOG_PATIENCE: Duration = Duration::from_secs(2);

/// Everything there is before the first call.
pub(super) struct Gateway {
    opened: Opened,
    /// Where callers find it.
    pub(super) address: SocketAddr,
    started: SystemTime,
    ledger: Option<Arc<Recorder>>,
    /// The ledger, where its database did not say what was spent before this start.
    missing: Option<Arc<Recorder>>,
    access_log: Option<AccessLog>,
    tokens: Arc<Authority>,
    client: Client,
}

impl Gateway {
    /// Puts it together on what is open.
    ///
    /// # Errors
    ///
    /// The inner one says what is in the way, and what to change.
    pub(super) async fn assemble(
        loaded: &Loaded,
        opened: Opened,
    ) -> anyhow::Result<Result<Self, String>> {
        let started = SystemTime::now();
        let (books, is_known) = match books::open(loaded).await {
            Ok(books) => books,
            Err(message) => return Ok(Err(message)),
        };
        let ledger = books.as_ref().map(|(ledger, _)| ledger.clone());
        let missing = ledger.clone().filter(|_| !is_known);
        let access_log =
            AccessLog::start(&loaded.config.log.access).context("opening the access log")?;
        let records = access_log.as_ref().map(AccessLog::records);
        let (address, store) = (opened.callers.local_addr()?, opened.store.clone());
        let tokens = match assembly::tokens(loaded, address, store.clone()) {
            Ok(tokens) => Arc::new(tokens),
            Err(error) => return Ok(Err(error.message().to_owned())),
        };
        let client = assembly::for_serve(loaded, store, tokens.clone(), records, books)?;
        Ok(Ok(Self { opened, address, started, ledger, missing, access_log, tokens, client }))
    }

    /// Says where it is. Makes the first key of a state that holds none.
    pub(super) async fn greet(&self, server: &Server) -> anyhow::Result<()> {
        let admin = self.opened.admin.as_ref().map(TcpListener::local_addr).transpose()?;
        let key = first_key(&self.opened.store).await?;
        greet((self.address, admin), &*self.client.answer(), key.as_ref(), server);
        Ok(())
    }

    /// Answers callers and operators until `stop`, and what is in flight then; closes.
    pub(super) async fn serve(
        self,
        loaded: &Loaded,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        let Self { opened, started, ledger, missing, access_log, tokens, client, .. } = self;
        let Opened { store, replays, callers, admin } = opened;
        let max_answer = loaded.config.idempotency.max_answer;
        let kept = Callers {
            refusals: access_log.as_ref().map(AccessLog::refusals),
            idempotency: replays.clone().map(|replays| Idempotency::new(replays, max_answer)),
        };
        let options = loaded.config.http_options();
        let serving = tidegate_http::serve(callers, client.answer(), options, kept, stop.clone());

        let (admin_token, token) = loaded.admin_token.clone().map(watch::channel).unzip();
        let rotation = Rotation::new(loaded, &client, admin_token);
        let operators = Admin {
            answer: client.answer(),
            keys: Some(store.clone()),
            ledger: ledger.clone().map(|ledger| ledger as _),
            token,
        };
        let admin = serve_admin(admin, operators, stop);

        let (drained, ()) = tokio::select! {
            drained = async { tokio::try_join!(serving, admin) } => drained?,
            () = refresh(store) => unreachable!("refreshing never ends"),
            () = tokens.maintain() => unreachable!("nor does turning signing keys"),
            () = rotation.follow() => unreachable!("nor does following secrets"),
            () = sweep(replays) => unreachable!("nor does sweeping"),
            () = books::catch_up(&client, missing, started) => unreachable!("nor does catching up"),
        };
        if drained.cut > 0 {
            let cut = drained.cut;
            output::note(&format!("{cut} connections were cut: they took too long to drain"));
        }
        drop(client);
        close(ledger, access_log).await
    }
}

/// Stores what is still to be stored, and writes the last lines of the access log.
async fn close(ledger: Option<Arc<Recorder>>, access_log: Option<AccessLog>) -> anyhow::Result<()> {
    if let Some(ledger) = ledger {
        books::finish(ledger).await?;
    }
    if let Some(log) = access_log {
        tokio::task::spawn_blocking(move || log.finish(LOG_PATIENCE)).await?;
    }
    Ok(())
}

/// Answers operators until `stop`, where there is a port for them.
async fn serve_admin(
    listener: Option<TcpListener>,
    admin: Admin,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let Some(listener) = listener else { return Ok(()) };
    tidegate_http::serve_admin(listener, admin, stop).await.map(drop)
}

/// The first key of a state that holds none; it is shown this once.
async fn first_key(store: &Sqlite) -> anyhow::Result<Option<Secret<String>>> {
    if !store.is_empty().await? {
        return Ok(None);
    }
    let first = KeyChange { name: Some("first".into()), ..KeyChange::default() };
    let (secret, _) = store.create_key(first).await?;
    Ok(Some(secret))
}

/// Takes over keys made or revoked by other processes, for as long as it is polled.
async fn refresh(store: Arc<Sqlite>) {
    let mut failing = false;
    loop {
        tokio::time::sleep(REFRESH).await;
        let refreshed = store.refresh().await;
        match (&refreshed, failing) {
            (Err(error), false) => output::note(&format!(
                "warning: the state cannot be read ({error}); the keys known so far stay valid"
            )),
            (Ok(()), true) => output::note("the state can be read again"),
            _ => {}
        }
        failing = refreshed.is_err();
    }
}

/// Deletes kept answers that have expired, for as long as it is polled.
async fn sweep(replays: Option<Arc<dyn Replays>>) {
    let Some(replays) = replays else { return std::future::pending().await };
    loop {
        tokio::time::sleep(SWEEP).await;
        if let Err(error) = replays.sweep().await {
            tracing::warn!(%error, "expired answers stay for now");
        }
    }
}

/// Says where the gateway is, and what to do first.
fn greet(
    (address, admin): (SocketAddr, Option<SocketAddr>),
    answer: &dyn Answer,
    key: Option<&Secret<String>>,
    server: &Server,
) {
    let scheme = if server.tls.is_some() { "https" } else { "http" };
    let url = format!("{scheme}://{address}");
    let models = answer.models(&tidegate_core::Tenant::local());
    let names: Vec<&str> = models.iter().map(|model| &*model.id).collect();
    output::note(&format!("API     {url}/v1\nready   {url}/readyz\nmodels  {}", names.join(", ")));
    if let Some(admin) = admin {
        output::note(&format!("admin   http://{admin}/admin/upstreams"));
    }
    match key {
        Some(key) => output::note(&format!(
            "key     {}\n        (shown this once; `tidegate keys create` makes another)\n\n  \
             curl {url}/v1/chat/completions -H 'authorization: Bearer {}' \\\n    \
             -H 'content-type: application/json' \\\n    \
             -d '{{\"model\":\"{}\",\"messages\":[{{\"role\":\"user\",\"content\":\"hello\"}}]}}'\n",
            key.expose(),
            key.expose(),
            names.first().unwrap_or(&"MODEL"),
        )),
        None => output::note(&format!(
            "keys    there are some in {} already; `tidegate keys create` makes another",
            server.data_dir.display()
        )),
    }
}
