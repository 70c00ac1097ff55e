//! The usage of streams, asked for in the caller's stead, and taken out of what it gets.

use crate::support::{JSON, answer, call, events, open, options, send, server, text};
use bytes::Bytes;
use futures_util::StreamExt;
use parking_lot::Mutex;
use std::sync::Arc;
use tidegate_core::{Call, Class, Operation, Payload, Usage};
use tidegate_upstream::{Options, StreamUsage, Upstream};
use tidegate_wire::request;

const LAST: &str = r#""stream_options":{"include_usage":true},"#;
const EACH: &str = r#""stream_options":{"include_usage":true,"continuous_usage_stats":true},"#;
const BODY: &str = r#"{"stream":true,"model":"gw","messages":[]}"#;

const ROLE: &str = "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}],\"usage\":null}\n\n";
const HELLO: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"hello\"}}],\"usage\":null}\n\n";
const STOP: &str =
    "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}],\"usage\":null}\n\n";
const USAGE: &str =
    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2}}\n\n";
const DONE: &str = "data: [DONE]\n\n";
const TOLD: Usage = Usage { input: 3, cached_input: 0, cache_write: 0, output: 2, reasoning: 0 };

/// A call as a front makes it of `body`.
fn call_of(operation: Operation, body: &str) -> Call {
    let view = request::read(operation, body.as_bytes()).unwrap();
    let payload = Payload::new(Bytes::from(body.to_owned()), view.model_span).asking(view.opening);
    Call { payload, ..call(operation, view.stream) }
}

/// An upstream whose server answers each body as `respond` says, and the bodies it got.
async fn upstream(
    options_of: Options,
    respond: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static,
) -> (Upstream, Arc<Mutex<Vec<String>>>) {
    let got = Arc::new(Mutex::new(Vec::new()));
    let (keeping, respond) = (Arc::clone(&got), Arc::new(respond));
    let server = server(move |mut connection| {
        let (got, respond) = (Arc::clone(&keeping), Arc::clone(&respond));
        async move {
            while let Some(request) = connection.request().await {
                let body = request.text().to_owned();
                let answer = respond(&body);
                got.lock().push(body);
                connection.send(&answer).await;
                if answer.starts_with(b"HTTP/1.1 200") {
                    // The end of the connection is the stream's.
                    return;
                }
            }
        }
    })
    .await;
    (open(Options { base_url: options(server.address).base_url, ..options_of }), got)
}

fn option(stream_usage: StreamUsage) -> Options {
    Options { stream_usage, ..Options::default() }
}

fn whole(usage: &str) -> Vec<u8> {
    events(&format!("{ROLE}{HELLO}{HELLO}{STOP}{usage}{DONE}"))
}

#[tokio::test]
async fn it_is_asked_for_where_the_caller_said_nothing() {
    use Operation::{ChatCompletions, Completions, Responses};
    use StreamUsage::{Ask, Continuous, Off};
    let long = format!("{{\"stream\":true,\"model\":\"gw\",\"x\":\"{}\"}}", "x".repeat(70_000));
    let long_sent = long.replacen('{', &format!("{{{LAST}"), 1).replace("\"gw\"", "\"real\"");
    for (option_of, operation, body, sent) in [
        (Ask, ChatCompletions, BODY, BODY.replacen('{', &format!("{{{LAST}"), 1)),
        (Continuous, Completions, BODY, BODY.replacen('{', &format!("{{{EACH}"), 1)),
        (
            Ask,
            ChatCompletions,
            " \n{ \"model\":\"real\",\"stream\":true}",
            format!("{{{LAST} \"model\":\"real\",\"stream\":true}}"),
        ),
        (Ask, ChatCompletions, &long, long_sent),
        (Off, ChatCompletions, BODY, BODY.to_owned()),
        (Ask, Responses, BODY, BODY.to_owned()),
        (
            Ask,
            ChatCompletions,
            r#"{"stream":true,"stream_options":{},"model":"gw"}"#,
            r#"{"stream":true,"stream_options":{},"model":"gw"}"#.to_owned(),
        ),
        (
            Ask,
            ChatCompletions,
            r#"{"stream":true,"stream_options":null,"model":"gw"}"#,
            r#"{"stream":true,"stream_options":null,"model":"gw"}"#.to_owned(),
        ),
    ] {
        let (upstream, got) = upstream(option(option_of), |_| whole(USAGE)).await;
        let _ = send(&upstream, &call_of(operation, body)).await.unwrap();
        assert_eq!(*got.lock(), [sent.replace("\"gw\"", "\"real\"")]);
    }
}

#[tokio::test]
async fn the_event_that_tells_it_is_taken_out_wherever_the_stream_is_cut() {
    for line_end in ["\n", "\r\n"] {
        let lines = |text: &str| text.replace('\n', line_end);
        let stream = lines(&format!("{ROLE}{HELLO}{HELLO}{STOP}{USAGE}: bye\n\n{DONE}"));
        let expected = lines(&format!("{ROLE}{HELLO}{HELLO}{STOP}: bye\n\n{DONE}"));
        let head = events("");
        for cut in 0..=stream.len() {
            let pieces = [stream[..cut].to_owned(), stream[cut..].to_owned()];
            let connect = {
                let head = head.clone();
                move || {
                    let (near, far) = tokio::io::duplex(1 << 20);
                    let (head, pieces) = (head.clone(), pieces.clone());
                    let mut connection = crate::support::Connection::new(far, &Arc::default());
                    tokio::spawn(async move {
                        connection.request().await;
                        connection.send(&head).await;
                        for piece in &pieces {
                            connection.send(piece).await;
                            tokio::task::yield_now().await;
                        }
                    });
                    near
                }
            };
            let upstream =
                Upstream::local("sim".into(), Options::default(), Arc::new(connect)).unwrap();
            let reply = send(&upstream, &call_of(Operation::ChatCompletions, BODY)).await.unwrap();
            let meter = reply.meter.clone().unwrap();
            assert_eq!(text(reply).await.unwrap(), expected, "cut at {cut}");
            assert_eq!((meter.usage(), meter.chunks()), (Some(TOLD), 2), "cut at {cut}");
        }
    }
}

#[tokio::test]
async fn callers_who_asked_get_it() {
    let body = r#"{"stream_options":{"include_usage":true},"stream":true,"model":"gw"}"#;
    let (upstream, _) = upstream(Options::default(), |_| whole(USAGE)).await;
    let reply = send(&upstream, &call_of(Operation::ChatCompletions, body)).await.unwrap();
    let meter = reply.meter.clone().unwrap();
    assert!(text(reply).await.unwrap().contains(USAGE));
    assert_eq!(meter.usage(), Some(TOLD));
}

#[tokio::test]
async fn usage_beside_an_answer_stays() {
    let beside =
        STOP.replace("\"usage\":null", "\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2}");
    let stream = format!("{HELLO}{beside}{DONE}");
    let answer = events(&stream);
    let (upstream, _) = upstream(Options::default(), move |_| answer.clone()).await;
    let reply = send(&upstream, &call_of(Operation::ChatCompletions, BODY)).await.unwrap();
    let meter = reply.meter.clone().unwrap();
    assert_eq!(text(reply).await.unwrap(), stream);
    assert_eq!(meter.usage(), Some(TOLD));
}

#[tokio::test]
async fn an_end_without_its_empty_line_is_passed_on() {
    for end in ["data: [DONE]", "data: [DONE]\n"] {
        for begin in ["", HELLO] {
            let stream = format!("{ROLE}{begin}{USAGE}{end}");
            let answer = events(&stream);
            let (upstream, _) = upstream(Options::default(), move |_| answer.clone()).await;
            let call = call_of(Operation::ChatCompletions, BODY);
            let reply = send(&upstream, &call).await.unwrap();
            assert_eq!(text(reply).await.unwrap(), format!("{ROLE}{begin}{end}"));
        }
    }
}

#[tokio::test]
async fn a_stream_that_is_cut_is_counted_by_what_it_carried() {
    let cut = events(&format!("{ROLE}{HELLO}{HELLO}{HELLO}{}", &HELLO[..20]));
    let (upstream, _) = upstream(Options::default(), move |_| cut.clone()).await;
    let reply = send(&upstream, &call_of(Operation::ChatCompletions, BODY)).await.unwrap();
    let meter = reply.meter.clone().unwrap();
    assert_eq!(text(reply).await.unwrap_err().class(), Class::Fault);
    assert_eq!((meter.usage(), meter.chunks()), (None, 3));
}

#[tokio::test]
async fn what_was_told_before_a_cut_and_what_passed_since_is_counted() {
    let begun = ROLE.replace("null", "{\"prompt_tokens\":3,\"completion_tokens\":0}");
    let cut = events(&format!("{begun}{HELLO}{HELLO}"));
    let (upstream, _) = upstream(option(StreamUsage::Continuous), move |_| cut.clone()).await;
    let mut reply = send(&upstream, &call_of(Operation::ChatCompletions, BODY)).await.unwrap();
    let meter = reply.meter.clone().unwrap();
    while let Some(Ok(_)) = reply.body.next().await {}
    assert_eq!(meter.usage(), Some(TOLD));
}

#[tokio::test]
async fn streams_of_responses_tell_it_unasked() {
    let stream = "data: {\"type\":\"response.created\",\"response\":{\"usage\":null}}\n\n\
         data: {\"type\":\"response.output_text.delta\",\"delta\":\"hello\"}\n\n\
         data: {\"type\":\"response.output_text.done\",\"text\":\"hello\"}\n\n\
         data: {\"type\":\"response.completed\",\"response\":{\"usage\":\
         {\"input_tokens\":3,\"output_tokens\":2}}}\n\n";
    let answer = events(stream);
    let (upstream, _) = upstream(Options::default(), move |_| answer.clone()).await;
    let reply = send(&upstream, &call_of(Operation::Responses, BODY)).await.unwrap();
    let meter = reply.meter.clone().unwrap();
    assert_eq!(text(reply).await.unwrap(), stream);
    assert_eq!((meter.usage(), meter.chunks()), (Some(TOLD), 1));
}

/// A server that refuses bodies with any of `names` in them, by this status.
fn refusing(status: &'static str, names: &'static [&'static str]) -> impl Fn(&str) -> Vec<u8> {
    move |body| match names.iter().find(|name| body.contains(**name)) {
        Some(name) => {
            let error = format!(
                "{{\"detail\":[{{\"type\":\"extra_forbidden\",\"loc\":[\"body\",\"{name}\"]}}]}}"
            );
            answer(status, JSON, error)
        }
        None => whole(if body.contains("include_usage") { USAGE } else { "" }),
    }
}

#[tokio::test]
async fn a_server_that_refuses_it_is_asked_once() {
    use StreamUsage::{Ask, Continuous};
    for (option_of, status, names, first, then) in [
        (Ask, "400 Bad Request", &["stream_options"][..], &[LAST, ""][..], ""),
        (Ask, "422 Unprocessable Entity", &["stream_options"], &[LAST, ""], ""),
        (Continuous, "400 Bad Request", &["continuous_usage_stats"], &[EACH, LAST], LAST),
        (Continuous, "400 Bad Request", &["stream_options"], &[EACH, LAST, ""], ""),
    ] {
        let (upstream, got) = upstream(option(option_of), refusing(status, names)).await;
        let call = call_of(Operation::ChatCompletions, BODY);
        for asked in [first, &[then][..], &[then][..]] {
            let reply = send(&upstream, &call).await.unwrap();
            assert_eq!(text(reply).await.unwrap(), format!("{ROLE}{HELLO}{HELLO}{STOP}{DONE}"));
            let sent = |ask: &&str| format!("{{{ask}{}", &BODY[1..]).replace("gw", "real");
            assert_eq!(
                *std::mem::take(&mut *got.lock()),
                asked.iter().map(sent).collect::<Vec<_>>()
            );
        }
    }
}

#[tokio::test]
async fn another_refusal_is_the_callers() {
    // It repeats what it was sent, as some validators do.
    let refuse =
        |body: &str| answer("422 Unprocessable Entity", JSON, format!("{{\"detail\":{body}}}"));
    let (upstream, got) = upstream(Options::default(), refuse).await;
    let call = call_of(Operation::ChatCompletions, BODY);
    for _ in 0..2 {
        let error = send(&upstream, &call).await.unwrap_err();
        assert_eq!((error.class(), error.answer().unwrap().status), (Class::Caller, 422));
        let asked: Vec<bool> = got.lock().drain(..).map(|body| body.contains(LAST)).collect();
        assert_eq!(asked, [true, false], "and is asked the next time");
    }
    let (upstream, got) =
        self::upstream(Options::default(), |_| answer("400 No", JSON, "{}")).await;
    let _ = send(&upstream, &call).await.unwrap_err();
    assert_eq!(got.lock().len(), 1);
}
