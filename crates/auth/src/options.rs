//! What can be set about tokens.

use jsonwebtoken::{Algorithm, AlgorithmFamily};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, time::Duration};
use tidegate_core::{Error, Kind, Origin, Result};
use tidegate_policy::setting;

/// Longest a token of ours may be valid: whoever holds one is believed that long.
const MAX_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// Shortest: clocks differ, and each token costs a signature.
const MIN_LIFETIME: Duration = Duration::from_secs(60);
/// Shortest time between two signing keys.
const MIN_ROTATION: Duration = Duration::from_secs(3600);
/// Most the clocks of an issuer and of this machine may differ.
const MAX_LEEWAY: Duration = Duration::from_secs(300);

/// Tokens: our own, and those of issuers that are trusted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Where callers reach this gateway, as the `iss` of its tokens. Gateways that share a data
    /// directory need the same. Default: `server.listen` as a URL.
    pub issuer: Option<String>,
    /// The `aud` of its tokens. Default: the issuer.
    pub audience: Option<String>,
    /// What its tokens are signed with: "EdDSA" (Ed25519) or "ES256". Default "EdDSA".
    pub algorithm: SigningAlgorithm,
    /// How long a token is valid, from "1m" to "24h". Default "1h".
    #[serde(with = "setting::duration")]
    #[schemars(with = "String")]
    pub token_lifetime: Duration,
    /// After how long a new signing key is made, at least "1h". The old one is accepted until its
    /// last token has expired. Default "30days".
    #[serde(with = "setting::duration")]
    #[schemars(with = "String")]
    pub rotate_after: Duration,
    /// Issuers whose tokens are taken too, by a name that callers from there are known under.
    pub issuers: BTreeMap<String, IssuerOptions>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            issuer: None,
            audience: None,
            algorithm: SigningAlgorithm::default(),
            token_lifetime: Duration::from_secs(3600),
            rotate_after: Duration::from_secs(30 * 86_400),
            issuers: BTreeMap::new(),
        }
    }
}

/// What our tokens are signed with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SigningAlgorithm {
    /// Ed25519: the fastest to sign, and without chance.
    #[default]
    #[serde(rename = "EdDSA")]
    EdDsa,
    /// ECDSA over P-256: for checkers that do not know Ed25519.
    #[serde(rename = "ES256")]
    Es256,
}

impl SigningAlgorithm {
    pub(crate) const fn jose(self) -> Algorithm {
        match self {
            Self::EdDsa => Algorithm::EdDSA,
            Self::Es256 => Algorithm::ES256,
        }
    }
}

/// An issuer whose tokens are taken.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct IssuerOptions {
    /// The `iss` of its tokens, exactly. Required.
    pub issuer: String,
    /// The `aud` its tokens must have for this gateway. Required.
    pub audience: String,
    /// Where its keys are (JWKS). Default: found by OpenID discovery below the issuer.
    pub jwks_url: Option<String>,
    /// The algorithms it signs with. Default `["RS256", "PS256", "ES256", "EdDSA"]`.
    pub algorithms: Vec<VerifyAlgorithm>,
    /// The claim that says who the caller is. Default "sub".
    pub caller_claim: String,
    /// The claim that says the caller's team. Default: none, and such callers have no team.
    pub team_claim: Option<String>,
    /// The claim that lists the models the caller may use: a list, or words in one text. Default:
    /// none, and every model may be used.
    pub models_claim: Option<String>,
    /// What the words of `models_claim` that are models begin with, like "tidegate:"; other words
    /// are left out. Default: nothing, and each word is a model.
    pub models_prefix: String,
    /// How often its keys are fetched again. Default "10m".
    #[serde(with = "setting::duration")]
    #[schemars(with = "String")]
    pub refresh: Duration,
    /// How far its clock and ours may differ, at most "5m". Default "30s".
    #[serde(with = "setting::duration")]
    #[schemars(with = "String")]
    pub leeway: Duration,
}

impl Default for IssuerOptions {
    fn default() -> Self {
        use VerifyAlgorithm as V;
        Self {
            issuer: String::new(),
            audience: String::new(),
            jwks_url: None,
            algorithms: vec![V::Rs256, V::Ps256, V::Es256, V::EdDsa],
            caller_claim: "sub".into(),
            team_claim: None,
            models_claim: None,
            models_prefix: String::new(),
            refresh: Duration::from_secs(600),
            leeway: Duration::from_secs(30),
        }
    }
}

/// What a token may be signed with: asymmetric algorithms only, so that no public key is ever
/// taken for a shared secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "the names are those of RFC 7518 and RFC 8037")]
pub enum VerifyAlgorithm {
    #[serde(rename = "RS256")]
    Rs256,
    #[serde(rename = "RS384")]
    Rs384,
    #[serde(rename = "RS512")]
    Rs512,
    #[serde(rename = "PS256")]
    Ps256,
    #[serde(rename = "PS384")]
    Ps384,
    #[serde(rename = "PS512")]
    Ps512,
    #[serde(rename = "ES256")]
    Es256,
    #[serde(rename = "ES384")]
    Es384,
    #[serde(rename = "EdDSA")]
    EdDsa,
}

impl VerifyAlgorithm {
    pub(crate) const fn jose(self) -> Algorithm {
        match self {
            Self::Rs256 => Algorithm::RS256,
            Self::Rs384 => Algorithm::RS384,
            Self::Rs512 => Algorithm::RS512,
            Self::Ps256 => Algorithm::PS256,
            Self::Ps384 => Algorithm::PS384,
            Self::Ps512 => Algorithm::PS512,
            Self::Es256 => Algorithm::ES256,
            Self::Es384 => Algorithm::ES384,
            Self::EdDsa => Algorithm::EdDSA,
        }
    }
}

/// The algorithm a header names, if it is asymmetric; written exactly so.
pub(crate) fn named(alg: &str) -> Option<Algorithm> {
    let algorithm = alg.parse::<Algorithm>().ok()?;
    let is_shared = AlgorithmFamily::Hmac.algorithms().contains(&algorithm);
    (!is_shared).then_some(algorithm)
}

impl Options {
    /// Whether an authority can be made of these.
    ///
    /// # Errors
    ///
    /// The path of the setting below `oauth`, and what is wrong with it.
    pub fn check(&self) -> Result<(), (Vec<String>, String)> {
        let at = |key: &str, wrong: &str| Err((vec![key.to_owned()], wrong.to_owned()));
        if let Some(issuer) = &self.issuer
            && !is_url(issuer)
        {
            return at("issuer", "is not a URL like \"https://gateway.example\"");
        }
        if self.audience.as_deref() == Some("") {
            return at("audience", "is empty: leave it out to use the issuer");
        }
        if !(MIN_LIFETIME..=MAX_LIFETIME).contains(&self.token_lifetime) {
            return at("token_lifetime", "is not from \"1m\" to \"24h\"");
        }
        if self.rotate_after < MIN_ROTATION {
            return at("rotate_after", "is under \"1h\": each key is published before it signs");
        }
        for (name, issuer) in &self.issuers {
            issuer.check(name, self)?;
        }
        Ok(())
    }
}

impl IssuerOptions {
    fn check(&self, name: &str, all: &Options) -> Result<(), (Vec<String>, String)> {
        let at = |key: &str, wrong: &str| {
            let path = ["issuers", name, key];
            let path = path.iter().filter(|word| !word.is_empty());
            Err((path.map(|word| (*word).to_owned()).collect(), wrong.to_owned()))
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if name.is_empty() || name.len() > 64 || !name.chars().all(plain) {
            return at("", "a name of an issuer is 1 to 64 letters, digits, - _ or .");
        }
        if !is_url(&self.issuer) {
            return at("issuer", "is not a URL: what is the `iss` of its tokens?");
        }
        let same = |other: &&IssuerOptions| other.issuer == self.issuer;
        if all.issuer.as_deref() == Some(&*self.issuer)
            || all.issuers.values().filter(same).count() > 1
        {
            return at("issuer", "is the `iss` of other tokens too: each issuer needs its own");
        }
        if self.audience.is_empty() {
            return at("audience", "is missing: tokens made for others must not open this gateway");
        }
        if self.jwks_url.as_deref().is_some_and(|url| !is_url(url)) {
            return at("jwks_url", "is not a URL like \"https://issuer.example/jwks.json\"");
        }
        if self.algorithms.is_empty() {
            return at("algorithms", "is empty: no token could be valid");
        }
        if self.caller_claim.is_empty() {
            return at("caller_claim", "is empty: which claim says who calls, like \"sub\"?");
        }
        if self.refresh < Duration::from_secs(30) {
            return at("refresh", "is under \"30s\", the least between two fetches");
        }
        if self.leeway > MAX_LEEWAY {
            return at("leeway", "is over \"5m\": set the clocks right instead");
        }
        Ok(())
    }
}

fn is_url(text: &str) -> bool {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let plain = |c: char| c.is_ascii_graphic() && !"\"<>\\^`{|}#?@".contains(c);
    rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/') && rest.chars().all(plain))
}

/// What is wrong with a setting, as an error.
pub(crate) fn bad((path, message): (Vec<String>, String)) -> Error {
    let message = format!("oauth.{}: {message}", path.join("."));
    Error::new(Kind::InvalidRequest, Origin::Gateway, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(toml_like: &str) -> Result<(), String> {
        let options: Options =
            serde_json::from_str(toml_like).map_err(|error| error.to_string())?;
        options.check().map_err(|(path, message)| format!("{}: {message}", path.join(".")))
    }

    #[test]
    fn what_cannot_work_is_named() {
        assert_eq!(check("{}"), Ok(()));
        let good = r#"{"issuers":{"corp":{"issuer":"https://i.example","audience":"gate"}}}"#;
        assert_eq!(check(good), Ok(()));
        for (text, says) in [
            (r#"{"issuer":"gateway"}"#, "issuer: is not a URL"),
            (r#"{"token_lifetime":"10s"}"#, "token_lifetime: "),
            (r#"{"token_lifetime":"25h"}"#, "token_lifetime: "),
            (r#"{"rotate_after":"1m"}"#, "rotate_after: "),
            (r#"{"algorithm":"HS256"}"#, "unknown variant `HS256`"),
            (r#"{"issuers":{"a b":{}}}"#, "issuers.a b: a name"),
            (r#"{"issuers":{"c":{"audience":"g"}}}"#, "issuers.c.issuer: "),
            (r#"{"issuers":{"c":{"issuer":"https://i"}}}"#, "issuers.c.audience: "),
            (&good.replace("gate\"", "g\",\"algorithms\":[]"), "issuers.corp.algorithms: "),
            (&good.replace("gate\"", "g\",\"algorithms\":[\"HS256\"]"), "unknown variant `HS256`"),
            (&good.replace("gate\"", "g\",\"leeway\":\"1h\""), "issuers.corp.leeway: "),
            (
                &good.replace("{\"issuers", "{\"issuer\":\"https://i.example\",\"issuers"),
                "corp.issuer: ",
            ),
        ] {
            let said = check(text).unwrap_err();
            assert!(said.contains(says), "{text}: {said}");
        }
    }

    #[test]
    fn no_shared_secret_algorithm_has_a_name() {
        for alg in
            ["none", "None", "NONE", "", "HS256", "HS384", "HS512", "eddsa", "es256", "RS256 "]
        {
            assert_eq!(named(alg), None, "{alg}");
        }
        assert_eq!(named("ES256"), Some(Algorithm::ES256));
    }
}
