//! Our token at an upstream that wants one of its token endpoint instead of a key: the client
//! credentials grant (RFC 6749 §4.4), from the client's side.
//!
//! *Why early:* a token that is renewed when it has ended makes every call of that moment wait.
//! *Why one at a time:* a thousand calls that notice together would be a thousand requests to a
//! server that is sized for one an hour. *Why in a task of its own:* the call that notices may be
//! hung up, and those that have a valid token need not wait for the next.
//!
//! ```text
//! none -- the first call waits --> valid -- at 80 % of its life --> valid, being renewed
//!   ^                                |  \-- 401 from the upstream --> renewed, calls wait
//!   '--------- its end --------------'
//! ```

mod token;

pub use token::{ClientAuth, ClientCredentials};

use crate::{control::Place, fault::setting, options::Options};
use arc_swap::{ArcSwap, ArcSwapOption};
use http::Method;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tidegate_core::{Error, Kind, Origin, Result, Retry, Secret};
pub(crate) use token::Token;
use token::{Failure, share_of};
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

/// Longest one request to the token endpoint may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest answer of a token endpoint.
const MAX_BYTES: usize = 64 << 10;
/// Least time between two requests when the first failed; doubled up to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A token so young is not renewed for a 401: an upstream that refuses every token must not make
/// us ask for one per call.
const YOUNG: Duration = Duration::from_secs(5);

/// The token in use, and how the next is had.
pub(crate) struct Tokens(Arc<Shared>);

struct Shared {
    upstream: Arc<str>,
    place: Place,
    credentials: ArcSwap<ClientCredentials>,
    current: ArcSwapOption<Token>,
    /// A request is under way.
    asking: AtomicBool,
    /// How many requests have ended, and how the last one did.
    rounds: watch::Sender<Round>,
    served: AtomicU64,
}

#[derive(Clone, Default)]
struct Round {
    ended: u64,
    /// Failures in a row, the last one, and until when nobody asks again.
    failures: u32,
    failed: Option<(Arc<Failure>, Instant)>,
}

impl Tokens {
    /// # Errors
    ///
    /// Names the setting that cannot work.
    pub(crate) fn new(
        upstream: &Arc<str>,
        credentials: ClientCredentials,
        options: &Options,
    ) -> Result<Self> {
        let place = Place::parse(&credentials.token_url, options)
            .map_err(|wrong| setting(upstream, "oauth", &format!("token_url {wrong}")))?;
        let (current, rounds) = (ArcSwapOption::empty(), watch::Sender::default());
        Ok(Self(Arc::new(Shared {
            upstream: upstream.clone(),
            place,
            credentials: ArcSwap::from_pointee(credentials),
            current,
            asking: AtomicBool::new(false),
            rounds,
            served: AtomicU64::new(0),
        })))
    }

    /// Asks with `secret` from now on, and at once where the one before was refused.
    pub(crate) fn replace_secret(&self, secret: Secret<String>) {
        let mut credentials = ClientCredentials::clone(&self.0.credentials.load());
        credentials.client_secret = secret;
        self.0.credentials.store(Arc::new(credentials));
        self.0
            .rounds
            .send_modify(|round| *round = Round { ended: round.ended, ..Round::default() });
    }

    /// The token to send, waiting for one until `deadline` where there is none.
    ///
    /// # Errors
    ///
    /// When there is no valid token and none can be had; nothing was sent to the upstream then.
    pub(crate) async fn token(&self, deadline: Instant) -> Result<Arc<Token>> {
        match self.usable(None) {
            Some(token) => Ok(token),
            None => self.wait(None, deadline).await,
        }
    }

    /// Another token in place of `refused`, which the upstream answered with 401; `None` when
    /// another would hardly fare better.
    pub(crate) async fn instead_of(
        &self,
        refused: &Token,
        deadline: Instant,
    ) -> Option<Arc<Token>> {
        match self.usable(Some(refused.number)) {
            Some(newer) => Some(newer),
            None if refused.had_at.elapsed() < YOUNG => None,
            None => self.wait(Some(refused.number), deadline).await.ok(),
        }
    }

    /// The token in use, unless it has ended or is the refused one. Sees to it that it is renewed
    /// in time.
    fn usable(&self, refused: Option<u64>) -> Option<Arc<Token>> {
        let token = self.0.current.load_full()?;
        let now = Instant::now();
        if refused == Some(token.number) || now >= token.ends_at {
            return None;
        }
        if now >= token.renew_at && self.0.may_ask(now) {
            self.0.ask();
        }
        Some(token)
    }

    async fn wait(&self, refused: Option<u64>, deadline: Instant) -> Result<Arc<Token>> {
        let shared = &self.0;
        let mut rounds = shared.rounds.subscribe();
        // A second round: the first may have begun before the token was refused.
        for _ in 0..2 {
            let before = rounds.borrow_and_update().clone();
            if let Some(token) = self.usable(refused) {
                return Ok(token);
            }
            if let Some((failure, until)) = &before.failed
                && Instant::now() < *until
                && !shared.asking.load(Ordering::Acquire)
            {
                return Err(shared.error(failure, *until));
            }
            shared.ask();
            let ended = rounds.wait_for(|round| round.ended != before.ended);
            let Ok(Ok(round)) =
                timeout_at(deadline, ended).await.map(|round| round.map(|round| round.clone()))
            else {
                return Err(shared.no_token("did not answer before the call's deadline", false));
            };
            if let Some((failure, until)) = &round.failed {
                return Err(shared.error(failure, *until));
            }
        }
        self.usable(refused).ok_or_else(|| shared.no_token("gave a token that has ended", false))
    }
}

impl Shared {
    /// Whether the pause after a failure is over.
    fn may_ask(&self, now: Instant) -> bool {
        self.rounds.borrow().failed.as_ref().is_none_or(|(_, until)| now >= *until)
    }

    /// Asks for a token in a task of its own, unless one does already. It ends within
    /// [`PATIENCE`].
    fn ask(self: &Arc<Self>) {
        if self.asking.swap(true, Ordering::AcqRel) {
            return;
        }
        let shared = Arc::clone(self);
        tokio::spawn(async move {
            let round = Ending(&shared);
            let asked = shared.request().await;
            round.ended(asked);
        });
    }

    async fn request(&self) -> Result<Token, Failure> {
        let began = Instant::now();
        let (headers, body) = self.credentials.load().written();
        let said = self.place.exchange(Method::POST, headers, body, MAX_BYTES, PATIENCE).await;
        let said = said.map_err(|error| Failure {
            is_refusal: false,
            message: format!("cannot be asked: {}", error.message()),
        })?;
        let number = self.served.fetch_add(1, Ordering::Relaxed);
        Token::read(&said, number, began)
    }

    fn error(&self, failure: &Failure, until: Instant) -> Error {
        let error = self.no_token(&failure.message, failure.is_refusal);
        let wait = until.saturating_duration_since(Instant::now());
        error.with_retry_after((!failure.is_refusal).then_some(wait))
    }

    fn no_token(&self, why: &str, is_refusal: bool) -> Error {
        let (upstream, place) = (&self.upstream, self.place.authority());
        let message =
            format!("no token for the upstream {upstream}: its token endpoint {place} {why}");
        let (kind, retry) = match is_refusal {
            true => (Kind::UpstreamCredential, Retry::Never),
            false => (Kind::Unavailable, Retry::Unsent),
        };
        Error::new(kind, Origin::Upstream, message).with_retry(retry)
    }
}

/// Ends the round whatever happens, so that nobody waits for a task that is gone.
struct Ending<'a>(&'a Shared);

impl Ending<'_> {
    fn ended(self, asked: Result<Token, Failure>) {
        let failed = asked.map(|token| self.0.current.store(Some(Arc::new(token)))).err();
        self.0.rounds.send_modify(|round| match failed {
            None => *round = Round { ended: round.ended, ..Round::default() },
            Some(failure) => {
                tracing::warn!(
                    upstream = &*self.0.upstream,
                    "no new token: the token endpoint {} {}",
                    self.0.place.authority(),
                    failure.message
                );
                let pause = FIRST_PAUSE * (1 << round.failures.min(5));
                let pause = share_of(LONGEST_PAUSE.min(pause), 0.8, 1.2);
                round.failures = round.failures.saturating_add(1);
                round.failed = Some((Arc::new(failure), Instant::now() + pause));
            }
        });
    }
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.asking.store(false, Ordering::Release);
        self.0.rounds.send_modify(|round| round.ended += 1);
    }
}
