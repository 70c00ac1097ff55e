//! Sizes and clocks: what one caller can hold, and for how long.

use crate::stub::{
    Act, BODY, Ended, KEY, Said, Server, Stub, memory, post, read_all, read_until, reply,
};
use futures_util::stream;
use http_body_util::BodyExt as _;
use hyper::{Request, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::{sync::Mutex, time::Duration};
use tidegate_core::{Body, ContentType};
use tidegate_http::Options;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::Instant,
};

/// Seconds until the connection is closed after `bytes`, and what was said before.
async fn closed_after(bytes: &str, options: Options) -> (u64, String) {
    let (mut io, _stop) = memory(&Stub::fine(), options);
    let started = Instant::now();
    io.write_all(bytes.as_bytes()).await.unwrap();
    let said = read_all(&mut io).await;
    (started.elapsed().as_secs(), said)
}

#[tokio::test(start_paused = true)]
async fn a_header_that_never_ends_is_closed() {
    for start in ["", "G", "GET /livez HTTP/1.1\r\nHost: ga", "PRI * HT"] {
        let (seconds, said) = closed_after(start, Options::default()).await;
        assert_eq!((seconds, &*said), (10, ""), "{start}");
    }
    // Nor does it help to send a byte now and then.
    let (mut io, _stop) = memory(&Stub::fine(), Options::default());
    let started = Instant::now();
    io.write_all(b"GET /livez HTTP/1.1\r\n").await.unwrap();
    while io.write_all(b"x: y\r\n").await.is_ok() {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert!(started.elapsed() <= Duration::from_secs(11), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_kept_a_minute() {
    let request = "GET /livez HTTP/1.1\r\nHost: gate\r\n\r\n";
    let (seconds, said) = closed_after(request, Options::default()).await;
    assert_eq!((seconds, Said::parse(&said).status), (60, 200));
    // The second head's clock is that of a head again.
    let (seconds, _) = closed_after(&format!("{request}GET /"), Options::default()).await;
    assert!(seconds <= 60);
    let (mut io, _stop) = memory(&Stub::fine(), Options::default());
    io.write_all(request.as_bytes()).await.unwrap();
    read_until(&mut io, "live").await;
    tokio::time::sleep(Duration::from_secs(50)).await;
    io.write_all(request.as_bytes()).await.unwrap();
    read_until(&mut io, "live").await;
    // The minute starts again with each answer.
    tokio::time::sleep(Duration::from_secs(50)).await;
    let started = Instant::now();
    io.write_all(b"GET /").await.unwrap();
    read_all(&mut io).await;
    assert_eq!(started.elapsed().as_secs(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_body_must_keep_its_pace() {
    let head = post("/v1/embeddings", "", "").replace("Content-Length: 0", "Content-Length: 9000");
    // Ten seconds of grace, then a kibibyte a second; then the refusal lingers a moment.
    for (sent, seconds) in [(0, 10), (4096, 14)] {
        let (closed, said) =
            closed_after(&(head.clone() + &" ".repeat(sent)), Options::default()).await;
        let said = Said::parse(&said);
        assert_eq!((said.status, &*said.code()), (408, "request_timeout"));
        assert_eq!(said.header("x-should-retry"), Some("true"));
        assert!((seconds..=seconds + 4).contains(&closed), "{closed}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_has_a_longest_length() {
    let options = || Options { max_body: 1 << 10, ..Options::default() };
    let promised =
        post("/v1/embeddings", "", "").replace("Content-Length: 0", "Content-Length: 1025");
    let chunked = format!(
        "POST /v1/embeddings HTTP/1.1\r\nHost: gate\r\nx-api-key: {KEY}\r\n\
         Transfer-Encoding: chunked\r\n\r\n400\r\n{}\r\n1\r\n \r\n",
        " ".repeat(1024)
    );
    for request in [promised, chunked] {
        let (_, said) = closed_after(&request, options()).await;
        let said = Said::parse(&said);
        assert_eq!((said.status, &*said.code()), (413, "request_too_large"), "{said:?}");
        assert!(said.body.contains("1KiB"));
        assert_eq!(said.header("connection"), Some("close"));
    }
    let padded = BODY.to_owned() + &" ".repeat(1024 - BODY.len());
    let (_, said) = closed_after(&post("/v1/embeddings", "", &padded), options()).await;
    assert_eq!(Said::parse(&said).status, 200);
}

/// A caller still sending a long body must get to read why it was refused.
#[tokio::test]
async fn a_refusal_reaches_a_caller_that_sends_first() {
    let server =
        Server::start(&Stub::fine(), Options { max_body: 1 << 10, ..Options::default() }).await;
    let mut io = server.connect().await;
    let body = " ".repeat(8 << 20);
    io.write_all(post("/v1/embeddings", "", &body).as_bytes()).await.unwrap();
    let said = Said::parse(&read_until(&mut io, "request_too_large").await);
    assert_eq!(said.status, 413);
    drop(io);
    server.stop().await;
}

/// An answer of many chunks, each counted when it is asked for.
fn long_answer(ended: Ended, chunks: usize) -> Act {
    let chunk = bytes::Bytes::from(vec![b'x'; 64 << 10]);
    let body = Body::stream(stream::iter((0..chunks).map(move |_| Ok(chunk.clone()))));
    Act::Reply(reply(ContentType::EventStream, body.holding(Box::new(ended))))
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_does_not_read_is_cut() {
    let stub = Stub::new(|_, ended| long_answer(ended, 1000));
    let (mut io, _stop) = memory(&stub, Options::default());
    let started = Instant::now();
    io.write_all(post("/v1/responses", "", BODY).as_bytes()).await.unwrap();
    Stub::wait(&stub.begun, 1).await;
    stub.ended.acquire().await.unwrap().forget();
    assert_eq!(started.elapsed().as_secs(), 30);
    drop(io);
}

/// The same on HTTP/2, where a caller can stop one stream and read the others.
#[tokio::test(start_paused = true)]
async fn a_stream_that_is_not_read_is_cut_alone() {
    let stub = Stub::new(|_, ended| long_answer(ended, 1000));
    let (io, _stop) = memory(&stub, Options::default());
    let (mut send, connection) = http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(100)
        .handshake::<_, String>(TokioIo::new(io))
        .await
        .unwrap();
    tokio::spawn(connection);
    let request = Request::post("http://gate/v1/responses")
        .header("x-api-key", KEY)
        .body(BODY.to_owned())
        .unwrap();
    let started = Instant::now();
    let mut answer = send.send_request(request).await.unwrap();
    stub.ended.acquire().await.unwrap().forget();
    assert_eq!(started.elapsed().as_secs(), 30);
    let live = Request::get("http://gate/livez").body(String::new()).unwrap();
    assert_eq!(send.send_request(live).await.unwrap().status(), 200);
    while let Some(Ok(_)) = answer.frame().await {}
    drop(send);
}

/// An answer that is complete on our side may still leave slowly.
#[tokio::test(start_paused = true)]
async fn a_caller_that_reads_slowly_gets_it_all() {
    let length = 4 << 20;
    let stub = Stub::new(move |_, ended| {
        let body = Body::whole(vec![b'x'; length].into()).holding(Box::new(ended));
        Act::Reply(reply(ContentType::Json, body))
    });
    let (mut io, _stop) = memory(&stub, Options::default());
    io.write_all(post("/v1/responses", "Connection: close\r\n", BODY).as_bytes()).await.unwrap();
    let started = Instant::now();
    let (mut read, mut buffer) = (0, vec![0; 16 << 10]);
    while let Ok(some @ 1..) = io.read(&mut buffer).await {
        read += some;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(read > length, "{read}");
    assert!(started.elapsed() > Duration::from_secs(240));
}

/// The upstream is read only as fast as the caller reads.
#[tokio::test(start_paused = true)]
async fn a_slow_caller_slows_its_stream() {
    let pulled = std::sync::Arc::new(Mutex::new(0));
    let counted = pulled.clone();
    let stub = Stub::new(move |_, ended| {
        let counted = counted.clone();
        let chunks = stream::iter((0..100).map(move |_| {
            *counted.lock().unwrap() += 1;
            Ok(bytes::Bytes::from(vec![b'x'; 16 << 10]))
        }));
        let body = Body::stream(chunks).holding(Box::new(ended));
        Act::Reply(reply(ContentType::EventStream, body))
    });
    let (mut io, _stop) = memory(&stub, Options::default());
    io.write_all(post("/v1/responses", "", BODY).as_bytes()).await.unwrap();
    Stub::wait(&stub.begun, 1).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(*pulled.lock().unwrap() < 20, "{}", pulled.lock().unwrap());
    let said = read_until(&mut io, "\r\n0\r\n\r\n").await;
    assert!(said.len() > 100 * (16 << 10));
}

#[tokio::test]
async fn connections_are_counted_by_address() {
    let options = Options { max_connections_per_ip: 1, ..Options::default() };
    let server = Server::start(&Stub::fine(), options).await;
    let request = b"GET /livez HTTP/1.1\r\nHost: gate\r\n\r\n";
    let mut first = server.connect().await;
    first.write_all(request).await.unwrap();
    read_until(&mut first, "live").await;
    let mut second = server.connect().await;
    assert_eq!(read_all(&mut second).await, "");
    first.write_all(request).await.unwrap();
    read_until(&mut first, "live").await;
    drop((first, second));
    server.stop().await;
}
