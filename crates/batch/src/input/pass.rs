//! The pass over all rows, before the first call: hashes, bad lines, ids used twice, working order.

use super::{BAD, GroupBy, Input, InputOptions, used_before};
use crate::order::{self, Rank};
use std::{
    collections::{HashMap, hash_map::Entry},
    hash::{BuildHasher, RandomState},
    sync::Arc,
};

impl Input {
    /// Looks at every row once.
    pub(super) fn check_rows(&mut self, options: &InputOptions) {
        let rows = self.rows();
        let mut hashes = Vec::with_capacity(rows as usize);
        let ranked = options.group_by.is_some() || options.priority_column.is_some();
        let mut ranks = Vec::with_capacity(if ranked { rows as usize } else { 0 });
        let mut ids = Ids::default();
        for position in 0..rows {
            let index = self.index_of(position);
            let checked = self.prepare(index, |line, prepared| {
                let rank = Rank {
                    priority: prepared.priority,
                    group: match options.group_by {
                        Some(GroupBy::Tokens) => order::size_key(prepared.counted_bytes()),
                        Some(GroupBy::Prefix) => prepared.prefix_key,
                        None => 0,
                    },
                };
                self.check(line, &prepared)?;
                let id = prepared.custom_id.as_deref();
                let first = id.and_then(|id| ids.first(id, index));
                let used = first.zip(id.map(Arc::<str>::from));
                Ok((prepared.hash().0, rank, used))
            });
            // Outside of the read: the other row is looked at only now.
            let checked = checked.and_then(|(hash, rank, used)| match used {
                Some((first, id)) if self.has_id(first, &id) => {
                    Err(used_before(id, &format!("line {}", self.source.line(first))))
                }
                _ => Ok((hash, rank)),
            });
            let (hash, rank) = checked.unwrap_or_else(|fault| {
                self.bad.total += 1;
                if self.bad.shown.len() < options.max_bad_shown {
                    let bad = self.bad_line(index, fault);
                    self.bad.shown.push(bad);
                }
                (BAD, Rank { priority: 0.0, group: 0 })
            });
            hashes.push(hash);
            if ranked {
                ranks.push(rank);
            }
        }
        drop(ids);
        self.duplicates = duplicates(&hashes);
        self.hashes = hashes;
        self.order = ranked.then(|| order::sorted(&ranks));
    }

    fn has_id(&self, index: u64, id: &str) -> bool {
        self.prepare(index, |_, row| Ok(row.custom_id.as_deref() == Some(id))).unwrap_or(false)
    }
}

/// The ids met in the pass, by hash: eight bytes each, and the row that had it first.
#[derive(Default)]
struct Ids {
    hasher: RandomState,
    rows: HashMap<u64, u64>,
}

impl Ids {
    /// The earlier row that (most likely) has `id` too; else `index` is now its row.
    fn first(&mut self, id: &str, index: u64) -> Option<u64> {
        match self.rows.entry(self.hasher.hash_one(id)) {
            Entry::Occupied(row) => Some(*row.get()),
            Entry::Vacant(free) => {
                free.insert(index);
                None
            }
        }
    }
}

fn duplicates(hashes: &[[u8; 16]]) -> u64 {
    let mut sorted: Vec<_> = hashes.iter().filter(|hash| **hash != BAD).collect();
    sorted.sort_unstable();
    sorted.windows(2).filter(|pair| pair[0] == pair[1]).count() as u64
}
