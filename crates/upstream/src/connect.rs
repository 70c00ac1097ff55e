//! Opens byte streams to one upstream: lookup, TCP, TLS, all within the connect timeout.

use crate::{
    dns::Dns,
    fault::{DialError, setting},
    options::Options,
    stream::Stream,
    tls::Tls,
};
use http::{Uri, uri::Scheme};
use std::{io, net::SocketAddr, sync::Arc, time::Duration};
use tidegate_core::Result;
use tokio::{
    io::DuplexStream,
    net::TcpStream,
    time::{Instant, timeout_at},
};

/// Makes one end of a pipe whose other end is a server in this process.
pub(crate) type LocalConnect = Arc<dyn Fn() -> DuplexStream + Send + Sync>;

/// How byte streams come into being.
enum Connector {
    Tcp { dns: Dns, tls: Option<Tls> },
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
            Connector::Local(connect) => Ok((Stream::Local(connect()), without_alpn)),
            Connector::Tcp { dns, tls } => tokio::time::timeout(within, async {
                let tcp = self.dial_tcp(dns, within).await?;
                match tls {
                    Some(tls) => self.handshake(tls, tcp).await,
                    None => Ok((Stream::Tcp(tcp), without_alpn)),
                }
            })
            .await
            .unwrap_or_else(|_| Err(self.timed_out(within))),
        }
    }

    /// Tries every address; each but the last may take its share of the time only.
    async fn dial_tcp(&self, dns: &Dns, within: Duration) -> Result<TcpStream, DialError> {
        let deadline = Instant::now() + within;
        let failed = |doing, error| DialError::unreachable(&self.authority, doing, error);
        let addresses = dns.addresses().await.map_err(|error| failed("name lookup", error))?;
        let mut last = io::ErrorKind::AddrNotAvailable.into();
        for (tried, address) in addresses.iter().enumerate() {
            let left = deadline.saturating_duration_since(Instant::now());
            let untried = u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
            match timeout_at(Instant::now() + left / untried, connect(*address)).await {
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
        Ok((Stream::Tls(Box::new(stream)), protocol))
    }
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    // With Nagle's algorithm on, requests and HTTP/2 cancels wait some 40 ms for an ACK.
    stream.set_nodelay(true)?;
    Ok(stream)
}
