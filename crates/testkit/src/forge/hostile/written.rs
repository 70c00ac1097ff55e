//! Tokens whose claims are good and whose writing is not.

use super::{Table, cut, set};
use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use jsonwebtoken::Algorithm;
use serde_json::{Value, json};

impl Table<'_> {
    pub(super) fn duplicates(&mut self) {
        let forge = self.forge;
        for (name, again) in [
            ("exp", "\"exp\":1,\"exp\""),
            ("sub", "\"sub\":\"x\",\"sub\""),
            ("iss", "\"iss\":\"https://evil.example\",\"iss\""),
            ("scope", "\"scope\":\"\",\"scope\""),
        ] {
            self.claims_text(&format!("claim {name} twice"), &format!("\"{name}\""), again);
        }
        self.claims_text("claim aud twice, once escaped", "\"aud\"", "\"\\u0061ud\":\"x\",\"aud\"");
        let header = forge.header().to_string();
        let claims = forge.claims().to_string();
        for name in ["alg", "kid", "typ"] {
            let twice = header.replacen(
                &format!("\"{name}\""),
                &format!("\"{name}\":\"none\",\"{name}\""),
                1,
            );
            self.row(format!("header {name} twice"), forge.sign(&twice, &claims));
        }
    }

    pub(super) fn shapes(&mut self) {
        let forge = self.forge;
        let good = forge.good();
        let parts: Vec<&str> = good.split('.').collect();
        let [header, claims, signature] = parts[..] else { panic!("three parts") };
        for (name, token) in [
            ("no signature", format!("{header}.{claims}.")),
            ("a dot at the end", format!("{good}.")),
            ("two dots at the end", format!("{good}..")),
            ("a dot at the start", format!(".{good}")),
            ("four parts", format!("{good}.{signature}")),
            ("five parts, like a JWE", format!("{header}..{claims}.{signature}.{signature}")),
            ("dots alone", "..".to_owned()),
            ("one dot", ".".to_owned()),
            ("no header", format!(".{claims}.{signature}")),
            ("no claims", format!("{header}..{signature}")),
            ("parts in another order", format!("{claims}.{header}.{signature}")),
            ("half of a signature", format!("{header}.{claims}.{}", &signature[..40])),
            ("another token's signature", {
                let other = forge.sign(&forge.header().to_string(), "{}");
                let (_, other) = other.rsplit_once('.').expect("three parts");
                format!("{header}.{claims}.{other}")
            }),
            ("a token inside a token", forge.sign(&forge.header().to_string(), &good)),
        ] {
            self.row(name, token);
        }
        let header = forge.header().to_string();
        for (name, claims) in [
            ("claims are a list", "[]".to_owned()),
            ("claims are a text", "\"sub\"".to_owned()),
            ("claims are a number", "1".to_owned()),
            ("claims are nothing", "null".to_owned()),
            ("claims are empty", "{}".to_owned()),
            ("claims are cut off", forge.claims().to_string().trim_end_matches('}').to_owned()),
            ("something follows the claims", format!("{}x", forge.claims())),
            ("two objects", format!("{}{}", forge.claims(), forge.claims())),
            ("a byte order mark", format!("\u{feff}{}", forge.claims())),
            ("a comment", format!("/* */{}", forge.claims())),
            ("deep claims", nested(&forge.claims(), 500)),
            ("claims as deep as no issuer's", nested(&forge.claims(), 40)),
            ("a huge claim", {
                let mut claims = forge.claims();
                set(&mut claims, "more", json!("x".repeat(9000)));
                claims.to_string()
            }),
        ] {
            self.row(name, forge.sign(&header, &claims));
        }
        let claims = forge.claims().to_string();
        for header in ["[]", "null", "\"EdDSA\"", "{}", "{", &nested(&forge.header(), 500)] {
            self.row(format!("the header is {}", cut(header)), forge.sign(header, &claims));
        }
    }

    pub(super) fn bytes(&mut self) {
        let forge = self.forge;
        let good = forge.good();
        let (signed, signature) = good.rsplit_once('.').expect("three parts");
        let (header, claims) = signed.split_once('.').expect("three parts");
        for (name, token) in [
            ("padded signature", format!("{signed}.{signature}==")),
            ("padded header", format!("{header}=.{claims}.{signature}")),
            ("a percent sign", good.replacen('.', "%2e", 1)),
            ("a space inside", good.replacen('.', ". ", 1)),
            ("a sign of the standard alphabet", format!("{header}.{claims}+/.{signature}")),
            ("bits to spare in the signature", format!("{signed}.{}", with_spare_bits(signature))),
            ("a bit of the signature flipped", format!("{signed}.{}", flipped(signature))),
            ("a bit of the claims flipped", format!("{header}.{}.{signature}", flipped(claims))),
            ("a bit of the header flipped", format!("{}.{claims}.{signature}", flipped(header))),
        ] {
            self.row(name, token);
        }
        // Some name of a token gives a signature with one of the two letters that differ.
        let standard = (0..).find_map(|n| {
            let mut claims = forge.claims();
            set(&mut claims, "jti", json!(format!("forged-{n}")));
            let token = forge.sign(&forge.header().to_string(), &claims.to_string());
            let (signed, signature) = token.rsplit_once('.').expect("three parts");
            let other = signature.replace('-', "+").replace('_', "/");
            (other != signature).then(|| format!("{signed}.{other}"))
        });
        self.row("the standard alphabet", standard.expect("one in a few has such a letter"));
        let key = &forge.key;
        let header = forge.header().to_string();
        let claims = forge.claims().to_string().into_bytes();
        let broken = [&claims[..claims.len() - 1], b",\"x\":\"\xff\xfe\"}"].concat();
        let sign =
            |header: &[u8], claims: &[u8]| forge.sign_with(key, Algorithm::EdDSA, header, claims);
        self.row("claims are no UTF-8", sign(header.as_bytes(), &broken));
        let broken = [header.trim_end_matches('}').as_bytes(), b",\"x\":\"\xff\"}"].concat();
        self.row("the header is no UTF-8", sign(&broken, &claims));
        self.row("a lone surrogate", {
            let text = String::from_utf8_lossy(&claims).replacen("forged", "\\ud800", 1);
            sign(header.as_bytes(), text.as_bytes())
        });
        self.row("encoded as plain base64 of everything", STANDARD_NO_PAD.encode(&good));
    }
}

fn nested(object: &Value, depth: usize) -> String {
    let text = object.to_string();
    let (open, close) = ("[".repeat(depth), "]".repeat(depth));
    format!("{},\"deep\":{open}{close}}}", text.trim_end_matches('}'))
}

fn flipped(part: &str) -> String {
    let at = part.len() / 2;
    let other = if &part[at..=at] == "A" { "B" } else { "A" };
    format!("{}{other}{}", &part[..at], &part[at + 1..])
}

/// The same bytes, written with bits set that belong to none: 64 bytes take 86 letters, of whose
/// last only two bits count.
fn with_spare_bits(signature: &str) -> String {
    let (most, last) = signature.split_at(signature.len() - 1);
    let other = match last {
        "A" => "B",
        "Q" => "R",
        "g" => "h",
        _ => "x",
    };
    format!("{most}{other}")
}
