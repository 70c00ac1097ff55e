//! A plain HTTP client, and the binary as a server.

use http_body_util::{BodyExt, Full};
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
    client::conn::http1,
};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::net::SocketAddr;
use tempfile::TempDir;
use tidegate_testkit::process::{Pipe, Tidegate};
use tokio::net::TcpStream;

/// Where the binary under test is.
pub(crate) const BIN: &str = env!("CARGO_BIN_EXE_tidegate");

/// A running gateway with a data directory of its own.
pub(crate) struct Gateway {
    pub(crate) process: Tidegate,
    pub(crate) address: SocketAddr,
    /// Of the admin port.
    pub(crate) admin: SocketAddr,
    pub(crate) key: String,
    pub(crate) dir: TempDir,
}

impl Gateway {
    /// Starts one with this configuration; an empty one is no configuration at all.
    pub(crate) async fn start(config: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut args = vec!["serve".to_owned(), "--listen".into(), "127.0.0.1:0".into()];
        args.extend(["--admin-listen".into(), "127.0.0.1:0".into()]);
        args.extend(["--data-dir".into(), dir.path().join("state").display().to_string()]);
        args.extend(["--access-log".into(), dir.path().join("access.log").display().to_string()]);
        if !config.is_empty() {
            let file = dir.path().join("tidegate.toml");
            std::fs::write(&file, config).unwrap();
            args.extend(["--config".into(), file.display().to_string()]);
        }
        let mut command = std::process::Command::new(BIN);
        // A database of the machine is none of the test's.
        command.args(args).current_dir(dir.path()).env_remove("DATABASE_URL");
        let process = Tidegate::spawn_command(&mut command).unwrap();
        let address = process.addr().await;
        let line = process.line(Pipe::Stderr, "admin   http://").await;
        let admin = line.split('/').nth(2).unwrap().parse().unwrap();
        let line = process.line(Pipe::Stderr, "key     tg-").await;
        let key = line.trim_start_matches("key").trim().to_owned();
        Self { process, address, admin, key, dir }
    }

    /// Sends one request with the gateway's key.
    pub(crate) async fn send(&self, method: &str, path: &str, body: &str) -> Response<Incoming> {
        let auth = format!("Bearer {}", self.key);
        send(self.address, method, path, &[("authorization", &auth)], body).await
    }
}

/// A running simulator; its address.
pub(crate) async fn simulator(flags: &[&str]) -> (Tidegate, SocketAddr) {
    let args = ["sim", "--listen", "127.0.0.1:0"].iter().chain(flags);
    let process = Tidegate::spawn(BIN, args).unwrap();
    let address = process.addr().await;
    (process, address)
}

/// One request on a connection of its own, to the host `gateway` unless `headers` name one.
pub(crate) async fn send(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Response<Incoming> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(path);
    if !headers.iter().any(|(name, _)| *name == "host") {
        request = request.header("host", "gateway");
    }
    let says_type = headers.iter().any(|(name, _)| *name == "content-type");
    if !body.is_empty() && !says_type {
        request = request.header("content-type", "application/json");
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let body = Full::new(Bytes::copy_from_slice(body.as_bytes()));
    sender.send_request(request.body(body).unwrap()).await.unwrap()
}

/// The whole body as text.
pub(crate) async fn text(response: Response<Incoming>) -> String {
    let body = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(body.to_vec()).unwrap()
}

/// The whole body as JSON.
pub(crate) async fn json(response: Response<Incoming>) -> Value {
    serde_json::from_str(&text(response).await).unwrap()
}
