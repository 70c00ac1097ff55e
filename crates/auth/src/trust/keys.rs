//! A key set as an issuer shows it (RFC 7517): the keys in it that can be used, and for what.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{
    Algorithm, DecodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse},
};
use serde::Deserialize;
use serde_json::Value;

/// Most keys of one issuer; real ones show two to ten.
const MAX_KEYS: usize = 100;
/// Shortest RSA modulus, in bytes: NIST SP 800-131A asks for 2,048 bits.
const MIN_MODULUS_BYTES: usize = 256;

#[derive(Default)]
pub(super) struct KeySet(Vec<Shown>);

/// One public key.
pub(super) struct Shown {
    id: Option<String>,
    /// As it was shown.
    jwk: Jwk,
    pub(super) key: DecodingKey,
    /// What it may have signed.
    pub(super) algorithms: Vec<Algorithm>,
}

impl PartialEq for KeySet {
    fn eq(&self, other: &Self) -> bool {
        let (ours, theirs) =
            (self.0.iter().map(|key| &key.jwk), other.0.iter().map(|key| &key.jwk));
        ours.eq(theirs)
    }
}

impl KeySet {
    /// The keys that may sign with one of `allowed`; `None` when there is none.
    ///
    /// What is not understood is left out, as RFC 7517 §5 asks; two keys of one name both are.
    pub(super) fn parse(json: &[u8], allowed: &[Algorithm]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<Value>,
        }
        let set: Set = serde_json::from_slice(json).ok()?;
        let shown = set.keys.into_iter().take(MAX_KEYS).filter_map(|jwk| Shown::read(jwk, allowed));
        let keys: Vec<Shown> = shown.collect();
        let is_only = |key: &&Shown| keys.iter().filter(|other| other.id == key.id).count() == 1;
        let doubtful: Vec<_> =
            keys.iter().filter(|key| !is_only(key)).map(|key| key.id.clone()).collect();
        let keys: Vec<_> = keys.into_iter().filter(|key| !doubtful.contains(&key.id)).collect();
        (!keys.is_empty()).then_some(Self(keys))
    }

    /// The key of this name; without a name the only one there is.
    pub(super) fn find(&self, id: Option<&str>) -> Option<&Shown> {
        match (id, &self.0[..]) {
            (Some(id), keys) => keys.iter().find(|key| key.id.as_deref() == Some(id)),
            (None, [only]) => Some(only),
            (None, _) => None,
        }
    }
}

impl Shown {
    fn read(jwk: Value, allowed: &[Algorithm]) -> Option<Self> {
        let jwk: Jwk = serde_json::from_value(jwk).ok()?;
        let common = &jwk.common;
        let is_for_signatures =
            common.public_key_use.as_ref().is_none_or(|its| *its == PublicKeyUse::Signature)
                && common
                    .key_operations
                    .as_ref()
                    .is_none_or(|its| its.contains(&KeyOperations::Verify));
        if !is_for_signatures {
            return None;
        }
        use Algorithm as A;
        let fitting: &[Algorithm] = match &jwk.algorithm {
            AlgorithmParameters::RSA(rsa) => {
                let modulus = URL_SAFE_NO_PAD.decode(&rsa.n).ok()?;
                if modulus.iter().skip_while(|byte| **byte == 0).count() < MIN_MODULUS_BYTES {
                    return None;
                }
                &[A::RS256, A::RS384, A::RS512, A::PS256, A::PS384, A::PS512]
            }
            AlgorithmParameters::EllipticCurve(curve) => match curve.curve {
                EllipticCurve::P256 => &[A::ES256],
                EllipticCurve::P384 => &[A::ES384],
                _ => return None,
            },
            AlgorithmParameters::OctetKeyPair(pair) if pair.curve == EllipticCurve::Ed25519 => {
                &[A::EdDSA]
            }
            _ => return None,
        };
        // A key that names its algorithm is used for no other (RFC 8725 §3.1).
        let named = match common.key_algorithm {
            Some(named) => Some(Algorithm::try_from(named).ok()?),
            None => None,
        };
        let may = |algorithm: &&Algorithm| {
            allowed.contains(algorithm) && named.is_none_or(|named| named == **algorithm)
        };
        let algorithms: Vec<Algorithm> = fitting.iter().filter(may).copied().collect();
        let key = DecodingKey::from_jwk(&jwk).ok()?;
        let id = common.key_id.clone();
        (!algorithms.is_empty()).then_some(Self { id, jwk, key, algorithms })
    }
}
