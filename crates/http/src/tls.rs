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

/// What is wrong with a file of ours. The PEM reader's own words are not repeated: they quote the
/// line at fault, which in a key whose line breaks were lost is the whole key.
fn unreadable(what: &str, path: &Path, error: &pem::Error) -> io::Error {
    let path = path.display();
    let wrong = match error {
        pem::Error::Io(error) => {
            let message = format!("tls: cannot read {what} {path}: {error}");
            return io::Error::new(error.kind(), message);
        }
        pem::Error::NoItemsFound => {
            let message = format!("tls: {path} holds no PEM {what}");
            return io::Error::new(io::ErrorKind::InvalidData, message);
        }
        pem::Error::MissingSectionEnd { .. } => "it lacks an END line, or its line breaks",
        pem::Error::IllegalSectionStart { .. } => {
            "one of its BEGIN lines goes on behind the dashes"
        }
        pem::Error::Base64Decode(_) => "what is between BEGIN and END is no base64",
        _ => "it cannot be read",
    };
    let message = format!("tls: {what} {path} is not valid PEM: {wrong}");
    io::Error::new(io::ErrorKind::InvalidData, message)
}
