//! Opens byte streams to one upstream: lookup, TCP, TLS, all within the connect timeout.

use crate::{
    dns::Dns,
    fault::{DialError, setting},
    options::Options,
    tls::Tls,
};
use http::{Uri, uri::Scheme};
use socket2::{SockRef, TcpKeepalive};
use std::{io, net::SocketAddr, sync::Arc, time::Duration};
use tidegate_core::Result;
use tokio::{
    io::DuplexStream,
    net::TcpStream,
    time::{Instant, timeout_at},
};
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;

/// The byte stream below a connection: TCP, TLS over TCP, or a pipe inside the process.
pub(crate) type Stream = Either<TcpStream, Either<Box<TlsStream<TcpStream>>, DuplexStream>>;

/// Makes one end of a pipe whose other end is a server in this process.
pub(crate) type LocalConnect = Arc<dyn Fn() -> DuplexStream + Send + Sync>;

/// How byte streams come into being.
enum Connector {
    Tcp { dns: Dns, tls: Option<Tls>, keepalive: Option<TcpKeepalive> },
    Local(LocalConnect),
}

/// The HTTP version spoken on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http1,
    Http2,
}

/// Opens byte streams to one upstream.
pub(crate) struct Dialer {
    /// `host:port`, for messages.
    authority: Box<str>,
    connector: Connector,
    /// HTTP/2 by prior knowledge, where no ALPN tells.
    http2: bool,
}

impl Dialer {
    pub(crate) fn new(
        upstream: &str,
        base: &Uri,
        options: &Options,
        local: Option<LocalConnect>,
    ) -> Result<Self> {
        let is_tls = base.scheme() == Some(&Scheme::HTTPS);
        let bracketed = base.host().unwrap_or_default();
        let host = bracketed.trim_start_matches('[').trim_end_matches(']');
        let port = base.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        if port == 0 {
            return Err(setting(upstream, "base_url", "has port 0, which nobody listens on"));
        }
        let connector = match local {
            Some(connect) => Connector::Local(connect),
            None => Connector::Tcp {
                dns: Dns::new(host, port, options.dns_ttl),
                keepalive: keepalive(options.keepalive),
                tls: is_tls.then(|| Tls::new(upstream, host, options)).transpose()?,
            },
        };
        Ok(Self {
            authority: format!("{bracketed}:{port}").into(),
            connector,
            http2: options.http2,
        })
    }

    /// `host:port`.
    pub(crate) fn authority(&self) -> &str {
        &self.authority
    }

    /// No connection came about in time.
    pub(crate) fn timed_out(&self, within: Duration) -> DialError {
        DialError::timed_out(&self.authority, within)
    }

    /// The protocol of every connection, when no server has a say in it.
    pub(crate) fn fixed_protocol(&self) -> Option<Protocol> {
        match &self.connector {
            Connector::Tcp { tls: Some(_), .. } if !self.http2 => None,
            _ if self.http2 => Some(Protocol::Http2),
            _ => Some(Protocol::Http1),
        }
    }

    /// Opens one byte stream within so long.
    pub(crate) async fn dial(&self, within: Duration) -> Result<(Stream, Protocol), DialError> {
        let without_alpn = if self.http2 { Protocol::Http2 } else { Protocol::Http1 };
        match &self.connector {
            Connector::Local(connect) => {
                Ok((Either::Right(Either::Right(connect())), without_alpn))
            }
            Connector::Tcp { dns, tls, keepalive } => tokio::time::timeout(within, async {
                let tcp = self.dial_tcp(dns, keepalive.as_ref(), within).await?;
                match tls {
                    Some(tls) => self.handshake(tls, tcp).await,
                    None => Ok((Either::Left(tcp), without_alpn)),
                }
            })
            .await
            .unwrap_or_else(|_| Err(self.timed_out(within))),
        }
    }

    /// Tries every address; each but the last may take its share of the time only.
    async fn dial_tcp(
        &self,
        dns: &Dns,
        keepalive: Option<&TcpKeepalive>,
        within: Duration,
    ) -> Result<TcpStream, DialError> {
        let deadline = Instant::now() + within;
        let failed = |doing, error| DialError::unreachable(&self.authority, doing, error);
        let addresses = dns.addresses().await.map_err(|error| failed("name lookup", error))?;
        let mut last = io::ErrorKind::AddrNotAvailable.into();
        for (tried, address) in addresses.iter().enumerate() {
            let left = deadline.saturating_duration_since(Instant::now());
            let untried = u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
            match timeout_at(Instant::now() + left / untried, connect(*address, keepalive)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => last = error,
                Err(_) => last = io::ErrorKind::TimedOut.into(),
            }
        }
        Err(match last.kind() {
            io::ErrorKind::TimedOut => self.timed_out(within),
            _ => failed("connect", last),
        })
    }

    async fn handshake(&self, tls: &Tls, tcp: TcpStream) -> Result<(Stream, Protocol), DialError> {
        let stream = tls
            .connector
            .connect(tls.server_name.clone(), tcp)
            .await
            .map_err(|error| DialError::unreachable(&self.authority, "TLS", error))?;
        let protocol = match stream.get_ref().1.alpn_protocol() {
            Some(b"h2") => Protocol::Http2,
            _ if self.http2 => {
                let error = io::Error::other("http2 is set, and the server does not offer it");
                return Err(DialError::unreachable(&self.authority, "TLS", error));
            }
            _ => Protocol::Http1,
        };
        Ok((Either::Right(Either::Left(Box::new(stream))), protocol))
    }
}

/// Probes for connections that are silent for `idle`, in whole seconds: the first after that, then
/// as many as the system sends (nine on Linux) a ninth of it apart, so that a dead server is known
/// after about twice as long. `None` for zero.
///
/// A server that was cut off answers nothing and closes nothing. Without probes, a long silence
/// before a first token looks just like it.
fn keepalive(idle: Duration) -> Option<TcpKeepalive> {
    // What the kernel takes: it refuses more than 32,767 s.
    let whole = |time: Duration| time.clamp(Duration::from_secs(1), Duration::from_secs(32_767));
    (!idle.is_zero())
        .then(|| TcpKeepalive::new().with_time(whole(idle)).with_interval(whole(idle / 9)))
}

async fn connect(address: SocketAddr, keepalive: Option<&TcpKeepalive>) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    // With Nagle's algorithm on, requests and HTTP/2 cancels wait some 40 ms for an ACK.
    stream.set_nodelay(true)?;
    if let Some(keepalive) = keepalive {
        SockRef::from(&stream).set_tcp_keepalive(keepalive)?;
    }
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn connections_are_probed_unless_told_not_to() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        for (idle, probed) in [(30, true), (1, true), (u64::MAX, true), (0, false)] {
            let wanted = keepalive(Duration::from_secs(idle));
            let stream = connect(address, wanted.as_ref()).await.unwrap();
            assert_eq!(SockRef::from(&stream).keepalive().unwrap(), probed, "{idle}");
        }
    }
}
