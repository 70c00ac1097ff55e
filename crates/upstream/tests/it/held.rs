//! Streams held back to their first content: what fails until then may be tried elsewhere.

use crate::support::{
    Connection, Seen, answering_once, call, chat_stream, events, send, server, text, upstream,
};
use futures_util::StreamExt;
use std::{sync::Arc, time::Duration};
use tidegate_core::{Class, Error, Operation, Retry};
use tidegate_upstream::{Options, Upstream};
use tokio::time::{Instant, sleep};

const ROLE: &str =
    "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n";
const HELLO: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"hello\"}}]}\n\n";
const DONE: &str = "data: [DONE]\n\n";
const NOW: Retry = Retry::After(Duration::ZERO);
const PING: &str = ": ping\n\n";

/// An opening, a piece of the answer and an end, of every operation.
const STREAMS: [(Operation, &str, &str, &str); 4] = [
    (Operation::ChatCompletions, ROLE, HELLO, DONE),
    (
        Operation::Completions,
        "data: {\"choices\":[{\"text\":\"\"}]}\n\n",
        "data: {\"choices\":[{\"text\":\"hello\"}]}\n\n",
        DONE,
    ),
    (
        Operation::Responses,
        "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{}}\n\n\
         data: {\"type\":\"response.in_progress\",\"response\":{}}\n\n\
         data: {\"type\":\"response.output_item.added\",\"item\":{\"type\":\"message\"}}\n\n\
         data: {\"type\":\"response.content_part.added\",\"part\":{\"text\":\"\"}}\n\n",
        "data: {\"type\":\"response.output_text.delta\",\"delta\":\"hello\"}\n\n",
        "data: {\"type\":\"response.completed\",\"response\":{}}\n\n",
    ),
    (Operation::Embeddings, "data: {}\n\n", "data: {\"embedding\":[1]}\n\n", DONE),
];

async fn sent(operation: Operation, stream: &str) -> Result<String, Error> {
    let server = answering_once(events(stream)).await;
    text(send(&upstream(&server), &call(operation, true)).await?).await
}

/// The failure of an attempt that has passed nothing on.
async fn failed(operation: Operation, stream: &str) -> Error {
    let server = answering_once(events(stream)).await;
    send(&upstream(&server), &call(operation, true)).await.unwrap_err()
}

#[tokio::test]
async fn what_was_held_is_passed_on_as_it_came() {
    for (operation, opening, content, end) in STREAMS {
        let stream = format!("{PING}{opening}{PING}\r\n: more\r\n\r\n{content}{PING}{end}");
        assert_eq!(sent(operation, &stream).await.unwrap(), stream);
    }
}

#[tokio::test]
async fn cuts_make_no_difference() {
    let stream = format!("{PING}{ROLE}{PING}{HELLO}{DONE}");
    for cut in 0..stream.len() {
        let pieces: Vec<Vec<u8>> = vec![stream[..cut].into(), stream[cut..].into()];
        let pieces = Arc::new(pieces);
        let server = server(move |mut connection| {
            let pieces = Arc::clone(&pieces);
            async move {
                connection.request().await;
                connection.send(events("")).await;
                for piece in &*pieces {
                    connection.send(piece).await;
                    tokio::task::yield_now().await;
                }
            }
        })
        .await;
        assert_eq!(text(chat_stream(&upstream(&server)).await.unwrap()).await.unwrap(), stream);
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_after_the_opening_fails_the_attempt() {
    for (operation, opening, ..) in STREAMS {
        for (error, class) in [
            ("data: {\"error\":{\"type\":\"overloaded_error\"}}\n\n", Class::Capacity),
            ("event: error\ndata: {\"error\":\"boom\"}\n\n", Class::Fault),
        ] {
            let pieces = [opening, PING, error].map(|piece| (10, piece.to_owned()));
            let upstream = slowly(pieces.into());
            let error = send(&upstream, &call(operation, true)).await.unwrap_err();
            assert_eq!((error.class(), error.retry()), (class, NOW), "{operation:?}");
        }
    }
}

#[tokio::test]
async fn an_end_after_the_opening_fails_the_attempt() {
    for (operation, opening, ..) in STREAMS {
        let error = failed(operation, opening).await;
        assert_eq!((error.class(), error.retry()), (Class::Fault, NOW));
    }
}

#[tokio::test]
async fn an_answer_of_nothing_is_one() {
    for (operation, opening, _, end) in STREAMS {
        let stream = format!("{opening}{end}");
        assert_eq!(sent(operation, &stream).await.unwrap(), stream);
    }
    let stream = format!("{ROLE}data: [DONE]");
    assert_eq!(sent(Operation::ChatCompletions, &stream).await.unwrap(), stream);
}

#[tokio::test]
async fn a_response_that_failed_of_its_server_is_tried_elsewhere_while_it_is_held() {
    let (operation, opening, content, _) = STREAMS[2];
    let failed_of = |code: &str| {
        let error = format!("{{\"error\":{{\"code\":\"{code}\"}}}}");
        format!("data: {{\"type\":\"response.failed\",\"response\":{error}}}\n\n")
    };
    let error = failed(operation, &format!("{opening}{}", failed_of("server_error"))).await;
    assert_eq!(error.class(), Class::Fault);
    for answered in [
        format!("{opening}{}", failed_of("invalid_prompt")),
        format!("{opening}{content}{}", failed_of("server_error")),
    ] {
        assert_eq!(sent(operation, &answered).await.unwrap(), answered);
    }
}

/// An upstream inside the process that writes each piece after a while, then keeps still.
fn slowly(pieces: Vec<(u64, String)>) -> Upstream {
    let connect = move || {
        let (near, far) = tokio::io::duplex(1 << 20);
        let mut connection = Connection::new(far, &Arc::new(Seen::default()));
        let pieces = pieces.clone();
        tokio::spawn(async move {
            connection.request().await;
            connection.send(events("")).await;
            for (after_ms, piece) in pieces {
                sleep(Duration::from_millis(after_ms)).await;
                connection.send(piece).await;
            }
            connection.closed().await;
        });
        near
    };
    Upstream::local("sim".into(), Options::default(), Arc::new(connect)).unwrap()
}

/// Milliseconds until a stream is passed on, and its first `len` bytes.
async fn passed_on(upstream: &Upstream, len: usize) -> (u128, String) {
    let began = Instant::now();
    let mut reply = chat_stream(upstream).await.unwrap();
    let after = began.elapsed().as_millis();
    let mut all = Vec::new();
    while all.len() < len {
        all.extend_from_slice(&reply.body.next().await.unwrap().unwrap());
    }
    (after, String::from_utf8(all).unwrap())
}

#[tokio::test(start_paused = true)]
async fn keep_alives_hold_a_stream_for_as_long_as_they_come() {
    let mut pieces = vec![(5, ROLE.to_owned())];
    pieces.extend((0..100).map(|_| (1000, PING.to_owned())));
    pieces.push((5, HELLO.to_owned()));
    let all: String = pieces.iter().map(|(_, piece)| &**piece).collect();
    assert_eq!(passed_on(&slowly(pieces), all.len()).await, (100_010, all));
}

#[tokio::test(start_paused = true)]
async fn so_many_events_are_held_and_no_more() {
    let pieces: Vec<_> = (0..40).map(|_| (10, ROLE.to_owned())).collect();
    let all = ROLE.repeat(40);
    assert_eq!(passed_on(&slowly(pieces), all.len()).await, (320, all));
}

#[tokio::test(start_paused = true)]
async fn so_many_bytes_are_held_and_no_more() {
    let comment = format!(": {}\n\n", "x".repeat(10_000));
    let mut pieces = vec![(10, ROLE.to_owned())];
    pieces.extend((0..8).map(|_| (10, comment.clone())));
    let all = format!("{ROLE}{}", comment.repeat(8));
    assert_eq!(passed_on(&slowly(pieces), all.len()).await, (80, all));
}

#[tokio::test(start_paused = true)]
async fn one_long_event_is_held_to_its_end() {
    let instructions = "x".repeat(200_000);
    let created = format!("data: {{\"type\":\"response.created\",\"x\":\"{instructions}\"}}\n\n");
    let (first, rest) = created.split_at(100_000);
    let pieces = [first, rest, HELLO].map(|piece| (10, piece.to_owned()));
    let all = format!("{created}{HELLO}");
    assert_eq!(passed_on(&slowly(pieces.into()), all.len()).await, (20, all));
}
