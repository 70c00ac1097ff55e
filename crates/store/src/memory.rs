//! A store that forgets at the end of the process: the SDK, tests, and a gateway told to keep
//! nothing.

use crate::{
    directory::{self, Directory},
    key,
};
use futures_util::future;
use parking_lot::Mutex;
use std::{sync::Arc, time::Duration};
use tidegate_core::{BoxFuture, KeyChange, KeyRecord, Keys, Minted, Result, Store, Tenant};

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
        self.directory.take_over(std::slice::from_ref(&record));
        records.push(record);
        Ok(())
    }

    /// Changes the key of this id, all or nothing.
    fn change<T>(
        &self,
        id: &str,
        change: impl FnOnce(&mut KeyRecord) -> Result<T>,
    ) -> Result<Option<(T, KeyRecord)>> {
        let mut records = self.records.lock();
        let Some(record) = records.iter_mut().find(|record| &*record.id == id) else {
            return Ok(None);
        };
        let mut changed = record.clone();
        let done = change(&mut changed)?;
        self.directory.take_over(std::slice::from_ref(&changed));
        *record = changed.clone();
        Ok(Some((done, changed)))
    }

    fn create(&self, change: KeyChange) -> Result<Minted> {
        let (secret, record) = key::create(change, directory::unix_now())?;
        self.add(record.clone())?;
        Ok((secret, record))
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

    fn tenant(&self, id: &str) -> Option<Arc<Tenant>> {
        self.directory.tenant(id)
    }

    fn expires_at(&self, id: &str) -> Option<u64> {
        self.directory.expires_at(id)
    }

    fn keys(&self) -> BoxFuture<'_, Result<Vec<KeyRecord>>> {
        Box::pin(future::ready(Ok(self.oldest_first())))
    }

    fn add_key(&self, record: KeyRecord) -> BoxFuture<'_, Result<()>> {
        Box::pin(future::ready(self.add(record)))
    }

    fn revoke_key<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<bool>> {
        let revoked = self.change(id, |record| {
            record.revoked_at.get_or_insert_with(directory::unix_now);
            Ok(())
        });
        Box::pin(future::ready(revoked.map(|changed| changed.is_some())))
    }

    fn refresh(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(future::ready(Ok(())))
    }
}

impl Keys for Memory {
    fn key<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<KeyRecord>>> {
        let records = self.records.lock();
        let found = records.iter().find(|record| &*record.id == id).cloned();
        Box::pin(future::ready(Ok(found)))
    }

    fn create_key(&self, change: KeyChange) -> BoxFuture<'_, Result<Minted>> {
        Box::pin(future::ready(self.create(change)))
    }

    fn update_key<'a>(
        &'a self,
        id: &'a str,
        change: KeyChange,
    ) -> BoxFuture<'a, Result<Option<KeyRecord>>> {
        let now = directory::unix_now();
        let changed = self.change(id, |record| key::update(record, change, now));
        Box::pin(future::ready(changed.map(|changed| changed.map(|((), record)| record))))
    }

    fn rotate_key<'a>(
        &'a self,
        id: &'a str,
        grace: Duration,
    ) -> BoxFuture<'a, Result<Option<Minted>>> {
        let now = directory::unix_now();
        Box::pin(future::ready(self.change(id, |record| key::rotate(record, grace, now))))
    }
}
