//! Tokens for keys: the client credentials grant (RFC 6749 §4.4), and what others need to check
//! the tokens (SPEC §9.2).
//!
//! A client is a caller's key: `client_id` is its id, `client_secret` the key itself. Refusals are
//! said in OAuth's own words (RFC 6749 §5.2), whatever the rest of the port speaks; what HTTP
//! itself refuses (a body too long or too slow) is not.

pub(crate) mod form;

use crate::{
    Options, body,
    coding::Coding,
    outcome::Success,
    pulse::Pulse,
    refusal::{self, Refusal},
    service::{Front, Way, json},
};
use bytes::Bytes;
use form::Form;
use hyper::{
    HeaderMap, StatusCode,
    body::Incoming,
    header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, PRAGMA, WWW_AUTHENTICATE},
    http::request::Parts,
};
use serde::Serialize;
use std::sync::Arc;
use tidegate_core::{Answer, Tenant, Tokens};

/// Longest form: three parameters, of which the longest is a list of models.
const MAX_FORM_BYTES: usize = 64 << 10;
/// How long others may keep our keys: a new one is published for longer before it signs.
pub(crate) const PUBLIC_FOR: &str = "public, max-age=300";
/// What stands for every model the client may use.
const ALL: &str = "*";

/// Answers `POST /oauth/token`.
pub(crate) async fn token(
    front: &Front,
    parts: &Parts,
    body: &mut Incoming,
    pulse: &Pulse,
    way: &mut Way,
) -> Result<Success, Refusal> {
    let tokens = issuer(front)?;
    let form = read_form(front, parts, body, pulse).await?;
    let client = authenticate(tokens, &parts.headers, &form)?;
    let client = &*way.tenant.insert(client);
    let models = requested(&*front.answer, client, form.one("scope")?)?;
    let granted = tokens.grant(client, models.as_deref())?;
    let answer = Granted {
        access_token: granted.token.expose(),
        token_type: "Bearer",
        expires_in: granted.expires_in.as_secs(),
        scope: &granted.scope,
    };
    Ok(Success::Token { json: json(&answer) })
}

/// Answers `GET /.well-known/jwks.json`.
pub(crate) fn key_set(front: &Front) -> Result<Success, Refusal> {
    Ok(Success::Public { json: issuer(front)?.key_set() })
}

/// Answers `GET /.well-known/oauth-authorization-server`.
pub(crate) fn metadata(front: &Front) -> Result<Success, Refusal> {
    Ok(Success::Public { json: issuer(front)?.metadata() })
}

/// RFC 6749 §5.1.
#[derive(Serialize)]
struct Granted<'a> {
    access_token: &'a str,
    token_type: &'static str,
    expires_in: u64,
    scope: &'a str,
}

fn issuer(front: &Front) -> Result<&dyn Tokens, Refusal> {
    front.answer.tokens().ok_or(Refusal::Fixed(&refusal::NOT_FOUND))
}

async fn read_form(
    front: &Front,
    parts: &Parts,
    body: &mut Incoming,
    pulse: &Pulse,
) -> Result<Form, Refusal> {
    let essence = |value: &HeaderValue| {
        let essence = value.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default();
        essence.trim_ascii().eq_ignore_ascii_case(b"application/x-www-form-urlencoded")
    };
    if !parts.headers.get(CONTENT_TYPE).is_some_and(essence) {
        return Err(Refused::request(
            "send the parameters as application/x-www-form-urlencoded in the body",
        )
        .into());
    }
    if parts.uri.query().is_some() {
        return Err(Refused::request("send the parameters in the body, not in the URL").into());
    }
    let coding = Coding::of_body(&parts.headers).map_err(|_| Refusal::Coding)?;
    let max_body = front.options.max_body.min(MAX_FORM_BYTES);
    let options = Options { max_body, ..front.options.clone() };
    let bytes = body::read(body, coding, &options, pulse).await?;
    let form = Form::parse(&bytes).ok_or_else(|| {
        Refused::request(
            "the body is no form: an escape is broken, it is no UTF-8, or has over 64 parameters",
        )
    })?;
    match form.one("grant_type")? {
        Some("client_credentials") => Ok(form),
        Some(_) => Err(Refused {
            error: Problem::UnsupportedGrantType,
            description: "the only grant_type there is here is client_credentials",
        }
        .into()),
        None => Err(Refused::request("grant_type is missing: send client_credentials").into()),
    }
}

/// Who asks: HTTP Basic, or parameters of the body, but not both (RFC 6749 §2.3).
fn authenticate(
    tokens: &dyn Tokens,
    headers: &HeaderMap,
    form: &Form,
) -> Result<Arc<Tenant>, Refused> {
    let (id, secret) = (form.one("client_id")?, form.one("client_secret")?);
    let mut said = headers.get_all(AUTHORIZATION).iter();
    let found = match (said.next(), said.next()) {
        (None, _) => match (id, secret) {
            (Some(id), Some(secret)) => tokens.client(bare(id), secret),
            _ => {
                return Err(Refused {
                    error: Problem::NoClient,
                    description: "send client_id (the id of a key) and client_secret (the key), in \
                                  the body or by HTTP Basic",
                });
            }
        },
        (Some(_), Some(_)) => {
            return Err(Refused::request("there is more than one Authorization header"));
        }
        (Some(_), None) if secret.is_some() => {
            return Err(Refused::request(
                "the client is named both in the body and by HTTP Basic: use one of them",
            ));
        }
        (Some(basic), None) => {
            let (its_id, secret) = form::basic(basic.as_bytes())
                .ok_or_else(|| Refused::client("the Authorization header is no HTTP Basic"))?;
            if id.is_some_and(|id| bare(id) != bare(&its_id)) {
                return Err(Refused::request("the body and HTTP Basic name different clients"));
            }
            tokens.client(bare(&its_id), &secret)
        }
    };
    found.ok_or_else(|| {
        Refused::client("no such client: the key is unknown, revoked or expired, or not of this id")
    })
}

/// The id alone, whether or not it was written as a key begins.
fn bare(id: &str) -> &str {
    id.strip_prefix("tg-").unwrap_or(id)
}

/// The models the token is to be good for; `None` for all the key may use.
fn requested<'a>(
    answer: &dyn Answer,
    client: &Tenant,
    scope: Option<&'a str>,
) -> Result<Option<Vec<&'a str>>, Refused> {
    let Some(scope) = scope.filter(|scope| *scope != ALL) else { return Ok(None) };
    // RFC 6749 §3.3: words parted by one space each.
    let mut models: Vec<&str> = scope.split(' ').collect();
    models.sort_unstable();
    models.dedup();
    let known = answer.models(client);
    let may_use = |model: &&str| known.iter().any(|info| &*info.id == *model);
    if models.iter().all(may_use) {
        return Ok(Some(models));
    }
    Err(Refused {
        error: Problem::InvalidScope,
        description: "scope names a model this key may not use: GET /v1/models lists those it may",
    })
}

/// Why no token is issued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    error: Problem,
    /// For people; free of quotes, which RFC 6749 §5.2 forbids.
    pub(crate) description: &'static str,
}

/// The codes of RFC 6749 §5.2 that there are reasons for here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Problem {
    InvalidRequest,
    InvalidClient,
    /// Told as `InvalidClient` is, but not counted by the throttle: no secret was shown that could
    /// be a wrong guess.
    NoClient,
    UnsupportedGrantType,
    InvalidScope,
}

impl Refused {
    const fn request(description: &'static str) -> Self {
        Self { error: Problem::InvalidRequest, description }
    }

    const fn client(description: &'static str) -> Self {
        Self { error: Problem::InvalidClient, description }
    }

    /// Whether a secret was shown, and is not that of the client.
    pub(crate) fn is_of_wrong_secret(&self) -> bool {
        self.error == Problem::InvalidClient
    }

    pub(crate) const fn status(&self) -> StatusCode {
        match self.error {
            Problem::InvalidClient | Problem::NoClient => StatusCode::UNAUTHORIZED,
            Problem::InvalidRequest | Problem::UnsupportedGrantType | Problem::InvalidScope => {
                StatusCode::BAD_REQUEST
            }
        }
    }

    pub(crate) const fn code(&self) -> &'static str {
        match self.error {
            Problem::InvalidRequest => "invalid_request",
            Problem::InvalidClient | Problem::NoClient => "invalid_client",
            Problem::UnsupportedGrantType => "unsupported_grant_type",
            Problem::InvalidScope => "invalid_scope",
        }
    }

    /// Writes it as RFC 6749 §5.2 asks.
    pub(crate) fn write(&self, headers: &mut HeaderMap) -> Bytes {
        #[derive(Serialize)]
        struct Body {
            error: &'static str,
            error_description: &'static str,
        }
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(PRAGMA, HeaderValue::from_static("no-cache"));
        if self.status() == StatusCode::UNAUTHORIZED {
            let challenge = HeaderValue::from_static(r#"Basic realm="tidegate""#);
            headers.insert(WWW_AUTHENTICATE, challenge);
        }
        json(&Body { error: self.code(), error_description: self.description })
    }
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        Self::OAuth(refused)
    }
}
