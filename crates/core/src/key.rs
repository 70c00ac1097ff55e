//! Callers' keys as they are kept, and what administrators do with them.

mod change;

use crate::{BoxFuture, Budgets, Limits, Result, Scope, Secret, Store};
use std::{sync::Arc, time::Duration};

pub use change::{BudgetsChange, Change, KeyChange, LimitsChange, is_plain_line};

/// A caller's key as it is kept: the secret itself is not.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyRecord {
    /// Public part, shown in lists and logs. It stays when the secret is rotated.
    pub id: Arc<str>,
    /// SHA-256 of the whole key.
    pub hash: [u8; 32],
    /// The key it replaced, while that is still good.
    pub former: Option<Former>,
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

impl KeyRecord {
    /// What the key is at this Unix second.
    pub fn state(&self, now_unix: u64) -> KeyState {
        match (self.revoked_at, self.expires_at) {
            (Some(_), _) => KeyState::Revoked,
            (None, Some(expires_at)) if expires_at <= now_unix => KeyState::Expired,
            (None, _) => KeyState::Valid,
        }
    }
}

/// A rotated key's secret before the last rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Former {
    /// SHA-256 of the whole key.
    pub hash: [u8; 32],
    /// Unix seconds until which it is good.
    pub until: u64,
}

/// Whether a key opens anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyState {
    /// It does.
    Valid,
    /// Its time has run out.
    Expired,
    /// An administrator ended it.
    Revoked,
}

impl KeyState {
    /// The word used in lists and the admin API.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
        }
    }
}

/// A whole key, which is nowhere else, and what is kept of it.
pub type Minted = (Secret<String>, KeyRecord);

/// What administrators do with keys, beside listing and revoking them.
///
/// All of it may do I/O. What is changed here is in force in this process when the future
/// completes, and within a second in others on the same state.
pub trait Keys: Store {
    /// The key of this id, whatever its state.
    ///
    /// # Errors
    ///
    /// When the state cannot be read.
    fn key<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<KeyRecord>>>;

    /// Makes a key that may do everything but what `change` says. The secret is in the answer and
    /// nowhere else.
    ///
    /// # Errors
    ///
    /// When `change` is not allowed, naming the field, or the state cannot be written.
    fn create_key(&self, change: KeyChange) -> BoxFuture<'_, Result<Minted>>;

    /// Changes what a key may do; `None` when there is none of that id.
    ///
    /// # Errors
    ///
    /// As for [`Keys::create_key`], and for a revoked key.
    fn update_key<'a>(
        &'a self,
        id: &'a str,
        change: KeyChange,
    ) -> BoxFuture<'a, Result<Option<KeyRecord>>>;

    /// Gives a key a new secret; the old one is good for `grace` more. `None` when there is none
    /// of that id.
    ///
    /// Id, rights, and what was used of limits and budgets stay.
    ///
    /// # Errors
    ///
    /// For a key that is not valid, and when the state cannot be written.
    fn rotate_key<'a>(
        &'a self,
        id: &'a str,
        grace: Duration,
    ) -> BoxFuture<'a, Result<Option<Minted>>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn record() -> KeyRecord {
        KeyRecord {
            id: "id".into(),
            hash: [0; 32],
            former: None,
            name: "default".into(),
            team: Some("search".into()),
            scope: Scope::All,
            limits: None,
            budgets: Budgets::default(),
            created_at: 0,
            expires_at: Some(500),
            revoked_at: None,
        }
    }

    #[test]
    fn a_key_ends_at_its_second_and_when_it_is_revoked() {
        let mut key = record();
        assert_eq!([key.state(499), key.state(500)], [KeyState::Valid, KeyState::Expired]);
        key.revoked_at = Some(1);
        assert_eq!(key.state(0), KeyState::Revoked);
    }
}
