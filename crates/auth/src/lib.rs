//! Tokens as credentials beside keys (SPEC §9.2).
//!
//! Read in this order: [`Authority`] (what issues and knows tokens), `compact` (a token taken
//! apart), `claims` (what it says, checked), `ring` (our signing keys), `trust` (issuers whose
//! tokens are taken too), `cache` (tokens that were checked before).
//!
//! # What makes a token good
//!
//! Its issuer is chosen by `iss`, the key by `kid` among that issuer's alone, and the key says
//! which algorithms it may be used with: nothing a token says of itself widens what is trusted.
//! The signature is checked before any other claim is looked at. Every rule of RFC 8725 that
//! applies has its row in `tests/it/hostile.rs`.

mod cache;
mod claims;
mod compact;
mod flaw;
mod object;
mod options;
mod ring;
mod trust;

pub use options::{IssuerOptions, Options, SigningAlgorithm, VerifyAlgorithm};
pub use trust::{Fetch, MAX_DOCUMENT_BYTES};

use bytes::Bytes;
use cache::{Client, Digest, Holder, Verified, Who};
use claims::Leeway;
use compact::Compact;
use flaw::Flaw;
use futures_util::future;
use ring::Ring;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::{
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tidegate_core::{Error, Grant, Identity, Result, Scope, Secret, Store, Tenant, Tokens};
use trust::Trust;

/// The clock of a gateway that shares our keys may be a little ahead.
const LEEWAY: Leeway = Leeway { ahead: 5, late: 0 };
/// What stands for every model the client's key may use.
const ALL: &str = "*";

/// Issues tokens for the keys of a store, and knows them again.
pub struct Authority {
    store: Arc<dyn Store>,
    ring: Arc<Ring>,
    issuer: Arc<str>,
    audience: Arc<str>,
    lifetime: Duration,
    trusted: Vec<Trust>,
    verified: Verified,
    metadata: Bytes,
}

impl Authority {
    /// Reads the signing keys in `data_dir`, or makes the first. `own_url` is the issuer where
    /// the options name none.
    ///
    /// Does I/O on the calling thread: call it at start, not from a task. Keys of trusted issuers
    /// come with [`Authority::maintain`].
    ///
    /// # Errors
    ///
    /// Names the setting or the file at fault, and what to do.
    pub fn open(
        data_dir: &Path,
        options: &Options,
        own_url: &str,
        store: Arc<dyn Store>,
        fetch: &Fetch,
    ) -> Result<Self> {
        options.check().map_err(options::bad)?;
        let ring = Arc::new(Ring::open(data_dir, options, unix_now())?);
        let issuer: Arc<str> = options.issuer.as_deref().unwrap_or(own_url).into();
        let audience = options.audience.as_deref().map_or_else(|| issuer.clone(), Into::into);
        let trusted = options.issuers.iter().enumerate();
        let trusted = trusted.map(|(at, (name, its))| Trust::new(name, at, its, fetch.clone()));
        Ok(Self {
            store,
            ring,
            metadata: metadata(&issuer),
            issuer,
            audience,
            lifetime: options.token_lifetime,
            trusted: trusted.collect(),
            verified: Verified::default(),
        })
    }

    /// Turns the signing keys and fetches those of trusted issuers, for as long as it is polled.
    pub async fn maintain(&self) {
        let fetching = future::join_all(self.trusted.iter().map(Trust::maintain));
        future::join(self.turn_keys(), fetching).await;
    }

    async fn turn_keys(&self) {
        let mut failing = false;
        loop {
            tokio::time::sleep(ring::LOOK_EVERY).await;
            let ring = self.ring.clone();
            let looked = tokio::task::spawn_blocking(move || ring.look(unix_now())).await;
            let looked = looked.unwrap_or_else(|cause| {
                use tidegate_core::{Kind, Origin};
                Err(Error::new(Kind::Internal, Origin::Gateway, "the task failed").caused_by(cause))
            });
            if let Err(error) = &looked
                && !failing
            {
                tracing::warn!(%error, "the signing keys cannot be looked at; those known stay");
            }
            failing = looked.is_err();
        }
    }

    fn identify_at<'a>(&'a self, token: &'a str, now: u64) -> Identity<'a> {
        let digest = cache::digest_of(token);
        match self.remembered(&digest, now) {
            Some(Ok(tenant)) => return Identity::Known(tenant),
            Some(Err(flaw)) => return Identity::Refused(flaw.into()),
            None => {}
        }
        let parsed = match Compact::parse(token) {
            Ok(parsed) => parsed,
            Err(flaw) => return Identity::Refused(flaw.into()),
        };
        let Some(issuer) = parsed.issuer() else {
            return Identity::Refused(Flaw::Issuer.into());
        };
        if *issuer == *self.issuer {
            return match self.own(&parsed, now).and_then(|holder| self.admit(digest, holder, now)) {
                Ok(tenant) => Identity::Known(tenant),
                Err(flaw) => Identity::Refused(flaw.into()),
            };
        }
        let Some(trust) = self.trusted.iter().find(|trust| trust.is(issuer)) else {
            return Identity::Refused(Flaw::Issuer.into());
        };
        match trust.check(&parsed, now).and_then(|holder| self.admit(digest, holder, now)) {
            Ok(tenant) => Identity::Known(tenant),
            Err(Flaw::Key) if trust.may_bring_a_key() => Identity::Ask(Box::pin(async move {
                trust.fetched().await;
                let now = unix_now().max(now);
                let holder = trust.check(&parsed, now)?;
                Ok(self.admit(digest, holder, now)?)
            })),
            Err(flaw) => Identity::Refused(flaw.into()),
        }
    }

    /// The tenant of a token that was checked before; `None` when it must be checked (again).
    fn remembered(&self, digest: &Digest, now: u64) -> Option<Result<Arc<Tenant>, Flaw>> {
        let found = self.verified.find(digest, |holder| {
            if holder.expires_at <= now {
                return Some(Err(Flaw::Expired));
            }
            (holder.generation == self.generation(&holder.who))
                .then(|| self.tenant(&mut holder.who))
        })?;
        if !matches!(found, Some(Ok(_))) {
            self.verified.forget(digest);
        }
        found
    }

    fn generation(&self, who: &Who) -> u64 {
        match who {
            Who::Client(_) => self.ring.generation(),
            Who::Foreign { issuer, .. } => self.trusted[*issuer].generation(),
        }
    }

    /// Keeps a good token, and says whose it is.
    fn admit(&self, digest: Digest, mut holder: Holder, now: u64) -> Result<Arc<Tenant>, Flaw> {
        let tenant = self.tenant(&mut holder.who)?;
        self.verified.keep(digest, holder, now);
        Ok(tenant)
    }

    /// Who is meant, as things stand now: a key may have been revoked or changed since.
    fn tenant(&self, who: &mut Who) -> Result<Arc<Tenant>, Flaw> {
        let Client { id, models, narrowed } = match who {
            Who::Foreign { tenant, .. } => return Ok(tenant.clone()),
            Who::Client(client) => client,
        };
        let whole = self.store.tenant(id).ok_or(Flaw::Client)?;
        let Some(models) = models else { return Ok(whole) };
        match narrowed {
            Some((seen, tenant)) if Arc::ptr_eq(seen, &whole) => Ok(tenant.clone()),
            _ => {
                let may = models.iter().filter(|model| whole.may_use(model)).cloned();
                let scope = Scope::Models(may.collect());
                let tenant = Arc::new(Tenant { scope, ..Tenant::clone(&whole) });
                *narrowed = Some((whole, tenant.clone()));
                Ok(tenant)
            }
        }
    }

    /// Checks a token of ours (RFC 9068 §4).
    fn own(&self, token: &Compact<'_>, now: u64) -> Result<Holder, Flaw> {
        let generation = self.ring.generation();
        let key_id = token.key_id.as_deref().ok_or(Flaw::Header)?;
        if !token.is_of_kind("at+jwt") {
            return Err(Flaw::Type);
        }
        self.ring.verify(key_id, token.algorithm, token.signed, token.signature)?;
        let expires_at = claims::check(&token.claims, &self.audience, now, LEEWAY)?;
        let client = client_of(&token.claims)?;
        Ok(Holder { expires_at, generation, who: Who::Client(client) })
    }

    fn grant_at(&self, client: &Tenant, models: Option<&[&str]>, now: u64) -> Result<Grant> {
        // Other services that check the token do not know when its key ends, so it says so itself.
        let left = self.store.expires_at(&client.id).map(|at| at.saturating_sub(now));
        let lifetime_secs = left.unwrap_or(u64::MAX).min(self.lifetime.as_secs());
        let scope = models.map_or_else(|| ALL.to_owned(), |models| models.join(" "));
        let claims = Claims {
            iss: &self.issuer,
            sub: &client.id,
            aud: &self.audience,
            client_id: &client.id,
            iat: now,
            exp: now + lifetime_secs,
            jti: ring::random_word()?,
            scope: &scope,
        };
        let token = Secret::new(self.ring.sign(&claims, now)?);
        Ok(Grant { token, expires_in: Duration::from_secs(lifetime_secs), scope })
    }
}

impl Tokens for Authority {
    fn identify<'a>(&'a self, token: &'a str) -> Identity<'a> {
        self.identify_at(token, unix_now())
    }

    fn client(&self, id: &str, secret: &str) -> Option<Arc<Tenant>> {
        self.store.identify(secret).filter(|tenant| *tenant.id == *id)
    }

    fn grant(&self, client: &Tenant, models: Option<&[&str]>) -> Result<Grant> {
        self.grant_at(client, models, unix_now())
    }

    fn key_set(&self) -> Bytes {
        self.ring.set()
    }

    fn metadata(&self) -> Bytes {
        self.metadata.clone()
    }
}

/// What a token of ours says (RFC 9068 §2.2).
#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    sub: &'a str,
    aud: &'a str,
    client_id: &'a str,
    iat: u64,
    exp: u64,
    jti: String,
    scope: &'a str,
}

/// The client of a token of ours, and the models it is for.
fn client_of(claims: &Map<String, Value>) -> Result<Client, Flaw> {
    let id = claims::word(claims, "client_id")?;
    if claims::word(claims, "sub")? != id {
        return Err(Flaw::Claims);
    }
    claims::word(claims, "jti")?;
    let scope = claims.get("scope").and_then(Value::as_str).ok_or(Flaw::Claims)?;
    let models = match scope {
        ALL => None,
        words => Some(words.split(' ').filter(|word| !word.is_empty()).map(Arc::from).collect()),
    };
    Ok(Client { id: id.into(), models, narrowed: None })
}

/// Authorization server metadata (RFC 8414 §2).
fn metadata(issuer: &str) -> Bytes {
    let base = issuer.trim_end_matches('/');
    let metadata = json!({
        "issuer": issuer,
        "token_endpoint": format!("{base}/oauth/token"),
        "jwks_uri": format!("{base}/.well-known/jwks.json"),
        "grant_types_supported": ["client_credentials"],
        // Required, must not be empty, and none would fit: there is no authorization endpoint.
        "response_types_supported": ["none"],
        "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
    });
    metadata.to_string().into()
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
