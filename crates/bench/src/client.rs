//! What all that send share: where to, what, and how an answer is read.

use crate::{
    Error, Headers, Target,
    bodies::Bodies,
    connection::Connection,
    content::Content,
    http2,
    requests::{self, Requests},
};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Request, Uri,
    header::{ACCEPT, CONTENT_TYPE, HOST, USER_AGENT},
};
use http_body_util::Full;
use serde::Deserialize;
use std::{sync::Arc, time::Duration};
use tidegate_core::{Operation, Secret};
use tokio::time::timeout;

/// How long a server has to take a first connection, and to say which models it has.
const FIRST_ANSWER: Duration = Duration::from_secs(10);
/// Longest list of models.
const MAX_LIST_BYTES: usize = 4 << 20;

/// Sends requests of one kind to one server.
pub(crate) struct Client {
    target: Target,
    pub(crate) requests: Requests,
    pub(crate) content: Content,
    pub(crate) is_stream: bool,
    key: Option<Secret<String>>,
    /// For HTTP/2; over HTTP/1.1 each worker has a connection of its own.
    pub(crate) shared: Option<SharedConnections>,
}

/// What HTTP/2 needs beside the body.
pub(crate) struct SharedConnections {
    pub(crate) connections: http2::Connections,
    url: Uri,
    headers: HeaderMap,
}

impl Client {
    pub(crate) fn new(
        target: Target,
        operation: Operation,
        headers: &Headers,
        bodies: Bodies,
        is_stream: bool,
    ) -> Self {
        let accept = if is_stream { "text/event-stream" } else { "application/json" };
        let path = target.path(operation.path());
        let mut map = written(&target, headers, accept);
        let requests = Requests::new(&path, &map, bodies);
        map.remove(HOST);
        Self {
            requests,
            key: headers.key.clone(),
            content: Content::of(operation),
            is_stream,
            shared: target.is_http2().then(|| SharedConnections {
                connections: http2::Connections::default(),
                url: target.url_of(operation.path()),
                headers: map,
            }),
            target,
        }
    }

    /// Opens the first connection, so that a server that is not there is found out before a run.
    ///
    /// # Errors
    ///
    /// Why nobody answers, in words.
    pub(crate) async fn probe(&self) -> Result<Option<Connection>, String> {
        let first = async {
            match &self.shared {
                None => Ok(Some(self.open().await?)),
                Some(shared) => {
                    let dial = async || {
                        let connection = self.open_shared().await?;
                        connection.settled().await.map(|()| connection)
                    };
                    shared.connections.slot(dial).await.map(|_| None)
                }
            }
        };
        timeout(FIRST_ANSWER, first).await.unwrap_or_else(|_| Err(too_late()))
    }

    /// # Errors
    ///
    /// Why there is no connection, in words.
    pub(crate) async fn open(&self) -> Result<Connection, String> {
        self.target.dial().await.map(Connection::new)
    }

    /// # Errors
    ///
    /// Why there is no connection, in words.
    pub(crate) async fn open_shared(&self) -> Result<Arc<http2::Connection>, String> {
        http2::Connection::open(self.target.dial().await?).await
    }

    /// A server's words without our key, which some repeat.
    pub(crate) fn redacted(&self, text: &str) -> String {
        match &self.key {
            Some(key) if !key.expose().is_empty() => text.replace(key.expose(), "[key]"),
            _ => text.to_owned(),
        }
    }
}

impl SharedConnections {
    pub(crate) fn request(&self, body: Bytes) -> Request<Full<Bytes>> {
        http2_request(Method::POST, &self.url, &self.headers, body)
    }
}

fn http2_request(
    method: Method,
    url: &Uri,
    headers: &HeaderMap,
    body: Bytes,
) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = method;
    *request.version_mut() = http::Version::HTTP_2;
    *request.uri_mut() = url.clone();
    *request.headers_mut() = headers.clone();
    request
}

/// The first model a server lists.
///
/// # Errors
///
/// When it cannot be reached, refuses the key, or lists none; then the model has to be named.
pub async fn discover_model(target: &mut Target, headers: &Headers) -> Result<String, Error> {
    target.resolve().await?;
    let listed = timeout(FIRST_ANSWER, list(target, headers));
    let (status, list) = listed
        .await
        .unwrap_or_else(|_| Err(too_late()))
        .map_err(|why| Error::Unreachable(format!("nobody answers at {}: {why}", target.url)))?;
    let asked = format!("GET {}/models", target.url);
    if matches!(status, 401 | 403) {
        return Err(Error::Refused(format!(
            "{asked} is refused with status {status}: check the key, or name a --model"
        )));
    }
    first_model(&list).ok_or_else(|| {
        Error::Invalid(format!("--model is missing, and {asked} lists none (status {status})"))
    })
}

fn too_late() -> String {
    format!("no answer within {} s", FIRST_ANSWER.as_secs())
}

/// Asks for the models; status and body.
async fn list(target: &Target, headers: &Headers) -> Result<(u16, Vec<u8>), String> {
    const NO_ANSWER: &str = "it ended the connection without an answer";
    let mut map = written(target, headers, "application/json");
    let stream = target.dial().await?;
    let mut body = Vec::new();
    let room = |body: &Vec<u8>, chunk: &[u8]| chunk.len().min(MAX_LIST_BYTES - body.len());
    if target.is_http2() {
        map.remove(HOST);
        let url = target.url_of("/models");
        let request = http2_request(Method::GET, &url, &map, Bytes::new());
        let connection = http2::Connection::open(stream).await?;
        connection.settled().await?;
        let answer = http2::Slot::on(connection).exchange(request).await;
        let (head, mut answer) = answer.map_err(|_| NO_ANSWER.to_owned())?;
        while let Ok(true) = answer.chunk().await {
            body.extend_from_slice(&answer.held[..room(&body, &answer.held)]);
        }
        return Ok((head.status, body));
    }
    let mut connection = Connection::new(stream);
    let mut request = requests::head("GET", &target.path("/models"), &map);
    request.extend_from_slice(b"\r\n");
    let head = connection.exchange(&request).await.map_err(|_| NO_ANSWER.to_owned())?;
    while let Ok(Some(piece)) = connection.chunk().await {
        let chunk = connection.bytes(piece);
        body.extend_from_slice(&chunk[..room(&body, chunk)]);
    }
    Ok((head.status, body))
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
