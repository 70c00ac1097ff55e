//! Tokens that no gateway may take, each wrong in one way (BATTERY, "Who may do what").
//!
//! The forger is stronger than any real one: it has the gateway's own signing key, so that what
//! is wrong with a token is never hidden behind its signature. [`Forge::good`] is the proof that
//! all else is right: it is taken.

mod hostile;

pub use hostile::Hostile;

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use jsonwebtoken::{Algorithm, EncodingKey, crypto, jwk::AlgorithmParameters, jwk::Jwk};
use serde_json::{Value, json};
use std::{
    fs,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

/// Whoever holds the signing key of a gateway.
pub struct Forge {
    key: EncodingKey,
    key_id: String,
    /// The public key itself.
    public: Vec<u8>,
    issuer: String,
    client: String,
    now: u64,
}

impl Forge {
    /// Takes the Ed25519 key out of a gateway's data directory.
    ///
    /// `issuer` is the gateway's, and its audience; `client` the id of a valid key.
    pub fn of(data_dir: &Path, issuer: &str, client: &str) -> Self {
        let files = fs::read_dir(data_dir.join("oauth")).expect("the gateway has keys");
        let mut keys = files.filter_map(|file| {
            let path = file.expect("it can be read").path();
            (path.extension()? == "pem").then_some(path)
        });
        let path = keys.next().expect("the gateway has a key");
        let pem = fs::read(&path).expect("it can be read");
        let key = EncodingKey::from_ed_pem(&pem).expect("it is an Ed25519 key");
        let jwk = Jwk::from_encoding_key(&key, Algorithm::EdDSA).expect("it is an Ed25519 key");
        let AlgorithmParameters::OctetKeyPair(pair) = jwk.algorithm else { panic!("of Ed25519") };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970");
        Self {
            key,
            key_id: path.file_stem().expect("a name").to_string_lossy().into_owned(),
            public: URL_SAFE_NO_PAD.decode(pair.x).expect("it was just written"),
            issuer: issuer.to_owned(),
            client: client.to_owned(),
            now: now.as_secs(),
        }
    }

    /// A token that is taken.
    pub fn good(&self) -> String {
        self.sign(&self.header().to_string(), &self.claims().to_string())
    }

    /// A token with this header and these claims, whatever they are, rightly signed.
    pub fn sign(&self, header: &str, claims: &str) -> String {
        self.sign_with(&self.key, Algorithm::EdDSA, header.as_bytes(), claims.as_bytes())
    }

    fn sign_with(
        &self,
        key: &EncodingKey,
        algorithm: Algorithm,
        header: &[u8],
        claims: &[u8],
    ) -> String {
        let signed = format!("{}.{}", encode(header), encode(claims));
        let signature = crypto::sign(signed.as_bytes(), key, algorithm).expect("a fitting key");
        format!("{signed}.{signature}")
    }

    /// The header of a good token.
    pub fn header(&self) -> Value {
        json!({ "alg": "EdDSA", "typ": "at+jwt", "kid": self.key_id })
    }

    /// The claims of a good token.
    pub fn claims(&self) -> Value {
        json!({
            "iss": self.issuer,
            "sub": self.client,
            "aud": self.issuer,
            "client_id": self.client,
            "iat": self.now,
            "exp": self.now + 600,
            "jti": "forged",
            "scope": "*",
        })
    }

    /// The public key as X.509 writes it (RFC 8410 §4).
    fn spki(&self) -> Vec<u8> {
        let prefix = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
        [&prefix[..], &self.public].concat()
    }

    fn pem(&self) -> String {
        let body = STANDARD.encode(self.spki());
        format!("-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----\n")
    }

    fn jwk(&self) -> Value {
        json!({
            "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig",
            "kid": self.key_id, "x": encode(&self.public),
        })
    }
}

fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}
