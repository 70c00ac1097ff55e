//! The signing keys: one file each in the data directory, shared by all gateways that share it.
//!
//! *Why in turns:* a key that signs for ever is a key that leaks for ever. *Why published first:*
//! whoever checks our tokens keeps our keys for a while, and another gateway looks into the
//! directory only now and then; a key that signed at once would be unknown to both.
//!
//! ```text
//! made -> published, does not sign yet (LEAD) -> signs -> the next one signs
//!      -> accepted until its last token has expired -> deleted
//! ```
//!
//! The first key signs at once: nobody knows another. A file that an operator deletes is out of
//! use on every gateway within [`LOOK_EVERY`].

mod files;
pub(crate) use files::random_word;

use crate::{
    flaw::Flaw,
    options::{Options, SigningAlgorithm},
};
use arc_swap::ArcSwap;
use bytes::Bytes;
use files::Directory;
use jsonwebtoken::{
    Algorithm, DecodingKey, EncodingKey, crypto,
    jwk::{Jwk, PublicKeyUse},
};
use serde::Serialize;
use std::{path::Path, sync::Arc, time::Duration};
use tidegate_core::{Error, Kind, Origin, Result};

/// How long a key is published before it signs: twice what others may keep our keys for.
pub(crate) const LEAD_SECS: u64 = 600;
/// How often the directory is looked at.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(2);
/// A token is accepted no longer than it is valid; a file stays so much longer.
const SPARE_SECS: u64 = 60;
/// Most keys that are read. Rotation alone keeps two or three.
const MAX_KEYS: usize = 32;

/// The signing keys of a data directory.
pub(crate) struct Ring {
    directory: Directory,
    algorithm: SigningAlgorithm,
    lifetime_secs: u64,
    rotate_after_secs: u64,
    state: ArcSwap<State>,
}

/// The keys, oldest first.
struct State {
    keys: Vec<Arc<Key>>,
    /// As others read them.
    set: Bytes,
    /// Counts changes.
    generation: u64,
}

/// One key of ours.
struct Key {
    id: Arc<str>,
    algorithm: Algorithm,
    /// Unix seconds.
    made_at: u64,
    private: EncodingKey,
    public: DecodingKey,
    shown: Jwk,
}

impl Ring {
    /// Reads the keys below `data_dir`, and makes one if there is none.
    ///
    /// Does I/O on the calling thread.
    ///
    /// # Errors
    ///
    /// Names the file, and what to do about it.
    pub(crate) fn open(data_dir: &Path, options: &Options, now: u64) -> Result<Self> {
        let ring = Self {
            directory: Directory::open(data_dir)?,
            algorithm: options.algorithm,
            lifetime_secs: options.token_lifetime.as_secs(),
            rotate_after_secs: options.rotate_after.as_secs(),
            state: ArcSwap::from_pointee(State::of(Vec::new(), 0)),
        };
        ring.look(now)?;
        Ok(ring)
    }

    /// Takes over what other gateways did, makes the next key when it is due and deletes those
    /// that are out of use. Does I/O on the calling thread.
    ///
    /// # Errors
    ///
    /// When the directory cannot be read or written: then the keys known so far stay. Also when one
    /// of its files is no key of ours, or cannot be deleted: then all others are taken over all the
    /// same, and those that were deleted are out of use.
    pub(crate) fn look(&self, now: u64) -> Result<()> {
        let known = self.state.load_full();
        let names = self.directory.names()?;
        let is_same = names.iter().eq(known.keys.iter().map(|key| &*key.id));
        if is_same && !self.is_due(&known.keys, now) && self.retired(&known.keys, now) == 0 {
            return Ok(());
        }
        // Whoever changes something does so alone, on what the others left.
        let _lock = self.directory.lock()?;
        let (mut keys, mut done) = self.read_all(&known.keys)?;
        if self.is_due(&keys, now) {
            let id = format!("{}-{now}-{}", word_of(self.algorithm), random_word()?);
            let pem = make(self.algorithm)?;
            let key = Key::read(&id, pem.expose())?;
            self.directory.write(&id, &pem)?;
            keys.push(Arc::new(key));
        }
        for retired in keys.drain(..self.retired(&keys, now)) {
            done = done.and(self.directory.delete(&retired.id));
        }
        if !keys.iter().map(|key| &key.id).eq(known.keys.iter().map(|key| &key.id)) {
            self.state.store(Arc::new(State::of(keys, known.generation + 1)));
        }
        done
    }

    /// The keys that can be read, and what is wrong with those that cannot.
    fn read_all(&self, known: &[Arc<Key>]) -> Result<(Vec<Arc<Key>>, Result<()>)> {
        let names = self.directory.names()?;
        let (mut keys, mut all_read) = (Vec::new(), Ok(()));
        for name in &names {
            if let Some(key) = known.iter().find(|key| *key.id == **name) {
                keys.push(key.clone());
            } else if names.len() <= MAX_KEYS {
                match self.directory.read(name).and_then(|pem| Key::read(name, &pem)) {
                    Ok(key) => keys.push(Arc::new(key)),
                    Err(error) => all_read = Err(error),
                }
            }
        }
        if names.len() > MAX_KEYS {
            all_read = Err(self.directory.error(format!(
                "holds {} keys, and {MAX_KEYS} is the most that are read: delete old ones",
                names.len()
            )));
        }
        Ok((keys, all_read))
    }

    /// Whether another key is to be made: there is none, the last has signed long enough, or is
    /// of another algorithm.
    fn is_due(&self, keys: &[Arc<Key>], now: u64) -> bool {
        keys.last().is_none_or(|newest| {
            let is_old = now >= newest.made_at.saturating_add(self.rotate_after_secs);
            is_old || newest.algorithm != self.algorithm.jose()
        })
    }

    /// How many keys, oldest first, have signed nothing that can still be valid.
    fn retired(&self, keys: &[Arc<Key>], now: u64) -> usize {
        let kept = LEAD_SECS + self.lifetime_secs + SPARE_SECS;
        let successors = keys.iter().skip(1);
        successors.take_while(|next| now > next.made_at.saturating_add(kept)).count()
    }

    /// Signs `claims` with the key whose turn it is: a whole token.
    pub(crate) fn sign(&self, claims: &impl Serialize, now: u64) -> Result<String> {
        let state = self.state.load();
        let published = |key: &&Arc<Key>| key.made_at.saturating_add(LEAD_SECS) <= now;
        let key = state.keys.iter().rev().find(published).or(state.keys.first());
        let key = key.ok_or_else(|| unsigned("there is no key to sign a token with"))?;
        let header = Header { typ: "at+jwt", alg: key.algorithm, kid: &key.id };
        let encode = |part: std::result::Result<Vec<u8>, _>| {
            part.map(files::base64url)
                .map_err(|cause| unsigned("a token cannot be written").caused_by(cause))
        };
        let header = encode(serde_json::to_vec(&header))?;
        let claims = encode(serde_json::to_vec(claims))?;
        let signed = format!("{header}.{claims}");
        let signature = crypto::sign(signed.as_bytes(), &key.private, key.algorithm)
            .map_err(|cause| unsigned("a token cannot be signed").caused_by(cause))?;
        Ok(format!("{signed}.{signature}"))
    }

    /// Whether one of our keys made this signature.
    pub(crate) fn verify(
        &self,
        key_id: &str,
        algorithm: Algorithm,
        signed: &str,
        signature: &str,
    ) -> Result<(), Flaw> {
        let state = self.state.load();
        let key = state.keys.iter().find(|key| *key.id == *key_id).ok_or(Flaw::Key)?;
        if key.algorithm != algorithm {
            return Err(Flaw::Algorithm);
        }
        verify(signature, signed, &key.public, algorithm)
    }

    /// Our public keys, as others read them.
    pub(crate) fn set(&self) -> Bytes {
        self.state.load().set.clone()
    }

    /// Changes when a key comes or goes.
    pub(crate) fn generation(&self) -> u64 {
        self.state.load().generation
    }
}

/// Whether `key` made this signature with this algorithm.
pub(crate) fn verify(
    signature: &str,
    signed: &str,
    key: &DecodingKey,
    algorithm: Algorithm,
) -> Result<(), Flaw> {
    match crypto::verify(signature, signed.as_bytes(), key, algorithm) {
        Ok(true) => Ok(()),
        Ok(false) | Err(_) => Err(Flaw::Signature),
    }
}

/// The header of our tokens (RFC 9068 §2.1).
#[derive(Serialize)]
struct Header<'a> {
    typ: &'static str,
    alg: Algorithm,
    kid: &'a str,
}

impl State {
    fn of(keys: Vec<Arc<Key>>, generation: u64) -> Self {
        #[derive(Serialize)]
        struct Set<'a> {
            keys: Vec<&'a Jwk>,
        }
        let shown = Set { keys: keys.iter().map(|key| &key.shown).collect() };
        let set = serde_json::to_vec(&shown).expect("texts can always be written").into();
        Self { keys, set, generation }
    }
}

impl Key {
    /// `id` is `ALGORITHM-UNIXSECONDS-RANDOM`.
    fn read(id: &str, pem: &str) -> Result<Self> {
        let bad = |what: &str| {
            let message = format!("the signing key {id} {what}: delete its file to be rid of it");
            Error::new(Kind::Internal, Origin::Gateway, message)
        };
        let (algorithm, made_at) = name_of(id).ok_or_else(|| bad("has a name that is not ours"))?;
        let private = match algorithm {
            SigningAlgorithm::EdDsa => EncodingKey::from_ed_pem(pem.as_bytes()),
            SigningAlgorithm::Es256 => EncodingKey::from_ec_pem(pem.as_bytes()),
        };
        let private = private.map_err(|_| bad("is damaged"))?;
        let algorithm = algorithm.jose();
        let shown = Jwk::from_encoding_key(&private, algorithm);
        let mut shown = shown.map_err(|_| bad("is damaged"))?;
        shown.common.key_id = Some(id.to_owned());
        shown.common.public_key_use = Some(PublicKeyUse::Signature);
        let public = DecodingKey::from_jwk(&shown).map_err(|_| bad("is damaged"))?;
        Ok(Self { id: id.into(), algorithm, made_at, private, public, shown })
    }
}

const fn word_of(algorithm: SigningAlgorithm) -> &'static str {
    match algorithm {
        SigningAlgorithm::EdDsa => "eddsa",
        SigningAlgorithm::Es256 => "es256",
    }
}

fn name_of(id: &str) -> Option<(SigningAlgorithm, u64)> {
    let mut words = id.split('-');
    let algorithm = match words.next()? {
        "eddsa" => SigningAlgorithm::EdDsa,
        "es256" => SigningAlgorithm::Es256,
        _ => return None,
    };
    Some((algorithm, words.next()?.parse().ok()?))
}

/// A fresh private key, PKCS #8 in PEM.
fn make(algorithm: SigningAlgorithm) -> Result<tidegate_core::Secret<String>> {
    use aws_lc_rs::{rand::SystemRandom, signature as s};
    let random = SystemRandom::new();
    let made = match algorithm {
        SigningAlgorithm::EdDsa => s::Ed25519KeyPair::generate_pkcs8v1(&random),
        SigningAlgorithm::Es256 => {
            s::EcdsaKeyPair::generate_pkcs8(&s::ECDSA_P256_SHA256_FIXED_SIGNING, &random)
        }
    };
    let made = made.map_err(|_| unsigned("no signing key can be made: is there randomness?"))?;
    Ok(files::pem(made.as_ref()).into())
}

fn unsigned(message: &str) -> Error {
    Error::new(Kind::Internal, Origin::Gateway, message)
}

#[cfg(test)]
mod tests;
