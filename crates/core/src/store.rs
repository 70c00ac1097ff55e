//! Shared state: who the callers are. Memory and SQLite today; other machines later.

use crate::{BoxFuture, Budgets, Limits, Result, Scope, Tenant};
use std::sync::Arc;

/// Keeps what outlives a process.
///
/// Reading on the hot path ([`Store::identify`]) never does I/O; everything else may.
pub trait Store: Send + Sync + 'static {
    /// The tenant that holds `key`, from memory, compared in constant time.
    ///
    /// `None` for a key that is malformed, unknown, revoked or expired: callers must not learn which.
    fn identify(&self, key: &str) -> Option<Arc<Tenant>>;

    /// Every key, revoked ones included, oldest first.
    fn keys(&self) -> BoxFuture<'_, Result<Vec<KeyRecord>>>;

    /// Adds a key.
    ///
    /// # Errors
    ///
    /// When its id is taken or the state cannot be written.
    fn add_key(&self, record: KeyRecord) -> BoxFuture<'_, Result<()>>;

    /// Revokes a key; `false` when there is none of that id.
    fn revoke_key<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<bool>>;

    /// Looks whether another process changed the state, and takes the change over.
    fn refresh(&self) -> BoxFuture<'_, Result<()>>;
}

/// A caller's key as it is kept: the secret itself is not.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyRecord {
    /// Public part, shown in lists and logs.
    pub id: Arc<str>,
    /// SHA-256 of the whole key.
    pub hash: [u8; 32],
    /// Name a person gave it.
    pub name: Arc<str>,
    /// Team it belongs to.
    pub team: Option<Arc<str>>,
    /// Models it may use.
    pub scope: Scope,
    /// Its own limits.
    pub limits: Option<Limits>,
    /// What it may spend.
    pub budgets: Budgets,
    /// Unix seconds.
    pub created_at: u64,
    /// Unix seconds; `None` never expires.
    pub expires_at: Option<u64>,
    /// Unix seconds; `None` while valid.
    pub revoked_at: Option<u64>,
}
