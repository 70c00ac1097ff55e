//! What we ask a token endpoint, and what it answers: both as RFC 6749 writes them.

use crate::{
    control::{Place, Said},
    options::Options,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header::AUTHORIZATION};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    fmt,
    hash::{BuildHasher as _, RandomState},
    time::Duration,
};
use tidegate_core::Secret;
use tokio::time::Instant;

/// Life of a token whose answer does not say (`expires_in` is only recommended).
const UNSAID_LIFE: Duration = Duration::from_secs(300);
/// Longest life that is believed.
const LONGEST_LIFE: Duration = Duration::from_secs(30 * 86_400);
/// A token is not used so shortly before its end, at most a tenth of its life: it must still be
/// valid when it arrives.
const MARGIN: Duration = Duration::from_secs(5);

/// How we prove to a token endpoint who we are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ClientAuth {
    /// HTTP Basic, which every token endpoint must take (RFC 6749 §2.3.1).
    #[default]
    Basic,
    /// Parameters of the body.
    Body,
}

/// What we are at an upstream's token endpoint.
#[derive(Clone)]
pub struct ClientCredentials {
    /// The token endpoint.
    pub token_url: String,
    /// Our id there.
    pub client_id: String,
    /// Our secret there.
    pub client_secret: Secret<String>,
    /// What to ask for; `None` takes what the server gives.
    pub scope: Option<String>,
    /// For whom the token is to be, where the server wants it said.
    pub audience: Option<String>,
    /// How we say who we are.
    pub auth: ClientAuth,
}

/// A token, ready to be sent.
pub(crate) struct Token {
    pub(crate) header: HeaderValue,
    pub(super) number: u64,
    pub(super) had_at: Instant,
    pub(super) renew_at: Instant,
    pub(super) ends_at: Instant,
}

/// Why there is no token.
pub(super) struct Failure {
    /// The endpoint said no: asking again would not help a call.
    pub(super) is_refusal: bool,
    pub(super) message: String,
}

impl Token {
    /// What a token endpoint answered (RFC 6749 §5.1), asked at `began`.
    pub(super) fn read(said: &Said, number: u64, began: Instant) -> Result<Self, Failure> {
        let failed = |is_refusal, message: String| Failure { is_refusal, message };
        let json: Option<Value> = serde_json::from_slice(&said.body).ok();
        let text = |name: &str| json.as_ref()?.get(name)?.as_str();
        if said.status != StatusCode::OK {
            // Codes of RFC 6749 §5.2 only: descriptions could repeat what we sent.
            let plain = |code: &&str| {
                code.len() <= 64 && code.bytes().all(|c| c.is_ascii_lowercase() || c == b'_')
            };
            let code =
                text("error").filter(plain).map_or(String::new(), |code| format!(" ({code})"));
            let is_refusal = matches!(said.status.as_u16(), 400 | 401 | 403);
            return Err(failed(is_refusal, format!("answered {}{code}", said.status.as_u16())));
        }
        let Some(token) = text("access_token").filter(|token| !token.is_empty()) else {
            return Err(failed(false, "answered without an access_token".into()));
        };
        if !text("token_type").is_some_and(|kind| kind.eq_ignore_ascii_case("bearer")) {
            return Err(failed(false, "gave a token that is no Bearer token".into()));
        }
        let header = HeaderValue::try_from(format!("Bearer {token}"));
        let Ok(mut header) = header else {
            return Err(failed(false, "gave a token that no header may carry".into()));
        };
        header.set_sensitive(true);
        // A number, though some write it as a text.
        let secs = json.as_ref().and_then(|json| json.get("expires_in")).and_then(|value| {
            value.as_f64().or_else(|| value.as_str()?.trim().parse::<f64>().ok())
        });
        let life = secs.and_then(|secs| Duration::try_from_secs_f64(secs).ok());
        let life = life.filter(|life| !life.is_zero()).unwrap_or(UNSAID_LIFE).min(LONGEST_LIFE);
        Ok(Self {
            header,
            number,
            had_at: Instant::now(),
            renew_at: began + share_of(life, 0.75, 0.85),
            ends_at: began + life - MARGIN.min(life / 10),
        })
    }
}

impl ClientCredentials {
    /// Headers and body of the request.
    pub(super) fn written(&self) -> (HeaderMap, Bytes) {
        let mut headers = HeaderMap::new();
        let mut form = vec![("grant_type", "client_credentials")];
        let secret = self.client_secret.expose();
        match self.auth {
            ClientAuth::Basic => {
                // Each is form-encoded before they are joined (RFC 6749 §2.3.1).
                let pair = format!("{}:{}", encode(&self.client_id), encode(secret));
                let basic = format!("Basic {}", STANDARD.encode(pair));
                let mut basic = HeaderValue::try_from(basic).expect("base64 is a header value");
                basic.set_sensitive(true);
                headers.insert(AUTHORIZATION, basic);
            }
            ClientAuth::Body => {
                form.extend([("client_id", &*self.client_id), ("client_secret", secret)]);
            }
        }
        form.extend(self.scope.as_deref().map(|scope| ("scope", scope)));
        form.extend(self.audience.as_deref().map(|audience| ("audience", audience)));
        let pairs: Vec<String> =
            form.iter().map(|(name, value)| format!("{name}={}", encode(value))).collect();
        (headers, pairs.join("&").into())
    }
}

impl ClientCredentials {
    /// Whether `url` can be a token endpoint.
    ///
    /// # Errors
    ///
    /// What is wrong with it, without repeating it.
    pub fn check_url(url: &str) -> Result<(), String> {
        Place::parse(url, &Options::default()).map(drop)
    }
}

impl fmt::Debug for ClientCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientCredentials")
            .field("client_id", &self.client_id)
            .field("scope", &self.scope)
            .finish_non_exhaustive()
    }
}

/// Form encoding (WHATWG URL, application/x-www-form-urlencoded).
fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' ' => encoded.push('+'),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'*' => {
                encoded.push(byte.into());
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

/// A share of `time` between two, each equally likely.
pub(super) fn share_of(time: Duration, least: f64, most: f64) -> Duration {
    let roll = (RandomState::new().hash_one(0_u8) % 10_001) as f64 / 10_000.0;
    time.mul_f64(least + roll * (most - least))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(status: u16, body: &str) -> Result<Token, String> {
        let status = StatusCode::from_u16(status).unwrap();
        let said = Said { status, body: Bytes::copy_from_slice(body.as_bytes()) };
        Token::read(&said, 0, Instant::now()).map_err(|failure| failure.message)
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_renewed_at_four_fifths_of_its_life_and_not_used_to_its_last_second() {
        let now = Instant::now();
        for (life, secs) in [("100", 100.0), ("\"100\"", 100.0), ("1e2", 100.0), ("null", 300.0)] {
            let body =
                format!(r#"{{"access_token":"t","token_type":"bearer","expires_in":{life}}}"#);
            let token = read(200, &body).unwrap();
            let renewed = (token.renew_at - now).as_secs_f64() / secs;
            assert!((0.75..=0.8501).contains(&renewed), "{renewed}");
            assert_eq!((token.ends_at - now).as_secs_f64(), secs - 5.0);
        }
        for odd in ["-1", "0", "1e300", "\"soon\"", "[]"] {
            let body =
                format!(r#"{{"access_token":"t","token_type":"Bearer","expires_in":{odd}}}"#);
            assert!(read(200, &body).is_ok(), "{odd}");
        }
    }

    #[test]
    fn what_is_no_token_is_said_and_nothing_secret_repeated() {
        for (status, body, says) in [
            (200, "<html>canary", "without an access_token"),
            (200, r#"{"access_token":""}"#, "without an access_token"),
            (200, r#"{"access_token":"canary"}"#, "no Bearer token"),
            (200, r#"{"access_token":"canary","token_type":"mac"}"#, "no Bearer token"),
            (200, "{\"access_token\":\"can\\nary\",\"token_type\":\"bearer\"}", "no header"),
            (
                401,
                r#"{"error":"invalid_client","error_description":"canary"}"#,
                "401 (invalid_client)",
            ),
            (500, r#"{"error":"Canary: secret!"}"#, "answered 500"),
            (302, "", "answered 302"),
        ] {
            let said = read(status, body).err().unwrap();
            assert!(said.contains(says) && !said.to_lowercase().contains("canary"), "{said}");
        }
    }

    #[test]
    fn both_ways_of_saying_who_we_are() {
        let mut client = ClientCredentials {
            token_url: "http://t".into(),
            client_id: "a:b".into(),
            client_secret: "s %é".to_owned().into(),
            scope: Some("x y".into()),
            audience: Some("https://api".into()),
            auth: ClientAuth::Basic,
        };
        let (headers, body) = client.written();
        let basic = headers[AUTHORIZATION].to_str().unwrap().strip_prefix("Basic ").unwrap();
        assert_eq!(STANDARD.decode(basic).unwrap(), b"a%3Ab:s+%25%C3%A9");
        assert_eq!(body, "grant_type=client_credentials&scope=x+y&audience=https%3A%2F%2Fapi");
        client.auth = ClientAuth::Body;
        let (headers, body) = client.written();
        assert!(headers.is_empty());
        let body = std::str::from_utf8(&body).unwrap();
        assert!(body.contains("&client_id=a%3Ab&client_secret=s+%25%C3%A9&"), "{body}");
        assert!(!format!("{client:?}").contains('é'));
    }
}
