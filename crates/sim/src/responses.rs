//! The shapes of `/v1/responses`, after OpenAI's reference: every event has its name, its type
//! and a sequence number, and there is no `[DONE]`.

use crate::generation::{CREATED, Finish, Generation, Id, json};
use serde::Serialize;

#[derive(Serialize)]
struct Response<'a> {
    id: Id,
    object: &'static str,
    created_at: u64,
    status: &'static str,
    background: bool,
    error: Option<()>,
    incomplete_details: Option<Incomplete>,
    instructions: Option<()>,
    max_output_tokens: Option<()>,
    model: &'a str,
    output: Vec<Item<'a>>,
    parallel_tool_calls: bool,
    previous_response_id: Option<()>,
    reasoning: Reasoning,
    store: bool,
    temperature: f32,
    text: TextFormat,
    tool_choice: &'static str,
    tools: [(); 0],
    top_p: f32,
    truncation: &'static str,
    usage: Option<Usage>,
    metadata: Empty,
}

#[derive(Serialize)]
struct Empty {}

#[derive(Default, Serialize)]
struct Reasoning {
    effort: Option<()>,
    summary: Option<()>,
}

#[derive(Serialize)]
struct TextFormat {
    format: Kind,
}

#[derive(Serialize)]
struct Kind {
    r#type: &'static str,
}

#[derive(Serialize)]
struct Incomplete {
    reason: &'static str,
}

#[derive(Serialize)]
struct Usage {
    input_tokens: u32,
    input_tokens_details: InputDetails,
    output_tokens: u32,
    output_tokens_details: OutputDetails,
    total_tokens: u32,
}

#[derive(Serialize)]
struct InputDetails {
    cached_tokens: u32,
}

#[derive(Serialize)]
struct OutputDetails {
    reasoning_tokens: u32,
}

#[derive(Serialize)]
struct Item<'a> {
    id: Id,
    r#type: &'static str,
    status: &'static str,
    role: &'static str,
    content: Vec<Part<'a>>,
}

#[derive(Serialize)]
struct Part<'a> {
    r#type: &'static str,
    annotations: [(); 0],
    logprobs: [(); 0],
    text: &'a str,
}

const fn part(text: &str) -> Part<'_> {
    Part { r#type: "output_text", annotations: [], logprobs: [], text }
}

const fn message_id(generation: &Generation) -> Id {
    Id("msg_", generation.id)
}

fn item(generation: &Generation, done: bool) -> Item<'_> {
    let choice = &generation.choices[0];
    Item {
        id: message_id(generation),
        r#type: "message",
        status: if done { status(choice.finish) } else { "in_progress" },
        role: "assistant",
        content: if done { vec![part(&choice.text)] } else { Vec::new() },
    }
}

const fn status(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "completed",
        Finish::Length => "incomplete",
    }
}

fn response(generation: &Generation, done: bool) -> Response<'_> {
    let finish = generation.choices[0].finish;
    let output_tokens = generation.completion_tokens();
    let usage = Usage {
        input_tokens: generation.prompt_tokens,
        input_tokens_details: InputDetails { cached_tokens: 0 },
        output_tokens,
        output_tokens_details: OutputDetails { reasoning_tokens: 0 },
        total_tokens: generation.prompt_tokens.saturating_add(output_tokens),
    };
    let is_cut = done && finish == Finish::Length;
    Response {
        id: Id("resp_", generation.id),
        object: "response",
        created_at: CREATED,
        status: if done { status(finish) } else { "in_progress" },
        background: false,
        error: None,
        incomplete_details: is_cut.then_some(Incomplete { reason: "max_output_tokens" }),
        instructions: None,
        max_output_tokens: None,
        model: &generation.model,
        output: if done { vec![item(generation, true)] } else { Vec::new() },
        parallel_tool_calls: true,
        previous_response_id: None,
        reasoning: Reasoning::default(),
        store: false,
        temperature: 1.0,
        text: TextFormat { format: Kind { r#type: "text" } },
        tool_choice: "auto",
        tools: [],
        top_p: 1.0,
        truncation: "disabled",
        usage: done.then_some(usage),
        metadata: Empty {},
    }
}

pub(crate) fn reply(generation: &Generation) -> Vec<u8> {
    json(&response(generation, true))
}

/// An event's fields beside its type and number.
#[derive(Serialize)]
struct Event<T> {
    r#type: &'static str,
    #[serde(flatten)]
    fields: T,
    sequence_number: u64,
}

fn event(out: &mut Vec<u8>, name: &'static str, sequence: &mut u64, fields: impl Serialize) {
    out.extend_from_slice(b"event: ");
    out.extend_from_slice(name.as_bytes());
    out.push(b'\n');
    crate::generation::event(out, &Event { r#type: name, fields, sequence_number: *sequence });
    *sequence += 1;
}

#[derive(Serialize)]
struct OfResponse<'a> {
    response: Response<'a>,
}

#[derive(Serialize)]
struct OfItem<'a> {
    output_index: u32,
    item: Item<'a>,
}

#[derive(Serialize)]
struct OfPart<'a> {
    item_id: Id,
    output_index: u32,
    content_index: u32,
    part: Part<'a>,
}

#[derive(Serialize)]
struct OfDone<'a> {
    item_id: Id,
    output_index: u32,
    content_index: u32,
    text: &'a str,
    logprobs: [(); 0],
}

/// Written once per token, so without `flatten`, which goes through a map.
#[derive(Serialize)]
struct DeltaEvent<'a> {
    r#type: &'static str,
    item_id: Id,
    output_index: u32,
    content_index: u32,
    delta: &'a str,
    logprobs: [(); 0],
    sequence_number: u64,
}

#[derive(Serialize)]
struct OfError<'a> {
    code: &'static str,
    message: &'a str,
    param: Option<()>,
}

pub(crate) fn opening(generation: &Generation, out: &mut Vec<u8>, sequence: &mut u64) {
    for name in ["response.created", "response.in_progress"] {
        event(out, name, sequence, OfResponse { response: response(generation, false) });
    }
    let item = item(generation, false);
    event(out, "response.output_item.added", sequence, OfItem { output_index: 0, item });
    let part = OfPart {
        item_id: message_id(generation),
        output_index: 0,
        content_index: 0,
        part: part(""),
    };
    event(out, "response.content_part.added", sequence, part);
}

pub(crate) fn delta(generation: &Generation, text: &str, out: &mut Vec<u8>, sequence: &mut u64) {
    const NAME: &str = "response.output_text.delta";
    out.extend_from_slice(b"event: response.output_text.delta\n");
    let data = DeltaEvent {
        r#type: NAME,
        item_id: message_id(generation),
        output_index: 0,
        content_index: 0,
        delta: text,
        logprobs: [],
        sequence_number: *sequence,
    };
    crate::generation::event(out, &data);
    *sequence += 1;
}

pub(crate) fn closing(generation: &Generation, out: &mut Vec<u8>, sequence: &mut u64) {
    let choice = &generation.choices[0];
    let done = OfDone {
        item_id: message_id(generation),
        output_index: 0,
        content_index: 0,
        text: &choice.text,
        logprobs: [],
    };
    event(out, "response.output_text.done", sequence, done);
    let part = OfPart {
        item_id: message_id(generation),
        output_index: 0,
        content_index: 0,
        part: part(&choice.text),
    };
    event(out, "response.content_part.done", sequence, part);
    let item = item(generation, true);
    event(out, "response.output_item.done", sequence, OfItem { output_index: 0, item });
    let name = match choice.finish {
        Finish::Stop => "response.completed",
        Finish::Length => "response.incomplete",
    };
    event(out, name, sequence, OfResponse { response: response(generation, true) });
}

pub(crate) fn error(message: &str, out: &mut Vec<u8>, sequence: &mut u64) {
    event(out, "error", sequence, OfError { code: "server_error", message, param: None });
}
