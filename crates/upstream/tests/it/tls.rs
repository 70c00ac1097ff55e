//! TLS: trust, and the protocol the server picks.

use crate::support::{Connection, JSON, OK_BODY, Seen, answer, chat, open};
use hyper::{server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ServerConfig, crypto::aws_lc_rs, pki_types::PrivateKeyDer};
use std::{convert::Infallible, net::SocketAddr, path::Path, sync::Arc};
use tidegate_core::{Kind, Retry};
use tidegate_upstream::{Options, Upstream};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// A server that offers `alpn`, and a file with its certificate.
async fn serve(alpn: &[&str], directory: &Path) -> (SocketAddr, Arc<Seen>, Options) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let file = directory.join("ca.pem");
    std::fs::write(&file, made.cert.pem()).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let acceptor = TlsAcceptor::from(Arc::new(config));

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::new(Seen::default());
    let counting = Arc::clone(&seen);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (acceptor, seen) = (acceptor.clone(), Arc::clone(&counting));
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                let mut connection = Connection::new(stream, &seen);
                if is_http2 {
                    let service = service_fn(|_| async { Ok::<_, Infallible>(crate::http2::ok()) });
                    let _ = http2::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(connection.io), service)
                        .await;
                    return;
                }
                while connection.request().await.is_some() {
                    connection.send(answer("200 OK", JSON, OK_BODY)).await;
                }
            });
        }
    });
    let options = Options {
        base_url: format!("https://localhost:{}/v1", address.port()),
        ca_file: Some(file),
        ..Options::default()
    };
    (address, seen, options)
}

async fn check(alpn: &[&str], calls: usize, expected_connections: usize) {
    let directory = tempfile::tempdir().unwrap();
    let (_, seen, options) = serve(alpn, directory.path()).await;
    let upstream = open(options);
    chat(&upstream).await.unwrap();
    for _ in 0..calls {
        chat(&upstream).await.unwrap();
    }
    assert_eq!(seen.connections(), expected_connections);
}

#[tokio::test]
async fn the_server_picks_the_protocol() {
    check(&["h2", "http/1.1"], 5, 1).await;
    check(&["http/1.1"], 5, 1).await;
    check(&[], 5, 1).await;
}

#[tokio::test]
async fn one_dial_finds_the_protocol_for_all() {
    let directory = tempfile::tempdir().unwrap();
    let (_, seen, options) = serve(&["h2"], directory.path()).await;
    let upstream = open(options);
    let replies = futures_util::future::join_all((0..50).map(|_| chat(&upstream))).await;
    assert!(replies.iter().all(Result::is_ok));
    assert_eq!(seen.connections(), 1);
}

#[tokio::test]
async fn an_unknown_authority_is_not_trusted() {
    let directory = tempfile::tempdir().unwrap();
    let (_, seen, options) = serve(&["h2"], directory.path()).await;
    let other = tempfile::tempdir().unwrap();
    let (_, _, other_options) = serve(&["h2"], other.path()).await;
    let upstream = open(Options { ca_file: other_options.ca_file, ..options });
    let replies = futures_util::future::join_all((0..20).map(|_| chat(&upstream))).await;
    for reply in replies {
        let error = reply.unwrap_err();
        assert_eq!((error.kind(), error.retry()), (Kind::Unavailable, Retry::Unsent));
        assert!(error.message().contains("TLS"), "{error}");
    }
    assert_eq!(seen.connections(), 0);
}

#[test]
fn bad_certificate_files_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let empty = directory.path().join("empty.pem");
    std::fs::write(&empty, "no certificate").unwrap();
    for file in [empty, directory.path().join("missing.pem")] {
        let options = Options {
            base_url: "https://localhost/v1".into(),
            ca_file: Some(file.clone()),
            ..Options::default()
        };
        let error = Upstream::open("up".into(), options, None).unwrap_err();
        assert_eq!(error.param(), Some("ca_file"));
        assert!(error.message().contains(&*file.to_string_lossy()), "{error}");
    }
}
