//! `tidegate serve`: the gateway, from configuration to drained.

use crate::{
    access_log::AccessLog,
    assembly,
    config::{self, Environment, Loaded, Override, Sources},
    output, process_log, signals,
};
use anyhow::Context;
use std::{path::PathBuf, sync::Arc, time::Duration};
use tidegate_core::{Answer, Secret, Store};
use tidegate_store::{Sqlite, key};
use tokio::net::TcpListener;

/// How often the state is looked at for keys another process made or revoked.
const REFRESH: Duration = Duration::from_millis(500);
/// How long the access log may take to write what waits when all calls have ended.
const LOG_PATIENCE: Duration = Duration::from_secs(2);

/// Serves OpenAI's API and passes calls on to the configured upstreams
///
/// With no configuration at all it serves the built-in simulated model `sim-small`. The first
/// start makes a key and prints it, this once. SIGTERM or Ctrl-C drains: calls in flight are
/// answered, new ones are refused; a second signal aborts.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  tidegate serve
  tidegate serve --config tidegate.toml --profile prod
  TIDEGATE__SERVER__LISTEN=0.0.0.0:8080 tidegate serve")]
pub(crate) struct Args {
    #[command(flatten)]
    sources: Sources,
    /// Address and port for callers; port 0 takes a free one [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Directory of the state [default: .tidegate]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// Where one line per call goes: stderr, off, or a path [default: stderr]
    #[arg(long, value_name = "WHERE")]
    access_log: Option<String>,
    /// Writes the port that is served to this file, once it is
    #[arg(long, value_name = "FILE")]
    port_file: Option<PathBuf>,
}

pub(crate) fn run(args: Args) -> anyhow::Result<u8> {
    let port_file = args.port_file.clone();
    let loaded = match config::load(&sources(args), &Environment::current()) {
        Ok(loaded) => loaded,
        Err(problems) => return Ok(problems.report()),
    };
    for warning in &loaded.warnings {
        output::note(&format!("warning: {warning}"));
    }
    process_log::start()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(serve(loaded, port_file))
}

/// Lays the flags over the configuration.
fn sources(args: Args) -> Sources {
    let flags = [
        ("--listen", &["server", "listen"][..], args.listen),
        ("--data-dir", &["server", "data_dir"], args.data_dir),
        ("--access-log", &["log", "access"], args.access_log),
    ];
    let mut sources = args.sources;
    let said = flags
        .into_iter()
        .filter_map(|(flag, key, value)| Some(Override { flag, key, value: value? }));
    sources.overrides.extend(said);
    sources
}

async fn serve(loaded: Loaded, port_file: Option<PathBuf>) -> anyhow::Result<u8> {
    let server = &loaded.config.server;
    let store = Arc::new(Sqlite::open(&server.data_dir)?);
    let prices = loaded.config.models.iter();
    let prices = prices.filter_map(|(name, model)| Some((name.clone(), model.price?))).collect();
    let access_log =
        AccessLog::start(&loaded.config.log.access, prices).context("opening the access log")?;
    let records = access_log.as_ref().map(AccessLog::records);
    let client = assembly::for_serve(&loaded, store.clone(), records)?;

    let listener = TcpListener::bind(server.listen)
        .await
        .with_context(|| format!("listening on {}: choose another with --listen", server.listen))?;
    let address = listener.local_addr()?;
    let stop =
        signals::drain_on_signal("draining: calls in flight are finished; once more aborts")?;
    let scheme = if server.tls.is_some() { "https" } else { "http" };
    let key = first_key(&*store).await?;
    greet(&format!("{scheme}://{address}"), &*client.answer(), key.as_ref(), server);
    if let Some(path) = port_file {
        std::fs::write(&path, address.port().to_string())
            .with_context(|| format!("writing {}", path.display()))?;
    }

    let refreshing = refresh(store.clone());
    let drained = tokio::select! {
        drained = tidegate_http::serve(listener, client.answer(), loaded.config.http_options(), stop) => drained?,
        () = refreshing => unreachable!("refreshing never ends"),
    };
    if drained.cut > 0 {
        output::note(&format!("{} connections were cut: they took too long to drain", drained.cut));
    }
    drop(client);
    if let Some(log) = access_log {
        tokio::task::spawn_blocking(move || log.finish(LOG_PATIENCE)).await?;
    }
    Ok(0)
}

/// The first key of a state that holds none; it is shown this once.
async fn first_key(store: &dyn Store) -> anyhow::Result<Option<Secret<String>>> {
    if !store.keys().await?.is_empty() {
        return Ok(None);
    }
    let now = jiff::Timestamp::now().as_second();
    let (secret, record) = key::mint("first", u64::try_from(now)?)?;
    store.add_key(record).await?;
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

fn greet(url: &str, answer: &dyn Answer, key: Option<&Secret<String>>, server: &config::Server) {
    let models = answer.models(&tidegate_core::Tenant::local());
    let names: Vec<&str> = models.iter().map(|model| &*model.id).collect();
    output::note(&format!("API     {url}/v1\nready   {url}/readyz\nmodels  {}", names.join(", ")));
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
