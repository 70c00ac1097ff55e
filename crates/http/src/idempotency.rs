//! `Idempotency-Key`: one execution of a call, however often it is sent (SPEC §9.5,
//! draft-ietf-httpapi-idempotency-key-header).
//!
//! *Why:* a caller whose connection breaks, or whose own clock runs out, does not know whether its
//! call was carried out and paid for. With a key it may ask again and gets the same answer.
//!
//! ```text
//! key unknown ----> begun, durably ----> the call runs in a task of its own ----> kept, durably
//! known, runs  ---> 409 and when to come back       |                                  |
//! known, ended ---> the answer it had               '--- to the caller, as long as there is one
//! other request --> 422
//! ```
//!
//! *A caller that hangs up* cancels its call, but not one with a key: the answer is what the
//! repeat will ask for, and what was paid so far would be lost. The call goes on until its
//! deadline, or until its answer is longer than what is kept.
//!
//! *What is kept:* answers, and refusals that would come again. What may pass (429, 5xx …), a
//! stream that broke off and a call that was cut are not kept: the next request is carried out.
//! When the process is killed in the middle nobody knows whether the upstream acted: the key then
//! says so, and its call is not carried out again. At most once, never twice.
//!
//! A request without the header pays one look at its headers.

mod execution;

use crate::{
    outcome::Success,
    refusal::{self, Refusal},
    service::{Front, Way},
};
use aws_lc_rs::digest::{Context, SHA256};
use execution::{Recording, carry_out, lost};
use hyper::{HeaderMap, header::HeaderName, http::request::Parts};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};
use tidegate_core::{Begun, Call, Error, ReplayKey, Replays, Result, Unkept};
use tidegate_policy::setting;
use tokio::{sync::oneshot, time::Instant};

/// The header that carries the key.
pub(crate) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Longest key, in bytes.
const MAX_KEY_BYTES: usize = 255;
/// What a caller whose call still runs waits at least and at most before it asks again.
const WAIT: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(30)];

/// What is kept of calls that carry an `Idempotency-Key`, and for how long.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct IdempotencyOptions {
    /// Whether the header means anything. Default true; with false it is not looked at, and every
    /// request is carried out.
    pub enabled: bool,
    /// How long a key and its answer are kept, from its first request on. Default `"1day"`.
    #[serde(with = "setting::duration")]
    #[schemars(with = "String")]
    pub ttl: Duration,
    /// Longest answer that is kept. Of a longer one only that it was given is known: a repeat is
    /// refused. Default `"4MiB"`.
    #[serde(with = "setting::size")]
    #[schemars(with = "String")]
    pub max_answer: usize,
    /// All answers together; the oldest make room, and repeats of theirs are refused. Default
    /// `"1GiB"`.
    #[serde(with = "setting::size")]
    #[schemars(with = "String")]
    pub max_bytes: usize,
    /// All keys together, about 250 bytes each beside their answers; at that the oldest of the
    /// caller with most are forgotten, and repeats of theirs are carried out. Default 1,000,000.
    pub max_keys: u64,
}

impl Default for IdempotencyOptions {
    fn default() -> Self {
        Self {
            enabled: true,
            ttl: Duration::from_secs(24 * 3600),
            max_answer: 4 << 20,
            max_bytes: 1 << 30,
            max_keys: 1_000_000,
        }
    }
}

/// Where answers are kept, and what is being recorded.
#[derive(Clone)]
pub struct Idempotency {
    replays: Arc<dyn Replays>,
    max_answer: usize,
    /// Bytes held by streams being recorded.
    recorded: Arc<AtomicUsize>,
}

impl Idempotency {
    /// Keeps answers of at most `max_answer` bytes in `replays`.
    pub fn new(replays: Arc<dyn Replays>, max_answer: usize) -> Self {
        Self { replays, max_answer, recorded: Arc::default() }
    }

    /// The key of a request that has one.
    ///
    /// # Errors
    ///
    /// When it is none, or there are two.
    pub(crate) fn asked<'a>(&'a self, headers: &'a HeaderMap) -> Result<Option<Once<'a>>> {
        let mut keys = headers.get_all(&IDEMPOTENCY_KEY).iter();
        let Some(key) = keys.next() else { return Ok(None) };
        let key = key.as_bytes();
        let is_good = (1..=MAX_KEY_BYTES).contains(&key.len())
            && key.iter().all(u8::is_ascii_graphic)
            && keys.next().is_none();
        if is_good {
            return Ok(Some(Once { idempotency: self, key }));
        }
        Err(Error::invalid(
            "idempotency-key",
            format!(
                "header idempotency-key is not one key of 1 to {MAX_KEY_BYTES} visible ASCII \
                 characters: send a fresh UUID for each call, and the same one with its repeats"
            ),
        ))
    }
}

/// A call that is to be carried out once.
pub(crate) struct Once<'a> {
    idempotency: &'a Idempotency,
    key: &'a [u8],
}

impl Once<'_> {
    /// Carries the call out, unless it was; then says what came of it.
    pub(crate) async fn call(
        self,
        front: &Front,
        parts: &Parts,
        call: Call,
        way: &mut Way,
    ) -> Result<Success, Refusal> {
        let began = self.idempotency.replays.begin(self.replay_key(parts, &call)).await;
        let execution = match began {
            Ok(Begun::Fresh(execution)) => execution,
            Ok(Begun::Done(answer)) => return Ok(Success::Replay(answer)),
            Ok(Begun::Running(ran)) => return Err(Refusal::InProgress(wait(ran))),
            Ok(Begun::Busy) => return Err(Refusal::Fixed(&refusal::IDEMPOTENCY_BUSY)),
            Ok(Begun::Mismatch) => return Err(Refusal::Fixed(&refusal::IDEMPOTENCY_MISMATCH)),
            Ok(Begun::Unkept(why)) => return Err(Refusal::Fixed(unkept(why))),
            Err(error) => {
                let why = error.message();
                tracing::warn!(
                    why,
                    "a call with an Idempotency-Key is refused: it cannot be noted"
                );
                return Err(Refusal::Fixed(&refusal::IDEMPOTENCY_UNAVAILABLE));
            }
        };
        way.is_call = true;
        let started = Instant::now();
        let (caller, answered) = oneshot::channel();
        let recording = Recording::new(self.idempotency);
        let (answer, cut) = (Arc::clone(&front.answer), front.cut.clone());
        front.executions.spawn(async move {
            tokio::select! {
                () = cut.cancelled() => {}
                () = carry_out(&*answer, call, execution, recording, caller) => {}
            }
        });
        match answered.await {
            Ok(reply) => Ok(Success::Reply { reply: reply?, took: started.elapsed() }),
            Err(_) => Err(lost().into()),
        }
    }

    /// Headers that change how long or how urgently a call runs are not part of the request: a
    /// repeat has less time left. Those that choose its target are.
    fn replay_key(&self, parts: &Parts, call: &Call) -> ReplayKey {
        let tenant = call.tenant.id.as_bytes();
        let caller = hash([tenant]).first_chunk().copied().map(u64::from_le_bytes);
        let caller = caller.expect("a hash has more than 8 bytes");
        let id = hash([tenant, self.key]);
        let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
        let what = [parts.method.as_str().as_bytes(), target.as_bytes(), call.payload.bytes()];
        let routed =
            call.headers.iter().flat_map(|(name, value)| [name.as_bytes(), value.as_bytes()]);
        ReplayKey { caller, id, request: hash(what.into_iter().chain(routed)) }
    }
}

/// SHA-256 of all parts, each with its length before it.
fn hash<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    for part in parts {
        context.update(&(part.len() as u64).to_le_bytes());
        context.update(part);
    }
    context.finish().as_ref().try_into().expect("SHA-256 gives 32 bytes")
}

/// As long again as the call has run: whoever obeys asks a few times at most, and hears of the
/// end within twice the time it takes.
fn wait(ran: Duration) -> Duration {
    let [least, most] = WAIT;
    ran.clamp(least, most)
}

const fn unkept(why: Unkept) -> &'static refusal::Fixed {
    match why {
        Unkept::Interrupted => &refusal::IDEMPOTENCY_INTERRUPTED,
        Unkept::TooLong => &refusal::IDEMPOTENCY_TOO_LONG,
        Unkept::PushedOut => &refusal::IDEMPOTENCY_PUSHED_OUT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cannot_be_shifted_into_each_other() {
        assert_ne!(hash([&b"ab"[..], b"c"]), hash([&b"a"[..], b"bc"]));
        assert_ne!(hash([&b"a"[..]]), hash([&b"a"[..], b""]));
    }

    #[test]
    fn the_wait_is_as_long_as_the_run_within_bounds() {
        for (ran, seconds) in [(0, 1), (5, 5), (300, 30)] {
            assert_eq!(wait(Duration::from_secs(ran)).as_secs(), seconds);
        }
    }
}
