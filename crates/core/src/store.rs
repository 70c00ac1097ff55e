//! Shared state: who the callers are.

use crate::{BoxFuture, KeyRecord, Result, Tenant};
use std::sync::Arc;

/// Keeps what outlives a process.
///
/// Reading on the hot path ([`Store::identify`]) never does I/O; everything else may.
pub trait Store: Send + Sync + 'static {
    /// The tenant that holds `key`, from memory, compared in constant time.
    ///
    /// `None` for a key that is malformed, unknown, revoked or expired: callers must not learn which.
    fn identify(&self, key: &str) -> Option<Arc<Tenant>>;

    /// The tenant of the key `id`, from memory; `None` when it is unknown, revoked or expired.
    ///
    /// Proves nothing: for those who hold something that was given out for this key.
    fn tenant(&self, id: &str) -> Option<Arc<Tenant>>;

    /// The Unix second at which the key `id` ends, from memory; `None` when it never does, or is not
    /// known.
    fn expires_at(&self, id: &str) -> Option<u64>;

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
