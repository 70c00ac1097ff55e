//! HTTP/2 connections, each shared by as many calls as its server allows.
//!
//! # Why more than one
//!
//! A server allows a number of streams per connection, often 100. The stock pool keeps one
//! connection per host and lets the 101st call wait for an answer to end. Here another
//! connection is opened as soon as the calls waiting exceed what the dials under way will carry.

use crate::{
    connect::{Protocol, Stream},
    fault::DialError,
    pool::Shared,
    request::RequestBody,
};
use hyper::client::conn::http2::{Builder, Connection, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{sync::Notify, time::Instant};

/// Streams per connection, whatever more the server allows: one lost packet stops them all.
const MAX_STREAMS: usize = 256;
/// Streams a connection is expected to carry before the first server has told.
const EXPECTED_STREAMS: usize = 100;
/// Stands for "the server has not told yet" in hyper's own counter.
const UNTOLD: usize = 1_000_003;

type Driver = Connection<TokioIo<Stream>, RequestBody, TokioExecutor>;

/// All HTTP/2 connections to one upstream.
pub(crate) struct Connections {
    state: Mutex<State>,
    /// A stream ended, a connection opened or ended, or a dial failed.
    changed: Notify,
}

#[derive(Default)]
struct State {
    open: Vec<Shareable>,
    /// Connections whose socket is open, those that take no new streams included.
    alive: usize,
    dialing: usize,
    waiting: usize,
    expected_streams: usize,
    next_id: u64,
    failures: u64,
    last_failure: Option<DialError>,
}

struct Shareable {
    id: u64,
    sender: SendRequest<RequestBody>,
    in_flight: usize,
    max_streams: Arc<AtomicUsize>,
    expires: Instant,
    idle_since: Instant,
}

/// The right to one stream of a connection.
pub(crate) struct Slot {
    pub(crate) sender: SendRequest<RequestBody>,
    id: u64,
    shared: Arc<Shared>,
}

impl Default for Connections {
    fn default() -> Self {
        let state = State { expected_streams: EXPECTED_STREAMS, ..State::default() };
        Self { state: Mutex::new(state), changed: Notify::new() }
    }
}

/// What a wait for a stream came to.
pub(crate) enum Opened {
    Slot(Slot),
    /// The server picked HTTP/1.1 this time: some behind the same name may be older.
    Http1(Stream),
}

enum Next {
    Use(Slot),
    Dial,
    Wait,
}

/// A free stream, on a new connection if need be.
///
/// Whoever waited for a dial that failed fails with it: a queue that dialled one after the
/// other would wait for every single timeout.
pub(crate) async fn slot(
    shared: &Arc<Shared>,
    connect_timeout: Duration,
) -> Result<Opened, DialError> {
    let connections = &shared.h2;
    let failures = connections.state.lock().failures;
    loop {
        let mut changed = pin!(connections.changed.notified());
        changed.as_mut().enable();
        match connections.next(shared, failures)? {
            Next::Use(slot) => return Ok(Opened::Slot(slot)),
            Next::Wait => {
                let _waiting =
                    Counted { shared, counter: |state| &mut state.waiting, tells: false };
                changed.await;
            }
            Next::Dial => {
                let dialing = Counted { shared, counter: |state| &mut state.dialing, tells: true };
                let opened = async {
                    match shared.dialer.dial(connect_timeout).await? {
                        (stream, Protocol::Http2) => adopt(shared, stream).await.map(Opened::Slot),
                        (stream, Protocol::Http1) => Ok(Opened::Http1(stream)),
                    }
                };
                let opened = opened.await;
                if let Err(error) = &opened {
                    let mut state = connections.state.lock();
                    state.failures += 1;
                    state.last_failure = Some(error.clone());
                }
                drop(dialing);
                return opened;
            }
        }
    }
}

/// Opens HTTP/2 on `stream`, shares the connection, and takes its first stream.
pub(crate) async fn adopt(shared: &Arc<Shared>, stream: Stream) -> Result<Slot, DialError> {
    let (sender, driver) = Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_max_send_streams(UNTOLD)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .max_header_list_size(64 * 1024)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(10))
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| not_http2(shared, &error.to_string()))?;
    let told = wait_for_settings(&driver).await;
    let max_streams = Arc::new(AtomicUsize::new(told));
    let id = {
        let mut state = shared.h2.state.lock();
        state.next_id += 1;
        state.alive += 1;
        state.expected_streams = told.max(1);
        let id = state.next_id;
        state.open.push(Shareable {
            id,
            sender: sender.clone(),
            in_flight: 1,
            max_streams: Arc::clone(&max_streams),
            expires: shared.expiry(),
            idle_since: Instant::now(),
        });
        id
    };
    // It ends with the connection: when the server closes it, or when the last sender is gone.
    tokio::spawn(drive(driver, max_streams, id, Arc::downgrade(shared)));
    Ok(Slot { sender, id, shared: Arc::clone(shared) })
}

fn not_http2(shared: &Shared, reason: &str) -> DialError {
    let error = std::io::Error::other(reason.to_owned());
    DialError::unreachable(shared.dialer.authority(), "HTTP/2", error)
}

/// The stream limit in the server's first frame. hyper tells of no change, so we look again.
async fn wait_for_settings(driver: &Driver) -> usize {
    for wait_ms in [0, 1, 1, 2, 4, 8, 16, 32, 64, 128] {
        tokio::time::sleep(Duration::from_millis(wait_ms)).await;
        match driver.current_max_send_streams() {
            UNTOLD => {}
            told => return told.min(MAX_STREAMS),
        }
    }
    EXPECTED_STREAMS
}

async fn drive(mut driver: Driver, max_streams: Arc<AtomicUsize>, id: u64, shared: Weak<Shared>) {
    let ended = poll_fn(|cx| {
        let driven = Pin::new(&mut driver).poll(cx);
        let told = driver.current_max_send_streams();
        if told != UNTOLD {
            max_streams.store(told.min(MAX_STREAMS), Ordering::Relaxed);
        }
        driven
    });
    // Streams report the error to their own calls.
    let _ = ended.await;
    if let Some(shared) = shared.upgrade() {
        let mut state = shared.h2.state.lock();
        state.alive -= 1;
        state.open.retain(|connection| connection.id != id);
        drop(state);
        shared.h2.changed.notify_waiters();
    }
}

impl Connections {
    fn next(&self, shared: &Arc<Shared>, failures_before: u64) -> Result<Next, DialError> {
        let mut state = self.state.lock();
        if let Some((id, sender)) = state.pick(shared.limits.max_connections) {
            return Ok(Next::Use(Slot { sender, id, shared: Arc::clone(shared) }));
        }
        if let Some(failure) =
            state.last_failure.as_ref().filter(|_| state.failures > failures_before)
        {
            return Err(failure.clone());
        }
        let may_dial = state.alive + state.dialing < shared.limits.max_connections;
        let worth_it = state.waiting >= state.dialing * state.expected_streams;
        if may_dial && worth_it {
            state.dialing += 1;
            return Ok(Next::Dial);
        }
        state.waiting += 1;
        Ok(Next::Wait)
    }

    /// Closes connections unused for `timeout`; when the next is due, if any is left.
    pub(crate) fn sweep(&self, timeout: Duration, max_idle: usize) -> Option<Instant> {
        let mut state = self.state.lock();
        let now = Instant::now();
        let mut idle = state.open.iter().filter(|connection| connection.in_flight == 0).count();
        state.open.retain(|connection| {
            let goes = connection.in_flight == 0
                && (idle > max_idle || now >= connection.idle_since + timeout);
            idle -= usize::from(goes);
            !goes
        });
        let unused = state.open.iter().filter(|connection| connection.in_flight == 0);
        unused.map(|connection| connection.idle_since + timeout).min()
    }
}

impl State {
    /// The connection with the most streams to spare.
    fn pick(&mut self, max_connections: usize) -> Option<(u64, SendRequest<RequestBody>)> {
        let now = Instant::now();
        let may_open_another = self.alive + self.dialing < max_connections;
        self.open.retain(|connection| {
            let is_spent =
                now >= connection.expires && (may_open_another || connection.in_flight == 0);
            !connection.sender.is_closed() && !is_spent
        });
        let spare = |connection: &Shareable| {
            connection.max_streams.load(Ordering::Relaxed).saturating_sub(connection.in_flight)
        };
        let best = self.open.iter_mut().max_by_key(|connection| spare(connection))?;
        if spare(best) == 0 {
            return None;
        }
        best.in_flight += 1;
        Some((best.id, best.sender.clone()))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = self.shared.h2.state.lock();
        if let Some(connection) = state.open.iter_mut().find(|connection| connection.id == self.id)
        {
            connection.in_flight -= 1;
            if connection.in_flight == 0 {
                connection.idle_since = Instant::now();
            }
        }
        drop(state);
        self.shared.h2.changed.notify_one();
        self.shared.watch_idle();
    }
}

/// One of those who dial or wait, already counted; uncounted again on every way out.
struct Counted<'a> {
    shared: &'a Shared,
    counter: fn(&mut State) -> &mut usize,
    /// A dial given up leaves those who waited for it to somebody else.
    tells: bool,
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        *(self.counter)(&mut self.shared.h2.state.lock()) -= 1;
        if self.tells {
            self.shared.h2.changed.notify_waiters();
        }
    }
}
