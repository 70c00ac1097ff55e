//! How a caller's key is made, written and recognised.
//!
//! A key is `tg-` + id + `-` + secret: 12 and 43 characters out of 62. The id is public and finds
//! the record; the secret carries 256 bits. Because it does, one SHA-256 is enough to keep it:
//! slow password hashes protect secrets that can be guessed, and would cost every call.

use aws_lc_rs::{constant_time, digest, rand};
use std::{sync::Arc, time::Duration};
use tidegate_core::{
    Budgets, Error, Former, KeyChange, KeyRecord, KeyState, Kind, Minted, Origin, Result, Scope,
    Secret,
};

/// What every key starts with, so that secret scanners can find a leaked one.
pub const PREFIX: &str = "tg-";

/// Characters of an id: 71 bits, so that ids do not collide by chance.
const ID_CHARS: usize = 12;
/// Characters of a secret: 62^43 is just above 2^256.
const SECRET_CHARS: usize = 43;
const KEY_CHARS: usize = PREFIX.len() + ID_CHARS + 1 + SECRET_CHARS;

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// Makes a key that may use every model and has no limits of its own.
///
/// The key itself exists only in the first value: show it once, then it is gone. Scope, team,
/// limits and expiry of the record are the caller's to set before it is added to a store.
///
/// # Errors
///
/// [`Kind::Internal`] when the operating system gives no randomness.
pub fn mint(name: impl Into<Arc<str>>, now_unix: u64) -> Result<Minted> {
    let id: Arc<str> = random_text(ID_CHARS)?.into();
    let key = secret_of(&id)?;
    let record = KeyRecord {
        id,
        hash: hash(&key),
        former: None,
        name: name.into(),
        team: None,
        scope: Scope::All,
        limits: None,
        budgets: Budgets::default(),
        created_at: now_unix,
        expires_at: None,
        revoked_at: None,
    };
    Ok((Secret::new(key), record))
}

/// Longest time an old secret stays good beside a new one.
const LONGEST_GRACE: Duration = Duration::from_secs(90 * 86_400);

/// A new key, as `change` says.
pub(crate) fn create(change: KeyChange, now_unix: u64) -> Result<Minted> {
    let (secret, mut record) = mint("default", now_unix)?;
    change.apply(&mut record, now_unix)?;
    Ok((secret, record))
}

/// Makes `record` as `change` says. What is revoked stays as it was: lists tell what it could do.
pub(crate) fn update(record: &mut KeyRecord, change: KeyChange, now_unix: u64) -> Result<()> {
    if record.revoked_at.is_some() {
        return Err(refused(record, "is revoked for good: make a new one"));
    }
    change.apply(record, now_unix)
}

/// Gives `record` a new secret; the old one is good for `grace` more, the one before it no longer.
pub(crate) fn rotate(
    record: &mut KeyRecord,
    grace: Duration,
    now_unix: u64,
) -> Result<Secret<String>> {
    match record.state(now_unix) {
        KeyState::Valid => {}
        KeyState::Revoked => return Err(refused(record, "is revoked for good: make a new one")),
        KeyState::Expired => {
            return Err(refused(record, "has expired: give it a new `expires_at` first"));
        }
    }
    if grace > LONGEST_GRACE {
        return Err(Error::invalid("grace", "`grace` is longer than 90 days"));
    }
    let key = secret_of(&record.id)?;
    let until = now_unix.saturating_add(grace.as_secs());
    record.former = (!grace.is_zero()).then_some(Former { hash: record.hash, until });
    record.hash = hash(&key);
    Ok(Secret::new(key))
}

fn refused(record: &KeyRecord, why: &str) -> Error {
    let message = format!("key {} {why}", record.id);
    Error::new(Kind::InvalidRequest, Origin::Caller, message)
}

/// A whole key of this id.
fn secret_of(id: &str) -> Result<String> {
    Ok(format!("{PREFIX}{id}-{}", random_text(SECRET_CHARS)?))
}

/// The public id inside a key; `None` when it is not shaped like one.
pub fn id_of(key: &str) -> Option<&str> {
    if key.len() != KEY_CHARS {
        return None;
    }
    let rest = key.strip_prefix(PREFIX)?;
    let (id, secret) = (rest.get(..ID_CHARS)?, rest.get(ID_CHARS + 1..)?);
    let well_formed = rest.as_bytes()[ID_CHARS] == b'-'
        && id.bytes().chain(secret.bytes()).all(|byte| byte.is_ascii_alphanumeric());
    well_formed.then_some(id)
}

/// SHA-256 of the whole key.
pub(crate) fn hash(key: &str) -> [u8; 32] {
    let digest = digest::digest(&digest::SHA256, key.as_bytes());
    digest.as_ref().try_into().expect("SHA-256 gives 32 bytes")
}

/// Whether two hashes are equal, in time that does not depend on where they differ.
pub(crate) fn same(one: &[u8; 32], other: &[u8; 32]) -> bool {
    constant_time::verify_slices_are_equal(one, other).is_ok()
}

/// Random characters of [`ALPHABET`], each equally likely.
fn random_text(chars: usize) -> Result<String> {
    // 62 * 4 = 248: bytes above are thrown away, or the first letters would come more often.
    const FAIR: u8 = 248;
    let mut text = String::with_capacity(chars);
    let mut bytes = [0u8; 64];
    while text.len() < chars {
        rand::fill(&mut bytes).map_err(|_| {
            Error::new(
                Kind::Internal,
                Origin::Gateway,
                "the operating system gave no randomness to make a key with",
            )
        })?;
        let fair = bytes.iter().filter(|byte| **byte < FAIR);
        text.extend(
            fair.take(chars - text.len()).map(|byte| char::from(ALPHABET[usize::from(byte % 62)])),
        );
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_carries_its_id_and_only_its_hash_is_kept() {
        let (key, record) = mint("ci", 7).unwrap();
        let key = key.expose();
        assert_eq!(key.len(), 59);
        assert_eq!(id_of(key), Some(&*record.id));
        assert_eq!(record.hash, hash(key));
        assert_eq!((&*record.name, record.created_at), ("ci", 7));
        assert!(!format!("{record:?}").contains(&key[16..]));
    }

    #[test]
    fn two_keys_differ() {
        let (one, two) = (mint("a", 0).unwrap(), mint("a", 0).unwrap());
        assert_ne!(one.0.expose(), two.0.expose());
        assert_ne!(one.1.id, two.1.id);
    }

    #[test]
    fn what_is_not_a_key_has_no_id() {
        let (key, _) = mint("a", 0).unwrap();
        let key = key.expose();
        let swapped = key.replace("tg-", "sk-");
        let no_dash = format!("{}x{}", &key[..15], &key[16..]);
        let blank = format!("{} ", &key[..58]);
        for bad in ["", "tg-", &key[..58], &format!("{key}x"), &swapped, &no_dash, &blank] {
            assert_eq!(id_of(bad), None, "{bad}");
        }
        assert_eq!(id_of(&format!("tg-{}", "é".repeat(28))), None, "cuts inside a character");
    }
}
