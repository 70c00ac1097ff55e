//! What `tidegate serve` needs of the machine before anything else: its state and its ports.

use crate::config::{AdminListen, Config};
use std::{net::SocketAddr, path::Path, sync::Arc};
use tidegate_core::Replays;
use tidegate_store::{Sqlite, replay};
use tokio::net::TcpListener;

/// What a start needs of the machine.
pub(super) struct Opened {
    pub(super) store: Arc<Sqlite>,
    /// What answers are kept in for repeats.
    pub(super) replays: Option<Arc<dyn Replays>>,
    pub(super) callers: TcpListener,
    pub(super) admin: Option<TcpListener>,
}

impl Opened {
    /// Opens the state and both ports.
    ///
    /// # Errors
    ///
    /// Says what is in the way, and what to change.
    pub(super) async fn open(config: &Config) -> Result<Self, String> {
        let server = &config.server;
        let store = Sqlite::open(&server.data_dir)
            .map_err(|error| format!("{} (--data-dir, server.data_dir)", error.message()))?;
        let replays = replays(&config.idempotency, &server.data_dir).map_err(|error| {
            format!("{} (idempotency.enabled = false does without)", error.message())
        })?;
        let callers = bind(server.listen).await.map_err(|refused| {
            format!(
                "{refused}: choose another with --listen or server.listen; port 0 takes a free one"
            )
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
        Ok(Self { store: Arc::new(store), replays, callers, admin })
    }
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
