//! One row: called until there is a good answer, a final error, or no attempt left.
//!
//! The engine retries what the network and the upstream do. What is wrong with a *good* answer is
//! known only here: a 200 that is not JSON, or that does not follow `--schema`, is bad output and
//! costs an attempt like a fault does.

use crate::{request::Request, schema::Schema};
use bytes::Bytes;
use serde_json::value::RawValue;
use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tidegate_core::{
    Answer, Call, Class, Error, Front, Kind, Patience, Payload, Price, Priority, Reply, Tenant,
    TokenEstimate, Usage,
};
use tokio::time::Instant;

/// Longest answer taken into a row.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// What all rows of a run share.
pub(super) struct Shared {
    pub(super) answer: Arc<dyn Answer>,
    pub(super) tenant: Arc<Tenant>,
    pub(super) schema: Option<Arc<Schema>>,
    pub(super) max_attempts: u32,
    /// Rows that are being called again after bad output.
    pub(super) retrying: AtomicU32,
}

/// A row on its way.
pub(super) struct Sent {
    pub(super) row: u32,
    pub(super) request: Request,
    pub(super) id: Arc<str>,
    pub(super) model: Arc<str>,
    pub(super) model_span: Range<usize>,
    pub(super) tokens: TokenEstimate,
    pub(super) max_output: Option<u64>,
    pub(super) choices: u64,
    pub(super) deadline: Instant,
    /// The group of equal rows it is called for.
    pub(super) group: Option<u32>,
    pub(super) price: Option<Price>,
    /// Money reserved for it.
    pub(super) reserved: f64,
    /// Rows this run had answered when it was sent.
    pub(super) answered_before: u64,
}

/// A row that came back.
pub(super) struct Ended {
    pub(super) sent: Sent,
    pub(super) attempts: u32,
    /// Tokens of all attempts that told; `None` when none did.
    pub(super) usage: Option<Usage>,
    pub(super) latency: Duration,
    pub(super) result: Result<Good, Bad>,
}

/// An answer worth keeping.
#[derive(Clone)]
pub(super) struct Good {
    pub(super) status: u16,
    pub(super) request_id: Option<Arc<str>>,
    pub(super) body: Bytes,
}

/// Why there is none.
#[derive(Clone)]
pub(super) struct Bad {
    /// The engine's word; `None` for bad output.
    pub(super) kind: Option<Kind>,
    pub(super) class: &'static str,
    pub(super) code: &'static str,
    pub(super) message: String,
    pub(super) retryable: bool,
    pub(super) answer: Option<(u16, Bytes)>,
}

/// Calls one row.
pub(super) async fn call(shared: Arc<Shared>, sent: Sent) -> Ended {
    let started = Instant::now();
    let mut ended = Ended {
        sent,
        attempts: 0,
        usage: None,
        latency: Duration::ZERO,
        result: Err(Bad::output(String::new())),
    };
    let retrying = Retrying::new(&shared.retrying);
    loop {
        ended.result = match shared.answer.call(ended.sent.call(&shared.tenant)).await {
            Ok(reply) => take(&shared, &mut ended, reply).await,
            Err(error) => {
                ended.attempts += error.attempts();
                Err(Bad::of(&error))
            }
        };
        let again = matches!(&ended.result, Err(bad) if bad.kind.is_none())
            && ended.attempts < shared.max_attempts
            && Instant::now() < ended.sent.deadline;
        if !again {
            break;
        }
        retrying.begin();
    }
    if ended.latency.is_zero() {
        ended.latency = started.elapsed();
    }
    ended
}

/// Reads a reply to its end and checks it.
async fn take(shared: &Shared, ended: &mut Ended, reply: Reply) -> Result<Good, Bad> {
    ended.attempts += reply.served.attempts.max(1);
    ended.latency += reply.served.upstream_time;
    let (status, request_id) = (reply.status, reply.upstream_request_id);
    let told = reply.usage;
    let body = match reply.body.collect(MAX_ANSWER_BYTES).await {
        Ok(body) => body,
        Err(error) => return Err(Bad::of(&error)),
    };
    if let Some(usage) = told.or_else(|| tidegate_wire::usage::read(&body)) {
        let sum = ended.usage.get_or_insert_default();
        sum.input += usage.input;
        sum.cached_input += usage.cached_input;
        sum.output += usage.output;
        sum.reasoning += usage.reasoning;
    }
    if let Err(error) = serde_json::from_slice::<&RawValue>(&body) {
        let text = String::from_utf8_lossy(&body[..body.len().min(200)]);
        return Err(Bad::output(format!(
            "the upstream answered {status} with something that is not JSON ({error}): {text:?}"
        )));
    }
    if let Some(schema) = &shared.schema
        && let Err(why) = schema.check(&body, ended.sent.request.operation)
    {
        return Err(Bad {
            answer: Some((status, body)),
            ..Bad::output(format!("the answer does not follow the schema: {why}"))
        });
    }
    Ok(Good { status, request_id, body })
}

impl Sent {
    fn call(&self, tenant: &Arc<Tenant>) -> Call {
        Call {
            id: self.id.clone(),
            operation: self.request.operation,
            model: self.model.clone(),
            payload: Payload::new(self.request.body.clone(), self.model_span.clone()),
            stream: false,
            tokens: self.tokens,
            max_output: self.max_output,
            choices: self.choices,
            tenant: tenant.clone(),
            priority: Priority::Bulk,
            deadline: self.deadline.into_std(),
            patience: Patience::Free,
            front: Front::Batch,
            headers: Vec::new(),
            client_retries: 0,
        }
    }
}

impl Bad {
    fn output(message: String) -> Self {
        Self {
            kind: None,
            class: "bad_output",
            code: "bad_output",
            message,
            retryable: true,
            answer: None,
        }
    }

    fn of(error: &Error) -> Self {
        let class = error.class();
        // An upstream's refusal is kept only where it can be a field of the row.
        let answer = error.answer().and_then(|answer| {
            let json = serde_json::from_slice::<&RawValue>(&answer.body).is_ok();
            json.then(|| (answer.status, answer.body.clone()))
        });
        Self {
            kind: Some(error.kind()),
            class: class.name(),
            code: error.code(),
            message: error.message().to_owned(),
            retryable: match class {
                Class::Caller => false,
                Class::Credential
                | Class::Quota
                | Class::Capacity
                | Class::Fault
                | Class::Timeout
                | Class::Cancelled
                | Class::Refused => true,
            },
            answer,
        }
    }
}

/// Counts a row as being called again, until it is dropped.
struct Retrying<'a> {
    count: &'a AtomicU32,
    begun: std::cell::Cell<bool>,
}

impl<'a> Retrying<'a> {
    const fn new(count: &'a AtomicU32) -> Self {
        Self { count, begun: std::cell::Cell::new(false) }
    }

    fn begin(&self) {
        if !self.begun.replace(true) {
            self.count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Retrying<'_> {
    fn drop(&mut self) {
        if self.begun.get() {
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
