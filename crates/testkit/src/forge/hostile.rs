//! The table: what a token may not say. `written`: how it may not be written.

mod written;

use super::{Forge, encode};
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value, json};

/// A private key that is nobody's: Ed25519, PKCS #8 of version 1 (RFC 8410 §10.3).
const STRANGER: [u8; 48] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
    0xd4, 0xee, 0x72, 0xdb, 0xf9, 0x13, 0x58, 0x4a, 0xd5, 0xb6, 0xd8, 0xf1, 0xf7, 0x69, 0xf8, 0xad,
    0x3a, 0xfe, 0x7c, 0x28, 0xcb, 0xf1, 0xd4, 0xfb, 0xe0, 0x97, 0xa8, 0x8f, 0x44, 0x75, 0x58, 0x42,
];

/// A token that may not be taken, and what is wrong with it.
pub struct Hostile {
    /// What is wrong.
    pub name: String,
    /// The token.
    pub token: String,
    /// It was good once.
    pub expired: bool,
}

impl Forge {
    /// Every token of the table.
    pub fn hostile(&self) -> Vec<Hostile> {
        let mut table = Table { forge: self, rows: Vec::new() };
        table.algorithms();
        table.shared_secrets();
        table.key_ids();
        table.embedded_keys();
        table.types();
        table.parties();
        table.times();
        table.clients();
        table.duplicates();
        table.shapes();
        table.bytes();
        table.rows
    }
}

struct Table<'a> {
    forge: &'a Forge,
    rows: Vec<Hostile>,
}

impl Table<'_> {
    fn row(&mut self, name: impl Into<String>, token: String) {
        self.rows.push(Hostile { name: name.into(), token, expired: false });
    }

    /// A good token but for one field of its header; null takes it away.
    fn header(&mut self, name: &str, value: Value) {
        let mut header = self.forge.header();
        let row = format!("header {name} = {}", cut(&value.to_string()));
        set(&mut header, name, value);
        self.row(row, self.forge.sign(&header.to_string(), &self.forge.claims().to_string()));
    }

    /// A good token but for one claim; null takes it away.
    fn claim(&mut self, name: &str, value: Value) {
        let mut claims = self.forge.claims();
        let row = format!("claim {name} = {}", cut(&value.to_string()));
        set(&mut claims, name, value);
        self.row(row, self.forge.sign(&self.forge.header().to_string(), &claims.to_string()));
    }

    /// A good token but for a piece of the text of its claims.
    fn claims_text(&mut self, name: &str, from: &str, to: &str) {
        let claims = self.forge.claims().to_string();
        assert!(claims.contains(from), "{from} in {claims}");
        let claims = claims.replacen(from, to, 1);
        self.row(name, self.forge.sign(&self.forge.header().to_string(), &claims));
    }

    fn algorithms(&mut self) {
        for alg in ["none", "None", "NONE", "nOnE"] {
            let mut header = self.forge.header();
            set(&mut header, "alg", json!(alg));
            let signed = format!(
                "{}.{}",
                encode(header.to_string().as_bytes()),
                encode(self.forge.claims().to_string().as_bytes())
            );
            self.row(format!("alg {alg}, no signature"), format!("{signed}."));
            self.row(format!("alg {alg}, two parts"), signed.clone());
            self.row(format!("alg {alg}, some signature"), format!("{signed}.AAAA"));
        }
        for alg in [
            json!("none"),
            json!(""),
            Value::Null,
            json!(1),
            json!(["EdDSA"]),
            json!("eddsa"),
            json!("EdDSA "),
            json!("ES256"),
            json!("ES384"),
            json!("RS256"),
            json!("PS256"),
            json!("HS256"),
            json!("Ed448"),
        ] {
            self.header("alg", alg);
        }
        let stranger = EncodingKey::from_ed_der(&STRANGER);
        let (header, claims) = (self.forge.header().to_string(), self.forge.claims().to_string());
        let token =
            self.forge.sign_with(&stranger, Algorithm::EdDSA, header.as_bytes(), claims.as_bytes());
        self.row("signed by a stranger under our kid", token);
        // Zeros were a signature of everything for one library (CVE-2022-21449).
        let mut header = self.forge.header();
        set(&mut header, "alg", json!("ES256"));
        let signed =
            format!("{}.{}", encode(header.to_string().as_bytes()), encode(claims.as_bytes()));
        self.row("ES256 with a signature of zeros", format!("{signed}.{}", encode(&[0; 64])));
        let signed = self.forge.good();
        let (signed, _) = signed.rsplit_once('.').expect("three parts");
        self.row("EdDSA with a signature of zeros", format!("{signed}.{}", encode(&[0; 64])));
    }

    /// The public key, in every form, as the secret of a shared-secret algorithm.
    fn shared_secrets(&mut self) {
        let forge = self.forge;
        let secrets: [(&str, Vec<u8>); 6] = [
            ("PEM", forge.pem().into_bytes()),
            ("PEM without its last line end", forge.pem().trim_end().as_bytes().to_vec()),
            ("DER", forge.spki()),
            ("raw", forge.public.clone()),
            ("JWK", forge.jwk().to_string().into_bytes()),
            ("nothing", Vec::new()),
        ];
        for (alg, algorithm) in
            [("HS256", Algorithm::HS256), ("HS384", Algorithm::HS384), ("HS512", Algorithm::HS512)]
        {
            for (form, secret) in &secrets {
                let mut header = forge.header();
                set(&mut header, "alg", json!(alg));
                let token = forge.sign_with(
                    &EncodingKey::from_secret(secret),
                    algorithm,
                    header.to_string().as_bytes(),
                    forge.claims().to_string().as_bytes(),
                );
                self.row(format!("{alg} with the public key's {form} as secret"), token);
            }
        }
    }

    fn key_ids(&mut self) {
        let own = self.forge.key_id.clone();
        for kid in [
            Value::Null,
            json!(""),
            json!(1),
            json!([own]),
            json!({ "kid": own }),
            json!("../../../../dev/null"),
            json!("/dev/null"),
            json!(format!("../oauth/{own}")),
            json!(format!("{own}.pem")),
            json!(format!("{own}\0")),
            json!("x' UNION SELECT 'secret' --"),
            json!("$(id)"),
            json!("http://127.0.0.1:1/keys"),
            json!("k".repeat(4096)),
            json!(own.to_uppercase()),
        ] {
            self.header("kid", kid);
        }
    }

    fn embedded_keys(&mut self) {
        let jwk = self.forge.jwk();
        for (name, value) in [
            ("jku", json!("http://127.0.0.1:1/jwks.json")),
            ("x5u", json!("http://127.0.0.1:1/cert.pem")),
            ("x5c", json!(["MIIB"])),
            ("jwk", jwk),
            ("crit", json!(["exp"])),
            ("crit", json!([])),
            ("crit", json!(["b64"])),
            ("b64", json!(false)),
            ("zip", json!("DEF")),
            ("enc", json!("A256GCM")),
            ("cty", json!("JWT")),
        ] {
            self.header(name, value);
        }
        let mut header = self.forge.header();
        set(&mut header, "kid", Value::Null);
        let mut stranger = self.forge.jwk();
        set(&mut stranger, "x", json!(encode(&[7; 32])));
        set(&mut header, "jwk", stranger);
        let token = self.forge.sign_with(
            &EncodingKey::from_ed_der(&STRANGER),
            Algorithm::EdDSA,
            header.to_string().as_bytes(),
            self.forge.claims().to_string().as_bytes(),
        );
        self.row("brings its own key", token);
    }

    fn types(&mut self) {
        for typ in [
            json!("JWT"),
            json!("jwt"),
            Value::Null,
            json!(""),
            json!(1),
            json!("id+jwt"),
            json!("logout+jwt"),
            json!("at+jwt2"),
            json!("application/jwt"),
        ] {
            self.header("typ", typ);
        }
        let mut header = self.forge.header();
        set(&mut header, "typ", json!("JWT"));
        let mut claims = self.forge.claims();
        set(&mut claims, "nonce", json!("n"));
        set(&mut claims, "at_hash", json!("h"));
        self.row("an id token", self.forge.sign(&header.to_string(), &claims.to_string()));
    }

    fn parties(&mut self) {
        let issuer = self.forge.issuer.clone();
        for iss in [
            Value::Null,
            json!(""),
            json!("https://evil.example"),
            json!(format!("{issuer}/")),
            json!(issuer.to_uppercase()),
            json!([issuer]),
            json!(1),
        ] {
            self.claim("iss", iss);
        }
        for aud in [
            Value::Null,
            json!(""),
            json!("https://evil.example"),
            json!([]),
            json!(["https://evil.example"]),
            json!([issuer, 1]),
            json!({ "aud": issuer }),
            json!(format!("{issuer}/v1")),
        ] {
            self.claim("aud", aud);
        }
    }

    fn times(&mut self) {
        let now = self.forge.now;
        for exp in [
            Value::Null,
            json!(-1),
            json!(now as f64 + 600.5),
            json!((now + 600).to_string()),
            json!([now + 600]),
            json!(true),
            json!(u64::MAX),
            json!(i64::MIN),
        ] {
            self.claim("exp", exp);
        }
        for exp in [0, 1, now - 1, now - 86_400] {
            self.claim("exp", json!(exp));
            self.rows.last_mut().expect("just added").expired = true;
        }
        let exp = format!("\"exp\":{}", now + 600);
        for text in ["1e400", "-0", "1e10", "NaN", "Infinity", "0x7fffffff", "99999999999999999999"]
        {
            self.claims_text(&format!("exp written {text}"), &exp, &format!("\"exp\":{text}"));
        }
        for (name, value) in [
            ("nbf", json!(now + 3600)),
            ("nbf", json!((now - 1).to_string())),
            ("nbf", json!(0.5)),
            ("iat", json!(now + 3600)),
            ("iat", json!(u64::MAX)),
            ("iat", json!(-1)),
            ("iat", json!("now")),
            ("iat", Value::Null),
        ] {
            self.claim(name, value);
        }
    }

    fn clients(&mut self) {
        for scope in [Value::Null, json!(["*"]), json!(1), json!(true), json!({ "*": true })] {
            self.claim("scope", scope);
        }
        for client in [Value::Null, json!(""), json!(1), json!("another1key0"), json!(["a"])] {
            self.claim("client_id", client.clone());
            self.claim("sub", client);
        }
        for id in ["nobody000000", "../../keys", "' OR 1=1 --", "*", "local"] {
            let mut claims = self.forge.claims();
            set(&mut claims, "client_id", json!(id));
            set(&mut claims, "sub", json!(id));
            let token = self.forge.sign(&self.forge.header().to_string(), &claims.to_string());
            self.row(format!("the client {id:?}, whom nobody knows"), token);
        }
        self.claim("jti", Value::Null);
        self.claim("jti", json!(7));
    }
}

fn set(object: &mut Value, name: &str, value: Value) {
    let object = object.as_object_mut().expect("an object");
    match value {
        Value::Null => drop(object.remove(name)),
        value => drop(object.insert(name.to_owned(), value)),
    }
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(60)]
}
