//! One request to a model, from its head to its answer.

use crate::{
    Distribution, Faults, Outcome, Path, Phase, Sim, analyze,
    body::{Broken, Outgoing, Pieces},
    chance::{Chance, hash},
    embeddings,
    events::{Events, token_factor},
    faults::Fault,
    generation::{Dialect, Generation},
    inference,
    limits::write_retry_after,
    observation::Observation,
    refusal::Refusal,
    slots::Slot,
};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode,
    header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE},
};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use std::sync::Arc;
use tokio::time::{Instant, sleep, sleep_until};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Tokens between two looks at the load, while a unary answer is worked on.
const LOOK_EVERY: u32 = 8;

/// What a request asks for, decided; only time is missing.
pub(crate) enum Work {
    Text(Generation),
    Json { reply: Vec<u8>, model: Arc<str>, items: usize, prompt_tokens: u32 },
}

impl Work {
    fn plan(sim: &Sim, path: Path, body: &[u8], garbage: bool) -> Result<Self, Refusal> {
        let options = &sim.options;
        let model = |name: &str| sim.model(name);
        let text =
            |dialect| Generation::plan(dialect, body, options, model, garbage).map(Self::Text);
        let work = match path {
            Path::Chat => text(Dialect::Chat),
            Path::Completions => text(Dialect::Completions),
            Path::Responses => text(Dialect::Responses),
            Path::Embeddings => embeddings::plan(body, options, model),
            Path::Inference => inference::plan(body, options, model),
            Path::Analyze => analyze::plan(body, options, model),
            Path::Recommend => inference::recommend(body, options, model),
        }?;
        if options.strict_models && !options.models.iter().any(|known| **known == **work.model()) {
            return Err(Refusal::unknown_model(work.model()));
        }
        Ok(work)
    }

    const fn model(&self) -> &Arc<str> {
        match self {
            Self::Text(generation) => &generation.model,
            Self::Json { model, .. } => model,
        }
    }

    const fn prompt_tokens(&self) -> u32 {
        match self {
            Self::Text(generation) => generation.prompt_tokens,
            Self::Json { prompt_tokens, .. } => *prompt_tokens,
        }
    }

    fn completion_tokens(&self) -> u32 {
        match self {
            Self::Text(generation) => generation.completion_tokens(),
            Self::Json { .. } => 0,
        }
    }

    /// Per-token times after the first; an item of a list takes one, so a list is cheaper than
    /// its items one by one.
    fn steps(&self) -> u32 {
        match self {
            Self::Text(generation) => generation.steps().saturating_sub(1),
            Self::Json { items, .. } => u32::try_from(items - 1).unwrap_or(u32::MAX),
        }
    }
}

/// Why there is no answer.
enum Stop {
    Refused(Refusal),
    Broken,
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// Answers a request to a model. `Err` breaks the connection, as the caller's going away or a
/// reset asks for.
pub(crate) async fn answer(
    sim: &Arc<Sim>,
    path: Path,
    request: Request<Incoming>,
) -> Result<Response<Outgoing>, Broken> {
    let (head, body) = request.into_parts();
    let faults = sim.faults();
    let mut seen = Observation::open(sim, path, &head.headers);
    let mut response = match run(sim, &faults, &head.headers, body, &mut seen).await {
        Ok(Answered::Events(generation, fault, chance, slot)) => {
            seen.entry.status = 200;
            let slow = slow(faults.slow_body, faults.slow_body_rate, &mut chance.clone());
            let faults = Arc::clone(&faults);
            let events = Events::new(generation, faults, slow, fault, chance, seen, slot);
            let mut response = Response::new(Outgoing::Events(Box::new(events)));
            let headers = response.headers_mut();
            headers
                .insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
            response
        }
        Ok(Answered::Whole(reply, fault, chance)) => {
            seen.entry.status = 200;
            seen.entry.phase = Phase::Answering;
            let mut response = Response::new(unary(reply, &faults, fault, chance, seen));
            response.headers_mut().insert(CONTENT_TYPE, JSON);
            response
        }
        Err(Stop::Refused(refusal)) => {
            return Ok(refuse(sim, &faults, &refusal, seen, &head.headers));
        }
        // The observation already says how it ended, or that the caller went away.
        Err(Stop::Broken) => return Err(Broken),
    };
    finish_head(sim, &faults, None, &head.headers, response.headers_mut());
    Ok(response)
}

pub(crate) const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// An answer and what goes wrong while it is sent.
enum Answered {
    Events(Generation, Option<Fault>, Chance, Slot),
    Whole(Vec<u8>, Option<Fault>, Chance),
}

/// Everything up to the answer's first byte.
async fn run(
    sim: &Arc<Sim>,
    faults: &Faults,
    headers: &HeaderMap,
    body: Incoming,
    seen: &mut Observation,
) -> Result<Answered, Stop> {
    let body = read(body, sim.options.max_body_bytes).await?;
    let key = hash(&body);
    seen.received(body.len(), key);
    check_key(faults, headers)?;
    check_limits(sim, faults)?;
    let attempt = seen.entry.attempt.map_or_else(|| sim.count_attempt(key), u64::from);
    let mut chance = Chance::new(&[sim.options.seed, key, attempt]);
    let fault = faults.draw(&mut chance);
    strike_early(faults, fault, seen).await?;

    let work = Work::plan(sim, seen.entry.path, &body, fault == Some(Fault::Garbage))?;
    drop(body);
    seen.entry.model = Arc::clone(work.model());
    seen.entry.prompt_tokens = work.prompt_tokens();
    let tokens = u64::from(work.prompt_tokens()) + u64::from(work.completion_tokens());
    sim.limits.lock().take_tokens(faults, tokens, Instant::now()).map_err(|_| {
        Refusal::limited("tokens", "Rate limit reached for tokens per minute (simulated).")
    })?;

    seen.entry.phase = Phase::Queued;
    let slot = sim.slots.enter().await.map_err(|_full| overloaded())?;
    seen.entry.phase = Phase::FirstToken;
    let wait = slow(faults.slow_headers, faults.slow_headers_rate, &mut chance).draw(&mut chance);
    if !wait.is_zero() {
        sleep(wait).await;
    }
    if fault == Some(Fault::Garbage) && matches!(work, Work::Text(_)) {
        seen.met(Outcome::Fault, Fault::Garbage.name());
    }
    match work {
        Work::Text(generation) if generation.stream => {
            Ok(Answered::Events(generation, fault, chance, slot))
        }
        work => {
            take_time(sim, faults, work.steps(), &mut chance).await;
            seen.entry.completion_tokens = work.completion_tokens();
            let reply = match work {
                Work::Text(generation) => generation.reply(),
                Work::Json { reply, .. } => reply,
            };
            Ok(Answered::Whole(reply, fault, chance))
        }
    }
}

async fn read(body: Incoming, most: usize) -> Result<Bytes, Stop> {
    match Limited::new(body, most).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Stop::Refused(Refusal::new(
            413,
            "invalid_request_error",
            Some("request_too_large"),
            "invalid",
            format!("the body is longer than {most} bytes"),
        ))),
        // The caller went away while sending it.
        Err(_) => Err(Stop::Broken),
    }
}

/// Refuses any key but the one told, if one is.
pub(crate) fn check_key(faults: &Faults, headers: &HeaderMap) -> Result<(), Refusal> {
    let Some(key) = &faults.api_key else { return Ok(()) };
    let bearer = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let bearer = bearer.and_then(|value| value.strip_prefix("Bearer "));
    let named = ["x-api-key", "api-key"].iter().find_map(|name| headers.get(*name)?.to_str().ok());
    if bearer.or(named) == Some(key.expose()) {
        return Ok(());
    }
    let message = "Incorrect API key provided: give the key the simulator was started with.";
    Err(Refusal::new(401, "invalid_request_error", Some("invalid_api_key"), "key", message))
}

fn check_limits(sim: &Sim, faults: &Faults) -> Result<(), Refusal> {
    if let Some(most) = faults.max_concurrency
        && sim.ledger.lock().totals().in_flight > u64::from(most)
    {
        let message = "Too many requests in flight (simulated).";
        return Err(Refusal::limited("concurrency", message));
    }
    if faults.rate.is_none() {
        return Ok(());
    }
    sim.limits
        .lock()
        .take_request(faults, Instant::now())
        .map_err(|_| Refusal::limited("rate", "Rate limit reached for requests (simulated)."))
}

/// The faults that leave no answer of ours.
async fn strike_early(
    faults: &Faults,
    fault: Option<Fault>,
    seen: &mut Observation,
) -> Result<(), Stop> {
    let Some(fault) = fault else { return Ok(()) };
    match fault {
        Fault::Error => {
            let kind = match faults.error_status {
                429 => "requests",
                400..500 => "invalid_request_error",
                _ => "server_error",
            };
            let message = "The server had an error while processing your request (simulated).";
            Err(Refusal::new(faults.error_status, kind, None, fault.name(), message).into())
        }
        Fault::Quota => Err(Stop::Refused(Refusal::new(
            429,
            "insufficient_quota",
            Some("insufficient_quota"),
            fault.name(),
            "You exceeded your current quota, please check your plan and billing details \
             (simulated).",
        ))),
        Fault::Reset => {
            seen.met(Outcome::Fault, fault.name());
            seen.end();
            Err(Stop::Broken)
        }
        Fault::Stall => {
            seen.met(Outcome::Fault, fault.name());
            std::future::pending().await
        }
        _ => Ok(()),
    }
}

/// Waits as long as the model takes to say it all.
async fn take_time(sim: &Sim, faults: &Faults, steps: u32, chance: &mut Chance) {
    let first = sim.options.ttft.draw(chance).mul_f64(faults.slowdown);
    let mut due = Instant::now() + first;
    // Where load slows tokens down it is looked at now and then; else one timer does.
    let look_every = if sim.options.batch_slowdown == 0.0 { steps } else { LOOK_EVERY };
    let mut left = steps;
    while left > 0 {
        if sim.options.batch_slowdown > 0.0 {
            wait_until(due).await;
        }
        let now = left.min(look_every);
        left -= now;
        due += sim.options.itl.draw_sum(now, chance).mul_f64(token_factor(sim, faults));
    }
    wait_until(due).await;
}

/// Waits, without a timer where nothing is to be waited for.
async fn wait_until(due: Instant) {
    if due > Instant::now() {
        sleep_until(due).await;
    }
}

/// `distribution` for a share of the requests, no time for the others.
fn slow(distribution: Distribution, share: f64, chance: &mut Chance) -> Distribution {
    if distribution.is_zero() || chance.unit() >= share { Distribution::ZERO } else { distribution }
}

fn unary(
    mut reply: Vec<u8>,
    faults: &Faults,
    fault: Option<Fault>,
    mut chance: Chance,
    mut seen: Observation,
) -> Outgoing {
    let slow = slow(faults.slow_body, faults.slow_body_rate, &mut chance);
    if fault == Some(Fault::Malformed) {
        reply.truncate(reply.len() / 2);
        seen.met(Outcome::Fault, Fault::Malformed.name());
    }
    let cut = fault.filter(|fault| matches!(fault, Fault::Truncate | Fault::StallMid));
    if let Some(fault) = cut {
        seen.met(Outcome::Fault, fault.name());
    }
    if slow.is_zero() && cut.is_none() {
        return Outgoing::Whole(reply.into(), Some(seen));
    }
    Outgoing::Pieces(Box::new(Pieces::new(reply.into(), slow, cut, chance, seen)))
}

fn overloaded() -> Refusal {
    let message = "The engine is currently overloaded, please try again later (simulated).";
    Refusal::new(503, "server_error", Some("overloaded"), "queue", message)
}

fn refuse(
    sim: &Sim,
    faults: &Faults,
    refusal: &Refusal,
    mut seen: Observation,
    asked: &HeaderMap,
) -> Response<Outgoing> {
    let outcome = if refusal.why == "error" || refusal.why == "quota" {
        Outcome::Fault
    } else {
        Outcome::Refused
    };
    seen.met(outcome, refusal.why);
    seen.entry.status = refusal.status;
    let mut response = Response::new(Outgoing::Whole(refusal.body(), Some(seen)));
    *response.status_mut() =
        StatusCode::from_u16(refusal.status).expect("statuses are checked to be 400 to 599");
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    if matches!(refusal.status, 429 | 503 | 529) && refusal.why != "quota" {
        write_retry_after(faults, response.headers_mut());
    }
    finish_head(sim, faults, Some(refusal.why), asked, response.headers_mut());
    response
}

/// The headers every answer has.
fn finish_head(
    sim: &Sim,
    faults: &Faults,
    refused: Option<&'static str>,
    asked: &HeaderMap,
    headers: &mut HeaderMap,
) {
    if faults.announce_limits {
        sim.limits.lock().announce(faults, refused, Instant::now(), headers);
    }
    let id = asked.get(REQUEST_ID).cloned().unwrap_or_else(|| sim.next_id());
    headers.insert(REQUEST_ID, id);
}
