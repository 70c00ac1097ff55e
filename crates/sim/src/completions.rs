//! The shapes of `/v1/completions`, after OpenAI's reference.

use crate::{
    generation::{CREATED, Finish, Generation, Id, Usage, event, json},
    request::Told,
};
use serde::Serialize;

#[derive(Serialize)]
struct Completion<'a> {
    id: Id,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<Choice<'a>>,
    /// In a stream only with `include_usage`; see [`Usage::so_far`].
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

#[derive(Serialize)]
struct Choice<'a> {
    text: &'a str,
    index: usize,
    logprobs: Option<()>,
    finish_reason: Option<Finish>,
}

fn completion<'a>(
    generation: &'a Generation,
    choices: Vec<Choice<'a>>,
    usage: Option<Option<Usage>>,
) -> Completion<'a> {
    Completion {
        id: Id("cmpl-", generation.id),
        object: "text_completion",
        created: CREATED,
        model: &generation.model,
        choices,
        usage,
    }
}

pub(crate) fn reply(generation: &Generation) -> Vec<u8> {
    let choices = generation.choices.iter().enumerate();
    let choices = choices.map(|(index, choice)| Choice {
        text: &choice.text,
        index,
        logprobs: None,
        finish_reason: Some(choice.finish),
    });
    json(&completion(generation, choices.collect(), Some(Some(Usage::of(generation)))))
}

pub(crate) fn delta(generation: &Generation, index: usize, text: &str, out: &mut Vec<u8>) {
    let choice = Choice { text, index, logprobs: None, finish_reason: None };
    let usage = Usage::so_far(generation);
    event(out, &completion(generation, vec![choice], usage));
}

pub(crate) fn closing(generation: &Generation, out: &mut Vec<u8>) {
    for (index, choice) in generation.choices.iter().enumerate() {
        let finish_reason = Some(choice.finish);
        let choice = Choice { text: "", index, logprobs: None, finish_reason };
        let usage = Usage::so_far(generation);
        event(out, &completion(generation, vec![choice], usage));
    }
    if generation.told != Told::Never {
        let usage = Some(Some(Usage::of(generation)));
        event(out, &completion(generation, Vec::new(), usage));
    }
    out.extend_from_slice(b"data: [DONE]\n\n");
}
