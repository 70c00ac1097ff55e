//! The server under load: where it is and how byte streams to it come into being.

use crate::Error;
use http::{HeaderValue, Uri, uri::Scheme};
use rustls::{
    AlertDescription, ClientConfig, RootCertStore, crypto::aws_lc_rs, pki_types::ServerName,
};
use std::{
    fmt, io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tidegate_core::Operation;
use tokio::{io::DuplexStream, net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::either::Either;

/// The server under load.
pub struct Target {
    /// As reports show it.
    pub(crate) url: String,
    pub(crate) host: HeaderValue,
    /// Path before the operation's.
    below: String,
    connector: Connector,
    is_http2: bool,
}

enum Connector {
    Tcp {
        host: Box<str>,
        port: u16,
        addresses: Vec<SocketAddr>,
        good: AtomicUsize,
        tls: Option<Tls>,
    },
    Local(Box<dyn Fn() -> DuplexStream + Send + Sync>),
}

struct Tls {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Target {
    /// Reads a base URL; `/v1` is meant when it has no path.
    ///
    /// # Errors
    ///
    /// Says what is wrong with it, and never repeats what may hold a secret.
    pub fn parse(url: &str) -> Result<Self, String> {
        const LIKE: &str = "write it like http://127.0.0.1:8000/v1";
        let uri: Uri = url.trim().parse().map_err(|_| format!("it is not a URL: {LIKE}"))?;
        let is_tls = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTP => false,
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            _ => return Err(format!("it must start with http:// or https://: {LIKE}")),
        };
        let authority = uri.authority().ok_or_else(|| format!("it has no host: {LIKE}"))?;
        if authority.as_str().contains('@') {
            return Err("it must not hold a user name or password; use --api-key-env".into());
        }
        if uri.query().is_some() || url.contains('#') {
            return Err("it must not have a query or a fragment".into());
        }
        let path = uri.path().trim_end_matches('/');
        if Operation::ALL.iter().any(|operation| path.ends_with(operation.path())) {
            return Err(format!("it ends in an endpoint, which --endpoint chooses: {LIKE}"));
        }
        let port = match authority.as_str().rsplit_once(':') {
            // Of an IPv6 address in brackets, the last colon may be inside.
            Some((_, port)) if !port.ends_with(']') => {
                let port = port.parse().ok().filter(|port| *port > 0);
                port.ok_or_else(|| format!("its port is not a number from 1 to 65535: {LIKE}"))?
            }
            _ if is_tls => 443,
            _ => 80,
        };
        let below = if path.is_empty() { "/v1" } else { path }.to_owned();
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let tls = is_tls.then(|| Tls::new(host)).transpose()?;
        Ok(Self {
            url: format!("{}://{authority}{below}", uri.scheme_str().unwrap_or("http")),
            host: HeaderValue::from_str(authority.as_str()).map_err(|_| "its host is odd")?,
            below,
            connector: Connector::Tcp {
                host: host.into(),
                port,
                addresses: Vec::new(),
                good: AtomicUsize::new(0),
                tls,
            },
            is_http2: false,
        })
    }

    /// A server in this process; `connect` makes one end of a pipe whose other end it serves.
    ///
    /// Requests are then paced by the runtime's timer, so that virtual time works.
    pub fn local(connect: impl Fn() -> DuplexStream + Send + Sync + 'static) -> Self {
        Self {
            url: "local".into(),
            host: HeaderValue::from_static("local"),
            below: "/v1".into(),
            connector: Connector::Local(Box::new(connect)),
            is_http2: false,
        }
    }

    /// Speaks HTTP/2: over TLS agreed on in the handshake, else known beforehand.
    #[must_use]
    pub fn with_http2(mut self) -> Self {
        self.is_http2 = true;
        if let Connector::Tcp { tls: Some(tls), .. } = &mut self.connector {
            Arc::make_mut(&mut tls.config).alpn_protocols = vec![HTTP2.into()];
        }
        self
    }

    pub(crate) const fn is_http2(&self) -> bool {
        self.is_http2
    }

    /// Whether it is in this process.
    pub(crate) const fn is_local(&self) -> bool {
        matches!(self.connector, Connector::Local(_))
    }

    /// The path of a request.
    pub(crate) fn path(&self, below: &str) -> Uri {
        format!("{}{below}", self.below).parse().expect("two paths make a path")
    }

    /// The whole URL of a request, as HTTP/2 has it.
    pub(crate) fn url_of(&self, below: &str) -> Uri {
        let scheme = match self.connector {
            Connector::Tcp { tls: Some(_), .. } => Scheme::HTTPS,
            _ => Scheme::HTTP,
        };
        Uri::builder()
            .scheme(scheme)
            .authority(self.host.as_bytes())
            .path_and_query(format!("{}{below}", self.below))
            .build()
            .expect("the parts of a URL make a URL")
    }

    /// Looks the host up, once: a lookup per connection would be measured with it.
    pub(crate) async fn resolve(&mut self) -> Result<(), Error> {
        let Connector::Tcp { host, port, addresses, .. } = &mut self.connector else {
            return Ok(());
        };
        if addresses.is_empty() {
            let asked = timeout(LOOKUP, tokio::net::lookup_host((&**host, *port)));
            let found = match asked.await {
                Ok(Ok(found)) => found,
                Ok(Err(error)) => {
                    return Err(Error::Unreachable(format!("{host} cannot be looked up: {error}")));
                }
                Err(_) => {
                    let why = format!("{host} is not found within {} s", LOOKUP.as_secs());
                    return Err(Error::Unreachable(why));
                }
            };
            addresses.extend(found);
        }
        Ok(())
    }

    /// Opens a byte stream; tries every address, the one that worked last first.
    ///
    /// # Errors
    ///
    /// Why there is none, in words.
    pub(crate) async fn dial(&self) -> Result<Stream, String> {
        let (addresses, good, tls) = match &self.connector {
            Connector::Local(connect) => return Ok(Either::Right(Either::Right(connect()))),
            Connector::Tcp { addresses, good, tls, .. } => (addresses, good, tls),
        };
        let first = good.load(Relaxed);
        let mut last = "it has no address".to_owned();
        for tried in 0..addresses.len() {
            let at = (first + tried) % addresses.len();
            match TcpStream::connect(addresses[at]).await {
                Ok(tcp) => {
                    // With Nagle's algorithm on, requests wait some 40 ms for an ACK.
                    tcp.set_nodelay(true).map_err(|error| error.to_string())?;
                    good.store(at, Relaxed);
                    return match tls {
                        None => Ok(Either::Left(tcp)),
                        Some(tls) => tls.connect(tcp, self.is_http2).await,
                    };
                }
                Err(error) => last = in_words(&error),
            }
        }
        Err(last)
    }
}

/// What keeps a connection from coming about; says so when it is this machine, not the server.
fn in_words(error: &io::Error) -> String {
    match error.raw_os_error() {
        // EMFILE and ENFILE, EADDRNOTAVAIL.
        Some(23 | 24) => format!("this machine has too few file descriptors (ulimit -n): {error}"),
        Some(99) => format!("this machine has no local port left: {error}"),
        _ => error.to_string(),
    }
}

/// What an HTTP/2 server calls itself in a TLS handshake.
const HTTP2: &[u8] = b"h2";
const NO_HTTP2: &str = "it does not offer HTTP/2: leave --http2 out";
/// How long the system may look for the host.
const LOOKUP: Duration = Duration::from_secs(10);

impl Tls {
    /// HTTP/1.1 over TLS, trusting the system's certificate authorities.
    fn new(host: &str) -> Result<Self, String> {
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| "it has a host no certificate can name")?;
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() {
            return Err("it is https, but this system has no certificate authorities; \
                        install ca-certificates or set SSL_CERT_FILE"
                .into());
        }
        let mut config =
            ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()
                .expect("aws-lc-rs speaks the default protocol versions")
                .with_root_certificates(roots)
                .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".into()];
        Ok(Self { config: Arc::new(config), name })
    }

    async fn connect(&self, tcp: TcpStream, is_http2: bool) -> Result<Stream, String> {
        let connector = TlsConnector::from(Arc::clone(&self.config));
        let stream = connector.connect(self.name.clone(), tcp).await.map_err(|error| {
            let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
            match cause {
                Some(rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol)) => {
                    let which = if is_http2 { NO_HTTP2 } else { "it wants HTTP/2: give --http2" };
                    which.to_owned()
                }
                Some(rustls::Error::InvalidMessage(_)) => {
                    format!("it does not speak TLS (an http:// server?): {error}")
                }
                Some(rustls::Error::InvalidCertificate(_)) => format!(
                    "its certificate is not trusted: {error}; SSL_CERT_FILE can name a file with \
                     its authority"
                ),
                _ => error.to_string(),
            }
        })?;
        if is_http2 && stream.get_ref().1.alpn_protocol() != Some(HTTP2) {
            return Err(NO_HTTP2.into());
        }
        Ok(Either::Right(Either::Left(Box::new(stream))))
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target").field("url", &self.url).finish_non_exhaustive()
    }
}

/// A byte stream to the server: TCP, TLS over TCP, or a pipe inside the process.
pub(crate) type Stream = Either<TcpStream, Either<Box<TlsStream<TcpStream>>, DuplexStream>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let target = Target::parse("http://127.0.0.1:8090").unwrap();
        assert_eq!(target.url, "http://127.0.0.1:8090/v1");
        assert_eq!(target.path("/chat/completions"), "/v1/chat/completions");
        assert_eq!(Target::parse("http://h/api/v2/").unwrap().path("/x"), "/api/v2/x");
        for (url, whole) in
            [("http://[::1]", "http://[::1]/v1/x"), ("http://h:81/a", "http://h:81/a/x")]
        {
            assert_eq!(Target::parse(url).unwrap().url_of("/x"), whole);
        }
        for (bad, says) in [
            ("", "URL"),
            ("localhost:8090", "http://"),
            ("ftp://h/v1", "http://"),
            ("http://u:canary@h/v1", "api-key-env"),
            ("http://h/v1?key=canary", "query"),
            ("http://h/v1/chat/completions", "--endpoint"),
            ("http://h:99999/v1", "65535"),
            ("http://h:/v1", "65535"),
            ("http://[::1]:0", "65535"),
        ] {
            let why = Target::parse(bad).unwrap_err();
            assert!(why.contains(says) && !why.contains("canary"), "{bad}: {why}");
        }
    }
}
