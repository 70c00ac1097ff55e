//! The shapes of `/v1/chat/completions`, after OpenAI's reference.

use crate::{
    generation::{CREATED, Finish, Generation, Id, Usage, event, json},
    request::Told,
};
use serde::Serialize;

const FINGERPRINT: &str = "fp_tidegate_sim";

#[derive(Serialize)]
struct Completion<'a> {
    id: Id,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<Choice<'a>>,
    usage: Usage,
    service_tier: &'static str,
    system_fingerprint: &'static str,
}

#[derive(Serialize)]
struct Choice<'a> {
    index: usize,
    message: Message<'a>,
    logprobs: Option<()>,
    finish_reason: Finish,
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    content: &'a str,
    refusal: Option<()>,
    annotations: [(); 0],
}

pub(crate) fn reply(generation: &Generation) -> Vec<u8> {
    let choices = generation.choices.iter().enumerate();
    json(&Completion {
        id: Id("chatcmpl-", generation.id),
        object: "chat.completion",
        created: CREATED,
        model: &generation.model,
        choices: choices
            .map(|(index, choice)| Choice {
                index,
                message: Message {
                    role: "assistant",
                    content: &choice.text,
                    refusal: None,
                    annotations: [],
                },
                logprobs: None,
                finish_reason: choice.finish,
            })
            .collect(),
        usage: Usage::of(generation),
        service_tier: "default",
        system_fingerprint: FINGERPRINT,
    })
}

#[derive(Serialize)]
struct Chunk<'a, const CHOICES: usize> {
    id: Id,
    object: &'static str,
    created: u64,
    model: &'a str,
    service_tier: &'static str,
    system_fingerprint: &'static str,
    #[serde(serialize_with = "slice")]
    choices: [ChunkChoice<'a>; CHOICES],
    /// With `include_usage` every chunk has the field; see [`Usage::so_far`].
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

#[derive(Serialize)]
struct ChunkChoice<'a> {
    index: usize,
    delta: Delta<'a>,
    logprobs: Option<()>,
    finish_reason: Option<Finish>,
}

#[derive(Default, Serialize)]
struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refusal: Option<Option<()>>,
}

fn slice<T: Serialize, S: serde::Serializer>(list: &[T], to: S) -> Result<S::Ok, S::Error> {
    list.serialize(to)
}

/// One event; without choices it is the last one, which tells the usage of all.
fn chunk<const CHOICES: usize>(
    generation: &Generation,
    choices: [ChunkChoice<'_>; CHOICES],
    out: &mut Vec<u8>,
) {
    event(
        out,
        &Chunk {
            id: Id("chatcmpl-", generation.id),
            object: "chat.completion.chunk",
            created: CREATED,
            model: &generation.model,
            service_tier: "default",
            system_fingerprint: FINGERPRINT,
            choices,
            usage: if CHOICES == 0 {
                Some(Some(Usage::of(generation)))
            } else {
                Usage::so_far(generation)
            },
        },
    );
}

pub(crate) fn opening(generation: &Generation, out: &mut Vec<u8>) {
    for index in 0..generation.choices.len() {
        let delta = Delta { role: Some("assistant"), content: Some(""), refusal: Some(None) };
        let choice = ChunkChoice { index, delta, logprobs: None, finish_reason: None };
        chunk(generation, [choice], out);
    }
}

pub(crate) fn delta(generation: &Generation, index: usize, text: &str, out: &mut Vec<u8>) {
    let delta = Delta { content: Some(text), ..Delta::default() };
    let choice = ChunkChoice { index, delta, logprobs: None, finish_reason: None };
    chunk(generation, [choice], out);
}

pub(crate) fn closing(generation: &Generation, out: &mut Vec<u8>) {
    for (index, choice) in generation.choices.iter().enumerate() {
        let finish_reason = Some(choice.finish);
        let choice = ChunkChoice { index, delta: Delta::default(), logprobs: None, finish_reason };
        chunk(generation, [choice], out);
    }
    if generation.told != Told::Never {
        chunk(generation, [], out);
    }
    out.extend_from_slice(b"data: [DONE]\n\n");
}
