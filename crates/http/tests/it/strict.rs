//! Requests that can be read in two ways, as raw bytes.

use crate::stub::{BODY, KEY, Stub, exchange};

/// Sends `bytes`, which must be refused with `status` and the connection closed, no call made.
async fn refused(bytes: &[u8], status: u16) {
    let stub = Stub::fine();
    let started = tokio::time::Instant::now();
    let said = exchange(&stub, bytes).await;
    let shown = String::from_utf8_lossy(bytes);
    assert_eq!(said.status, status, "{shown}: {said:?}");
    assert_eq!(said.header("connection"), Some("close"), "{shown}");
    assert!(stub.calls.lock().unwrap().is_empty(), "{shown}");
    // The clock is paused, so any wait for a timer would show: the close came with the answer,
    // or after the linger when the body was not read.
    assert!(started.elapsed() < std::time::Duration::from_secs(5), "{shown}");
}

#[tokio::test(start_paused = true)]
async fn one_good_host_is_needed() {
    for host in [
        "",
        "Host: gate\r\nHost: gate\r\n",
        "Host: gate\r\nHost: other\r\n",
        "Host: a/b?c\r\n",
        "Host:\r\n",
        "Host: a b\r\n",
        "Host: user@gate\r\n",
        "Host: gate:http\r\n",
    ] {
        refused(format!("GET /livez HTTP/1.1\r\n{host}\r\n").as_bytes(), 400).await;
    }
    refused(b"GET http://other/livez HTTP/1.1\r\nHost: gate\r\n\r\n", 400).await;
    refused(b"GET http://gate/livez HTTP/1.1\r\n\r\n", 400).await;
    let stub = Stub::fine();
    for good in [
        "GET http://GATE:80/livez HTTP/1.1\r\nHost: gate:80\r\n\r\n",
        "GET /livez HTTP/1.1\r\nHost: [::1]:8080\r\n\r\n",
        "GET /livez HTTP/1.0\r\n\r\n",
        "\r\nGET /livez HTTP/1.1\r\nHost: gate\r\n\r\n",
    ] {
        assert_eq!(exchange(&stub, good).await.status, 200, "{good}");
    }
}

/// hyper takes a line feed alone for the end of a line.
#[tokio::test(start_paused = true)]
async fn a_head_with_bare_line_feeds_was_answered() {
    refused(b"GET /livez HTTP/1.1\nHost: gate\n\n", 400).await;
    refused(b"GET /livez HTTP/1.1\r\nHost: gate\nx: y\r\n\r\n", 400).await;
    refused(b"GET /livez HTTP/1.1\r\nHost: gate\r\n\n", 400).await;
}

#[tokio::test(start_paused = true)]
async fn paths_mean_one_thing() {
    for path in [
        "//v1/models",
        "/v1//models",
        "/v1/./models",
        "/v1/../livez",
        "/%2e%2e/livez",
        "/v1%2Fmodels",
        "/livez%00",
    ] {
        refused(format!("GET {path} HTTP/1.1\r\nHost: gate\r\n\r\n").as_bytes(), 400).await;
    }
    refused(b"GET /livez\0 HTTP/1.1\r\nHost: gate\r\n\r\n", 400).await;
}

#[tokio::test(start_paused = true)]
async fn a_body_has_one_length() {
    let request = |headers: &str| {
        let chunk = format!("{:x}\r\n{BODY}\r\n0\r\n\r\n", BODY.len());
        format!(
            "POST /v1/embeddings HTTP/1.1\r\nHost: gate\r\nx-api-key: {KEY}\r\n{headers}\r\n{chunk}"
        )
    };
    for headers in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 5\r\n",
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: -5\r\n",
        "Transfer-Encoding: gzip\r\n",
        "Transfer-Encoding: chunked, gzip\r\n",
        "Transfer-Encoding: chunked, chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding : chunked\r\n",
    ] {
        refused(request(headers).as_bytes(), 400).await;
    }
}

/// Of requests sent in a burst only the first head is looked at in bytes; hyper closes after any
/// answer to a request with two lengths, so nothing behind it is ever read as a request.
#[tokio::test(start_paused = true)]
async fn nothing_is_read_behind_two_lengths() {
    let stub = Stub::fine();
    for lengths in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
    ] {
        let good = "GET /livez HTTP/1.1\r\nHost: gate\r\n\r\n";
        let two = format!(
            "POST /v1/embeddings HTTP/1.1\r\nHost: gate\r\nx-api-key: {KEY}\r\n{lengths}\r\n\
             {:x}\r\n{BODY}\r\n0\r\n\r\n",
            BODY.len()
        );
        let said = exchange(&stub, format!("{good}{two}{good}")).await;
        assert_eq!(said.body.matches("HTTP/1.1 ").count(), 1, "{said:?}");
        assert!(said.body.contains("connection: close"), "{said:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn heads_have_a_size() {
    let long = "a".repeat(9 << 10);
    refused(format!("GET /{long} HTTP/1.1\r\nHost: gate\r\n\r\n").as_bytes(), 414).await;
    let many = "x: y\r\n".repeat(101);
    refused(format!("GET /livez HTTP/1.1\r\nHost: gate\r\n{many}\r\n").as_bytes(), 431).await;
    let huge = "a".repeat(65 << 10);
    refused(format!("GET /livez HTTP/1.1\r\nHost: gate\r\nx: {huge}\r\n\r\n").as_bytes(), 431)
        .await;
    refused(b"GET /livez HTTP/1.1\r\nHost gate\r\n\r\n", 400).await;
    refused(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400).await;
}
