//! Writes requests and keeps unused connections; no policy, no limit but the load's own.

use crate::{Error, Headers, Target, connection::Connection, content::Content};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Request, Uri,
    header::{ACCEPT, CONTENT_TYPE, HOST, USER_AGENT},
};
use http_body_util::Full;
use parking_lot::Mutex;
use serde::Deserialize;
use std::time::Duration;
use tidegate_core::{Operation, Secret};
use tokio::time::timeout;

/// How long a server has to say which models it has.
const DISCOVERY: Duration = Duration::from_secs(10);
/// Longest list of models.
const MAX_LIST_BYTES: usize = 4 << 20;

/// Sends requests of one kind to one server.
pub(crate) struct Client {
    target: Target,
    path: Uri,
    headers: HeaderMap,
    key: Option<Secret<String>>,
    pub(crate) content: Content,
    pub(crate) is_stream: bool,
    /// The latest used last. As many as were ever in use at once, which the load bounds.
    #[expect(clippy::vec_box, reason = "it is moved on every request, and large")]
    idle: Mutex<Vec<Box<Connection>>>,
}

impl Client {
    pub(crate) fn new(
        target: Target,
        operation: Operation,
        headers: &Headers,
        is_stream: bool,
    ) -> Self {
        let accept = if is_stream { "text/event-stream" } else { "application/json" };
        Self {
            path: target.path(operation.path()),
            headers: written(&target, headers, accept),
            key: headers.key.clone(),
            content: Content::of(operation),
            is_stream,
            idle: Mutex::default(),
            target,
        }
    }

    pub(crate) fn request(&self, body: Bytes) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.path.clone();
        *request.headers_mut() = self.headers.clone();
        request
    }

    /// An unused connection: the latest used, the least likely to have been closed.
    pub(crate) fn take(&self) -> Option<Box<Connection>> {
        loop {
            let mut connection = self.idle.lock().pop()?;
            if connection.is_ready() {
                return Some(connection);
            }
        }
    }

    /// Keeps a connection whose answer was read to its end.
    pub(crate) fn give_back(&self, mut connection: Box<Connection>) {
        if connection.is_ready() {
            self.idle.lock().push(connection);
        }
    }

    /// Opens a connection; the error in words.
    pub(crate) async fn open(&self) -> Result<Box<Connection>, String> {
        let stream = self.target.dial().await.map_err(|error| error.to_string())?;
        Connection::open(stream).await.map_err(|error| error.to_string())
    }

    /// A server's words without our key, which some repeat.
    pub(crate) fn redacted(&self, text: &str) -> String {
        match &self.key {
            Some(key) if !key.expose().is_empty() => text.replace(key.expose(), "[key]"),
            _ => text.to_owned(),
        }
    }
}

/// The first model a server lists.
///
/// # Errors
///
/// When it cannot be reached, or lists none; then the model has to be named.
pub async fn discover_model(target: &mut Target, headers: &Headers) -> Result<String, Error> {
    target.resolve().await?;
    let unreachable =
        |why: String| Error::Unreachable(format!("{} does not answer: {why}", target.url));
    let listed = async {
        let stream = target.dial().await.map_err(|error| unreachable(error.to_string()))?;
        let mut connection =
            Connection::open(stream).await.map_err(|error| unreachable(error.to_string()))?;
        let mut request = Request::new(Full::new(Bytes::new()));
        *request.uri_mut() = target.path("/models");
        *request.headers_mut() = written(target, headers, "application/json");
        let response = connection
            .exchange(request)
            .await
            .map_err(|_| unreachable("the connection ended without an answer".into()))?;
        let status = response.status();
        let mut body = response.into_body();
        let mut list = Vec::new();
        while let Some(Ok(chunk)) = connection.chunk(&mut body).await {
            list.extend_from_slice(&chunk[..chunk.len().min(MAX_LIST_BYTES - list.len())]);
        }
        first_model(&list).ok_or_else(|| {
            Error::Invalid(format!(
                "--model is missing, and GET {}/models lists none (status {})",
                target.url,
                status.as_u16()
            ))
        })
    };
    let late = || unreachable(format!("no answer within {} s", DISCOVERY.as_secs()));
    timeout(DISCOVERY, listed).await.unwrap_or_else(|_| Err(late()))
}

fn first_model(list: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct List {
        data: Vec<Model>,
    }
    #[derive(Deserialize)]
    struct Model {
        id: String,
    }
    Some(serde_json::from_slice::<List>(list).ok()?.data.into_iter().next()?.id)
}

/// The headers of every request; the user's own win.
fn written(target: &Target, headers: &Headers, accept: &'static str) -> HeaderMap {
    const AGENT: &str = concat!("tidegate-bench/", env!("CARGO_PKG_VERSION"));
    let mut map = HeaderMap::with_capacity(4 + headers.map.len());
    map.insert(HOST, target.host.clone());
    map.insert(USER_AGENT, HeaderValue::from_static(AGENT));
    map.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    map.insert(ACCEPT, HeaderValue::from_static(accept));
    map.extend(headers.map.clone());
    map
}
