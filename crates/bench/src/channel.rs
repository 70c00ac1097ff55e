//! The connection or stream a request goes over, whichever protocol it speaks.

use crate::{
    client::Client,
    connection::{Connection, Cut, Failure},
    head::Head,
    http2,
};
use std::{ops::Range, time::Duration};
use tokio::time::Instant;

/// What a request goes over.
pub(crate) enum Channel {
    Http1(Connection),
    Http2(http2::Stream),
}

/// Why there was no answer to read.
pub(crate) enum Lost {
    /// No connection came about.
    Unconnected(String),
    Failed(Failure),
}

/// What it took to send a request.
pub(crate) struct Sent<'a> {
    pub(crate) connect: &'a mut Option<Duration>,
    pub(crate) bytes: &'a mut u64,
}

impl Channel {
    /// Sends request `number`, over the connection kept or a new one, and waits for the head of
    /// its answer.
    pub(crate) async fn send(
        client: &Client,
        number: u64,
        kept: Option<Connection>,
        scratch: &mut Vec<u8>,
        sent: Sent<'_>,
    ) -> Result<(Head, Self), Lost> {
        match &client.shared {
            None => send_http1(client, number, kept, scratch, sent).await,
            Some(_) => send_http2(client, number, sent).await,
        }
    }

    /// The next piece of the answer's body, for [`Channel::bytes`]; `None` at its end. It is
    /// valid until the next call.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Range<usize>>, Cut> {
        match self {
            Self::Http1(connection) => connection.chunk().await,
            Self::Http2(stream) => Ok(stream.chunk().await?.then(|| 0..stream.held.len())),
        }
    }

    pub(crate) fn bytes(&self, piece: Range<usize>) -> &[u8] {
        match self {
            Self::Http1(connection) => connection.bytes(piece),
            Self::Http2(stream) => &stream.held[piece],
        }
    }

    /// Whether the piece read last is known to be the last one.
    pub(crate) fn is_at_end(&mut self) -> bool {
        match self {
            Self::Http1(connection) => connection.is_at_end(),
            Self::Http2(_) => false,
        }
    }

    /// When bytes came last.
    pub(crate) fn read_at(&self) -> Instant {
        match self {
            Self::Http1(connection) => connection.read_at,
            Self::Http2(stream) => stream.read_at,
        }
    }

    /// The connection, when it is the request's own and can take another.
    pub(crate) fn into_kept(self) -> Option<Connection> {
        match self {
            Self::Http1(mut connection) => connection.is_ready().then_some(connection),
            Self::Http2(_) => None,
        }
    }
}

async fn send_http1(
    client: &Client,
    number: u64,
    kept: Option<Connection>,
    scratch: &mut Vec<u8>,
    sent: Sent<'_>,
) -> Result<(Head, Channel), Lost> {
    let (request, body_len) = client.requests.bytes(number, scratch);
    *sent.bytes = body_len as u64;
    if let Some(mut connection) = kept
        && connection.is_ready()
    {
        match connection.exchange(request).await {
            Ok(head) => return Ok((head, Channel::Http1(connection))),
            // The server closed it while it was unused: every client opens another.
            Err(Failure::Unsent(_)) => {}
            Err(failure) => return Err(Lost::Failed(failure)),
        }
    }
    let before = Instant::now();
    let mut connection = client.open().await.map_err(Lost::Unconnected)?;
    *sent.connect = Some(before.elapsed());
    let head = connection.exchange(request).await.map_err(Lost::Failed)?;
    Ok((head, Channel::Http1(connection)))
}

async fn send_http2(client: &Client, number: u64, sent: Sent<'_>) -> Result<(Head, Channel), Lost> {
    let shared = client.shared.as_ref().expect("only called when there is one");
    let body = client.requests.body(number);
    *sent.bytes = body.len() as u64;
    let dial = async || {
        let before = Instant::now();
        let connection = client.open_shared().await?;
        *sent.connect = Some(before.elapsed());
        Ok(connection)
    };
    let slot = shared.connections.slot(dial).await.map_err(Lost::Unconnected)?;
    let mut answer = slot.exchange(shared.request(body.clone())).await;
    if matches!(answer, Err(Failure::Unsent(_))) {
        // The connection was closed before this request was on it.
        let again = shared.connections.slot(async || client.open_shared().await);
        let slot = again.await.map_err(Lost::Unconnected)?;
        answer = slot.exchange(shared.request(body)).await;
    }
    let (head, stream) = answer.map_err(Lost::Failed)?;
    Ok((head, Channel::Http2(stream)))
}
