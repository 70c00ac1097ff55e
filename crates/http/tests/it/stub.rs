//! A scripted answer, and callers that speak raw bytes.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};
use tidegate_core::{
    Answer, Body, BoxFuture, Call, ContentType, Error, Identity, Kind, MirrorState, ModelInfo,
    Origin, RateLimits, Reply, Result, Scope, Served, Tenant, Tokens, UpstreamState,
};
use tidegate_http::{
    Callers, Drained, Idempotency, Options, Refusals, Refused, serve, serve_connection,
};
use tidegate_store::replay::{self, Memory};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

/// What the stub does with a call.
#[expect(clippy::large_enum_variant, reason = "made once per call of a test")]
pub(crate) enum Act {
    Reply(Reply),
    Fail(Error),
    /// Replies when it is told.
    After(BoxFuture<'static, Reply>),
    /// Waits until it is dropped.
    Hang,
    Panic,
}

/// The key of the stub's first caller.
pub(crate) const KEY: &str = "tg-good";
/// The key of another.
pub(crate) const OTHER_KEY: &str = "tg-other";
/// Longest answer the stub's server keeps, in bytes.
pub(crate) const MAX_ANSWER: usize = 1000;

type Script = Box<dyn Fn(&Call, Ended) -> Act + Send + Sync>;

pub(crate) struct Stub {
    script: Script,
    /// Every call so far.
    pub(crate) calls: Mutex<Vec<Call>>,
    /// What it says of its upstreams.
    pub(crate) upstreams: Mutex<Vec<UpstreamState>>,
    /// What it says of its mirrors.
    pub(crate) mirrors: Mutex<Vec<MirrorState>>,
    /// The requests that never reached it.
    pub(crate) refused: Arc<Mutex<Vec<Refused>>>,
    /// What answers are kept in; `None` keeps none.
    pub(crate) idempotency: Mutex<Option<Idempotency>>,
    /// Who issues tokens.
    pub(crate) tokens: Option<Box<dyn Tokens>>,
    /// One permit for each call that began, and for each that ended, however it did.
    pub(crate) begun: Semaphore,
    pub(crate) ended: Arc<Semaphore>,
}

/// Tells that it was dropped.
pub(crate) struct Ended(Arc<Semaphore>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.add_permits(1);
    }
}

impl Stub {
    pub(crate) fn new(script: impl Fn(&Call, Ended) -> Act + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            script: Box::new(script),
            calls: Mutex::default(),
            upstreams: Mutex::default(),
            mirrors: Mutex::default(),
            refused: Arc::default(),
            idempotency: Mutex::new(Some(Idempotency::new(
                Arc::new(Memory::new(replay::Options::default())),
                MAX_ANSWER,
            ))),
            tokens: None,
            begun: Semaphore::new(0),
            ended: Arc::new(Semaphore::new(0)),
        })
    }

    /// Answers everything with `{"ok":true}`.
    pub(crate) fn fine() -> Arc<Self> {
        Self::new(|_, ended| Act::Reply(json(r#"{"ok":true}"#, ended)))
    }

    /// [`Stub::fine`], and issues tokens.
    pub(crate) fn issuing(tokens: impl Tokens) -> Arc<Self> {
        let mut stub = Arc::into_inner(Self::fine()).unwrap();
        stub.tokens = Some(Box::new(tokens));
        Arc::new(stub)
    }

    fn callers(&self) -> Callers {
        let refused = self.refused.clone();
        let refusals: Refusals = Arc::new(move |request| refused.lock().unwrap().push(request));
        let idempotency = self.idempotency.lock().unwrap().clone();
        Callers { refusals: Some(refusals), idempotency }
    }

    /// Waits until `count` calls have begun or ended.
    pub(crate) async fn wait(semaphore: &Semaphore, count: u32) {
        let waited = tokio::time::timeout(Duration::from_secs(30), semaphore.acquire_many(count));
        waited.await.expect("it happens soon").unwrap().forget();
    }
}

impl Answer for Stub {
    fn identify<'a>(&'a self, key: &'a str) -> Identity<'a> {
        if key == KEY {
            return Identity::Known(Arc::new(Tenant::local()));
        }
        if key == OTHER_KEY {
            return Identity::Known(Arc::new(Tenant { id: "other".into(), ..Tenant::local() }));
        }
        let refused = Error::new(Kind::Unauthenticated, Origin::Caller, "this key is not known");
        match key {
            // Of KEY, for another model than the one everybody asks for.
            "a.narrow.token" => {
                let scope = Scope::Models(vec!["another".into()]);
                Identity::Known(Arc::new(Tenant { scope, ..Tenant::local() }))
            }
            "asks.once.good" => Identity::Ask(Box::pin(async { Ok(Arc::new(Tenant::local())) })),
            "asks.once.bad" => Identity::Ask(Box::pin(async { Err(refused) })),
            "a.past.token" => Identity::Refused(Error::new(
                Kind::TokenExpired,
                Origin::Caller,
                "this token has expired",
            )),
            _ => Identity::Refused(refused),
        }
    }

    fn tokens(&self) -> Option<&dyn Tokens> {
        self.tokens.as_deref()
    }

    fn call(&self, call: Call) -> BoxFuture<'_, Result<Reply>> {
        self.begun.add_permits(1);
        let ended = Ended(Arc::clone(&self.ended));
        let act = (self.script)(&call, ended);
        self.calls.lock().unwrap().push(call);
        let ended = Ended(Arc::clone(&self.ended));
        Box::pin(async move {
            match act {
                Act::Reply(reply) => {
                    std::mem::forget(ended);
                    Ok(reply)
                }
                Act::Fail(error) => {
                    std::mem::forget(ended);
                    Err(error)
                }
                Act::After(reply) => {
                    std::mem::forget(ended);
                    Ok(reply.await)
                }
                Act::Hang => {
                    let _ended = ended;
                    std::future::pending().await
                }
                Act::Panic => panic!("scripted"),
            }
        })
    }

    fn models(&self, _: &Tenant) -> Vec<ModelInfo> {
        let model = |id: &str| ModelInfo { id: id.into(), owned_by: "up".into(), created: 7 };
        vec![model("small"), model("org/large")]
    }

    fn upstreams(&self) -> Vec<UpstreamState> {
        self.upstreams.lock().unwrap().clone()
    }

    fn mirrors(&self) -> Vec<MirrorState> {
        self.mirrors.lock().unwrap().clone()
    }
}

/// A whole JSON answer.
pub(crate) fn json(text: &'static str, ended: Ended) -> Reply {
    reply(ContentType::Json, Body::whole(text.as_bytes().into()).holding(Box::new(ended)))
}

/// An answer as the engine gives it.
pub(crate) fn reply(content_type: ContentType, body: Body) -> Reply {
    Reply {
        status: 200,
        content_type,
        body,
        usage: None,
        meter: None,
        limits: RateLimits::default(),
        upstream_request_id: None,
        served: Served { upstream: "up".into(), attempts: 2, ..Served::default() },
    }
}

/// A server on a free port.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) stop: CancellationToken,
    pub(crate) done: JoinHandle<std::io::Result<Drained>>,
}

impl Server {
    pub(crate) async fn start(stub: &Arc<Stub>, options: Options) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let (answer, callers) = (Arc::clone(stub) as _, stub.callers());
        let done = tokio::spawn(serve(listener, answer, options, callers, stop.clone()));
        Self { address, stop, done }
    }

    pub(crate) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    pub(crate) async fn stop(self) -> Drained {
        self.stop.cancel();
        self.done.await.unwrap().unwrap()
    }
}

/// One connection over memory.
pub(crate) fn memory(stub: &Arc<Stub>, options: Options) -> (DuplexStream, CancellationToken) {
    let (ours, theirs) = tokio::io::duplex(16 << 10);
    let stop = CancellationToken::new();
    let (answer, callers) = (Arc::clone(stub) as _, stub.callers());
    tokio::spawn(serve_connection(theirs, answer, options, callers, stop.clone()));
    (ours, stop)
}

/// Sends `bytes` on a fresh connection over memory and reads until it is closed: with a paused
/// clock at the latest when the idle timer runs out.
pub(crate) async fn exchange(stub: &Arc<Stub>, bytes: impl AsRef<[u8]>) -> Said {
    let (mut io, _stop) = memory(stub, Options::default());
    let bytes = bytes.as_ref().to_vec();
    let (mut read, mut write) = tokio::io::split(&mut io);
    // The server may close before it has read everything.
    let (_, said) = tokio::join!(write.write_all(&bytes), read_all(&mut read));
    Said::parse(&said)
}

/// Reads until the other side closes; a reset counts as closed.
pub(crate) async fn read_all(io: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(read) = io.read(&mut buffer).await {
        if read == 0 {
            break;
        }
        bytes.extend_from_slice(&buffer[..read]);
    }
    String::from_utf8(bytes).unwrap()
}

/// Reads until `text` has been said.
pub(crate) async fn read_until(io: &mut (impl tokio::io::AsyncRead + Unpin), text: &str) -> String {
    let mut said = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let read = io.read(&mut buffer).await.unwrap();
        assert!(read > 0, "closed after {:?}", String::from_utf8_lossy(&said));
        // What was looked at before need not be looked at again.
        let fresh = said.len().saturating_sub(text.len());
        said.extend_from_slice(&buffer[..read]);
        if String::from_utf8_lossy(&said[fresh..]).contains(text) {
            return String::from_utf8_lossy(&said).into_owned();
        }
    }
}

/// A request with the good key and a body.
pub(crate) fn post(path: &str, headers: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: gate\r\nAuthorization: Bearer {KEY}\r\n\
         Content-Length: {}\r\n{headers}\r\n{body}",
        body.len()
    )
}

pub(crate) fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: gate\r\nAuthorization: Bearer {KEY}\r\n\r\n")
}

/// A chat body for any operation.
pub(crate) const BODY: &str =
    r#"{"model":"small","messages":[{"role":"user","content":"hi"}],"prompt":"hi","input":"hi"}"#;

/// What a server said on one connection.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Said {
    /// The first answer in `text`, with everything after its head as the body.
    pub(crate) fn parse(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        Self { status, head: head.to_owned(), body: body.to_owned() }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (its_name, value) = line.split_once(':')?;
            its_name.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    pub(crate) fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
    }
}
