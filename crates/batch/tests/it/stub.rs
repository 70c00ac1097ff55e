//! An engine that answers as told, and a bench to run jobs on.

use bytes::Bytes;
use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};
use tempfile::TempDir;
use tidegate_batch::{Failure, Finished, InputOptions, Job, Progress, Surroundings, run};
use tidegate_core::{
    Answer, Body, BoundBy, BoxFuture, Call, ContentType, Error, Identity, Kind, ModelInfo, Money,
    Origin, Price, RateLimits, Rates, Reply, Result, Served, Tenant, UpstreamState, Usage,
};
use tokio_util::sync::CancellationToken;

/// What the engine does with a call.
pub(crate) enum Step {
    /// Answers with what the prompt says.
    Echo,
    /// Answers with this body.
    Body(&'static str),
    Fail(Kind),
    Hang,
}

type Script = dyn Fn(&str, u32) -> Step + Send + Sync;

/// Answers calls by a script over the prompt and how often it was asked before.
pub(crate) struct Stub {
    script: Box<Script>,
    delay: Duration,
    /// What the engine tells of its upstreams.
    pub(crate) tells: Mutex<Vec<UpstreamState>>,
    seen: Mutex<HashMap<String, u32>>,
    /// Prompts in the order they were called.
    pub(crate) calls: Mutex<Vec<String>>,
}

impl Stub {
    fn prompt(call: &Call) -> String {
        let body: serde_json::Value = serde_json::from_slice(call.payload.bytes()).unwrap();
        body["messages"][0]["content"].as_str().unwrap_or_default().to_owned()
    }

    pub(crate) fn count(&self) -> usize {
        self.calls.lock().unwrap().len()
    }
}

/// The answer to a prompt.
pub(crate) fn echo(prompt: &str) -> String {
    let content = serde_json::to_string(&format!("echo {prompt}")).unwrap();
    format!(
        "{{\n  \"choices\":[{{\"message\":{{\"content\":{content}}}}}],\n  \"usage\":\
         {{\"prompt_tokens\":3,\"completion_tokens\":2}}\n}}"
    )
}

impl Answer for Stub {
    fn identify<'a>(&'a self, _: &'a str) -> Identity<'a> {
        Identity::Known(Arc::new(Tenant::local()))
    }

    fn call(&self, call: Call) -> BoxFuture<'_, Result<Reply>> {
        let prompt = Self::prompt(&call);
        let nth = {
            let mut seen = self.seen.lock().unwrap();
            let nth = seen.entry(prompt.clone()).or_default();
            *nth += 1;
            *nth - 1
        };
        self.calls.lock().unwrap().push(prompt.clone());
        Box::pin(async move {
            tokio::time::sleep(self.delay).await;
            let body = match (self.script)(&prompt, nth) {
                Step::Echo => Bytes::from(echo(&prompt)),
                Step::Body(body) => Bytes::from_static(body.as_bytes()),
                Step::Fail(kind) => return Err(error(kind)),
                Step::Hang => {
                    tokio::time::sleep_until(call.deadline.into()).await;
                    return Err(error(Kind::DeadlineExceeded));
                }
            };
            Ok(Reply {
                status: 200,
                content_type: ContentType::Json,
                body: Body::whole(body),
                usage: Some(Usage { input: 3, output: 2, ..Usage::default() }),
                meter: None,
                limits: RateLimits::default(),
                upstream_request_id: Some("req_1".into()),
                served: Served {
                    upstream: "stub".into(),
                    model: "m".into(),
                    attempts: 1,
                    upstream_time: self.delay,
                    tenant: RateLimits::default(),
                },
            })
        })
    }

    fn models(&self, _: &Tenant) -> Vec<ModelInfo> {
        Vec::new()
    }

    fn upstreams(&self) -> Vec<UpstreamState> {
        self.tells.lock().unwrap().clone()
    }
}

/// An upstream with so many attempts in flight and room for more.
pub(crate) fn upstream(in_flight: u32) -> UpstreamState {
    UpstreamState {
        upstream: "stub".into(),
        model: "m".into(),
        concurrency: 100,
        in_flight,
        waiting: 0,
        requests_per_second: None,
        shut_for: Duration::ZERO,
        bound_by: BoundBy::Nothing,
        breaker: tidegate_core::BreakerState::Closed,
        share: 1.0,
        latency: Some(Duration::from_millis(20)),
        attempts: 0,
        refusals: 0,
    }
}

fn error(kind: Kind) -> Error {
    let error = Error::new(kind, Origin::Upstream, format!("said {kind:?}"))
        .after_attempts(1, "stub".into());
    match kind {
        Kind::Rejected => error.with_answer(
            400,
            Bytes::from_static(
                b"{\"error\":{\"message\":\"no\",\"type\":\"t\",\"param\":null,\"code\":null}}",
            ),
        ),
        _ => error,
    }
}

/// A directory with an input, run as often as wanted.
pub(crate) struct Bench {
    pub(crate) dir: TempDir,
    pub(crate) input: PathBuf,
    pub(crate) price: Option<Price>,
    pub(crate) stop: CancellationToken,
    delay: Duration,
}

impl Bench {
    /// With `text` as the input `name`.
    pub(crate) fn new(name: &str, text: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let input = dir.path().join(name);
        fs::write(&input, text).unwrap();
        let price = Some(Price::flat(Rates::new(Money::DOLLAR, Money::DOLLAR)));
        let stop = CancellationToken::new();
        Self { dir, input, price, stop, delay: Duration::from_millis(50) }
    }

    /// With so many OpenAI batch lines, prompts `p0`, `p1` …
    pub(crate) fn lines(count: usize) -> Self {
        Self::new("data.jsonl", &lines(0..count))
    }

    pub(crate) fn job(&self) -> Job {
        Job::new(InputOptions { path: self.input.clone(), ..InputOptions::default() })
    }

    pub(crate) fn stub(
        &self,
        script: impl Fn(&str, u32) -> Step + Send + Sync + 'static,
    ) -> Arc<Stub> {
        Arc::new(Stub {
            script: Box::new(script),
            delay: self.delay,
            tells: Mutex::default(),
            seen: Mutex::default(),
            calls: Mutex::default(),
        })
    }

    pub(crate) async fn run(&self, job: Job, stub: &Arc<Stub>) -> Result<Finished, Failure> {
        let price = self.price;
        let around = Surroundings {
            answer: stub.clone(),
            prices: Arc::new(move |_| price),
            stop: self.stop.clone(),
            progress: Progress::None,
            confirm: None,
        };
        run(job, around).await
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The rows of an output file.
    pub(crate) fn rows(&self, name: &str) -> Vec<serde_json::Value> {
        read_rows(&self.path(name))
    }
}

/// Every line as JSON; the last must be whole too.
pub(crate) fn read_rows(path: &Path) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'), "the last line is whole");
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// OpenAI batch lines with these numbers as ids and prompts.
pub(crate) fn lines(numbers: impl Iterator<Item = usize>) -> String {
    numbers.map(|number| line(&format!("r{number}"), &format!("p{number}"))).collect()
}

pub(crate) fn line(id: &str, prompt: &str) -> String {
    format!(
        "{{\"custom_id\":\"{id}\",\"method\":\"POST\",\"url\":\"/v1/chat/completions\",\"body\":\
         {{\"model\":\"m\",\"messages\":[{{\"role\":\"user\",\"content\":\"{prompt}\"}}]}}}}\n"
    )
}
