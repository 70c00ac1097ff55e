//! What is said when a bug makes something panic: where, and nothing of what it was about.
//!
//! *Why not the panic's own words:* they quote what was being worked on. Slicing a text past its end
//! prints the text, unwrapping a failure prints it whole; either may be a request with its key. Words
//! that stand in the program are said, words that were made while it ran are not: the place is
//! enough to find the bug. `RUST_BACKTRACE=1` adds how it came there, which is names alone.

use crate::process_log;
use std::{
    backtrace::{Backtrace, BacktraceStatus},
    io::{self, Write},
    panic::{self, PanicHookInfo},
    thread,
};

/// Threads that tell their panics themselves: after the main one's the process may be gone before the
/// log has written it, and the log cannot write its own.
const ALONE: [&str; 2] = ["main", "process-log"];

/// Tells panics in this way from now on, on standard error.
pub(crate) fn tell() {
    panic::set_hook(Box::new(|panicked| {
        let mut said = describe(panicked);
        let backtrace = Backtrace::capture();
        if backtrace.status() == BacktraceStatus::Captured {
            said.push_str(&format!("{backtrace}\n"));
        }
        let current = thread::current();
        let alone = current.name().is_none_or(|name| ALONE.contains(&name));
        // A pipe that nobody reads must not hold up the other calls of this thread.
        if alone || !process_log::say(&said) {
            drop(io::stderr().write_all(said.as_bytes()));
        }
    }));
}

fn describe(panicked: &PanicHookInfo<'_>) -> String {
    let current = thread::current();
    let thread = current.name().unwrap_or("without a name");
    let place = panicked.location().map(ToString::to_string).unwrap_or_default();
    let words = match panicked.payload().downcast_ref::<&'static str>() {
        Some(words) => words,
        None => "(its words are left out: they may repeat a request)",
    };
    format!(
        "error: a bug in tidegate, please report it: thread {thread} panicked at {place}: {words}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        access_log::AccessLog,
        config::{AccessTo, Level},
    };
    use futures_util::stream;
    use http_body_util::{BodyExt as _, Full};
    use hyper::{Request, body::Bytes, client::conn::http2};
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use std::{env, path::PathBuf, process::Command, sync::Arc, time::Duration};
    use tidegate_core::{
        Answer, Body, BoxFuture, Call, ContentType, Identity, MirrorState, ModelInfo, RateLimits,
        Reply, Result, Secret, Served, Tenant, UpstreamState,
    };
    use tidegate_http::{Callers, Options, serve};
    use tokio::net::{TcpListener, TcpStream};
    use tokio_util::sync::CancellationToken;

    /// Has the test's own program be the process that panics; the directory of its access log.
    const CHILD: &str = "TIDEGATE_TEST_PANICS_IN";
    const NAME: &str = "panics::tests::a_panic_fails_its_own_call_and_tells_nothing_of_it";
    const KEY: &str = "kAnArYKeyOfTheCaller0aQ7";
    const PROMPT: &str = "kAnArYPrompt1bR8";
    const OURS: &str = "kAnArYOurKeyThere2cS9";

    /// Panics as the model's name says, with secrets at hand.
    struct Fragile(Secret<String>);

    impl Answer for Fragile {
        fn identify<'a>(&'a self, key: &'a str) -> Identity<'a> {
            if key.starts_with("slice") {
                let _ = &key[..key.len() + 1];
            }
            Identity::Known(Arc::new(Tenant::local()))
        }

        fn call(&self, call: Call) -> BoxFuture<'_, Result<Reply>> {
            let body = String::from_utf8(call.payload.bytes().to_vec()).unwrap();
            let ours = self.0.clone();
            if &*call.model == "early" {
                panic!("{body} {}", ours.expose());
            }
            Box::pin(async move {
                tokio::task::yield_now().await;
                match &*call.model {
                    "unwrap" => {
                        let quoting = |_| (body.clone(), ours.expose().clone());
                        body.parse::<u8>().map(drop).map_err(quoting).unwrap();
                    }
                    "format" => panic!("sent {body} with {}", ours.expose()),
                    "fixed" => panic!("words of the program"),
                    _ => {}
                }
                let chunks = (0..3).map(move |number| {
                    if number == 2 && &*call.model == "second" {
                        panic!("after a chunk: {body} {}", ours.expose());
                    }
                    Ok(Bytes::from(format!("data: {number}\n\n")))
                });
                Ok(Reply {
                    status: 200,
                    content_type: ContentType::EventStream,
                    body: Body::stream(stream::iter(chunks)),
                    usage: None,
                    meter: None,
                    limits: RateLimits::default(),
                    upstream_request_id: None,
                    served: Served::default(),
                })
            })
        }

        fn models(&self, _: &Tenant) -> Vec<ModelInfo> {
            Vec::new()
        }

        fn upstreams(&self) -> Vec<UpstreamState> {
            Vec::new()
        }

        fn mirrors(&self) -> Vec<MirrorState> {
            Vec::new()
        }
    }

    type Sender = http2::SendRequest<Full<Bytes>>;

    /// One call on a connection shared with others: its status, and its body unless it broke off.
    async fn call(sender: &Sender, key: &str, model: &str) -> (u16, Option<String>) {
        let body = format!(r#"{{"model":"{model}","stream":true,"messages":["{PROMPT}"]}}"#);
        let request = Request::post("http://gate/v1/chat/completions")
            .header("authorization", format!("Bearer {key}"))
            .body(Full::new(body.into()))
            .unwrap();
        let response = sender.clone().send_request(request).await.unwrap();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.ok();
        (status, body.map(|body| String::from_utf8(body.to_bytes().to_vec()).unwrap()))
    }

    /// The process that panics: the front as the gateway has it, and a caller.
    async fn child(dir: PathBuf) {
        process_log::start(Level::Trace).unwrap();
        tell();
        let log = AccessLog::start(&AccessTo::File(dir.join("access.log"))).unwrap().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let callers = Callers { refusals: Some(log.refusals()), ..Callers::default() };
        let answer = Arc::new(Fragile(Secret::new(OURS.to_owned())));
        let served =
            tokio::spawn(serve(listener, answer, Options::default(), callers, stop.clone()));

        let io = TokioIo::new(TcpStream::connect(address).await.unwrap());
        let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        let slice = format!("slice{KEY}");
        let fine = Some("data: 0\n\ndata: 1\n\ndata: 2\n\n");
        for (key, model, status) in [
            (&*slice, "any", 500),
            (KEY, "early", 500),
            (KEY, "unwrap", 500),
            (KEY, "format", 500),
            (KEY, "fixed", 500),
            (KEY, "second", 200),
        ] {
            // The ones beside it on the same connection, and the next ones, are answered.
            let (one, panicked, other) = tokio::join!(
                call(&sender, KEY, "a"),
                call(&sender, key, model),
                call(&sender, KEY, "b")
            );
            assert_eq!((one.0, one.1.as_deref()), (200, fine));
            assert_eq!((other.0, other.1.as_deref()), (200, fine));
            assert_eq!(panicked.0, status, "{model}");
            match panicked.1 {
                Some(body) if status == 500 => assert!(body.contains("internal_error"), "{model}"),
                None if status == 200 => {}
                _ => panic!("a stream that panics does not end well"),
            }
        }
        stop.cancel();
        assert_eq!(served.await.unwrap().unwrap().cut, 0);
        assert!(log.finish(Duration::from_secs(60)));
    }

    #[test]
    fn a_panic_fails_its_own_call_and_tells_nothing_of_it() {
        let runtime = || tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        if let Some(dir) = env::var_os(CHILD) {
            return runtime().block_on(child(dir.into()));
        }
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new(env::current_exe().unwrap());
        command.args([NAME, "--exact", "--nocapture"]).env(CHILD, dir.path());
        let output =
            command.env("RUST_BACKTRACE", "full").env("RUST_LOG", "trace").output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{stdout}{stderr}");
        assert!(stdout.contains("1 passed"), "{stdout}");
        let access = std::fs::read_to_string(dir.path().join("access.log")).unwrap();
        assert_eq!(stderr.matches("a bug in tidegate").count(), 6, "{stderr}");
        assert!(
            stderr.contains("panics.rs:") && stderr.contains("words of the program"),
            "{stderr}"
        );
        assert!(stderr.contains("a request panicked"), "{stderr}");
        assert!(access.contains("\"status\":500"), "{access}");
        for place in [&*stdout, &*stderr, &*access] {
            assert!(!place.to_lowercase().contains("kanary"), "{place}");
        }
    }
}
