//! A TCP proxy in front of an address, whose faults are switched while it runs.
//!
//! There is no `tc netem` on the test machines, so delays, slow links, resets and partitions
//! come from here. Bytes pass unread: it serves TLS and HTTP/2 as well.

mod faults;
mod pass;

pub use faults::{Accept, Cut, End, Faults, Way};

use pass::pass;
use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{oneshot, watch},
    task::{JoinHandle, JoinSet},
};

/// What went through so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections accepted.
    pub connections: u64,
    /// Connections open now.
    pub open: usize,
    /// Bytes written to the upstream.
    pub bytes_up: u64,
    /// Bytes written to callers.
    pub bytes_down: u64,
}

/// A running proxy. Dropping it cuts every connection; [`FaultProxy::stop`] also waits for it.
#[derive(Debug)]
pub struct FaultProxy {
    addr: SocketAddr,
    shared: Arc<Shared>,
    task: Option<JoinHandle<()>>,
    stop: Option<oneshot::Sender<()>>,
}

impl FaultProxy {
    /// Listens on a free port of 127.0.0.1 in front of `upstream`.
    ///
    /// # Errors
    ///
    /// When no port can be bound.
    pub async fn start(upstream: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let addr = listener.local_addr()?;
        let shared = Arc::new(Shared {
            upstream,
            faults: watch::Sender::new(Faults::default()),
            cuts: watch::Sender::new(0),
            counts: Tally::default(),
            refusing: watch::Sender::new(false),
        });
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(accept(Door::Open(listener), addr, shared.clone(), stopped));
        Ok(Self { addr, shared, task: Some(task), stop: Some(stop) })
    }

    /// Where callers connect to.
    pub const fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The same as a base URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Switches the faults. When it returns, [`Accept::Refuse`] is in force or gone.
    pub async fn set(&self, faults: Faults) {
        self.shared.faults.send_replace(faults);
        let refuse = faults.accept == Accept::Refuse;
        let mut refusing = self.shared.refusing.subscribe();
        // An error means the proxy has stopped, and then nothing listens anyway.
        let _ = refusing.wait_for(|refusing| *refusing == refuse).await;
    }

    /// Resets every connection open now; new ones are welcome.
    pub fn cut_all(&self) {
        self.shared.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// What went through so far.
    pub fn counts(&self) -> Counts {
        let tally = &self.shared.counts;
        Counts {
            connections: tally.connections.load(Ordering::Relaxed),
            open: tally.open.load(Ordering::Relaxed),
            bytes_up: tally.up.load(Ordering::Relaxed),
            bytes_down: tally.down.load(Ordering::Relaxed),
        }
    }

    /// Cuts every connection and waits until its tasks have ended.
    pub async fn stop(mut self) {
        drop(self.stop.take());
        if let Some(task) = self.task.take() {
            // It fails only when the runtime is shutting down, which ends it as well.
            let _ = task.await;
        }
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

#[derive(Debug)]
struct Shared {
    upstream: SocketAddr,
    faults: watch::Sender<Faults>,
    /// Counts the calls of [`FaultProxy::cut_all`].
    cuts: watch::Sender<u64>,
    /// Whether the door is shut, as the accepting task last left it.
    refusing: watch::Sender<bool>,
    counts: Tally,
}

#[derive(Debug, Default)]
struct Tally {
    connections: AtomicU64,
    open: AtomicUsize,
    up: AtomicU64,
    down: AtomicU64,
}

/// The listening socket, or one that only holds its port: connecting to it is refused.
enum Door {
    Open(TcpListener),
    Shut(TcpSocket),
}

async fn accept(
    mut door: Door,
    addr: SocketAddr,
    shared: Arc<Shared>,
    mut stopped: oneshot::Receiver<()>,
) {
    let mut faults = shared.faults.subscribe();
    let mut connections = JoinSet::new();
    loop {
        let refuse = faults.borrow_and_update().accept == Accept::Refuse;
        door = turn(door, addr, refuse).expect("the proxy's own port can be bound again");
        shared.refusing.send_replace(refuse);
        tokio::select! {
            _ = &mut stopped => break,
            Ok(()) = faults.changed() => {}
            Some(_) = connections.join_next() => {}
            caller = next(&door) => {
                // Accepting fails when the caller left the queue again, or descriptors are short.
                let Ok(caller) = caller else { continue };
                shared.counts.connections.fetch_add(1, Ordering::Relaxed);
                connections.spawn(serve(caller, shared.clone()));
            }
        }
    }
    connections.shutdown().await;
}

fn turn(door: Door, addr: SocketAddr, refuse: bool) -> io::Result<Door> {
    match door {
        Door::Open(listener) if refuse => {
            drop(listener);
            let holder = TcpSocket::new_v4()?;
            holder.set_reuseaddr(true)?;
            holder.bind(addr)?;
            Ok(Door::Shut(holder))
        }
        Door::Shut(holder) if !refuse => holder.listen(1024).map(Door::Open),
        same => Ok(same),
    }
}

async fn next(door: &Door) -> io::Result<TcpStream> {
    match door {
        Door::Open(listener) => listener.accept().await.map(|(caller, _)| caller),
        Door::Shut(_) => std::future::pending().await,
    }
}

/// One connection, until either side ends it or a fault does.
async fn serve(mut caller: TcpStream, shared: Arc<Shared>) {
    let _open = Counted::new(&shared.counts.open);
    let mut cuts = shared.cuts.subscribe();
    let ended = tokio::select! {
        ended = join(&mut caller, &shared) => ended,
        _ = cuts.changed() => Some(End::Reset),
    };
    match ended {
        Some(End::Reset) => {
            // Without it the connection ends by FIN, which is another fault.
            let _ = caller.set_zero_linger();
        }
        // Closing with unread bytes resets, so what the caller still sends is read away.
        Some(End::Fin) => {
            let drained = async {
                caller.shutdown().await?;
                tokio::io::copy(&mut caller, &mut tokio::io::sink()).await
            };
            tokio::select! {
                _ = drained => {}
                _ = cuts.changed() => {}
            }
        }
        None => {}
    }
}

/// Joins the caller to a fresh connection to the upstream; says how the caller's has to end.
async fn join(caller: &mut TcpStream, shared: &Shared) -> Option<End> {
    let faults = *shared.faults.borrow();
    if faults.accept == Accept::BlackHole {
        std::future::pending::<()>().await;
    }
    let Ok(mut upstream) = TcpStream::connect(shared.upstream).await else {
        return Some(End::Reset);
    };
    let _ = (caller.set_nodelay(true), upstream.set_nodelay(true));
    let (from_caller, to_caller) = caller.split();
    let (from_upstream, to_upstream) = upstream.split();
    let ways = async {
        tokio::try_join!(
            pass(Way::Up, from_caller, to_upstream, shared),
            pass(Way::Down, from_upstream, to_caller, shared),
        )
    };
    let ended = ways.await.err();
    if ended == Some(End::Reset) {
        let _ = upstream.set_zero_linger();
    }
    ended
}

/// Counts what is open, also when its task is aborted.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};
    use tokio::io::AsyncReadExt;

    /// A server that answers every connection's first byte with `size` bytes and closes.
    async fn server(size: usize) -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut caller, _)) = listener.accept().await {
                tokio::spawn(async move {
                    if caller.read_u8().await.is_ok() {
                        let _ = caller.write_all(&vec![7; size]).await;
                    }
                });
            }
        });
        addr
    }

    async fn ask(addr: SocketAddr) -> io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect(addr).await?;
        stream.write_all(b"?").await?;
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer).await {
            Ok(_) => Ok(answer),
            Err(error) => Err(io::Error::new(error.kind(), answer.len().to_string())),
        }
    }

    #[tokio::test]
    async fn bytes_pass_and_are_counted() {
        let proxy = FaultProxy::start(server(100_000).await).await.unwrap();
        assert_eq!(ask(proxy.addr()).await.unwrap().len(), 100_000);
        let Counts { connections, bytes_up, bytes_down, .. } = proxy.counts();
        assert_eq!((connections, bytes_up, bytes_down), (1, 1, 100_000));
        proxy.stop().await;
    }

    #[tokio::test]
    async fn cuts_fall_on_the_byte() {
        let proxy = FaultProxy::start(server(50_000).await).await.unwrap();
        for after_bytes in [0, 1, 777, 20_000] {
            let cut = |end| Some(Cut { way: Way::Down, after_bytes, end });
            proxy.set(Faults { cut: cut(End::Fin), ..Faults::default() }).await;
            assert_eq!(ask(proxy.addr()).await.unwrap().len() as u64, after_bytes);
            proxy.set(Faults { cut: cut(End::Reset), ..Faults::default() }).await;
            let error = ask(proxy.addr()).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
        proxy.set(Faults::default()).await;
        assert_eq!(ask(proxy.addr()).await.unwrap().len(), 50_000);
    }

    #[tokio::test]
    async fn refusing_is_a_refusal_and_ends() {
        let proxy = FaultProxy::start(server(3).await).await.unwrap();
        for _ in 0..3 {
            proxy.set(Faults { accept: Accept::Refuse, ..Faults::default() }).await;
            let error = ask(proxy.addr()).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
            proxy.set(Faults::default()).await;
            assert_eq!(ask(proxy.addr()).await.unwrap().len(), 3);
        }
    }

    #[tokio::test]
    async fn a_black_hole_lasts_until_it_is_cut() {
        let proxy = FaultProxy::start(server(3).await).await.unwrap();
        proxy.set(Faults { accept: Accept::BlackHole, ..Faults::default() }).await;
        let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
        let mut accepted = tokio::time::interval(Duration::from_millis(1));
        while proxy.counts().open == 0 {
            accepted.tick().await;
        }
        proxy.cut_all();
        assert!(stream.read_u8().await.is_err());
        proxy.stop().await;
    }

    #[tokio::test]
    async fn delay_and_bandwidth_slow_it_down() {
        let proxy = FaultProxy::start(server(3_000).await).await.unwrap();
        let delay = Duration::from_millis(30);
        let faults = Faults { delay_up: delay, delay_down: delay, ..Faults::default() };
        proxy.set(Faults { bandwidth: Some(100_000), ..faults }).await;
        let start = Instant::now();
        assert_eq!(ask(proxy.addr()).await.unwrap().len(), 3_000);
        // A lower bound only: 2 x 30 ms on the way and 3,000 bytes at 100,000 a second.
        assert!(start.elapsed() >= Duration::from_millis(80), "{:?}", start.elapsed());
    }
}
