//! Equal rows: called once, answered many times.
//!
//! Only rows whose request occurs twice are kept here, so a file without duplicates costs
//! nothing. Whether an answer may be shared is known when the first of a group is read: its
//! temperature is 0, or the user said `--dedup`.

use crate::request::RequestHash;

/// Groups of equal rows.
#[derive(Default)]
pub(super) struct Equals {
    /// (row, group), ascending.
    group_of: Vec<(u32, u32)>,
    groups: Vec<Group>,
    /// Rows of all groups, group by group, in working order.
    members: Vec<u32>,
}

struct Group {
    first: u32,
    end: u32,
    state: Turn,
}

/// What has become of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Nothing: its next row is called.
    Open,
    /// One of its rows is in flight: the others wait.
    Called,
    /// Its answer is known: the others get it.
    Answered,
    /// Its answers may differ: every row is called itself.
    Apart,
}

impl Equals {
    /// Finds the groups among `rows`, given in working order.
    pub(super) fn find(rows: &[u32], hash: impl Fn(u32) -> RequestHash) -> Self {
        let prefix = |row| u64::from_le_bytes(hash(row).0[..8].try_into().expect("eight bytes"));
        let mut sorted: Vec<(u64, u32, u32)> =
            (0u32..).zip(rows).map(|(position, &row)| (prefix(row), position, row)).collect();
        sorted.sort_unstable();
        let mut this = Self::default();
        for run in sorted.chunk_by(|a, b| a.0 == b.0).filter(|run| run.len() > 1) {
            let whole = hash(run[0].2);
            let first = this.members.len() as u32;
            let equal = run.iter().map(|entry| entry.2).filter(|&row| hash(row) == whole);
            this.members.extend(equal);
            let group = this.groups.len() as u32;
            this.group_of.extend(this.members[first as usize..].iter().map(|&row| (row, group)));
            let end = this.members.len() as u32;
            this.groups.push(Group { first, end, state: Turn::Open });
        }
        this.group_of.sort_unstable();
        this
    }

    /// The group of `row`, when it has equals.
    pub(super) fn group(&self, row: u32) -> Option<u32> {
        let at = self.group_of.binary_search_by_key(&row, |entry| entry.0).ok()?;
        Some(self.group_of[at].1)
    }

    /// The rows of a group, in working order.
    pub(super) fn members(&self, group: u32) -> &[u32] {
        let Group { first, end, .. } = self.groups[group as usize];
        &self.members[first as usize..end as usize]
    }

    /// What has become of a group.
    pub(super) fn turn(&self, group: u32) -> Turn {
        self.groups[group as usize].state
    }

    /// Says what has become of a group.
    pub(super) fn set(&mut self, group: u32, turn: Turn) {
        self.groups[group as usize].state = turn;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_rows_that_occur_twice_are_kept() {
        let hashes = [7, 8, 7, 9, 7, 8];
        let equals =
            Equals::find(&[5, 4, 3, 2, 1, 0], |row| RequestHash([hashes[row as usize]; 16]));
        let group = equals.group(0).unwrap();
        assert_eq!(equals.members(group), [4, 2, 0]);
        assert_eq!(equals.group(2), Some(group));
        assert_eq!(equals.members(equals.group(1).unwrap()), [5, 1]);
        assert_eq!(equals.group(3), None);
    }

    #[test]
    fn rows_with_the_same_prefix_are_not_equal() {
        let equals = Equals::find(&[0, 1, 2], |row| {
            let mut hash = [1; 16];
            hash[15] = u8::from(row == 1);
            RequestHash(hash)
        });
        assert_eq!(equals.members(0), [0, 2]);
        assert_eq!(equals.group(1), None);
    }
}
