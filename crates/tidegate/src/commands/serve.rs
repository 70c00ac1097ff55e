//! `tidegate serve`: the gateway, from configuration to drained.

mod gateway;
mod opened;

use self::{gateway::Gateway, opened::Opened};
use crate::{
    config::{self, Environment, Loaded, Override, Sources},
    output, process_log, signals,
};
use anyhow::Context;
use std::path::PathBuf;

/// Exit code of a start that cannot succeed before something is changed.
const USAGE: u8 = 2;
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
    let opened = match Opened::open(&loaded.config).await {
        Ok(opened) => opened,
        Err(message) => return Ok(refused(&message)),
    };
    let gateway = match Gateway::assemble(&loaded, opened).await? {
        Ok(gateway) => gateway,
        Err(message) => return Ok(refused(&message)),
    };
    let stop =
        signals::drain_on_signal("draining: calls in flight are finished; once more aborts")?;
    gateway.greet(&loaded.config.server).await?;
    if let Some(path) = port_file {
        std::fs::write(&path, gateway.address.port().to_string())
            .with_context(|| format!("writing {}", path.display()))?;
    }
    gateway.serve(&loaded, stop).await?;
    Ok(0)
}

/// Says why the gateway does not start.
fn refused(message: &str) -> u8 {
    output::note(&format!("error: {message}"));
    USAGE
}
