//! A provider that plays a written script, for the engine in virtual time.
//!
//! ```
//! # use tidegate_testkit::{script::{attempt, call, Scripted}, trace::Trace};
//! # use tidegate_core::Provider;
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let trace = Trace::start();
//! let a = Scripted::new("a", &trace, "refused retry-after=1s; ok after 50ms");
//! assert!(a.send(attempt(&call("chat"), 1)).await.is_err());
//! trace.check("0ms send a #1 -> refused");
//! # }
//! ```
//!
//! # Steps
//!
//! One per line or between `;`, with `3 *` before a step to repeat it: `ok`, `ok after 50ms`,
//! `slow` (never answers), `dialing` (never has a connection), `refused retry-after=1s`, `fault`,
//! `reset`, `unreachable`, `no-connection`, `timeout [connect|first_token|idle|total]`,
//! `credential`, `quota`, `rejected 400`, `stream 3 chunks every 10ms`, `stream 2 chunks then
//! fault` (or `reset`, `stall`, `timeout`), `stream stall after 1`. Settings go behind any of them:
//! `status=503`, `retry-after=1s`, `usage=7+3`, `limit-requests=600 remaining-requests=3
//! reset-requests=1s`, and the same for tokens. The last step repeats; an empty script is `ok`.

mod played;

use crate::{
    step::{Ending, Outcome, Step},
    trace::Trace,
};
use bytes::Bytes;
use parking_lot::Mutex;
use played::Played;
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tidegate_core::{
    Attempt, Body, BoxFuture, Call, ContentType, Front, Operation, Patience, Payload, Priority,
    Provider, Reply, Result, Served, Tenant, TokenEstimate, Usage,
};

/// A provider whose answers are written down beforehand and whose attempts are traced.
///
/// Traced are `send a #1 -> refused` when an attempt starts (with the outcome it is going to
/// have), `drop a` when its future or its body is dropped unfinished, `end a` when a streamed
/// body ended, and `fail a` when it broke. Attempts of a call whose id is not `call` show the
/// id: `send a #1 of x -> ok`, `drop a of x`.
#[derive(Debug)]
pub struct Scripted {
    name: Arc<str>,
    trace: Trace,
    steps: Mutex<Vec<Step>>,
    sent: AtomicUsize,
    in_flight: Arc<AtomicUsize>,
}

impl Scripted {
    /// Name of the provider in the trace, and what it does with each attempt in turn.
    ///
    /// # Panics
    ///
    /// When the script has a step that does not exist.
    #[must_use]
    #[track_caller]
    pub fn new(name: &str, trace: &Trace, script: &str) -> Arc<Self> {
        Arc::new(Self {
            name: name.into(),
            trace: trace.clone(),
            steps: Mutex::new(reversed(script)),
            sent: AtomicUsize::new(0),
            in_flight: Arc::default(),
        })
    }

    /// Replaces what is left of the script.
    ///
    /// # Panics
    ///
    /// When the script has a step that does not exist.
    #[track_caller]
    pub fn now(&self, script: &str) {
        *self.steps.lock() = reversed(script);
    }

    /// Attempts started so far.
    pub fn sent(&self) -> usize {
        self.sent.load(Ordering::Relaxed)
    }

    /// Attempts and streamed bodies that have neither ended nor been dropped.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    fn next(&self) -> Step {
        let mut steps = self.steps.lock();
        if steps.len() > 1 { steps.pop() } else { steps.last().cloned() }
            .expect("a script has at least one step")
    }

    async fn play(&self, attempt: Attempt<'_>) -> Result<Reply> {
        let step = self.next();
        if step.is_sent() {
            attempt.is_being_written();
        }
        let open = self.open(&attempt, &step);
        tokio::time::sleep(step.after).await;
        let stream = |chunks, every, ending| Played {
            model: attempt.model.into(),
            step: step.clone(),
            meter: Arc::default(),
            chunks,
            every,
            ending,
        };
        match step.outcome {
            Outcome::Slow | Outcome::Dialing => std::future::pending().await,
            Outcome::Fail(failure) => {
                open.close();
                Err(step.error(failure))
            }
            Outcome::Ok if attempt.call.stream => {
                Ok(stream(2, Duration::ZERO, Ending::Clean).start(open).await)
            }
            Outcome::Ok => {
                open.close();
                Ok(unary(&step, answer(attempt.call.operation, attempt.model)))
            }
            Outcome::Stream { chunks, every, ending } => {
                Ok(stream(chunks, every, ending).start(open).await)
            }
        }
    }

    fn open(&self, attempt: &Attempt<'_>, step: &Step) -> Open {
        let of = match &*attempt.call.id {
            DEFAULT_ID => String::new(),
            id => format!(" of {id}"),
        };
        self.trace
            .push(format_args!("send {} #{}{of} -> {}", self.name, attempt.number, step.word));
        self.sent.fetch_add(1, Ordering::Relaxed);
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Open {
            who: format!("{}{of}", self.name),
            trace: self.trace.clone(),
            in_flight: self.in_flight.clone(),
            closed: false,
        }
    }
}

impl Provider for Scripted {
    fn send<'a>(&'a self, attempt: Attempt<'a>) -> BoxFuture<'a, Result<Reply>> {
        Box::pin(self.play(attempt))
    }
}

/// A call with the id `call` for `model`, as the HTTP front would make it: unary, chat,
/// 30 s to its deadline, the local tenant.
///
/// The fields are public: `Call { priority: Priority::Bulk, ..call("chat") }`.
#[must_use]
pub fn call(model: &str) -> Call {
    let body = format!(r#"{{"model":"{model}","messages":[{{"role":"user","content":"hello"}}]}}"#);
    Call {
        id: DEFAULT_ID.into(),
        operation: Operation::ChatCompletions,
        model: model.into(),
        payload: Payload::new(
            body.into(),
            r#"{"model":"#.len()..r#"{"model":""#.len() + model.len() + 1,
        ),
        stream: false,
        tokens: TokenEstimate { input: 10, output: 16 },
        max_output: Some(16),
        choices: 1,
        tenant: Arc::new(Tenant::local()),
        priority: Priority::Default,
        deadline: within(Duration::from_secs(30)),
        patience: Patience::Counted,
        front: Front::Http,
        headers: Vec::new(),
        client_retries: 0,
    }
}

/// The same call asking for a stream.
#[must_use]
pub fn streaming(model: &str) -> Call {
    let body = format!(
        r#"{{"model":"{model}","stream":true,"messages":[{{"role":"user","content":"hello"}}]}}"#
    );
    let model_span = call(model).payload.with_model(Bytes::new())[0].len();
    Call {
        payload: Payload::new(body.into(), model_span..model_span + model.len() + 2),
        stream: true,
        ..call(model)
    }
}

/// Attempt `number` of `call`, as the engine would make it: its model under the same name, and
/// all the time the call has.
#[must_use]
pub fn attempt(call: &Call, number: u32) -> Attempt<'_> {
    Attempt {
        call,
        model: &call.model,
        number,
        connect_timeout: Duration::from_secs(2),
        deadline: call.deadline,
        written: None,
    }
}

/// A deadline this far away on tokio's clock, paused or not.
#[must_use]
pub fn within(timeout: Duration) -> Instant {
    (tokio::time::Instant::now() + timeout).into_std()
}

const DEFAULT_ID: &str = "call";

/// Next step last, so that taking one is a `pop`.
#[track_caller]
fn reversed(script: &str) -> Vec<Step> {
    let mut steps = Step::script(script);
    if steps.is_empty() {
        steps = Step::script("ok");
    }
    steps.reverse();
    steps
}

/// An attempt under way; dropped before [`Open::close`], it says so in the trace.
struct Open {
    who: String,
    trace: Trace,
    in_flight: Arc<AtomicUsize>,
    closed: bool,
}

impl Open {
    fn close(mut self) {
        self.closed = true;
    }

    fn close_saying(self, word: &str) {
        self.trace.push(format_args!("{word} {}", self.who));
        self.close();
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        if !self.closed {
            self.trace.push(format_args!("drop {}", self.who));
        }
    }
}

fn unary(step: &Step, body: Bytes) -> Reply {
    Reply {
        status: 200,
        content_type: ContentType::Json,
        body: Body::whole(body),
        usage: Some(step.usage.unwrap_or(USAGE)),
        meter: None,
        limits: step.limits,
        upstream_request_id: Some("scripted".into()),
        served: Served::default(),
    }
}

const USAGE: Usage = Usage { input: 7, cached_input: 0, cache_write: 0, output: 3, reasoning: 0 };

fn answer(operation: Operation, model: &str) -> Bytes {
    let result = match operation {
        Operation::ChatCompletions => {
            r#""choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}]"#
        }
        Operation::Completions => r#""choices":[{"index":0,"text":"hi","finish_reason":"stop"}]"#,
        Operation::Embeddings => r#""data":[{"object":"embedding","index":0,"embedding":[0.5]}]"#,
        Operation::Responses => r#""status":"completed","output":[]"#,
    };
    format!(r#"{{"id":"scripted","model":"{model}",{result}}}"#).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::StreamExt;
    use tidegate_core::Kind;

    async fn send(provider: &Scripted, call: &Call, number: u32) -> Result<Reply> {
        provider.send(attempt(call, number)).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_script_plays_in_order_and_repeats_its_last_step() {
        let trace = Trace::start();
        let a = Scripted::new("a", &trace, "refused retry-after=1s; ok after 50ms");
        let call = call("chat");
        assert_eq!(send(&a, &call, 1).await.unwrap_err().kind(), Kind::UpstreamCapacity);
        let reply = send(&a, &call, 2).await.unwrap();
        assert_eq!(reply.usage.map(|usage| usage.total()), Some(10));
        let other = Call { id: "x".into(), ..call };
        send(&a, &other, 1).await.unwrap();
        trace.check(
            "
             0ms send a #1 -> refused
             0ms send a #2 -> ok
            50ms send a #1 of x -> ok
            ",
        );
        assert_eq!((a.sent(), a.in_flight()), (3, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_dropped_unfinished_says_so() {
        let trace = Trace::start();
        let a = Scripted::new("a", &trace, "slow; stream 3 chunks every 10ms");
        let call = streaming("chat");
        let gave_up = tokio::time::timeout(Duration::from_millis(120), send(&a, &call, 1)).await;
        assert!(gave_up.is_err());
        let mut body = send(&a, &call, 1).await.unwrap().body;
        body.next().await.unwrap().unwrap();
        assert_eq!(a.in_flight(), 1);
        drop(body);
        assert_eq!(a.in_flight(), 0);
        trace.check(
            "
              0ms send a #1 -> slow
            120ms drop a
            120ms send a #1 -> stream
            130ms drop a
            ",
        );
    }

    #[tokio::test(start_paused = true)]
    async fn streams_end_fail_and_stall() {
        let trace = Trace::start();
        let script = "stream 3 chunks every 10ms; stream 2 chunks then fault; stream stall after 1";
        let a = Scripted::new("a", &trace, script);
        let call = streaming("chat");
        let reply = send(&a, &call, 1).await.unwrap();
        let whole = reply.body.collect(10_000).await.unwrap();
        assert!(whole.ends_with(b"data: [DONE]\n\n"));
        let meter = reply.meter.unwrap();
        assert_eq!((meter.chunks(), meter.usage()), (3, Some(USAGE)));
        let reply = send(&a, &call, 1).await.unwrap();
        let broken = reply.body.collect(10_000).await;
        assert_eq!(broken.unwrap_err().kind(), Kind::Upstream);
        let meter = reply.meter.unwrap();
        assert_eq!((meter.chunks(), meter.usage()), (2, None));
        let stalled = send(&a, &call, 1).await.unwrap().body.collect(10_000);
        assert!(tokio::time::timeout(Duration::from_secs(9), stalled).await.is_err());
        trace.check(
            "
              0ms send a #1 -> stream
             30ms end a
             30ms send a #1 -> stream
             30ms fail a
             30ms send a #1 -> stream
           9030ms drop a
            ",
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_model_is_where_the_call_says() {
        for call in [call("chat"), streaming("chat")] {
            let body = call.payload.with_model(Bytes::from_static(b"\"other\"")).concat();
            let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(body["model"], "other");
            assert_eq!(body["stream"].as_bool().unwrap_or_default(), call.stream);
        }
    }
}
