//! throwaway
#![allow(clippy::all, missing_docs, clippy::print_stdout)]
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use std::{io::{Read, Write}, net::{TcpListener, SocketAddr}, sync::Arc, time::{Duration, Instant}};
use tidegate_core::*;
use tidegate_upstream::{Options, Upstream};

fn server() -> SocketAddr {
    let l = TcpListener::bind("127.0.0.1:0").unwrap();
    let a = l.local_addr().unwrap();
    std::thread::spawn(move || for s in l.incoming() { std::thread::spawn(move || {
        let mut s = s.unwrap(); s.set_nodelay(true).unwrap();
        let body = format!(r#"{{"id":"chatcmpl-1","object":"chat.completion","choices":[{{"index":0,"message":{{"role":"assistant","content":"{}"}}}}],"usage":{{"prompt_tokens":3,"completion_tokens":4}}}}"#, "word ".repeat(60));
        let ans = format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ndate: Sat, 21 Nov 2026 00:00:00 GMT\r\ncontent-length: {}\r\n\r\n{}", body.len(), body);
        let mut buf = vec![0; 65536];
        loop { let n = s.read(&mut buf).unwrap_or(0); if n == 0 { return; } s.write_all(ans.as_bytes()).unwrap(); }
    }); });
    a
}
fn cpu() -> f64 { let s = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap(); s.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e3 }

fn main() {
    let a = server();
    let n = 30_000;
    let body = format!(r#"{{"model":"gw","messages":[{{"role":"user","content":"{}"}}]}}"#, "prompt ".repeat(100));
    let call = Call { id: "req-1".into(), operation: Operation::ChatCompletions, model: "gw".into(), payload: Payload::new(Bytes::from(body.clone()), 9..13), stream: false, tokens: TokenEstimate::default(), tenant: Arc::new(Tenant::local()), priority: Priority::Default, deadline: Instant::now(), patience: Patience::Counted, front: Front::Sdk };
    let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for round in 0..3 {
        rt.block_on(async {
            let up = Upstream::open("up".into(), Options { base_url: format!("http://{a}/v1"), ..Options::default() }, Some("k".to_owned().into())).unwrap();
            let t = cpu();
            for _ in 0..n {
                let r = up.send(Attempt { call: &call, model: "real", number: 1, connect_timeout: Duration::from_secs(2), deadline: Instant::now() + Duration::from_secs(60) }).await.unwrap();
                assert!(r.usage.is_some());
            }
            println!("{round} ours {:.2} us/call", (cpu() - t) / n as f64);
        });
        rt.block_on(async {
            let s = tokio::net::TcpStream::connect(a).await.unwrap(); s.set_nodelay(true).unwrap();
            let (mut send, conn) = hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(s)).await.unwrap();
            tokio::spawn(conn);
            let t = cpu();
            for _ in 0..n {
                send.ready().await.unwrap();
                let req = http::Request::post("/v1/chat/completions").header("host", "x").header("content-type", "application/json").header("authorization", "Bearer k").body(Full::new(Bytes::from(body.clone()))).unwrap();
                let r = send.send_request(req).await.unwrap();
                let b = r.into_body().collect().await.unwrap().to_bytes();
                assert!(b.len() > 10);
            }
            println!("{round} bare hyper {:.2} us/call", (cpu() - t) / n as f64);
        });
    }
}
