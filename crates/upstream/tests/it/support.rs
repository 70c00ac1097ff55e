//! A server that does as each test says, and calls to it.

use bytes::Bytes;
use std::{
    future::Future,
    net::SocketAddr,
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tidegate_core::{
    Attempt, Call, Front, Operation, Patience, Payload, Priority, Provider, Reply, Result, Tenant,
    TokenEstimate,
};
use tidegate_upstream::{Options, Upstream};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
};

/// What a server has seen.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) connections: AtomicUsize,
    open: AtomicUsize,
    pub(crate) most_open: AtomicUsize,
}

impl Seen {
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    fn opened(self: &Arc<Self>) -> OpenGuard {
        let open = self.open.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_open.fetch_max(open, Ordering::SeqCst);
        self.connections.fetch_add(1, Ordering::SeqCst);
        OpenGuard(Arc::clone(self))
    }
}

struct OpenGuard(Arc<Seen>);

impl Drop for OpenGuard {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

pub(crate) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// One connection, seen by the server.
pub(crate) struct Connection {
    pub(crate) io: Box<dyn Io>,
    buffer: Vec<u8>,
    _open: OpenGuard,
}

/// One request.
pub(crate) struct Request {
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Request {
    /// The value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(its_name, _)| *its_name == name).map(|(_, value)| value)
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

impl Connection {
    pub(crate) fn new(io: impl Io + 'static, seen: &Arc<Seen>) -> Self {
        let open = seen.opened();
        Self { io: Box::new(io), buffer: Vec::new(), _open: open }
    }

    /// The next request; `None` when the caller closed.
    pub(crate) async fn request(&mut self) -> Option<Request> {
        loop {
            if let Some(end) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                let head = String::from_utf8(self.buffer[..end].to_vec()).unwrap().to_lowercase();
                let (_, length) = head.split_once("content-length: ").unwrap();
                let length: usize = length.lines().next().unwrap().parse().unwrap();
                if self.buffer.len() >= end + 4 + length {
                    let rest = self.buffer.split_off(end + 4 + length);
                    let body = self.buffer[end + 4..].to_vec();
                    self.buffer = rest;
                    return Some(Request { head, body });
                }
            }
            let mut chunk = [0; 4096];
            match self.io.read(&mut chunk).await {
                Ok(0) | Err(_) => return None,
                Ok(read) => self.buffer.extend_from_slice(&chunk[..read]),
            }
        }
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.io.write_all(bytes.as_ref()).await;
        let _ = self.io.flush().await;
    }

    /// Until the caller has closed the connection.
    pub(crate) async fn closed(&mut self) {
        let mut chunk = [0; 4096];
        while matches!(self.io.read(&mut chunk).await, Ok(read) if read > 0) {}
    }
}

/// A listening server.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) seen: Arc<Seen>,
}

impl Deref for Server {
    type Target = Seen;

    fn deref(&self) -> &Seen {
        &self.seen
    }
}

/// Runs `serve` for every connection.
pub(crate) async fn server<F, Fut>(serve: F) -> Server
where
    F: Fn(Connection) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::new(Seen::default());
    let server = Server { address, seen: Arc::clone(&seen) };
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            tokio::spawn(serve(Connection::new(stream, &seen)));
        }
    });
    server
}

/// A server that gives the same answer to every request.
pub(crate) async fn answering(answer: impl Into<Vec<u8>>) -> Server {
    let answer: Arc<[u8]> = answer.into().into();
    server(move |mut connection| {
        let answer = Arc::clone(&answer);
        async move {
            while connection.request().await.is_some() {
                connection.send(&answer).await;
            }
        }
    })
    .await
}

/// A server that gives `answer` to the first request of a connection and closes it.
pub(crate) async fn answering_once(answer: impl Into<Vec<u8>>) -> Server {
    let answer: Arc<[u8]> = answer.into().into();
    server(move |mut connection| {
        let answer = Arc::clone(&answer);
        async move {
            if connection.request().await.is_some() {
                connection.send(&answer).await;
            }
        }
    })
    .await
}

/// An answer with its length told.
pub(crate) fn answer(status: &str, headers: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let head = format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

pub(crate) const JSON: &str = "content-type: application/json\r\n";
pub(crate) const OK_BODY: &str = r#"{"id":"1","usage":{"prompt_tokens":3,"completion_tokens":4}}"#;

/// A stream of events whose end is the end of the connection.
pub(crate) fn events(events: &str) -> Vec<u8> {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n\r\n";
    [head, events].concat().into()
}

pub(crate) fn options(address: SocketAddr) -> Options {
    Options { base_url: format!("http://{address}/v1"), ..Options::default() }
}

pub(crate) fn open(options: Options) -> Upstream {
    Upstream::open("up".into(), options, Some("sk-1".to_owned().into())).unwrap()
}

pub(crate) fn upstream(server: &Server) -> Arc<Upstream> {
    Arc::new(open(options(server.address)))
}

pub(crate) fn call(operation: Operation, stream: bool) -> Call {
    let body = br#"{"model":"gw","messages":[]}"#;
    Call {
        id: "req-1".into(),
        operation,
        model: "gw".into(),
        payload: Payload::new(Bytes::from_static(body), 9..13),
        stream,
        tokens: TokenEstimate::default(),
        max_output: None,
        choices: 1,
        tenant: Arc::new(Tenant::local()),
        priority: Priority::Default,
        deadline: Instant::now() + Duration::from_secs(3600),
        patience: Patience::Counted,
        front: Front::Sdk,
        headers: Vec::new(),
        client_retries: 0,
    }
}

pub(crate) async fn send(upstream: &Upstream, call: &Call) -> Result<Reply> {
    let (reply, was_written) = sent(upstream, call).await;
    assert!(reply.is_err() || was_written, "nobody answers what was not written");
    reply
}

/// What came of it, and whether the request was written, as the upstream says.
pub(crate) async fn sent(upstream: &Upstream, call: &Call) -> (Result<Reply>, bool) {
    let written = AtomicBool::new(false);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    let attempt = Attempt {
        call,
        model: "real",
        number: 2,
        connect_timeout: Duration::from_secs(2),
        deadline: deadline.into_std(),
        written: Some(&written),
    };
    let reply = upstream.send(attempt).await;
    (reply, written.into_inner())
}

pub(crate) async fn chat(upstream: &Upstream) -> Result<Reply> {
    send(upstream, &call(Operation::ChatCompletions, false)).await
}

pub(crate) async fn chat_stream(upstream: &Upstream) -> Result<Reply> {
    send(upstream, &call(Operation::ChatCompletions, true)).await
}

/// A whole body as text.
pub(crate) async fn text(reply: Reply) -> Result<String> {
    let bytes = reply.body.collect(64 << 20).await?;
    Ok(String::from_utf8(bytes.to_vec()).unwrap())
}
