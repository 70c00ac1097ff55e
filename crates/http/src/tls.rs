//! Our side of TLS: the certificate, and which protocols we offer.

use crate::Tls;
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject},
};
use std::{io, path::Path, sync::Arc};
use tokio_rustls::TlsAcceptor;

/// Reads the files and offers HTTP/2 and HTTP/1.1.
///
/// # Errors
///
/// Names the file at fault.
pub(crate) fn acceptor(tls: &Tls) -> io::Result<TlsAcceptor> {
    let chain = CertificateDer::pem_file_iter(&tls.cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| unreadable("certificate", &tls.cert, &error))?;
    if chain.is_empty() {
        return Err(unreadable("certificate", &tls.cert, &pem::Error::NoItemsFound));
    }
    let key = PrivateKeyDer::from_pem_file(&tls.key)
        .map_err(|error| unreadable("key", &tls.key, &error))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(|error| {
            let (cert, key) = (tls.cert.display(), tls.key.display());
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("tls: certificate {cert} and key {key} do not work together: {error}"),
            )
        })?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// An error of the PEM reader never repeats what is in the file.
fn unreadable(what: &str, path: &Path, error: &pem::Error) -> io::Error {
    let path = path.display();
    match error {
        pem::Error::Io(error) => {
            io::Error::new(error.kind(), format!("tls: cannot read {what} {path}: {error}"))
        }
        pem::Error::NoItemsFound => {
            io::Error::new(io::ErrorKind::InvalidData, format!("tls: {path} holds no PEM {what}"))
        }
        error => io::Error::new(
            io::ErrorKind::InvalidData,
            format!("tls: {what} {path} is not valid PEM: {error}"),
        ),
    }
}
