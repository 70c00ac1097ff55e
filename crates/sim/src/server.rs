//! The simulator itself: its state, and the one server over sockets and pipes.

use crate::{
    Faults, LedgerEntry, Options, Path, Totals,
    body::{Broken, Outgoing},
    call, control,
    ledger::Ledger,
    limits::Limits,
    slots::Slots,
    socket::Socket,
};
use http::{HeaderValue, Method, Request, Response, Version};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use parking_lot::{Mutex, RwLock};
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::Instant,
};

/// Bytes each direction of an in-memory pipe holds.
const PIPE_BYTES: usize = 64 << 10;
/// Streams of one HTTP/2 connection.
const MAX_STREAMS: u32 = 10_000;
/// Model names that share one string in the ledger; more of them are kept apart.
const MAX_NAMES: usize = 64;
/// Counters of attempts; bodies share them by hash, which only makes attempts count faster.
const ATTEMPT_COUNTERS: usize = 1 << 20;

/// A simulated model server.
#[derive(Debug)]
pub struct Sim {
    pub(crate) options: Options,
    pub(crate) limits: Mutex<Limits>,
    pub(crate) slots: Slots,
    pub(crate) ledger: Mutex<Ledger>,
    faults: RwLock<Arc<Faults>>,
    names: RwLock<Vec<Arc<str>>>,
    /// Times each body came, so that a second attempt draws anew. Zeroed memory is not touched
    /// before it is used, and is used only where the caller does not number its attempts.
    attempts: Mutex<Vec<u16>>,
    ids: AtomicU64,
    start: Instant,
}

impl Sim {
    /// A simulator, not listening yet.
    ///
    /// # Panics
    ///
    /// When [`Options::check`] has something to say: check settings that come from outside.
    pub fn new(options: Options) -> Arc<Self> {
        if let Err(why) = options.check() {
            panic!("bad simulator options: {why}");
        }
        Arc::new(Self {
            limits: Mutex::default(),
            slots: Slots::new(options.slots, options.queue),
            ledger: Mutex::new(Ledger::new(options.ledger_entries)),
            faults: RwLock::new(Arc::new(options.faults.clone())),
            names: RwLock::new(vec!["".into()]),
            attempts: Mutex::new(vec![0; ATTEMPT_COUNTERS]),
            ids: AtomicU64::new(0),
            start: Instant::now(),
            options,
        })
    }

    /// Serves connections of `listener` until `stop`, then breaks those still open.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, stop: impl Future<Output = ()>) {
        let room =
            Arc::new(Semaphore::new(self.options.max_connections.min(Semaphore::MAX_PERMITS)));
        let mut connections = JoinSet::new();
        tokio::pin!(stop);
        loop {
            let accepted = async {
                let room = Arc::clone(&room).acquire_owned().await.expect("it is never closed");
                (listener.accept().await, room)
            };
            let (accepted, room) = tokio::select! {
                () = &mut stop => break,
                Some(_) = connections.join_next() => continue,
                accepted = accepted => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    let sim = Arc::clone(&self);
                    connections.spawn(async move {
                        sim.serve_tcp(stream).await;
                        drop(room);
                    });
                }
                // Out of file descriptors, most likely: it passes when connections close.
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
        connections.shutdown().await;
    }

    /// One end of an in-memory connection; the other is served by a task of its own, which ends
    /// when this end is dropped.
    pub fn connect(self: &Arc<Self>) -> DuplexStream {
        let (near, far) = tokio::io::duplex(PIPE_BYTES);
        let sim = Arc::clone(self);
        tokio::spawn(async move { sim.serve_connection(far, Arc::default()).await });
        near
    }

    /// The ledger's entries, oldest first.
    pub fn ledger(&self) -> Vec<LedgerEntry> {
        self.ledger.lock().since(0).cloned().collect()
    }

    /// Counts over all requests.
    pub fn totals(&self) -> Totals {
        Totals {
            busy_slots: self.slots.busy() as u64,
            queued: self.slots.waiting() as u64,
            ..self.ledger.lock().totals().clone()
        }
    }

    /// Replaces all faults.
    ///
    /// # Panics
    ///
    /// When [`Faults::check`] has something to say: check faults that come from outside.
    pub fn set_faults(&self, faults: Faults) {
        if let Err(why) = faults.check() {
            panic!("bad faults: {why}");
        }
        *self.faults.write() = Arc::new(faults);
    }

    /// The faults in effect.
    pub fn faults(&self) -> Arc<Faults> {
        Arc::clone(&self.faults.read())
    }

    /// Replaces the faults that `change`, a JSON object, names.
    pub(crate) fn change_faults(&self, change: &[u8]) -> Result<(), String> {
        let mut faults = self.faults.write();
        *faults = Arc::new(faults.changed(change)?);
        Ok(())
    }

    /// Microseconds since the start.
    pub(crate) fn micros(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// The empty name, for requests whose model is not known yet.
    pub(crate) fn no_model(&self) -> Arc<str> {
        Arc::clone(&self.names.read()[0])
    }

    /// `name`, shared with the other requests for it.
    pub(crate) fn model(&self, name: &str) -> Arc<str> {
        let known = |names: &[Arc<str>]| names.iter().find(|known| ***known == *name).cloned();
        if let Some(name) = known(&self.names.read()) {
            return name;
        }
        let mut names = self.names.write();
        known(&names).unwrap_or_else(|| {
            let name: Arc<str> = name.into();
            if names.len() < MAX_NAMES {
                names.push(Arc::clone(&name));
            }
            name
        })
    }

    /// Which attempt at the body that hashes to `key` this is, from 1.
    pub(crate) fn count_attempt(&self, key: u64) -> u64 {
        let mut attempts = self.attempts.lock();
        let count = &mut attempts[key as usize % ATTEMPT_COUNTERS];
        *count = count.wrapping_add(1);
        u64::from(*count)
    }

    /// A request id for an answer to a request without one.
    pub(crate) fn next_id(&self) -> HeaderValue {
        let id = format!("sim-{}", self.ids.fetch_add(1, Relaxed));
        HeaderValue::from_str(&id).expect("digits and letters make a header")
    }

    async fn serve_tcp(self: &Arc<Self>, stream: TcpStream) {
        // A socket that cannot be told is slower, not wrong.
        drop::<io::Result<()>>(stream.set_nodelay(true));
        let reset = Arc::new(AtomicBool::new(false));
        let socket = Socket::new(stream, Arc::clone(&reset));
        self.serve_connection(socket, reset).await;
    }

    /// Serves HTTP/1.1 or HTTP/2 with prior knowledge until the connection ends.
    ///
    /// There is no timer for headers: under a paused clock it would close every idle connection.
    async fn serve_connection<T>(self: &Arc<Self>, io: T, reset: Arc<AtomicBool>)
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = service_fn(|request: Request<Incoming>| {
            let (sim, reset) = (Arc::clone(self), Arc::clone(&reset));
            async move { sim.answer(request, &reset).await }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().header_read_timeout(None).max_buf_size(256 << 10);
        builder.http2().max_concurrent_streams(MAX_STREAMS);
        // Ends in an error when the caller goes away or a fault breaks it: nothing to tell.
        drop(builder.serve_connection(TokioIo::new(io), service).await);
    }

    async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
        reset: &AtomicBool,
    ) -> Result<Response<Outgoing>, Broken> {
        let path = Path::read(request.uri().path());
        match path {
            Some(path) if request.method() == Method::POST => {
                let is_alone = request.version() < Version::HTTP_2;
                let answer = call::answer(&self, path, request).await;
                // The reset of an HTTP/2 stream is a frame; its connection goes on.
                if answer.is_err() && is_alone {
                    reset.store(true, Relaxed);
                }
                answer
            }
            _ => Ok(control::answer(&self, request).await),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Outcome, Phase};
    use tokio::io::{AsyncWriteExt, Interest};

    #[tokio::test]
    async fn who_asks_and_closes_at_once_is_in_the_ledger() {
        const ASK: &[u8] =
            b"POST /v1/embeddings HTTP/1.1\r\nhost: sim\r\ncontent-length: 25\r\n\r\n\
                             {\"model\":\"m\",\"input\":\"x\"}";
        let sim = Sim::new(Options { ttft: "60s".parse().unwrap(), ..Options::default() });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut caller = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        caller.write_all(ASK).await.unwrap();
        drop(caller);
        let (stream, _) = listener.accept().await.unwrap();
        while !stream.ready(Interest::READABLE).await.unwrap().is_read_closed() {
            tokio::task::yield_now().await;
        }
        sim.serve_tcp(stream).await;
        let entry = sim.ledger().pop().expect("it was read");
        assert_eq!((entry.outcome, entry.phase), (Outcome::Cancelled, Phase::FirstToken));
        assert_eq!((entry.prompt_tokens, &*entry.model), (1, "m"));
    }
}
