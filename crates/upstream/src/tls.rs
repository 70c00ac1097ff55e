//! TLS to an upstream: rustls on aws-lc-rs, the system's certificate authorities and our own.

use crate::{fault::setting, options::Options};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName, pem, pem::PemObject},
};
use std::sync::{Arc, OnceLock};
use tidegate_core::Result;
use tokio_rustls::TlsConnector;

/// What is needed to speak TLS to one host.
pub(crate) struct Tls {
    pub(crate) connector: TlsConnector,
    pub(crate) server_name: ServerName<'static>,
}

impl Tls {
    /// Reads the certificate authorities and prepares to speak to `host`.
    ///
    /// The provider is named here, never taken from the process: with two of them compiled in,
    /// rustls would panic when asked to guess.
    pub(crate) fn new(upstream: &str, host: &str, options: &Options) -> Result<Self> {
        let server_name = ServerName::try_from(host.to_owned())
            .map_err(|_| setting(upstream, "base_url", "has a host no certificate can name"))?;
        let mut config =
            ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()
                .expect("aws-lc-rs speaks the default protocol versions")
                .with_root_certificates(roots(upstream, options)?)
                .with_no_client_auth();
        config.alpn_protocols =
            if options.http2 { vec![b"h2".into()] } else { vec![b"h2".into(), b"http/1.1".into()] };
        Ok(Self { connector: Arc::new(config).into(), server_name })
    }
}

fn roots(upstream: &str, options: &Options) -> Result<Arc<RootCertStore>> {
    let Some(file) = &options.ca_file else {
        let roots = system_roots();
        if roots.is_empty() {
            let problem = "is https, but this system has no certificate authorities; \
                           install them (ca-certificates) or set ca_file";
            return Err(setting(upstream, "base_url", problem));
        }
        return Ok(roots);
    };
    let unreadable = |error: &dyn std::fmt::Display| {
        setting(upstream, "ca_file", &format!("{} cannot be used: {error}", file.display()))
    };
    let mut roots = RootCertStore::clone(&system_roots());
    let before = roots.len();
    // The PEM reader's own words quote the line at fault; somebody may have named a key's file.
    let no_pem = |error: pem::Error| match error {
        pem::Error::Io(error) => unreadable(&error),
        _ => unreadable(&"it is not valid PEM"),
    };
    for certificate in CertificateDer::pem_file_iter(file).map_err(no_pem)? {
        let certificate = certificate.map_err(no_pem)?;
        roots.add(certificate).map_err(|error| unreadable(&error))?;
    }
    if roots.len() == before {
        return Err(unreadable(&"it holds no certificate in PEM form"));
    }
    Ok(Arc::new(roots))
}

/// The system's authorities, read once: it takes tens of milliseconds.
fn system_roots() -> Arc<RootCertStore> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    let read = || {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        Arc::new(roots)
    };
    Arc::clone(ROOTS.get_or_init(read))
}
