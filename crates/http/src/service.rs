//! One request, from its head to its answer, on either port.

use crate::{
    Compression, Options, Refusals, Refused, admin,
    compress::Compressing,
    idempotency::Idempotency,
    intake, oauth,
    outcome::{self, Asked, ErrorForm, Success},
    pulse::{Busy, Pulse},
    refusal::{self, Refusal},
    request_id::RequestId,
    routes::{self, NoRoute, Route},
    shown, strict,
};
use bytes::Bytes;
use futures_util::FutureExt as _;
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode, Version, body::Incoming, http::request::Parts,
};
use parking_lot::Mutex;
use serde::Serialize;
use std::{net::IpAddr, panic::AssertUnwindSafe, sync::Arc};
use tidegate_core::{Answer, Error, Kind, ModelInfo, Operation, Origin, Tenant};
use tidegate_policy::throttle::{self, Throttle};
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// What all connections of a port share.
pub(crate) struct Front {
    service: Service,
    pub(crate) answer: Arc<dyn Answer>,
    pub(crate) options: Options,
    /// No longer ready.
    pub(crate) stop: CancellationToken,
    /// Connections close when they have answered.
    pub(crate) closing: CancellationToken,
    /// Connections close now.
    pub(crate) cut: CancellationToken,
    /// Calls in tasks of their own, which may outlive their connection.
    pub(crate) executions: TaskTracker,
    /// Asked only about credentials that were wrong.
    throttle: Mutex<Throttle>,
}

/// What a port answers.
pub(crate) enum Service {
    /// OpenAI's API.
    Callers(Callers),
    /// What operators ask.
    Admin(admin::Desk),
}

/// What the callers' port needs beside who answers.
#[derive(Clone, Default)]
pub struct Callers {
    /// Where refused requests are told.
    pub refusals: Option<Refusals>,
    /// What `Idempotency-Key` is honoured with; without it the header means nothing.
    pub idempotency: Option<Idempotency>,
}

impl Front {
    pub(crate) fn new(
        service: Service,
        answer: Arc<dyn Answer>,
        options: Options,
        stop: CancellationToken,
    ) -> Self {
        let (closing, cut) = (CancellationToken::new(), CancellationToken::new());
        let executions = TaskTracker::new();
        let throttle = Mutex::new(Throttle::new(options.max_wrong_keys));
        Self { service, answer, options, stop, closing, cut, executions, throttle }
    }

    /// What is said instead of `refusal`, when it is the answer to a wrong credential and `peer`
    /// sent too many of them. Good ones never come here: who shares an address with somebody
    /// hostile is not locked out. Nor do expired tokens: they were good, and a 401 renews them.
    fn throttled(&self, refusal: Refusal, has_credential: bool, peer: Option<IpAddr>) -> Refusal {
        let is_wrong = match &refusal {
            Refusal::Error(error) => has_credential && error.kind() == Kind::Unauthenticated,
            Refusal::Fixed(fixed) => has_credential && fixed.status == StatusCode::UNAUTHORIZED,
            Refusal::OAuth(refused) => refused.is_of_wrong_secret(),
            Refusal::Method(_)
            | Refusal::Coding
            | Refusal::InProgress(_)
            | Refusal::Throttled(_) => false,
        };
        let Some(peer) = peer.filter(|_| is_wrong) else { return refusal };
        match self.throttle.lock().wrong(Instant::now().into_std(), peer) {
            throttle::Answer::Wrong => refusal,
            throttle::Answer::Wait(wait) => Refusal::Throttled(wait),
        }
    }

    fn idempotency(&self) -> Option<&Idempotency> {
        match &self.service {
            Service::Callers(callers) => callers.idempotency.as_ref(),
            Service::Admin(_) => None,
        }
    }

    /// Whether and how the answer to a request may be compressed.
    fn compressing<'a>(&self, parts: &'a Parts) -> Option<Compressing<'a>> {
        match self.options.compression {
            // Compressed answers have no length, which HTTP/1.0 cannot say.
            _ if parts.version < Version::HTTP_11 => None,
            Compression::Off => None,
            Compression::From(from_bytes) => {
                Some(Compressing { asked: &parts.headers, from_bytes })
            }
        }
    }
}

/// How far a request got.
#[derive(Default)]
pub(crate) struct Way {
    pub(crate) tenant: Option<Arc<Tenant>>,
    /// It became a call, which the engine records.
    pub(crate) is_call: bool,
}

impl Way {
    /// Who sends the request.
    async fn identified(
        &mut self,
        front: &Front,
        headers: &HeaderMap,
    ) -> Result<Arc<Tenant>, Error> {
        let tenant = intake::identify(&*front.answer, headers).known().await?;
        Ok(Arc::clone(self.tenant.insert(tenant)))
    }
}

/// Answers a request, whatever comes of it. Dropping the future cancels the call.
pub(crate) async fn respond(
    front: Arc<Front>,
    busy: Busy,
    request: Request<Incoming>,
) -> Response<crate::body::Outgoing> {
    let (parts, mut body) = request.into_parts();
    let id = RequestId::of(&parts.headers);
    let (arrived, mut way) = (Instant::now(), Way::default());
    let answered = AssertUnwindSafe(answer(&front, &busy, &parts, &mut body, &id, &mut way));
    let outcome = answered.catch_unwind().await.unwrap_or_else(|_| {
        tracing::error!(id = &*id.text, "a request panicked");
        let message = "an error on our side; the operator's log has it under this request's id";
        Err(Error::new(Kind::Internal, Origin::Gateway, message).into())
    });
    let has_credential = outcome.is_err() && intake::key(&parts.headers).is_some();
    let outcome =
        outcome.map_err(|refusal| front.throttled(refusal, has_credential, busy.pulse().peer()));
    if let Err(refusal) = &outcome {
        log(refusal, &parts, &id);
        if let Service::Callers(Callers { refusals: Some(refusals), .. }) = &front.service
            && !way.is_call
        {
            let tenant = way.tenant.as_deref();
            refusals(Refused::new(refusal, &parts, &id, tenant, arrived.elapsed()));
        }
    }
    let unread = busy.pulse().is_body_unread();
    if unread {
        busy.pulse().linger();
    }
    let head_only = parts.method == Method::HEAD;
    let errors = match &front.service {
        Service::Callers(_) => ErrorForm::OpenAi,
        Service::Admin(_) => ErrorForm::Problem,
    };
    let compressing = front.compressing(&parts);
    let asked = Asked {
        has_credential,
        id,
        version: parts.version,
        head_only,
        unread,
        errors,
        compressing,
    };
    outcome::write(outcome, asked, busy)
}

/// Checks the head, then lets the port answer.
async fn answer(
    front: &Front,
    busy: &Busy,
    parts: &Parts,
    body: &mut Incoming,
    id: &RequestId,
    way: &mut Way,
) -> Result<Success, Refusal> {
    strict::check(parts, busy).map_err(Refusal::Fixed)?;
    match &front.service {
        Service::Callers(_) => to_caller(front, busy, parts, body, id, way).await,
        Service::Admin(desk) => admin::answer(front, desk, parts, body, busy.pulse()).await,
    }
}

/// Goes where the head says.
async fn to_caller(
    front: &Front,
    busy: &Busy,
    parts: &Parts,
    body: &mut Incoming,
    id: &RequestId,
    way: &mut Way,
) -> Result<Success, Refusal> {
    let (route, name) =
        routes::find(&parts.method, parts.uri.path()).map_err(|no_route| match no_route {
            NoRoute::Path => Refusal::Fixed(&refusal::NOT_FOUND),
            NoRoute::Method(allowed) => Refusal::Method(allowed),
        })?;
    match route {
        Route::Call(operation) => call(front, operation, parts, body, id, busy.pulse(), way).await,
        Route::Models => {
            let tenant = way.identified(front, &parts.headers).await?;
            Ok(models(front, &tenant))
        }
        Route::Model => {
            let tenant = way.identified(front, &parts.headers).await?;
            model(front, &tenant, &name)
        }
        Route::Token => oauth::token(front, parts, body, busy.pulse(), way).await,
        Route::KeySet => oauth::key_set(front),
        Route::Metadata => oauth::metadata(front),
        Route::Live => Ok(live()),
        Route::Ready => Ok(ready(front)),
    }
}

/// A call for the engine: key first, then the body, then the answer.
async fn call(
    front: &Front,
    operation: Operation,
    parts: &Parts,
    body: &mut Incoming,
    id: &RequestId,
    pulse: &Pulse,
    way: &mut Way,
) -> Result<Success, Refusal> {
    let headers = &parts.headers;
    let tenant = way.identified(front, headers).await?;
    let once = front.idempotency().map_or(Ok(None), |kept| kept.asked(headers))?;
    let call = intake::call(operation, headers, body, tenant, id, &front.options, pulse).await?;
    // A model the caller may not use is refused below, past the kept answers: one that was kept for
    // a wider token of the same key is not for it, and the refusal is not to be kept as the answer.
    if let Some(once) = once.filter(|_| call.tenant.may_use(&call.model)) {
        return once.call(front, parts, call, way).await;
    }
    way.is_call = true;
    let started = Instant::now();
    let reply = front.answer.call(call).await?;
    Ok(Success::Reply { reply, took: started.elapsed() })
}

/// Whether the process is up.
pub(crate) const fn live() -> Success {
    state(StatusCode::OK, br#"{"status":"live"}"#)
}

/// Whether it takes calls.
pub(crate) fn ready(front: &Front) -> Success {
    if front.stop.is_cancelled() {
        return state(
            StatusCode::SERVICE_UNAVAILABLE,
            br#"{"status":"draining","reason":"stopping: calls in flight finish, new ones go elsewhere"}"#,
        );
    }
    state(StatusCode::OK, br#"{"status":"ready"}"#)
}

const fn state(status: StatusCode, json: &'static [u8]) -> Success {
    Success::Own { status, json: Bytes::from_static(json) }
}

/// A model as OpenAI writes it.
#[derive(Serialize)]
struct Model<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    owned_by: &'a str,
}

impl<'a> Model<'a> {
    fn of(info: &'a ModelInfo) -> Self {
        let ModelInfo { id, owned_by, created } = info;
        Self { id, object: "model", created: *created, owned_by }
    }
}

#[derive(Serialize)]
struct List<'a> {
    object: &'static str,
    data: Vec<Model<'a>>,
}

fn models(front: &Front, tenant: &Tenant) -> Success {
    let models = front.answer.models(tenant);
    let list = List { object: "list", data: models.iter().map(Model::of).collect() };
    Success::Own { status: StatusCode::OK, json: json(&list) }
}

/// A model the caller may not use is not told from one that does not exist.
fn model(front: &Front, tenant: &Tenant, name: &str) -> Result<Success, Refusal> {
    let models = front.answer.models(tenant);
    let Some(info) = models.iter().find(|info| &*info.id == name) else {
        let name = shown::text(name);
        let message = format!("no model `{name}`: GET /v1/models lists those this key may use");
        return Err(Error::new(Kind::ModelNotFound, Origin::Caller, message).into());
    };
    Ok(Success::Own { status: StatusCode::OK, json: json(&Model::of(info)) })
}

pub(crate) fn json(value: &impl Serialize) -> Bytes {
    serde_json::to_vec(value).expect("names and numbers can always be written").into()
}

/// For whoever looks for the reason of one refusal: with the message and all it has, but no word
/// of the caller's that may be a key.
fn log(refusal: &Refusal, parts: &Parts, id: &RequestId) {
    if !tracing::enabled!(tracing::Level::DEBUG) {
        return;
    }
    let (id, method, path) = (&*id.text, shown::method(parts), shown::path(parts));
    let (status, code) = (refusal.status().as_u16(), refusal.code());
    match refusal {
        Refusal::OAuth(refused) => {
            let reason = refused.description;
            tracing::debug!(id, method, path, status, code, reason, "request refused");
        }
        Refusal::Error(error) => {
            // An upstream tells the caller what is wrong with its prompt, and quotes it.
            let is_quoting = error.kind() == Kind::Rejected;
            let error = if is_quoting { "the upstream rejects it" } else { error.message() };
            tracing::debug!(id, method, path, status, code, error, "request refused");
        }
        Refusal::Fixed(_)
        | Refusal::Method(_)
        | Refusal::Coding
        | Refusal::InProgress(_)
        | Refusal::Throttled(_) => {
            tracing::debug!(id, method, path, status, code, "request refused");
        }
    }
}
