//! An issuer that is trusted: its keys, fetched in the background, and what its tokens say of a
//! caller.
//!
//! *Why the last good ones stay:* an issuer that is away must not lock out callers whose tokens
//! can be checked without it. *Why one fetch per 30 s:* a caller can make up a key's name in
//! every request; without a bound each would become a request to the issuer.
//!
//! All fetching is done by [`Trust::maintain`]; whoever waits for a key waits for its next round.

mod keys;

use crate::{
    cache::{Holder, Who},
    claims::{self, Leeway},
    compact::Compact,
    flaw::Flaw,
    object,
    options::IssuerOptions,
    ring,
};
use arc_swap::ArcSwap;
use bytes::Bytes;
use jsonwebtoken::Algorithm;
use keys::KeySet;
use serde_json::{Map, Value};
use std::{sync::Arc, time::Duration};
use tidegate_core::{BoxFuture, Budgets, Scope, Tenant};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until, timeout},
};

/// Least time between two fetches of one issuer's keys, however many keys are asked for.
const FETCH_EVERY: Duration = Duration::from_secs(30);
/// Longest a request waits for a key it was signed by.
const PATIENCE: Duration = Duration::from_secs(6);
/// Longest one fetch may take; discovery makes two.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
/// Most models one token may name.
const MAX_MODELS: usize = 256;

/// Fetches a public document, at most [`MAX_DOCUMENT_BYTES`] long; an error is a sentence.
pub type Fetch = Arc<dyn Fn(String) -> BoxFuture<'static, Result<Bytes, String>> + Send + Sync>;

/// Longest key set or discovery document.
pub const MAX_DOCUMENT_BYTES: usize = 256 << 10;

/// One trusted issuer.
pub(crate) struct Trust {
    name: String,
    /// Its place in the configuration.
    place: usize,
    options: IssuerOptions,
    algorithms: Vec<Algorithm>,
    fetch: Fetch,
    keys: ArcSwap<Known>,
    /// Rings when somebody needs a key that is not here.
    asked: Notify,
    rounds: watch::Sender<Rounds>,
}

/// How its keys were fetched so far.
#[derive(Clone, Copy, Default)]
struct Rounds {
    /// When the last fetch began.
    last_fetch: Option<Instant>,
    is_fetching: bool,
    /// How many rounds have ended.
    ended: u64,
}

impl Rounds {
    fn may_begin(&self) -> bool {
        self.last_fetch.is_none_or(|last| last.elapsed() >= FETCH_EVERY)
    }
}

#[derive(Default)]
struct Known {
    set: KeySet,
    generation: u64,
}

impl Trust {
    pub(crate) fn new(name: &str, place: usize, options: &IssuerOptions, fetch: Fetch) -> Self {
        Self {
            name: name.to_owned(),
            place,
            algorithms: options.algorithms.iter().map(|algorithm| algorithm.jose()).collect(),
            options: options.clone(),
            fetch,
            keys: ArcSwap::default(),
            asked: Notify::new(),
            rounds: watch::Sender::new(Rounds::default()),
        }
    }

    /// Whether `issuer` is its `iss`.
    pub(crate) fn is(&self, issuer: &str) -> bool {
        self.options.issuer == issuer
    }

    /// Changes when its keys do.
    pub(crate) fn generation(&self) -> u64 {
        self.keys.load().generation
    }

    /// Checks a token of this issuer.
    pub(crate) fn check(&self, token: &Compact<'_>, now: u64) -> Result<Holder, Flaw> {
        if !self.algorithms.contains(&token.algorithm) {
            return Err(Flaw::Algorithm);
        }
        // Most issuers write their access tokens down as plain "JWT", or leave it out.
        if token.kind.is_some() && !token.is_of_kind("JWT") && !token.is_of_kind("at+jwt") {
            return Err(Flaw::Type);
        }
        let known = self.keys.load();
        let key = known.set.find(token.key_id.as_deref()).ok_or(Flaw::Key)?;
        if !key.algorithms.contains(&token.algorithm) {
            return Err(Flaw::Algorithm);
        }
        ring::verify(token.signature, token.signed, &key.key, token.algorithm)?;
        // What only id tokens have: they are for a client to read, not for a server to trust.
        if ["nonce", "at_hash", "c_hash"].iter().any(|name| token.claims.contains_key(*name)) {
            return Err(Flaw::Type);
        }
        let secs = self.options.leeway.as_secs();
        let leeway = Leeway { ahead: secs, late: secs };
        let expires_at = claims::check(&token.claims, &self.options.audience, now, leeway)?;
        let tenant = Arc::new(self.tenant(&token.claims)?);
        let who = Who::Foreign { issuer: self.place, tenant };
        Ok(Holder { expires_at, generation: known.generation, who })
    }

    /// Whom these claims describe.
    fn tenant(&self, claims: &Map<String, Value>) -> Result<Tenant, Flaw> {
        let IssuerOptions { caller_claim, team_claim, models_claim, models_prefix, .. } =
            &self.options;
        let caller = claims::word(claims, caller_claim)?;
        let team = match team_claim {
            Some(name) if claims.contains_key(name) => Some(claims::word(claims, name)?.into()),
            _ => None,
        };
        let scope = match models_claim {
            Some(name) => Scope::Models(models(claims.get(name), models_prefix)?),
            None => Scope::All,
        };
        Ok(Tenant {
            // No key's id has a colon, so nobody becomes somebody else.
            id: format!("{}:{caller}", self.name).into(),
            name: caller.into(),
            team,
            scope,
            limits: None,
            budgets: Budgets::default(),
        })
    }

    /// Whether a key that is not here may come: a fetch is under way, or may begin now.
    pub(crate) fn may_bring_a_key(&self) -> bool {
        let rounds = self.rounds.borrow();
        rounds.is_fetching || rounds.may_begin()
    }

    /// Waits until the keys were fetched once more, or it has taken too long. Where the fetch that
    /// the caller saw has ended meanwhile, its keys are here: there is nothing to wait for.
    pub(crate) async fn fetched(&self) {
        let mut rounds = self.rounds.subscribe();
        let before = *rounds.borrow_and_update();
        if before.may_begin() {
            self.asked.notify_one();
        } else if !before.is_fetching {
            return;
        }
        let next = rounds.wait_for(|rounds| rounds.ended != before.ended);
        // Too late or not, what is here now is what there is.
        let _ = timeout(PATIENCE, next).await;
    }

    /// Fetches the keys now, then whenever they are old or asked for; never ends.
    pub(crate) async fn maintain(&self) {
        let mut failing = false;
        loop {
            self.rounds.send_modify(|rounds| {
                (rounds.last_fetch, rounds.is_fetching) = (Some(Instant::now()), true);
            });
            let fetched = self.fetch_keys().await;
            match (&fetched, failing) {
                (Err(why), false) => tracing::warn!(
                    issuer = self.name,
                    why,
                    "the keys of an issuer cannot be fetched; those known so far stay valid"
                ),
                (Ok(()), true) => {
                    tracing::info!(issuer = self.name, "its keys can be fetched again")
                }
                _ => {}
            }
            failing = fetched.is_err();
            let wait = if failing { FETCH_EVERY } else { self.options.refresh };
            self.until_due(Instant::now() + wait).await;
        }
    }

    /// Ends the round, then waits for `due` or for somebody who may have one earlier.
    async fn until_due(&self, due: Instant) {
        loop {
            self.rounds.send_modify(|rounds| {
                (rounds.is_fetching, rounds.ended) = (false, rounds.ended + 1);
            });
            tokio::select! {
                () = sleep_until(due) => return,
                () = self.asked.notified() => {
                    if self.rounds.borrow().may_begin() {
                        return;
                    }
                }
            }
        }
    }

    async fn fetch_keys(&self) -> Result<(), String> {
        let url = match &self.options.jwks_url {
            Some(url) => url.clone(),
            None => self.discovered().await?,
        };
        let bytes = self.document(url).await?;
        let set = KeySet::parse(&bytes, &self.algorithms)
            .ok_or("what is there is no key set with a key that could be used")?;
        let known = self.keys.load();
        if known.set != set {
            let generation = known.generation + 1;
            self.keys.store(Arc::new(Known { set, generation }));
        }
        Ok(())
    }

    /// Where OpenID discovery says the keys are.
    async fn discovered(&self) -> Result<String, String> {
        let issuer = &self.options.issuer;
        let url = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
        let found = object::read(&self.document(url).await?)
            .ok_or("its discovery document is not one JSON object")?;
        let text = |name: &str| found.get(name).and_then(Value::as_str);
        if text("issuer") != Some(issuer) {
            return Err("its discovery document is of another issuer".into());
        }
        let url = text("jwks_uri").ok_or("its discovery document has no jwks_uri")?;
        if issuer.starts_with("https://") && !url.starts_with("https://") {
            return Err("its jwks_uri is not https".into());
        }
        Ok(url.to_owned())
    }

    async fn document(&self, url: String) -> Result<Bytes, String> {
        let fetched = timeout(FETCH_TIMEOUT, (self.fetch)(url)).await;
        fetched.unwrap_or_else(|_| Err(format!("nothing came within {FETCH_TIMEOUT:?}")))
    }
}

/// The models a claim lists, as words or as a list.
fn models(claim: Option<&Value>, prefix: &str) -> Result<Vec<Arc<str>>, Flaw> {
    let words: Vec<&str> = match claim {
        None => Vec::new(),
        Some(Value::String(words)) => words.split_ascii_whitespace().collect(),
        Some(Value::Array(words)) => {
            let words = words.iter().map(|word| word.as_str().ok_or(Flaw::Claims));
            words.collect::<Result<_, _>>()?
        }
        Some(_) => return Err(Flaw::Claims),
    };
    let models = words.iter().filter_map(|word| word.strip_prefix(prefix));
    let models: Vec<Arc<str>> = models.filter(|model| !model.is_empty()).map(Into::into).collect();
    if models.len() > MAX_MODELS { Err(Flaw::Claims) } else { Ok(models) }
}
