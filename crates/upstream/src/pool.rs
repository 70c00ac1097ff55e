//! Lends connections to calls: at most so many, the latest used first, none for too long.
//!
//! # HTTP/1.1
//!
//! A permit stands for a connection in use. With a permit in hand a call takes an unused
//! connection, and dials only when there is none; a connection goes back among the unused before
//! its permit is free. So open connections never exceed the permits, exactly.
//!
//! # Which protocol
//!
//! Over TLS only the first connection tells (ALPN). Until then calls wait for that one dial
//! instead of opening a connection each and finding out that one would have done.

use crate::{
    body::{Answer, Held},
    connect::{Dialer, Protocol, Stream},
    fault::{self, DialError},
    h1::{Failure, H1, Idle},
    h2,
    options::Options,
    request::RequestBody,
};
use http::Request;
use parking_lot::Mutex;
use std::{
    hash::{BuildHasher, RandomState},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};
use tidegate_core::Result;
use tokio::{
    sync::{Mutex as AsyncMutex, OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

/// A request that a dying connection gave back is sent this often in all.
const MAX_SENDS: u32 = 3;

/// The connections to one upstream.
pub(crate) struct Pool(Arc<Shared>);

pub(crate) struct Limits {
    pub(crate) max_connections: usize,
    max_idle: usize,
    idle_timeout: Duration,
    lifetime: Duration,
}

/// How long a call waits for a connection.
#[derive(Clone, Copy)]
pub(crate) struct Patience {
    /// For one to be opened.
    pub(crate) connect: Duration,
    /// For one to come free, until then.
    pub(crate) deadline: Instant,
}

/// What calls and connections share.
pub(crate) struct Shared {
    pub(crate) dialer: Dialer,
    pub(crate) limits: Limits,
    pub(crate) h2: h2::Connections,
    idle: Mutex<Idle>,
    permits: Arc<Semaphore>,
    /// 0 while unknown, else the protocol's number.
    spoken: AtomicU8,
    /// Held by the dial that finds out; the time and outcome of the last that failed.
    asking: AsyncMutex<Option<(Instant, DialError)>>,
    is_idle_watched: AtomicBool,
}

impl Pool {
    pub(crate) fn new(dialer: Dialer, options: &Options) -> Self {
        let max_connections = options.max_connections.clamp(1, Semaphore::MAX_PERMITS);
        let shared = Shared {
            limits: Limits {
                max_connections,
                max_idle: options.max_idle,
                idle_timeout: options.idle_timeout,
                lifetime: options.lifetime,
            },
            h2: h2::Connections::default(),
            idle: Mutex::default(),
            permits: Arc::new(Semaphore::new(max_connections)),
            spoken: AtomicU8::new(number(dialer.fixed_protocol())),
            asking: AsyncMutex::new(None),
            is_idle_watched: AtomicBool::new(false),
            dialer,
        };
        Self(Arc::new(shared))
    }

    /// Sends the request `make` writes for the protocol in use and waits for its answer's head.
    ///
    /// A connection is waited for as long as `patience` says; the answer, as long as the caller likes.
    /// `written` is set while there is one that has the request.
    pub(crate) async fn send(
        &self,
        patience: Patience,
        written: Option<&AtomicBool>,
        make: impl Fn(Protocol) -> Request<RequestBody>,
    ) -> Result<Answer> {
        let was_written = written.is_some_and(|written| written.load(Ordering::Relaxed));
        let is_written = |now| written.into_iter().for_each(|is| is.store(now, Ordering::Relaxed));
        let mut sends = 0;
        loop {
            sends += 1;
            let lent = self.connection(patience, sends > 1).await?;
            is_written(true);
            let sent = match lent {
                Lent::Http1(lent) => lent.exchange(make(Protocol::Http1)).await,
                Lent::Http2(slot) => exchange(slot, make(Protocol::Http2)).await,
            };
            return match sent {
                Ok(answer) => Ok(answer),
                Err(Failure::Unsent(error)) => {
                    is_written(was_written);
                    if sends < MAX_SENDS {
                        continue;
                    }
                    Err(fault::unsent(self.0.dialer.authority(), error))
                }
                Err(Failure::Broken(error)) => Err(fault::broken(error)),
                Err(Failure::Ended) => Err(fault::ended_early()),
            };
        }
    }

    /// A connection, or an error in time. A second try does not take an unused one.
    async fn connection(&self, patience: Patience, is_second_try: bool) -> Result<Lent> {
        let shared = &self.0;
        if !is_second_try
            && shared.protocol() == Some(Protocol::Http1)
            && let Ok(permit) = Arc::clone(&shared.permits).try_acquire_owned()
        {
            let mut lent = LentH1 { connection: None, shared: Arc::clone(shared), permit };
            if lent.take_unused() {
                return Ok(Lent::Http1(lent));
            }
            let dialed = timeout_at(patience.deadline, lent.dial(patience.connect)).await;
            return Ok(dialed.unwrap_or_else(|_| Err(shared.dialer.timed_out(patience.connect)))?);
        }
        match timeout_at(patience.deadline, self.wait(patience, is_second_try)).await {
            Ok(lent) => Ok(lent?),
            Err(_) => {
                Err(DialError::exhausted(shared.dialer.authority(), shared.limits.max_connections)
                    .into())
            }
        }
    }

    async fn wait(&self, patience: Patience, is_second_try: bool) -> Result<Lent, DialError> {
        let shared = &self.0;
        match shared.protocol() {
            Some(Protocol::Http2) => match h2::slot(shared, patience.connect).await? {
                h2::Opened::Slot(slot) => Ok(Lent::Http2(slot)),
                h2::Opened::Http1(stream) => {
                    shared.speak(Some(Protocol::Http1));
                    self.permit().await.open(stream).await.map(Lent::Http1)
                }
            },
            Some(Protocol::Http1) => {
                let mut lent = self.permit().await;
                if is_second_try {
                    // Its place goes to the new one, so that the count stays right.
                    drop(shared.idle.lock().take());
                } else if lent.take_unused() {
                    return Ok(Lent::Http1(lent));
                }
                lent.dial(patience.connect).await
            }
            None => self.ask(patience).await,
        }
    }

    /// The first dial over TLS: it finds the protocol for all who wait.
    async fn ask(&self, patience: Patience) -> Result<Lent, DialError> {
        let shared = &self.0;
        let came = Instant::now();
        let mut failed = shared.asking.lock().await;
        if shared.protocol().is_some() {
            drop(failed);
            return Box::pin(self.wait(patience, false)).await;
        }
        // A failure while we waited is ours too.
        if let Some((at, error)) = &*failed
            && *at >= came
        {
            return Err(error.clone());
        }
        let dialed = self.permit().await.dial(patience.connect).await;
        if let Err(error) = &dialed {
            *failed = Some((Instant::now(), error.clone()));
        }
        dialed
    }

    async fn permit(&self) -> LentH1 {
        let permits = Arc::clone(&self.0.permits);
        let permit = permits.acquire_owned().await.expect("the semaphore is never closed");
        LentH1 { connection: None, shared: Arc::clone(&self.0), permit }
    }
}

impl Shared {
    fn protocol(&self) -> Option<Protocol> {
        match self.spoken.load(Ordering::Relaxed) {
            1 => Some(Protocol::Http1),
            2 => Some(Protocol::Http2),
            _ => None,
        }
    }

    /// Keeps what the last connection spoke.
    fn speak(&self, protocol: Option<Protocol>) {
        self.spoken.store(number(protocol), Ordering::Relaxed);
    }

    /// When a connection opened now stops taking calls: its lifetime, give or take 10 %, so
    /// that connections opened together do not close together.
    pub(crate) fn expiry(&self) -> Instant {
        let roll = RandomState::new().hash_one(0_u8) % 2_001;
        let ten_thousandths = 9_000 + u32::try_from(roll).unwrap_or(1_000);
        Instant::now() + self.limits.lifetime / 10_000 * ten_thousandths
    }

    /// Sees to it that connections unused for too long are closed.
    ///
    /// One task per pool, only while there is something to watch; it does not keep the pool.
    pub(crate) fn watch_idle(self: &Arc<Self>) {
        if self.is_idle_watched.swap(true, Ordering::AcqRel) {
            return;
        }
        let weak = Arc::downgrade(self);
        // Nothing can be due sooner; and calls in a row find the task there already.
        let mut due = Instant::now() + self.limits.idle_timeout;
        let sweep = async move {
            loop {
                tokio::time::sleep_until(due).await;
                let Some(shared) = weak.upgrade() else { return };
                due = match shared.sweep() {
                    Some(due) => due,
                    None => {
                        shared.is_idle_watched.store(false, Ordering::Release);
                        // Something may have been put back between the sweep and the flag.
                        match shared.sweep() {
                            Some(due) if !shared.is_idle_watched.swap(true, Ordering::AcqRel) => {
                                due
                            }
                            _ => return,
                        }
                    }
                };
            }
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(sweep)),
            // Dropped outside a runtime: nobody is left to use a connection.
            Err(_) => self.is_idle_watched.store(false, Ordering::Release),
        }
    }

    fn sweep(&self) -> Option<Instant> {
        let Limits { idle_timeout, max_idle, .. } = self.limits;
        let first = self.idle.lock().sweep(idle_timeout);
        let second = self.h2.sweep(idle_timeout, max_idle);
        first.into_iter().chain(second).min()
    }
}

const fn number(protocol: Option<Protocol>) -> u8 {
    match protocol {
        None => 0,
        Some(Protocol::Http1) => 1,
        Some(Protocol::Http2) => 2,
    }
}

enum Lent {
    Http1(LentH1),
    Http2(h2::Slot),
}

/// An HTTP/1.1 connection in use, or the right to open one. Dropping it closes the connection.
pub(crate) struct LentH1 {
    connection: Option<Box<H1>>,
    shared: Arc<Shared>,
    /// Goes last: the connection is closed, or back among the unused, before it is free.
    #[expect(dead_code, reason = "held for its drop")]
    permit: OwnedSemaphorePermit,
}

impl LentH1 {
    fn take_unused(&mut self) -> bool {
        loop {
            let Some(mut connection) = self.shared.idle.lock().take() else { return false };
            if connection.is_alive() {
                self.connection = Some(connection);
                return true;
            }
        }
    }

    async fn dial(self, timeout: Duration) -> Result<Lent, DialError> {
        let shared = Arc::clone(&self.shared);
        let (stream, protocol) = shared.dialer.dial(timeout).await?;
        shared.speak(Some(protocol));
        match protocol {
            Protocol::Http1 => self.open(stream).await.map(Lent::Http1),
            Protocol::Http2 => h2::adopt(&shared, stream).await.map(Lent::Http2),
        }
    }

    async fn open(mut self, stream: Stream) -> Result<Self, DialError> {
        let opened = H1::open(stream, self.shared.expiry()).await;
        self.connection = Some(opened.map_err(|error| {
            let error = std::io::Error::other(error);
            DialError::unreachable(self.shared.dialer.authority(), "HTTP/1.1", error)
        })?);
        Ok(self)
    }

    async fn exchange(mut self, request: Request<RequestBody>) -> Result<Answer, Failure> {
        let connection = self.connection.as_mut().expect("a lent connection is there");
        let response = connection.exchange(request).await?;
        Ok(Answer::new(response, Held::Http1(self)))
    }

    /// Moves bytes; ready when the connection is over.
    pub(crate) fn drive(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.connection {
            Some(connection) => connection.drive(cx),
            None => Poll::Ready(()),
        }
    }

    /// The answer was read to its end.
    pub(crate) fn give_back(mut self) {
        let Some(mut connection) = self.connection.take() else { return };
        if connection.is_reusable() {
            self.shared.idle.lock().put(connection, self.shared.limits.max_idle);
            self.shared.watch_idle();
        }
    }
}

async fn exchange(mut slot: h2::Slot, request: Request<RequestBody>) -> Result<Answer, Failure> {
    match slot.sender.try_send_request(request).await {
        Ok(response) => Ok(Answer::new(response, Held::Http2(slot))),
        Err(mut error) => Err(match error.take_message() {
            Some(_) => Failure::Unsent(error.into_error()),
            None => Failure::Broken(error.into_error()),
        }),
    }
}
