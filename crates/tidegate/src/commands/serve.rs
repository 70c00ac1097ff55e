//! `tidegate serve`: the gateway, from configuration to drained.

use crate::{
    access_log::AccessLog,
    assembly, books,
    config::{self, AdminListen, Environment, Loaded, Override, Sources},
    output, process_log,
    rotation::Rotation,
    signals,
};
use anyhow::Context;
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};
use tidegate_core::{Answer, KeyChange, Keys, Replays, Secret, Store};
use tidegate_http::Admin;
use tidegate_store::{Sqlite, replay};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

/// Exit code of a start that cannot succeed before something is changed.
const USAGE: u8 = 2;
/// How often the state is looked at for keys another process made or revoked.
const REFRESH: Duration = Duration::from_millis(500);
/// How often kept answers that have expired are deleted.
const SWEEP: Duration = Duration::from_secs(60);
/// How long the access log may take to write what waits when all calls have ended.
const LOG_PATIENCE: Duration = Duration::from_secs(2);

/// Serves OpenAI's API and passes calls on to the configured upstreams
///
/// With no configuration at all it serves the built-in simulated model `sim-small`. The first
/// start makes a key and prints it, this once. A second port, on this machine only, tells operators
/// what the upstreams are doing. SIGTERM or Ctrl-C drains: calls in flight are
/// answered, new ones are refused; a second signal aborts.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  tidegate serve
  tidegate serve --config tidegate.toml --profile prod
  tidegate serve --listen 127.0.0.1:0 --admin-listen off
  TIDEGATE__SERVER__LISTEN=0.0.0.0:8080 tidegate serve")]
pub(crate) struct Args {
    #[command(flatten)]
    sources: Sources,
    /// Address and port for callers; port 0 takes a free one [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Address and port for operators, or off [default: 127.0.0.1:8081]
    #[arg(long, value_name = "ADDRESS")]
    admin_listen: Option<String>,
    /// Directory of the state [default: .tidegate]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// Where one line per call or refused request goes: stderr, off, or a path [default: stderr]
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
    process_log::start(loaded.config.log.level)?;
    runtime()?.block_on(serve(loaded, port_file))
}

/// One thread per processor; on a single one, this thread alone: handing work from thread to
/// thread gains nothing there.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    let one = std::thread::available_parallelism().is_ok_and(|count| count.get() == 1);
    let mut builder = if one {
        tokio::runtime::Builder::new_current_thread()
    } else {
        tokio::runtime::Builder::new_multi_thread()
    };
    builder.enable_all().build()
}

/// Lays the flags over the configuration.
fn sources(args: Args) -> Sources {
    let flags = [
        ("--listen", &["server", "listen"][..], args.listen),
        ("--admin-listen", &["server", "admin_listen"], args.admin_listen),
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
    let Opened { store, replays, callers, admin } = match open(&loaded.config).await {
        Ok(opened) => opened,
        Err(message) => {
            output::note(&format!("error: {message}"));
            return Ok(USAGE);
        }
    };
    let started = SystemTime::now();
    let (books, is_known) = match books::open(&loaded).await {
        Ok(books) => books,
        Err(message) => {
            output::note(&format!("error: {message}"));
            return Ok(USAGE);
        }
    };
    let ledger = books.as_ref().map(|(ledger, _)| ledger.clone());
    let missing = ledger.clone().filter(|_| !is_known);
    let access_log =
        AccessLog::start(&loaded.config.log.access).context("opening the access log")?;
    let records = access_log.as_ref().map(AccessLog::records);
    let refusals = access_log.as_ref().map(AccessLog::refusals);
    let address = callers.local_addr()?;
    let tokens = match assembly::tokens(&loaded, address, store.clone()) {
        Ok(tokens) => Arc::new(tokens),
        Err(error) => {
            output::note(&format!("error: {}", error.message()));
            return Ok(USAGE);
        }
    };
    let client = assembly::for_serve(&loaded, store.clone(), tokens.clone(), records, books)?;

    let admin_address = admin.as_ref().map(TcpListener::local_addr).transpose()?;
    let stop =
        signals::drain_on_signal("draining: calls in flight are finished; once more aborts")?;
    let key = first_key(&store).await?;
    greet((address, admin_address), &*client.answer(), key.as_ref(), server);
    if let Some(path) = port_file {
        std::fs::write(&path, address.port().to_string())
            .with_context(|| format!("writing {}", path.display()))?;
    }

    let options = loaded.config.http_options();
    let idempotency = replays.clone().map(|replays| {
        tidegate_http::Idempotency::new(replays, loaded.config.idempotency.max_answer)
    });
    let kept = tidegate_http::Callers { refusals, idempotency };
    let serving = tidegate_http::serve(callers, client.answer(), options, kept, stop.clone());
    let (admin_token, token) = loaded.admin_token.clone().map(watch::channel).unzip();
    let rotation = Rotation::new(&loaded, &client, admin_token);
    let operators = Admin {
        answer: client.answer(),
        keys: Some(store.clone()),
        ledger: ledger.clone().map(|ledger| ledger as _),
        token,
    };
    let admin = serve_admin(admin, operators, stop);
    let refreshing = async { tokio::join!(refresh(store.clone()), tokens.maintain()) };
    let (drained, ()) = tokio::select! {
        drained = async { tokio::try_join!(serving, admin) } => drained?,
        _ = refreshing => unreachable!("refreshing never ends"),
        () = rotation.follow() => unreachable!("nor does following secrets"),
        () = sweep(replays) => unreachable!("nor does sweeping"),
        () = books::catch_up(&client, missing, started) => unreachable!("nor does catching up"),
    };
    if drained.cut > 0 {
        output::note(&format!("{} connections were cut: they took too long to drain", drained.cut));
    }
    drop(client);
    if let Some(ledger) = ledger {
        books::finish(ledger).await?;
    }
    if let Some(log) = access_log {
        tokio::task::spawn_blocking(move || log.finish(LOG_PATIENCE)).await?;
    }
    Ok(0)
}

/// What a start needs of the machine.
struct Opened {
    store: Arc<Sqlite>,
    replays: Option<Arc<dyn Replays>>,
    callers: TcpListener,
    admin: Option<TcpListener>,
}

/// Opens the state and both ports.
///
/// # Errors
///
/// Says what is in the way, and what to change.
async fn open(config: &config::Config) -> Result<Opened, String> {
    let server = &config.server;
    let store = Sqlite::open(&server.data_dir)
        .map_err(|error| format!("{} (--data-dir, server.data_dir)", error.message()))?;
    let replays = replays(&config.idempotency, &server.data_dir).map_err(|error| {
        format!("{} (idempotency.enabled = false does without)", error.message())
    })?;
    let callers = bind(server.listen).await.map_err(|refused| {
        format!("{refused}: choose another with --listen or server.listen; port 0 takes a free one")
    })?;
    let admin = match server.admin_listen {
        AdminListen::Off => None,
        AdminListen::At(address) => Some(bind(address).await.map_err(|refused| {
            format!(
                "{refused} for operators: choose another with --admin-listen or \
                 server.admin_listen; port 0 takes a free one, `off` none"
            )
        })?),
    };
    Ok(Opened { store: Arc::new(store), replays, callers, admin })
}

/// What answers are kept in for repeats, if any is.
fn replays(
    options: &tidegate_http::IdempotencyOptions,
    data_dir: &Path,
) -> tidegate_core::Result<Option<Arc<dyn Replays>>> {
    if !options.enabled {
        return Ok(None);
    }
    let bounds = replay::Options {
        ttl: options.ttl,
        max_bytes: options.max_bytes as u64,
        max_keys: options.max_keys,
    };
    let opened: Arc<dyn Replays> = Arc::new(replay::Sqlite::open(data_dir, bounds)?);
    Ok(Some(opened))
}

async fn bind(address: SocketAddr) -> Result<TcpListener, String> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|cause| format!("cannot listen on {address} ({cause})"))
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

fn greet(
    (address, admin): (SocketAddr, Option<SocketAddr>),
    answer: &dyn Answer,
    key: Option<&Secret<String>>,
    server: &config::Server,
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
