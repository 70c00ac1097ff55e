//! Compressed answers, honest and not.

use crate::support::{JSON, OK_BODY, answer, answering, chat, chat_stream, text, upstream};
use async_compression::tokio::write::{BrotliEncoder, GzipEncoder, ZstdEncoder};
use tidegate_core::Kind;
use tokio::io::AsyncWriteExt;

async fn packed(encoding: &str, plain: &[u8]) -> Vec<u8> {
    macro_rules! pack {
        ($encoder:ident) => {{
            let mut encoder = $encoder::new(Vec::new());
            encoder.write_all(plain).await.unwrap();
            encoder.shutdown().await.unwrap();
            encoder.into_inner()
        }};
    }
    match encoding {
        "gzip" => pack!(GzipEncoder),
        "br" => pack!(BrotliEncoder),
        _ => pack!(ZstdEncoder),
    }
}

fn headers(encoding: &str) -> String {
    format!("{JSON}content-encoding: {encoding}\r\n")
}

#[tokio::test]
async fn every_encoding_is_undone() {
    for encoding in ["gzip", "br", "zstd"] {
        let body = packed(encoding, OK_BODY.as_bytes()).await;
        let server = answering(answer("200 OK", &headers(encoding), body)).await;
        let upstream = upstream(&server);
        for _ in 0..3 {
            let reply = chat(&upstream).await.unwrap();
            assert_eq!(reply.usage.unwrap().total(), 7);
            assert_eq!(text(reply).await.unwrap(), OK_BODY, "{encoding}");
        }
        assert_eq!(server.connections(), 1, "{encoding}");
    }
}

#[tokio::test]
async fn cut_and_damaged_answers_are_faults() {
    for encoding in ["gzip", "br", "zstd"] {
        let body = packed(encoding, OK_BODY.as_bytes()).await;
        let cut = answer("200 OK", &headers(encoding), &body[..body.len() - 1]);
        let error = chat(&upstream(&answering(cut).await)).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Upstream, "{encoding}");
        let noise = answer("200 OK", &headers(encoding), [0xff; 40]);
        assert!(chat(&upstream(&answering(noise).await)).await.is_err(), "{encoding}");
    }
    for encoding in ["deflate", "gzip, br", "x"] {
        let odd = answer("200 OK", &headers(encoding), OK_BODY);
        let error = chat(&upstream(&answering(odd).await)).await.unwrap_err();
        assert!(error.message().contains("nobody asked for"), "{encoding}");
    }
}

#[tokio::test]
async fn bombs_do_not_go_off() {
    let zeros = vec![b' '; 20 << 20];
    for encoding in ["gzip", "br", "zstd"] {
        let bomb = packed(encoding, &zeros).await;
        assert!(bomb.len() < zeros.len() / 200);
        let server = answering(answer("200 OK", &headers(encoding), &bomb)).await;
        let error = chat(&upstream(&server)).await.unwrap_err();
        assert!(error.message().contains("100 times its size"), "{encoding}: {error}");
        let server = answering(answer("500 Oops", &headers(encoding), &bomb)).await;
        let error = chat(&upstream(&server)).await.unwrap_err();
        assert_eq!(error.answer().unwrap().body.len(), 64 * 1024, "{encoding}");
    }
}

#[tokio::test]
async fn a_stream_compressed_unasked_is_passed_on_plain() {
    let stream = "data: {}\n\ndata: [DONE]\n\n";
    let body = packed("gzip", stream.as_bytes()).await;
    let headers = "content-type: text/event-stream\r\ncontent-encoding: gzip\r\n";
    let server = answering(answer("200 OK", headers, body)).await;
    assert_eq!(text(chat_stream(&upstream(&server)).await.unwrap()).await.unwrap(), stream);
}
