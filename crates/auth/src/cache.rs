//! Tokens that were checked before: found again by their hash, so that a call costs no signature.
//!
//! Only what passed every check is kept, so nobody fills it but holders of good tokens; and at
//! most [`MAX_TOKENS`], so that they do not either. A token is found by its SHA-256: the time of
//! the look-up tells nothing of its text, and no token is kept in memory.

use aws_lc_rs::digest::{SHA256, digest};
use parking_lot::Mutex;
use std::{collections::HashMap, sync::Arc};
use tidegate_core::Tenant;

/// Most tokens kept: about 10 MiB.
pub(crate) const MAX_TOKENS: usize = 16_384;
const SHARDS: usize = 16;

/// A token's SHA-256.
pub(crate) type Digest = [u8; 32];

pub(crate) fn digest_of(token: &str) -> Digest {
    let digest = digest(&SHA256, token.as_bytes());
    digest.as_ref().try_into().expect("SHA-256 gives 32 bytes")
}

/// What is known of a good token.
#[derive(Clone, Debug)]
pub(crate) struct Holder {
    /// Unix second from which it is not valid any more.
    pub(crate) expires_at: u64,
    /// The state of its issuer's keys when it was checked: a key that went takes its tokens along.
    pub(crate) generation: u64,
    pub(crate) who: Who,
}

/// For whom it stands.
#[derive(Clone, Debug)]
pub(crate) enum Who {
    /// The tenant of this key, who must still be there.
    Client(Client),
    /// A caller of a trusted issuer, by the issuer's place in the configuration.
    Foreign { issuer: usize, tenant: Arc<Tenant> },
}

/// A key's tenant, for some models or for all its key may use.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    pub(crate) id: Arc<str>,
    pub(crate) models: Option<Arc<[Arc<str>]>>,
    /// The key's tenant when it was last looked at, and what the models leave of it.
    pub(crate) narrowed: Option<(Arc<Tenant>, Arc<Tenant>)>,
}

/// The tokens.
#[derive(Default)]
pub(crate) struct Verified([Mutex<HashMap<Digest, Holder>>; SHARDS]);

impl Verified {
    fn shard(&self, digest: &Digest) -> &Mutex<HashMap<Digest, Holder>> {
        &self.0[usize::from(digest[0]) % SHARDS]
    }

    /// What `look` makes of the token, if it is here.
    pub(crate) fn find<T>(
        &self,
        digest: &Digest,
        look: impl FnOnce(&mut Holder) -> T,
    ) -> Option<T> {
        self.shard(digest).lock().get_mut(digest).map(look)
    }

    pub(crate) fn forget(&self, digest: &Digest) {
        self.shard(digest).lock().remove(digest);
    }

    /// Keeps a token; when there is no room, expired ones go first, then any other.
    pub(crate) fn keep(&self, digest: Digest, holder: Holder, now: u64) {
        let mut shard = self.shard(&digest).lock();
        if shard.len() >= MAX_TOKENS / SHARDS {
            shard.retain(|_, holder| holder.expires_at > now);
        }
        if shard.len() >= MAX_TOKENS / SHARDS
            && let Some(any) = shard.keys().next().copied()
        {
            shard.remove(&any);
        }
        shard.insert(digest, holder);
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.0.iter().map(|shard| shard.lock().len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(expires_at: u64) -> Holder {
        let who = Who::Foreign { issuer: 0, tenant: Arc::new(Tenant::local()) };
        Holder { expires_at, generation: 0, who }
    }

    #[test]
    fn there_are_never_more_than_the_most() {
        let verified = Verified::default();
        for token in 0..2 * MAX_TOKENS {
            verified.keep(digest_of(&token.to_string()), holder(100), 0);
        }
        assert_eq!(verified.len(), MAX_TOKENS);
        let last = digest_of(&(2 * MAX_TOKENS - 1).to_string());
        assert!(verified.find(&last, |_| ()).is_some());
        verified.forget(&last);
        assert!(verified.find(&last, |_| ()).is_none());
    }

    #[test]
    fn the_expired_make_room_first() {
        let verified = Verified::default();
        let shard_of_one = |n: &usize| digest_of(&n.to_string())[0].is_multiple_of(16);
        let mut tokens = (0..).filter(shard_of_one);
        for token in tokens.by_ref().take(MAX_TOKENS / SHARDS - 1) {
            verified.keep(digest_of(&token.to_string()), holder(10), 0);
        }
        let good = tokens.next().unwrap();
        verified.keep(digest_of(&good.to_string()), holder(99), 0);
        verified.keep(digest_of(&tokens.next().unwrap().to_string()), holder(99), 50);
        assert_eq!(verified.len(), 2);
        assert!(verified.find(&digest_of(&good.to_string()), |_| ()).is_some());
    }
}
