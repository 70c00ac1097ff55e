//! A store that forgets at the end of the process: the SDK, tests, and a gateway told to keep
//! nothing.

use crate::directory::{self, Directory};
use futures_util::future;
use parking_lot::Mutex;
use std::sync::Arc;
use tidegate_core::{BoxFuture, KeyRecord, Result, Store, Tenant};

/// Keys in memory, at most [`crate::MAX_KEYS`].
#[derive(Default)]
pub struct Memory {
    records: Mutex<Vec<KeyRecord>>,
    directory: Directory,
}

impl Memory {
    /// A store with no key.
    pub fn new() -> Self {
        Self::default()
    }

    fn add(&self, record: KeyRecord) -> Result<()> {
        let mut records = self.records.lock();
        directory::room_for_one_more(records.len())?;
        if records.iter().any(|other| other.id == record.id) {
            return Err(directory::id_taken(&record.id));
        }
        records.push(record);
        self.directory.replace(records.iter());
        Ok(())
    }

    fn revoke(&self, id: &str) -> bool {
        let mut records = self.records.lock();
        let Some(record) = records.iter_mut().find(|record| &*record.id == id) else {
            return false;
        };
        record.revoked_at.get_or_insert_with(directory::unix_now);
        self.directory.replace(records.iter());
        true
    }

    fn oldest_first(&self) -> Vec<KeyRecord> {
        let mut records = self.records.lock().clone();
        records.sort_by_key(|record| record.created_at);
        records
    }
}

impl Store for Memory {
    fn identify(&self, key: &str) -> Option<Arc<Tenant>> {
        self.directory.identify(key)
    }

    fn keys(&self) -> BoxFuture<'_, Result<Vec<KeyRecord>>> {
        Box::pin(future::ready(Ok(self.oldest_first())))
    }

    fn add_key(&self, record: KeyRecord) -> BoxFuture<'_, Result<()>> {
        Box::pin(future::ready(self.add(record)))
    }

    fn revoke_key<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<bool>> {
        Box::pin(future::ready(Ok(self.revoke(id))))
    }

    fn refresh(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(future::ready(Ok(())))
    }
}
