//! TLS to PostgreSQL: rustls, the system's certificate authorities and those of `sslrootcert`.
//!
//! *Why our own:* the published connector brings eight crates to bind SCRAM to the channel, which
//! a verified certificate makes unnecessary. Certificates are always verified, names included:
//! libpq's `require`, which takes any certificate, protects from nobody who can answer.

use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName, pem, pem::PemObject},
};
use std::{
    io,
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tidegate_core::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use tokio_rustls::TlsConnector;

/// Makes connections secure.
#[derive(Clone)]
pub(super) struct Tls(TlsConnector);

impl Tls {
    /// Reads the certificate authorities, those in `root_cert` beside the system's.
    ///
    /// # Errors
    ///
    /// Says what is wrong with `root_cert`.
    pub(super) fn new(root_cert: Option<&Path>) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if let Some(file) = root_cert {
            let unusable =
                |error: &dyn std::fmt::Display| format!("sslrootcert {}: {error}", file.display());
            // The PEM reader's own words quote the line at fault; somebody may have named a key's
            // file.
            let no_pem = |error: pem::Error| match error {
                pem::Error::Io(error) => unusable(&error),
                _ => unusable(&"it is not valid PEM"),
            };
            let certificates = CertificateDer::pem_file_iter(file).map_err(no_pem)?;
            for certificate in certificates {
                let certificate = certificate.map_err(no_pem)?;
                roots.add(certificate).map_err(|error| unusable(&error))?;
            }
        }
        let mut config =
            ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()
                .expect("aws-lc-rs speaks the default protocol versions")
                .with_root_certificates(roots)
                .with_no_client_auth();
        // Asked for where TLS begins at once (sslnegotiation=direct), ignored elsewhere.
        config.alpn_protocols = vec![b"postgresql".into()];
        Ok(Self(Arc::new(config).into()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> MakeTlsConnect<S> for Tls {
    type Stream = Stream<S>;
    type TlsConnect = ToHost;
    type Error = io::Error;

    fn make_tls_connect(&mut self, host: &str) -> io::Result<ToHost> {
        let name = ServerName::try_from(host.to_owned());
        // A Unix socket has no name; it is never asked for TLS.
        Ok(ToHost { connector: self.0.clone(), name: name.ok() })
    }
}

/// A handshake to come with one host.
pub(super) struct ToHost {
    connector: TlsConnector,
    name: Option<ServerName<'static>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> TlsConnect<S> for ToHost {
    type Stream = Stream<S>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Stream<S>>>;

    fn connect(self, stream: S) -> Self::Future {
        Box::pin(async move {
            let name = self.name.ok_or_else(|| io::Error::other("the host has no name for TLS"))?;
            self.connector.connect(name, stream).await.map(Stream).map_err(|cause| {
                io::Error::new(
                    cause.kind(),
                    format!(
                        "TLS: {cause} (name its certificate authority with sslrootcert=FILE, or \
                         go without TLS by sslmode=disable)"
                    ),
                )
            })
        })
    }
}

/// A connection under TLS.
pub(super) struct Stream<S>(tokio_rustls::client::TlsStream<S>);

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Stream<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_read(cx, into)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Stream<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_shutdown(cx)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream for Stream<S> {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}
