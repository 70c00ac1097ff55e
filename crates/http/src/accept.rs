//! The accept loop: who gets a connection, and how the last one leaves.

use crate::{
    Callers, Options, connection,
    service::{Front, Service},
    socket::Duplex,
    tls,
};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::Arc,
    time::Duration,
};
use tidegate_core::Answer;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::{either::Either, sync::CancellationToken, task::TaskTracker};

/// Pause after the system refused us a socket (usually: out of file descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How the connections open at the drain's start ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Closed by themselves, their answers complete.
    pub finished: usize,
    /// Cut when [`Options::drain_timeout`] ran out.
    pub cut: usize,
}

/// Serves `answer` on `listener` until `stop`, then drains; every task is joined on return.
///
/// Draining goes outward in: `/readyz` says 503, after [`Options::drain_notice`] the listener
/// closes and kept-alive connections are told to close after the answer they wait for, and after
/// [`Options::drain_timeout`] what is left is cut. `callers` says where refusals are told and
/// answers kept.
///
/// # Errors
///
/// At once, when the options cannot be served with: see [`Options::check`].
pub async fn serve(
    listener: TcpListener,
    answer: Arc<dyn Answer>,
    options: Options,
    callers: Callers,
    stop: CancellationToken,
) -> io::Result<Drained> {
    options.check_ranges()?;
    let tls = options.tls.as_ref().map(tls::acceptor).transpose()?;
    let front = Front::new(Service::Callers(callers), answer, options, stop);
    Ok(run(listener, tls, front).await)
}

/// Accepts connections until the front is told to stop, then drains.
pub(crate) async fn run(listener: TcpListener, tls: Option<TlsAcceptor>, front: Front) -> Drained {
    let front = Arc::new(front);
    let connections = TaskTracker::new();
    accept_until_stop(&listener, tls, &front, &connections).await;
    drop(listener);
    drain(&front, &connections).await
}

/// Serves one connection that is open already: memory in a test, or a socket from elsewhere.
///
/// Returns when the connection has ended, and calls of it that go on without their caller have;
/// after `stop`, within [`Options::drain_timeout`].
/// Speaks no TLS.
pub async fn serve_connection<T>(
    io: T,
    answer: Arc<dyn Answer>,
    options: Options,
    callers: Callers,
    stop: CancellationToken,
) where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let front = Arc::new(Front::new(Service::Callers(callers), answer, options, stop));
    let io: Box<dyn Duplex> = Box::new(io);
    let connection =
        connection::run(Arc::clone(&front), Either::Right(Either::Right(io)), None, None);
    let mut ended = pin!(async {
        connection.await;
        front.executions.close();
        front.executions.wait().await;
    });
    tokio::select! {
        () = &mut ended => return,
        () = front.stop.cancelled() => front.closing.cancel(),
    }
    if tokio::time::timeout(front.options.drain_timeout, &mut ended).await.is_err() {
        front.cut.cancel();
        ended.await;
    }
}

async fn accept_until_stop(
    listener: &TcpListener,
    tls: Option<TlsAcceptor>,
    front: &Arc<Front>,
    connections: &TaskTracker,
) {
    let room = Arc::new(Room::default());
    let mut end = pin!(async {
        front.stop.cancelled().await;
        // Even a sleep of nothing takes a tick of the timer.
        if !front.options.drain_notice.is_zero() {
            tokio::time::sleep(front.options.drain_notice).await;
        }
    });
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut end => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => match room.enter(peer, &front.options) {
                Ok(place) => {
                    let (front, tls) = (Arc::clone(front), tls.clone());
                    connections.spawn(async move {
                        open(front, tls, stream, peer.ip()).await;
                        drop(place);
                    });
                }
                Err(full) => tracing::debug!(%peer, full, "connection refused"),
            },
            // The caller was gone before we looked.
            Err(error) if is_of_caller(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept connections for a moment");
                tokio::select! {
                    () = &mut end => return,
                    () = tokio::time::sleep(ACCEPT_PAUSE) => {}
                }
            }
        }
    }
}

/// From an accepted socket to the end of its connection.
async fn open(front: Arc<Front>, tls: Option<TlsAcceptor>, stream: TcpStream, peer: IpAddr) {
    // With Nagle's algorithm on, small events and HTTP/2 resets wait about 40 ms.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY was refused");
    }
    let Some(tls) = tls else {
        return connection::run(front, Either::Left(stream), Some(peer), None).await;
    };
    let handshake = tokio::time::timeout(front.options.handshake_timeout, tls.accept(stream));
    let stream = tokio::select! {
        () = front.cut.cancelled() => return,
        stream = handshake => stream,
    };
    match stream {
        Ok(Ok(stream)) => {
            let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            connection::run(
                front,
                Either::Right(Either::Left(Box::new(stream))),
                Some(peer),
                Some(http2),
            )
            .await;
        }
        Ok(Err(error)) => tracing::debug!(%error, "TLS handshake failed"),
        Err(_) => tracing::debug!("TLS handshake took too long"),
    }
}

async fn drain(front: &Front, connections: &TaskTracker) -> Drained {
    front.closing.cancel();
    connections.close();
    let open = connections.len();
    let ended = async {
        connections.wait().await;
        front.executions.close();
        front.executions.wait().await;
    };
    let mut ended = pin!(ended);
    let in_time = tokio::time::timeout(front.options.drain_timeout, &mut ended).await;
    let cut = if in_time.is_ok() { 0 } else { connections.len() };
    front.cut.cancel();
    if in_time.is_err() {
        ended.await;
    }
    Drained { finished: open - cut, cut }
}

fn is_of_caller(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
    )
}

/// Counts connections, in all and by address. Holds at most one entry per open connection.
#[derive(Default)]
struct Room {
    counts: Mutex<(usize, HashMap<IpAddr, usize>)>,
}

/// A connection's place; given back when dropped.
struct Place {
    room: Arc<Room>,
    address: IpAddr,
}

impl Room {
    /// A place for `peer`, or the name of the limit that is reached.
    fn enter(self: &Arc<Self>, peer: SocketAddr, options: &Options) -> Result<Place, &'static str> {
        let address = peer.ip().to_canonical();
        let mut counts = self.counts.lock();
        let (total, by_address) = &mut *counts;
        if *total >= options.max_connections {
            return Err("max_connections");
        }
        let of_address = by_address.entry(address).or_default();
        if *of_address >= options.max_connections_per_ip {
            return Err("max_connections_per_ip");
        }
        *of_address += 1;
        *total += 1;
        Ok(Place { room: Arc::clone(self), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.room.counts.lock();
        let (total, by_address) = &mut *counts;
        *total -= 1;
        if let Some(of_address) = by_address.get_mut(&self.address) {
            *of_address -= 1;
            if *of_address == 0 {
                by_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_and_given_back() {
        let room = Arc::new(Room::default());
        let options =
            Options { max_connections: 3, max_connections_per_ip: 2, ..Options::default() };
        let [one, other] = ["[::ffff:10.0.0.1]:1", "10.0.0.2:1"].map(|text| text.parse().unwrap());
        let first = room.enter(one, &options).ok().unwrap();
        let _second = room.enter("10.0.0.1:9".parse().unwrap(), &options).ok().unwrap();
        assert_eq!(room.enter(one, &options).err(), Some("max_connections_per_ip"));
        let _third = room.enter(other, &options).ok().unwrap();
        assert_eq!(room.enter(other, &options).err(), Some("max_connections"));
        drop(first);
        drop(room.enter(other, &options).ok().unwrap());
        assert_eq!(room.counts.lock().1.len(), 2);
    }
}
