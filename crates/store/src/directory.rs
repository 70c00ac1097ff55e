//! Who holds which key, for the hot path: one SHA-256, one lookup, no lock, no I/O.
//!
//! The map is in [`SHARDS`] parts, and the part of a key that changed is swapped: copying all of
//! 100,000 for each took longer than a revocation may. A cache of verified keys would save the hash
//! (under a microsecond) and would have to be bounded, expired and cleared on revocation: not
//! worth it.

use crate::key;
use arc_swap::ArcSwap;
use std::{
    collections::HashMap,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};
use tidegate_core::{Error, Former, KeyRecord, Kind, Origin, Result, Tenant};

/// Most keys a store keeps, revoked ones included: about 50 MiB of directory, and 16 bytes for each
/// model that a key names.
pub const MAX_KEYS: usize = 100_000;

/// Some 400 keys in each at the most there are: microseconds to copy.
const SHARDS: usize = 256;

/// Changed by one at a time: whoever calls [`Directory::replace`] or [`Directory::take_over`] sees
/// to it.
pub(crate) struct Directory([ArcSwap<Entries>; SHARDS]);

type Entries = HashMap<Arc<str>, Entry>;

#[derive(Clone)]
struct Entry {
    hash: [u8; 32],
    former: Option<Former>,
    tenant: Arc<Tenant>,
    expires_at: Option<u64>,
}

impl Default for Directory {
    fn default() -> Self {
        Self(std::array::from_fn(|_| ArcSwap::default()))
    }
}

impl Directory {
    /// The tenant that holds `key` now.
    pub(crate) fn identify(&self, key: &str) -> Option<Arc<Tenant>> {
        self.identify_at(key, unix_now())
    }

    fn identify_at(&self, key: &str, now_unix: u64) -> Option<Arc<Tenant>> {
        // The shape of a key is no secret: only what comes after this costs the same for all.
        let id = key::id_of(key)?;
        let hash = key::hash(key);
        let entries = self.0[shard_of(id)].load();
        let entry = entries.get(id);
        let nothing = [0; 32];
        let current = key::same(&hash, entry.map_or(&nothing, |entry| &entry.hash));
        let former = entry.and_then(|entry| entry.former);
        let is_former = key::same(&hash, former.as_ref().map_or(&nothing, |former| &former.hash));
        let still_good = former.is_some_and(|former| now_unix < former.until);
        let entry = entry.filter(|_| current || is_former && still_good)?;
        let valid = entry.expires_at.is_none_or(|expires_at| now_unix < expires_at);
        valid.then(|| entry.tenant.clone())
    }

    /// The tenant of the key `id` now.
    pub(crate) fn tenant(&self, id: &str) -> Option<Arc<Tenant>> {
        let entries = self.0[shard_of(id)].load();
        let entry = entries.get(id)?;
        let valid = entry.expires_at.is_none_or(|expires_at| unix_now() < expires_at);
        valid.then(|| entry.tenant.clone())
    }

    /// The Unix second at which the key `id` ends; `None` for never, and for one that is not here.
    pub(crate) fn expires_at(&self, id: &str) -> Option<u64> {
        self.0[shard_of(id)].load().get(id)?.expires_at
    }

    /// Knows `records` and no others from now on, but for those of `kept`, which stay as they are.
    pub(crate) fn replace(&self, records: &[KeyRecord], kept: &[Arc<str>]) {
        let mut shards: Vec<Entries> = (0..SHARDS).map(|_| Entries::new()).collect();
        for id in kept {
            if let Some(entry) = self.0[shard_of(id)].load().get(id) {
                shards[shard_of(id)].insert(id.clone(), entry.clone());
            }
        }
        for record in records {
            put(&mut shards[shard_of(&record.id)], record);
        }
        for (shard, entries) in self.0.iter().zip(shards) {
            shard.store(Arc::new(entries));
        }
    }

    /// Knows `records` as they are now; all others stay as they are.
    pub(crate) fn take_over(&self, records: &[KeyRecord]) {
        let mut by_shard: Vec<&KeyRecord> = records.iter().collect();
        by_shard.sort_by_key(|record| shard_of(&record.id));
        for group in by_shard.chunk_by(|one, next| shard_of(&one.id) == shard_of(&next.id)) {
            let shard = &self.0[shard_of(&group[0].id)];
            let mut entries = Entries::clone(&shard.load());
            for record in group {
                put(&mut entries, record);
            }
            shard.store(Arc::new(entries));
        }
    }
}

/// Ids are random, so any function of all of their characters spreads them.
fn shard_of(id: &str) -> usize {
    let mixed =
        id.bytes().fold(0_u32, |mixed, byte| mixed.wrapping_mul(31).wrapping_add(u32::from(byte)));
    mixed as usize % SHARDS
}

/// What is revoked is not kept.
fn put(entries: &mut Entries, record: &KeyRecord) {
    if record.revoked_at.is_some() {
        entries.remove(&record.id);
    } else {
        let (id, entry) = entry(record);
        entries.insert(id, entry);
    }
}

fn entry(record: &KeyRecord) -> (Arc<str>, Entry) {
    let tenant = Tenant {
        id: record.id.clone(),
        name: record.name.clone(),
        team: record.team.clone(),
        scope: record.scope.clone(),
        limits: record.limits,
        budgets: record.budgets,
    };
    let entry = Entry {
        hash: record.hash,
        former: record.former,
        tenant: Arc::new(tenant),
        expires_at: record.expires_at,
    };
    (record.id.clone(), entry)
}

/// Refuses one key too many.
///
/// # Errors
///
/// When `kept` is [`MAX_KEYS`] or more.
pub(crate) fn room_for_one_more(kept: usize) -> Result<()> {
    if kept < MAX_KEYS {
        return Ok(());
    }
    Err(Error::new(
        Kind::InvalidRequest,
        Origin::Caller,
        format!("there are {kept} keys already, and {MAX_KEYS} is the most that are kept"),
    ))
}

/// Refuses an id that is taken.
pub(crate) fn id_taken(id: &str) -> Error {
    Error::new(
        Kind::InvalidRequest,
        Origin::Caller,
        format!("there is a key of the id {id} already"),
    )
}

/// Unix seconds now; a clock before 1970 reads as 1970, where no key with an expiry is refused.
pub(crate) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tidegate_core::Secret;

    #[test]
    fn a_key_expires_at_its_second() {
        let (key, mut record) = key::mint("a", 100).unwrap();
        record.expires_at = Some(200);
        let directory = Directory::default();
        directory.take_over(std::slice::from_ref(&record));
        let at = |now| directory.identify_at(key.expose(), now).is_some();
        assert_eq!([at(100), at(199), at(200), at(201)], [true, true, false, false]);
    }

    #[test]
    fn a_rotated_key_is_good_until_its_second() {
        let (old, mut record) = key::mint("a", 100).unwrap();
        let new = key::rotate(&mut record, Duration::from_secs(60), 100).unwrap();
        assert_eq!(key::id_of(new.expose()), key::id_of(old.expose()), "one caller");
        let directory = Directory::default();
        directory.take_over(std::slice::from_ref(&record));
        let at = |key: &Secret<String>, now| directory.identify_at(key.expose(), now).is_some();
        assert_eq!([at(&old, 159), at(&old, 160)], [true, false]);
        assert_eq!([at(&new, 159), at(&new, 160)], [true, true]);

        let newest = key::rotate(&mut record, Duration::ZERO, 110).unwrap();
        directory.take_over(std::slice::from_ref(&record));
        let good = [&old, &new, &newest].map(|key| at(key, 120));
        assert_eq!(good, [false, false, true], "two secrets at most, and none without a grace");
    }

    #[test]
    fn who_holds_a_token_of_a_key_is_known_by_its_id_while_the_key_is_good() {
        let (_, mut record) = key::mint("a", 0).unwrap();
        let directory = Directory::default();
        let mut found = |change: fn(&mut KeyRecord)| {
            change(&mut record);
            directory.take_over(std::slice::from_ref(&record));
            directory.tenant(&record.id).is_some()
        };
        assert!(found(|_| ()));
        assert!(found(|record| record.expires_at = Some(unix_now() + 1000)));
        assert!(!found(|record| record.expires_at = Some(1)));
        assert!(!found(|record| (record.expires_at, record.revoked_at) = (None, Some(1))));
        assert!(directory.tenant("nobody").is_none());
    }

    #[test]
    fn the_id_alone_opens_nothing() {
        let (key, record) = key::mint("a", 0).unwrap();
        let (other, _) = key::mint("b", 0).unwrap();
        let directory = Directory::default();
        directory.take_over(std::slice::from_ref(&record));
        let forged = format!("tg-{}-{}", record.id, &other.expose()[16..]);
        assert!(key::id_of(&forged).is_some());
        assert_eq!(directory.identify_at(&forged, 0), None);
        assert_eq!(directory.identify_at(key.expose(), 0).unwrap().id, record.id);
    }

    #[test]
    fn the_number_of_keys_is_bounded() {
        assert!(room_for_one_more(MAX_KEYS - 1).is_ok());
        assert!(room_for_one_more(MAX_KEYS).is_err());
    }
}
