//! The client: calls without HTTP in between.

use crate::Builder;
use bytes::Bytes;
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tidegate_core::{
    Answer, Call, Error, Front, Kind, Operation, Origin, Patience, Payload, Priority, Reply,
    Result, Secret, Tenant,
};
use tidegate_engine::{Earlier, Engine};
use tidegate_upstream::Upstream;
use tidegate_wire::request;

/// Longest answer [`Client::json`] takes, in bytes.
const MAX_ANSWER_BYTES: usize = 64 << 20;
/// How long a call may take, unless [`Client::with_timeout`] says otherwise.
const TIMEOUT: Duration = Duration::from_secs(600);
/// A longer one, as `Duration::MAX` is, is no timeout at all.
const MAX_TIMEOUT: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Calls models through an engine of its own. Cheap to clone; clones share everything.
#[derive(Clone)]
pub struct Client {
    engine: Arc<Engine>,
    /// By name, for those whose secrets change.
    upstreams: Arc<BTreeMap<Arc<str>, Arc<Upstream>>>,
    tenant: Arc<Tenant>,
    timeout: Duration,
    calls: Arc<AtomicU64>,
}

impl Client {
    /// Starts putting a client together.
    pub fn builder() -> Builder {
        Builder::new()
    }

    pub(crate) fn over(engine: Arc<Engine>, upstreams: BTreeMap<Arc<str>, Arc<Upstream>>) -> Self {
        let (upstreams, tenant) = (Arc::new(upstreams), Arc::new(Tenant::local()));
        Self { engine, upstreams, tenant, timeout: TIMEOUT, calls: Arc::default() }
    }

    /// The same client with another limit on the duration of each call.
    #[must_use]
    pub const fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Adds what was spent of budgets before, where it was not known when this was built.
    pub fn resume(&self, earlier: Vec<Earlier>) {
        self.engine.resume(earlier);
    }

    /// Sends `key` to the upstream of this name from the next attempt on; no connection is dropped.
    ///
    /// # Errors
    ///
    /// [`Kind::InvalidRequest`] when there is no such upstream, or no header may carry the key; the
    /// one before stays.
    pub fn replace_api_key(&self, upstream: &str, key: &Secret<String>) -> Result<()> {
        self.upstream(upstream)?.replace_key(key)
    }

    /// Asks the token endpoint of the upstream of this name with `secret` from now on; the token in
    /// use stays.
    ///
    /// # Errors
    ///
    /// [`Kind::InvalidRequest`] when there is no such upstream.
    pub fn replace_client_secret(&self, upstream: &str, secret: Secret<String>) -> Result<()> {
        self.upstream(upstream)?.replace_client_secret(secret);
        Ok(())
    }

    fn upstream(&self, name: &str) -> Result<&Upstream> {
        let found = self.upstreams.get(name).map(|upstream| &**upstream);
        found.ok_or_else(|| {
            let message = format!("there is no upstream `{name}`");
            Error::new(Kind::InvalidRequest, Origin::Caller, message)
        })
    }

    /// What fronts hold.
    pub fn answer(&self) -> Arc<dyn Answer> {
        self.engine.clone()
    }

    /// Calls `operation` with a JSON `body`, which is passed on as it is.
    ///
    /// Dropping the future, or the reply's body, cancels the call.
    ///
    /// # Errors
    ///
    /// [`Kind::InvalidRequest`] for a body without a model; otherwise whatever ended the call.
    pub async fn call(&self, operation: Operation, body: impl Into<Bytes>) -> Result<Reply> {
        let body = body.into();
        let view = request::read(operation, &body)?;
        let number = self.calls.fetch_add(1, Relaxed);
        let call = Call {
            id: format!("sdk-{number}").into(),
            operation,
            model: (*view.model).into(),
            tokens: request::estimate(operation, body.len(), &view),
            max_output: request::max_output(operation, &view),
            choices: view.choices,
            payload: Payload::new(body, view.model_span).asking(view.opening),
            stream: view.stream,
            tenant: self.tenant.clone(),
            priority: Priority::Default,
            deadline: (tokio::time::Instant::now() + self.timeout.min(MAX_TIMEOUT)).into_std(),
            patience: Patience::Counted,
            front: Front::Sdk,
            headers: Vec::new(),
            client_retries: 0,
        };
        self.engine.call(call).await
    }

    /// Calls `operation` and reads the whole answer as JSON.
    ///
    /// # Errors
    ///
    /// As [`Client::call`]; [`Kind::Upstream`] when the answer is no JSON.
    pub async fn json(
        &self,
        operation: Operation,
        body: &serde_json::Value,
    ) -> Result<serde_json::Value> {
        let reply = self.call(operation, body.to_string()).await?;
        let answer = reply.body.collect(MAX_ANSWER_BYTES).await?;
        serde_json::from_slice(&answer).map_err(|cause| {
            Error::new(Kind::Upstream, Origin::Upstream, "the answer is no JSON").caused_by(cause)
        })
    }
}
