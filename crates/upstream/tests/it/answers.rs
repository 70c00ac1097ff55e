//! What comes back: refusals, broken answers, streams.

use crate::support::{
    JSON, OK_BODY, answer, answering, answering_once, call, chat, chat_stream, events, open,
    options, send, server, text, upstream,
};
use futures_util::StreamExt;
use std::time::Duration;
use tidegate_core::{Class, ContentType, Error, Kind, Operation, Retry};
use tidegate_upstream::Options;

const NOW: Retry = Retry::After(Duration::ZERO);

async fn refused(answer: impl Into<Vec<u8>>) -> Error {
    chat(&upstream(&answering_once(answer).await)).await.unwrap_err()
}

async fn stream_refused(answer: impl Into<Vec<u8>>) -> Error {
    chat_stream(&upstream(&answering_once(answer).await)).await.unwrap_err()
}

/// The text of a streamed reply and the error it ends with.
async fn read_stream(operation: Operation, stream: &str) -> (String, Option<Error>) {
    let server = answering_once(events(stream)).await;
    let mut reply = send(&upstream(&server), &call(operation, true)).await.unwrap();
    assert_eq!(reply.content_type, ContentType::EventStream);
    let mut all = Vec::new();
    while let Some(chunk) = reply.body.next().await {
        match chunk {
            Ok(chunk) => all.extend_from_slice(&chunk),
            Err(error) => {
                assert!(reply.body.next().await.is_none(), "nothing comes after an error");
                return (String::from_utf8(all).unwrap(), Some(error));
            }
        }
    }
    (String::from_utf8(all).unwrap(), None)
}

#[tokio::test]
async fn refusals_are_classified() {
    let headers = "retry-after: 2\r\nx-ratelimit-limit-requests: 60\r\n";
    let error = refused(answer("429 Too Many Requests", headers, "{}")).await;
    assert_eq!(error.retry(), Retry::After(Duration::from_secs(2)));
    assert_eq!(error.limits().requests.limit, Some(60));

    let body = r#"{"error":{"message":"too long","code":"context_length_exceeded"}}"#;
    let error = refused(answer("400 Bad Request", JSON, body)).await;
    assert_eq!(error.class(), Class::Caller);
    assert_eq!(error.answer().unwrap().body, body);

    assert_eq!(refused(answer("401 No", "", "")).await.class(), Class::Credential);
    let error = refused(answer("302 Found", "location: http://127.0.0.1:1/\r\n", "")).await;
    assert_eq!((error.class(), error.retry()), (Class::Fault, Retry::Never));
    assert_eq!(stream_refused(answer("503 Busy", "", "")).await.class(), Class::Capacity);
}

#[tokio::test]
async fn long_and_broken_refusals_keep_their_start() {
    let long = "x".repeat(200_000);
    let error = refused(answer("500 Oops", "", &long)).await;
    assert_eq!(error.answer().unwrap().body.len(), 64 * 1024);
    let broken = "HTTP/1.1 400 No\r\ncontent-length: 100\r\n\r\nabc";
    let error = refused(broken).await;
    assert_eq!(error.kind(), Kind::Rejected);
    assert_eq!(error.answer().unwrap().body, "abc");
}

#[tokio::test]
async fn an_answer_cut_anywhere_is_a_fault() {
    let whole = answer("200 OK", JSON, OK_BODY);
    for cut in 0..whole.len() {
        let error = refused(&whole[..cut]).await;
        assert_eq!((error.kind(), error.retry()), (Kind::Upstream, NOW), "cut at {cut}");
        // From the head's end on the answer was made, and is paid for.
        let is_begun = cut >= whole.len() - OK_BODY.len();
        assert_eq!(error.is_paid_for(), is_begun, "cut at {cut}");
    }
    let chunked = format!(
        "HTTP/1.1 200 OK\r\n{JSON}transfer-encoding: chunked\r\n\r\n{:x}\r\n{OK_BODY}\r\n0\r\n\r\n",
        OK_BODY.len()
    );
    for cut in 0..chunked.len() {
        let error = refused(&chunked[..cut]).await;
        assert_eq!((error.kind(), error.retry()), (Kind::Upstream, NOW), "cut at {cut}");
    }
    let until_close = format!("HTTP/1.1 200 OK\r\n{JSON}\r\n{}", &OK_BODY[..OK_BODY.len() - 1]);
    let error = refused(until_close).await;
    assert_eq!((error.kind(), error.is_paid_for()), (Kind::Upstream, true));
}

#[tokio::test]
async fn an_error_with_status_200_was_an_answer() {
    let body = r#"{"error":{"message":"no worker","code":502}}"#;
    let error = refused(answer("200 OK", JSON, body)).await;
    assert_eq!((error.class(), error.retry()), (Class::Fault, NOW));
    assert_eq!(stream_refused(answer("200 OK", JSON, body)).await.class(), Class::Fault);
}

#[tokio::test]
async fn what_is_no_json_is_a_fault() {
    let page = answer("200 OK", "content-type: text/html\r\n", "<html>hello</html>");
    assert!(refused(page.clone()).await.message().contains("base_url"));
    assert_eq!(stream_refused(page).await.kind(), Kind::Upstream);
    assert_eq!(refused(answer("200 OK", JSON, "")).await.kind(), Kind::Upstream);
    assert_eq!(refused("HTTP/1.1 204 No Content\r\n\r\n").await.kind(), Kind::Upstream);
    assert_eq!(refused("SSH-2.0-OpenSSH_9.2\r\n").await.kind(), Kind::Upstream);
    let events = events("data: {}\n\ndata: [DONE]\n\n");
    assert_eq!(refused(events).await.kind(), Kind::Upstream);
}

#[tokio::test]
async fn long_answers_stream_on_and_tell_their_usage() {
    let body = format!(r#"{{"data":"{}","usage":{{"prompt_tokens":5}}}}"#, "x".repeat(3 << 20));
    let server = answering(answer("200 OK", JSON, &body)).await;
    let reply = chat(&upstream(&server)).await.unwrap();
    assert!(reply.body.as_whole().is_none());
    let meter = reply.meter.clone().unwrap();
    assert!(text(reply).await.unwrap() == body);
    assert_eq!(meter.usage().unwrap().input, 5);

    let small = open(Options { max_answer_bytes: 2 << 20, ..options(server.address) });
    let error = text(chat(&small).await.unwrap()).await.unwrap_err();
    assert!(error.message().contains("longer than 2097152 bytes"), "{error}");
    let smaller = open(Options { max_answer_bytes: 1000, ..options(server.address) });
    assert_eq!(chat(&smaller).await.unwrap_err().kind(), Kind::Upstream);
}

#[tokio::test]
async fn a_stream_passes_byte_for_byte() {
    let stream = "\u{feff}: hi\r\n\r\ndata: {\"choices\":[{\"delta\":{\"content\":\"ü\"}}]}\r\n\r\n\
                  data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":4}}\n\n\
                  data: [DONE]\n\n";
    let server = answering_once(events(stream)).await;
    let reply = chat_stream(&upstream(&server)).await.unwrap();
    let meter = reply.meter.clone().unwrap();
    assert_eq!(text(reply).await.unwrap(), stream);
    assert_eq!(meter.usage().unwrap().total(), 7);
    assert_eq!(meter.chunks(), 1, "the one that carries output");
}

#[tokio::test]
async fn a_stream_that_begins_with_an_error_is_one() {
    let error =
        stream_refused(events("data: {\"error\":{\"code\":429}}\n\ndata: [DONE]\n\n")).await;
    assert_eq!(error.class(), Class::Capacity);
    let error = stream_refused(events("event: error\ndata: {\"error\":\"boom\"}")).await;
    assert_eq!(error.class(), Class::Fault);
}

#[tokio::test]
async fn a_stream_without_a_first_event_is_a_fault() {
    for stream in ["", ": ping\n\n", "data: {\"unfini"] {
        assert_eq!(stream_refused(events(stream)).await.retry(), NOW, "{stream}");
    }
    let endless = stream_refused(events(&": ping\n\n".repeat(20_000))).await;
    assert!(endless.message().contains("no event"), "{endless}");
}

#[tokio::test]
async fn a_later_error_event_ends_the_stream_and_is_not_passed_on() {
    let first = "data: {\"choices\":[{\"text\":\"a\"}]}\n\n";
    let (text, error) = read_in_pieces(&[first, "data: {\"error\":\"boom\"}\n\n", first]).await;
    assert_eq!(text, first);
    assert_eq!(error.unwrap().class(), Class::Fault);
}

#[tokio::test]
async fn what_came_in_one_piece_with_an_error_was_lost() {
    let first = "data: {\"choices\":[{\"text\":\"a\"}]}\n\n";
    let piece =
        "data: {\"choices\":[{\"text\":\"b\"}]}\n\ndata: {\"error\":\"boom\"}\n\ndata: c\n\n";
    let (text, error) = read_in_pieces(&[first, piece]).await;
    assert_eq!(text, format!("{first}data: {{\"choices\":[{{\"text\":\"b\"}}]}}\n\n"));
    assert_eq!(error.unwrap().class(), Class::Fault);
}

/// Sends each piece only after the caller has read the one before.
async fn read_in_pieces(pieces: &[&'static str]) -> (String, Option<Error>) {
    let (go, gone) = tokio::sync::mpsc::channel::<&'static str>(1);
    let gone = std::sync::Arc::new(tokio::sync::Mutex::new(gone));
    let server = server(move |mut connection| {
        let gone = std::sync::Arc::clone(&gone);
        async move {
            connection.request().await;
            connection.send(events("")).await;
            while let Some(piece) = gone.lock().await.recv().await {
                connection.send(piece).await;
            }
        }
    })
    .await;
    go.send(pieces[0]).await.unwrap();
    let mut reply = chat_stream(&upstream(&server)).await.unwrap();
    let mut text = String::new();
    let mut rest = pieces[1..].iter();
    let mut go = Some(go);
    loop {
        match reply.body.next().await {
            Some(Ok(chunk)) => text.push_str(std::str::from_utf8(&chunk).unwrap()),
            Some(Err(error)) => return (text, Some(error)),
            None => return (text, None),
        }
        match rest.next() {
            Some(piece) => {
                let _ = go.as_ref().unwrap().send(piece).await;
            }
            None => go = None,
        }
    }
}

#[tokio::test]
async fn a_stream_cut_off_is_no_success() {
    let first = "data: {\"choices\":[{\"text\":\"a\"}]}\n\n";
    let (text, error) = read_stream(Operation::ChatCompletions, first).await;
    assert_eq!(text, first);
    assert_eq!(error.unwrap().message(), "the upstream's stream ended early");
    for end in ["data: [DONE]\n\n", "data: [DONE]", "data:[DONE]\r\r"] {
        let (_, error) = read_stream(Operation::ChatCompletions, &format!("{first}{end}")).await;
        assert!(error.is_none(), "{end}");
    }
    let delta = "data: {\"type\":\"response.output_text.delta\",\"delta\":\"a\"}\n\n";
    let (_, error) = read_stream(Operation::Responses, delta).await;
    assert!(error.is_some());
    for end in ["completed", "failed", "incomplete"] {
        let stream = format!("{delta}event: x\ndata: {{\"type\": \"response.{end}\"}}\n\n");
        assert!(read_stream(Operation::Responses, &stream).await.1.is_none(), "{end}");
    }
}

#[tokio::test]
async fn an_endless_event_ends_the_stream() {
    let stream = format!("data: 1\n\ndata: {}", "x".repeat(2 << 20));
    let (_, error) = read_stream(Operation::ChatCompletions, &stream).await;
    assert!(error.unwrap().message().contains("longer than 1048576 bytes"));
}

#[tokio::test]
async fn a_whole_answer_to_a_streams_request_is_passed_on() {
    let server = answering(answer("200 OK", JSON, OK_BODY)).await;
    let reply = chat_stream(&upstream(&server)).await.unwrap();
    assert_eq!(reply.content_type, ContentType::Json);
    assert_eq!(reply.usage.unwrap().output, 4);
}

#[tokio::test]
async fn heads_without_end_are_refused() {
    let endless = format!("HTTP/1.1 200 OK\r\nx-a: {}", "a".repeat(1 << 20));
    assert_eq!(refused(endless).await.kind(), Kind::Upstream);
}
