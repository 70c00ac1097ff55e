//! HTTP/2: every request a stream, on connections that as many share as the server allows.
//!
//! # Why not one connection each
//!
//! Clients that speak HTTP/2 keep one connection and open another when its streams are taken;
//! a server behind them sees few connections and many streams. The same is done here.

use crate::{
    connection::{Cut, Failure},
    head::Head,
    target::Stream as Socket,
};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::{
    body::Incoming,
    client::conn::http2::{Builder, Connection as Driver, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use std::{
    error::Error as _,
    future::poll_fn,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{Instant, interval},
};
use tokio_util::task::AbortOnDropHandle;

/// Streams on one connection, whatever more the server allows: one lost packet stops them all.
const MAX_STREAMS: usize = 100;
/// Stands for "the server has not told yet" in hyper's own counter.
const UNTOLD: usize = 1_000_003;
/// How often to look for the server's first word; hyper tells nobody that it came.
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// Longest head of an answer.
const MAX_HEAD_BYTES: u32 = 64 * 1024;
/// What a server may send ahead on a stream, and on a connection.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// The connections to the server, in the order they were opened.
#[derive(Default)]
pub(crate) struct Connections {
    open: Mutex<Vec<Arc<Connection>>>,
    /// One is opened at a time: those who wait for it find room on it.
    opening: tokio::sync::Mutex<()>,
}

impl Connections {
    /// A stream on the first connection with room; on a new one, from `dial`, when there is none.
    ///
    /// # Errors
    ///
    /// Those of `dial`.
    pub(crate) async fn slot<E>(
        &self,
        dial: impl AsyncFnOnce() -> Result<Arc<Connection>, E>,
    ) -> Result<Slot, E> {
        if let Some(slot) = self.free() {
            return Ok(slot);
        }
        let _opening = self.opening.lock().await;
        if let Some(slot) = self.free() {
            return Ok(slot);
        }
        let connection = dial().await?;
        connection.streams.fetch_add(1, Relaxed);
        self.open.lock().push(Arc::clone(&connection));
        Ok(Slot(connection))
    }

    fn free(&self) -> Option<Slot> {
        let mut open = self.open.lock();
        open.retain(|connection| !connection.sender.is_closed());
        let free = open.iter().find(|connection| {
            connection.streams.load(Relaxed) < MAX_STREAMS.min(*connection.most_streams.borrow())
        })?;
        // Under the lock: two do not take the last place.
        free.streams.fetch_add(1, Relaxed);
        Some(Slot(Arc::clone(free)))
    }
}

/// One connection and the task that reads and writes for all its streams.
pub(crate) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    streams: AtomicUsize,
    /// As the server told, or [`UNTOLD`].
    most_streams: watch::Receiver<usize>,
    _task: AbortOnDropHandle<()>,
}

impl Connection {
    /// # Errors
    ///
    /// Why the server does not speak HTTP/2, in words.
    pub(crate) async fn open(socket: Socket) -> Result<Arc<Self>, String> {
        let (sender, driver) = Builder::new(TokioExecutor::new())
            .initial_max_send_streams(UNTOLD)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_header_list_size(MAX_HEAD_BYTES)
            .handshake(TokioIo::new(socket))
            .await
            .map_err(|error| reason(&error))?;
        let (tell, most_streams) = watch::channel(UNTOLD);
        let task = AbortOnDropHandle::new(tokio::spawn(drive(driver, tell)));
        Ok(Arc::new(Self { sender, streams: AtomicUsize::new(0), most_streams, _task: task }))
    }

    /// Waits for the server's first word, which shows that it speaks HTTP/2.
    ///
    /// # Errors
    ///
    /// When it does not.
    pub(crate) async fn settled(&self) -> Result<(), String> {
        let mut told = self.most_streams.clone();
        match told.wait_for(|most| *most != UNTOLD).await {
            Ok(_) => Ok(()),
            Err(_) => Err("it does not speak HTTP/2; leave --http2 out".into()),
        }
    }
}

/// Drives a connection to its end, and keeps up with what the server allows.
async fn drive(
    mut driver: Driver<TokioIo<Socket>, Full<Bytes>, TokioExecutor>,
    most_streams: watch::Sender<usize>,
) {
    let mut looks = interval(LOOK_EVERY);
    loop {
        let driven = poll_fn(|cx| {
            let driven = Pin::new(&mut driver).poll(cx);
            let most = driver.current_max_send_streams();
            most_streams.send_if_modified(|told| std::mem::replace(told, most) != most);
            driven
        });
        tokio::select! {
            // How it ended the streams tell their own requests.
            _ = driven => return,
            _ = looks.tick(), if *most_streams.borrow() == UNTOLD => {}
        }
    }
}

/// The right to one stream of a connection.
pub(crate) struct Slot(Arc<Connection>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Relaxed);
    }
}

impl Slot {
    /// A stream on `connection`, whoever else uses it.
    pub(crate) fn on(connection: Arc<Connection>) -> Self {
        connection.streams.fetch_add(1, Relaxed);
        Self(connection)
    }

    /// Sends `request` and waits for the head of its answer.
    pub(crate) async fn exchange(
        self,
        request: Request<Full<Bytes>>,
    ) -> Result<(Head, Stream), Failure> {
        let mut sender = self.0.sender.clone();
        let response = sender.try_send_request(request).await.map_err(|mut error| {
            let was_sent = error.take_message().is_none();
            let why = reason(error.error());
            if was_sent { Failure::Broken(why) } else { Failure::Unsent(why) }
        })?;
        let (parts, body): (_, Incoming) = Response::into_parts(response);
        let status = parts.status.as_u16();
        let mut head = Head { status, is_event_stream: false, has_retry_after: false };
        for (name, value) in &parts.headers {
            head.header(name.as_str(), value.as_bytes());
        }
        let read_at = Instant::now();
        Ok((head, Stream { body, held: Bytes::new(), read_at, _slot: self }))
    }
}

/// The body of an answer.
pub(crate) struct Stream {
    body: Incoming,
    /// The piece read last.
    pub(crate) held: Bytes,
    /// When it came.
    pub(crate) read_at: Instant,
    _slot: Slot,
}

impl Stream {
    /// Reads the next piece, never empty, into `held`; false at the end.
    pub(crate) async fn chunk(&mut self) -> Result<bool, Cut> {
        while let Some(frame) = self.body.frame().await {
            // Trailers say nothing we need.
            match frame.map_err(|error| Cut::Off(reason(&error)))?.into_data() {
                Ok(data) if !data.is_empty() => {
                    self.held = data;
                    self.read_at = Instant::now();
                    return Ok(true);
                }
                Ok(_) | Err(_) => {}
            }
        }
        Ok(false)
    }
}

/// The innermost cause, in words.
fn reason(error: &hyper::Error) -> String {
    let mut source = error.source();
    let mut innermost = error.to_string();
    while let Some(cause) = source {
        if let Some(io) = cause.downcast_ref::<io::Error>() {
            return io.to_string();
        }
        innermost = cause.to_string();
        source = cause.source();
    }
    innermost
}
