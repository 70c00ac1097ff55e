//! One connection: which protocol it speaks, and the clocks it lives under.

use crate::{
    body::HELD_SINCE,
    pulse::{Clock, MAX_HEAD_BYTES, Pulse},
    service::{Front, respond},
    socket::{Carrier, Socket},
};
use bytes::{Bytes, BytesMut};
use hyper::{
    body::{Body as _, Incoming},
    header::TRANSFER_ENCODING,
    rt::Executor,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use std::{
    cell::Cell,
    convert::Infallible,
    future::poll_fn,
    io,
    net::IpAddr,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::AsyncReadExt as _,
    task::JoinSet,
    time::{Instant, sleep_until},
};

/// What an HTTP/2 connection starts with (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Read and write buffer of an HTTP/1 connection: a whole head fits with room to spare.
const BUFFER_BYTES: usize = 2 * MAX_HEAD_BYTES;
/// Header list, windows and write buffer of HTTP/2: what one connection can make us hold is
/// about a mebibyte of bodies plus 16 KiB of headers per stream.
const HEADER_LIST_BYTES: u32 = 16 << 10;
const STREAM_WINDOW_BYTES: u32 = 256 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 1 << 20;
const STREAM_SEND_BYTES: usize = 64 << 10;
/// Resets a caller may cause before the connection is closed (CVE-2023-44487, CVE-2025-8671).
const MAX_PENDING_RESETS: usize = 20;
const MAX_LOCAL_RESETS: usize = 100;
/// A connection whose other end vanished without a word is noticed within twice this.
const PING_EVERY: Duration = Duration::from_secs(20);

/// Runs a connection to its end. `http2` is what ALPN said; otherwise the first bytes say it.
pub(crate) async fn run(
    front: Arc<Front>,
    mut carrier: Carrier,
    peer: Option<IpAddr>,
    http2: Option<bool>,
) {
    let since = Instant::now();
    let (http2, first) = match http2 {
        Some(http2) => (http2, Bytes::new()),
        None => {
            let limit = front.options.header_timeout;
            let found = tokio::select! {
                // What has arrived already is still answered during a drain.
                biased;
                found = tokio::time::timeout(limit, sniff(&mut carrier)) => found,
                () = front.closing.cancelled() => return,
            };
            let Ok(Ok(found)) = found else { return };
            found
        }
    };
    let pulse = Pulse::new(since, http2, peer);
    let io = TokioIo::new(Socket::new(carrier, first, Arc::clone(&pulse)));
    if http2 {
        run_http2(&front, &pulse, io).await;
    } else {
        run_http1(&front, &pulse, io).await;
    }
}

async fn run_http1(front: &Arc<Front>, pulse: &Arc<Pulse>, io: TokioIo<Socket>) {
    let service = service_fn(|request| answered(front, pulse, request));
    let connection = http1::Builder::new()
        // A caller that closes its side has hung up: its call is cancelled at once. (One that
        // sent another request behind the first is seen to be gone only when it is written to:
        // hyper does not read on while a whole request waits in its buffer.)
        .half_close(false)
        // Our own clocks know waiting from reading; see `Pulse`.
        .header_read_timeout(None)
        .max_header_size(MAX_HEAD_BYTES)
        .max_buf_size(BUFFER_BYTES)
        .serve_connection(io, service);
    drive(pin!(connection), front, pulse, http1::Connection::graceful_shutdown).await;
}

async fn run_http2(front: &Arc<Front>, pulse: &Arc<Pulse>, io: TokioIo<Socket>) {
    let streams = Streams::new(front.options.write_timeout);
    let (its_front, its_pulse) = (Arc::clone(front), Arc::clone(pulse));
    let service = service_fn(move |request| answered(&its_front, &its_pulse, request));
    let connection = http2::Builder::new(streams.clone())
        .timer(TokioTimer::new())
        .max_concurrent_streams(front.options.max_streams)
        .max_header_list_size(HEADER_LIST_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(STREAM_SEND_BYTES)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_local_error_reset_streams(MAX_LOCAL_RESETS)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_EVERY)
        .serve_connection(io, service);
    drive(pin!(connection), front, pulse, http2::Connection::graceful_shutdown).await;
    streams.join().await;
}

/// What hyper calls for each request.
fn answered(
    front: &Arc<Front>,
    pulse: &Arc<Pulse>,
    request: hyper::Request<Incoming>,
) -> impl Future<Output = Result<hyper::Response<crate::body::Outgoing>, Infallible>> + use<> {
    let chunked = request.headers().contains_key(TRANSFER_ENCODING);
    let busy = pulse.begin(!request.body().is_end_stream(), chunked);
    let front = Arc::clone(front);
    async move { Ok(respond(front, busy, request).await) }
}

/// Finds out whether the caller speaks HTTP/2, reading no more than that takes in one go.
async fn sniff(carrier: &mut Carrier) -> io::Result<(bool, Bytes)> {
    let mut first = BytesMut::with_capacity(1024);
    loop {
        if carrier.read_buf(&mut first).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let seen = first.len().min(PREFACE.len());
        let may_be_http2 = first[..seen] == PREFACE[..seen];
        if !may_be_http2 || seen == PREFACE.len() {
            return Ok((may_be_http2, first.freeze()));
        }
    }
}

/// Polls `connection` until it ends, a clock of its [`Pulse`] runs out, or the drain cuts it.
///
/// Dropping the connection drops the calls on it.
async fn drive<C>(
    mut connection: Pin<&mut C>,
    front: &Front,
    pulse: &Pulse,
    close_gently: impl Fn(Pin<&mut C>),
) where
    C: Future<Output = hyper::Result<()>>,
{
    let mut closing = pin!(front.closing.cancelled());
    let mut cut = pin!(front.cut.cancelled());
    let mut timer = pin!(Timer::new());
    let mut told = false;
    poll_fn(|cx| {
        if cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        if !told && closing.as_mut().poll(cx).is_ready() {
            told = true;
            pulse.restart();
            close_gently(connection.as_mut());
        }
        loop {
            if let Poll::Ready(end) = connection.as_mut().poll(cx) {
                if let Err(error) = end {
                    tracing::debug!(%error, "connection ended");
                }
                return Poll::Ready(());
            }
            let next = || pulse.deadline(&front.options);
            let Poll::Ready(clock) = timer.as_mut().poll_expired(next, cx) else {
                return Poll::Pending;
            };
            if clock != Clock::Idle || told {
                tracing::debug!(?clock, "connection closed: its time ran out");
                return Poll::Ready(());
            }
            told = true;
            pulse.restart();
            close_gently(connection.as_mut());
        }
    })
    .await;
}

/// One timer for all clocks of a connection, moved only when a clock runs out earlier than it.
struct Timer {
    sleep: Pin<Box<tokio::time::Sleep>>,
    armed: Option<Instant>,
}

impl Timer {
    fn new() -> Self {
        Self { sleep: Box::pin(sleep_until(Instant::now())), armed: None }
    }

    /// The clock that has run out, if one has; wakes the task when the next may have.
    fn poll_expired(
        mut self: Pin<&mut Self>,
        next: impl Fn() -> Option<(Instant, Clock)>,
        cx: &mut Context<'_>,
    ) -> Poll<Clock> {
        loop {
            let Some((deadline, clock)) = next() else { return Poll::Pending };
            if self.armed.is_none_or(|armed| deadline < armed) {
                self.sleep.as_mut().reset(deadline);
                self.armed = Some(deadline);
            }
            if self.sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if self.armed.take() == Some(deadline) {
                return Poll::Ready(clock);
            }
        }
    }
}

/// The tasks of one HTTP/2 connection, at most its streams; they end with it.
#[derive(Clone)]
struct Streams {
    tasks: Arc<Mutex<JoinSet<()>>>,
    write_timeout: Duration,
}

impl Streams {
    fn new(write_timeout: Duration) -> Self {
        Self { tasks: Arc::default(), write_timeout }
    }

    /// Ends what is left and waits for it.
    async fn join(&self) {
        let mut tasks = std::mem::take(&mut *self.tasks.lock());
        tasks.shutdown().await;
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let mut tasks = self.tasks.lock();
        while tasks.try_join_next().is_some() {}
        tasks.spawn(HELD_SINCE.scope(Cell::new(None), watched(stream, self.write_timeout)));
    }
}

/// Ends `stream` when its caller has had no room for a frame for as long as `write_timeout`: the
/// connection's own clock sees only callers that read nothing of any stream.
async fn watched(stream: impl Future<Output = ()>, write_timeout: Duration) {
    let mut stream = pin!(stream);
    let mut sleep: Option<Pin<Box<tokio::time::Sleep>>> = None;
    poll_fn(|cx| {
        if stream.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        // Most frames leave at once, so most streams never make a timer.
        let Some(since) = HELD_SINCE.with(Cell::get) else { return Poll::Pending };
        let deadline = since + write_timeout;
        let sleep = sleep.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if sleep.deadline() != deadline {
            sleep.as_mut().reset(deadline);
        }
        ready!(sleep.as_mut().poll(cx));
        tracing::debug!("stream closed: its caller does not read");
        Poll::Ready(())
    })
    .await;
}
