//! A text answer, decided whole before its first token goes out: what is said, how many tokens
//! it is, why it ends. Time only decides when its parts are sent.

use crate::{
    Options, answer,
    chance::{Chance, hash},
    chat, completions,
    refusal::Refusal,
    request::{self, Ask, Format, Prompt, Told},
    responses, schema, tokens,
};
use serde::{Serialize, Serializer};
use std::{fmt, sync::Arc};

/// `created` of every answer: 2026-01-01, so that equal requests have byte-identical answers.
pub(crate) const CREATED: u64 = 1_767_225_600;

/// Which of OpenAI's text endpoints is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    Chat,
    Completions,
    Responses,
}

/// An answer of one or more choices.
#[derive(Debug)]
pub(crate) struct Generation {
    pub(crate) dialect: Dialect,
    /// The number in the answer's id.
    pub(crate) id: u64,
    pub(crate) model: Arc<str>,
    pub(crate) prompt_tokens: u32,
    pub(crate) choices: Vec<Choice>,
    pub(crate) stream: bool,
    pub(crate) told: Told,
    /// Tokens of its stream that are sent.
    pub(crate) sent: u32,
}

/// One answer to one prompt.
#[derive(Debug)]
pub(crate) struct Choice {
    pub(crate) text: String,
    pub(crate) tokens: u32,
    pub(crate) finish: Finish,
}

/// Why a choice ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Finish {
    /// It is said, or a stop sequence came.
    Stop,
    /// `max_tokens` came first.
    Length,
}

/// An id like `chatcmpl-0123456789abcdef`, written without a string of its own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Id(pub(crate) &'static str, pub(crate) u64);

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:016x}", self.0, self.1)
    }
}

impl Serialize for Id {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl Generation {
    /// Reads a request and decides its answer; `garbage` asks for text that is no JSON.
    pub(crate) fn plan(
        dialect: Dialect,
        body: &[u8],
        options: &Options,
        model: impl FnOnce(&str) -> Arc<str>,
        garbage: bool,
    ) -> Result<Self, Refusal> {
        let ask = match dialect {
            Dialect::Chat => request::chat(body)?,
            Dialect::Completions => request::completions(body)?,
            Dialect::Responses => request::responses(body)?,
        };
        let from = Chance::new(&[options.seed, hash(ask.model.as_bytes())]).next();
        let mut choices = Vec::with_capacity(ask.prompts.len() * ask.choices);
        let (mut id, mut prompt_tokens) = (from, 0u32);
        for prompt in &ask.prompts {
            id = Chance::new(&[id, prompt.hash]).next();
            prompt_tokens = prompt_tokens.saturating_add(prompt.tokens);
            for index in 0..ask.choices {
                let mut chance = Chance::new(&[from, prompt.hash, index as u64]);
                choices.push(choice(&ask, prompt, options, garbage, &mut chance));
            }
        }
        Ok(Self {
            dialect,
            id,
            model: model(&ask.model),
            prompt_tokens,
            choices,
            stream: ask.stream,
            told: ask.told,
            sent: 0,
        })
    }

    /// Tokens of all choices.
    pub(crate) fn completion_tokens(&self) -> u32 {
        self.choices.iter().fold(0, |sum, choice| sum.saturating_add(choice.tokens))
    }

    /// Tokens of the longest choice: all are written side by side.
    pub(crate) fn steps(&self) -> u32 {
        self.choices.iter().map(|choice| choice.tokens).max().unwrap_or(0)
    }

    /// The whole answer as one body.
    pub(crate) fn reply(&self) -> Vec<u8> {
        match self.dialect {
            Dialect::Chat => chat::reply(self),
            Dialect::Completions => completions::reply(self),
            Dialect::Responses => responses::reply(self),
        }
    }

    /// The events before the first token.
    pub(crate) fn opening(&self, out: &mut Vec<u8>, sequence: &mut u64) {
        match self.dialect {
            Dialect::Chat => chat::opening(self, out),
            Dialect::Completions => {}
            Dialect::Responses => responses::opening(self, out, sequence),
        }
    }

    /// The event of one token, which `sent` counts already.
    pub(crate) fn delta(&self, choice: usize, text: &str, out: &mut Vec<u8>, sequence: &mut u64) {
        match self.dialect {
            Dialect::Chat => chat::delta(self, choice, text, out),
            Dialect::Completions => completions::delta(self, choice, text, out),
            Dialect::Responses => responses::delta(self, text, out, sequence),
        }
    }

    /// The events after the last token.
    pub(crate) fn closing(&self, out: &mut Vec<u8>, sequence: &mut u64) {
        match self.dialect {
            Dialect::Chat => chat::closing(self, out),
            Dialect::Completions => completions::closing(self, out),
            Dialect::Responses => responses::closing(self, out, sequence),
        }
    }

    /// The event of a server that fails after status 200.
    pub(crate) fn error(&self, out: &mut Vec<u8>, sequence: &mut u64) {
        const MESSAGE: &str = "The server had an error while processing your request (simulated).";
        #[derive(Serialize)]
        struct Inner {
            message: &'static str,
            r#type: &'static str,
            param: Option<&'static str>,
            code: Option<&'static str>,
        }
        #[derive(Serialize)]
        struct Wrapped {
            error: Inner,
        }
        if self.dialect == Dialect::Responses {
            return responses::error(MESSAGE, out, sequence);
        }
        let error = Inner { message: MESSAGE, r#type: "server_error", param: None, code: None };
        event(out, &Wrapped { error });
    }
}

fn choice(
    ask: &Ask<'_>,
    prompt: &Prompt<'_>,
    options: &Options,
    garbage: bool,
    chance: &mut Chance,
) -> Choice {
    let mean = options.answer_tokens;
    let target = (mean.div_ceil(2) + chance.below(mean as usize + 1) as u32).max(ask.min_tokens);
    let mut text = match &ask.format {
        _ if garbage => answer::garbage(chance),
        Format::Text => answer::text(&prompt.text, target.min(1_000_000), chance),
        Format::Object => object(prompt, target, chance),
        Format::Schema(schema) => {
            let mut buffer = [""; answer::MAX_WORDS];
            let words = answer::words(&prompt.text, &mut buffer);
            schema::value(schema, words, chance).to_string()
        }
    };
    if ask.echo {
        text.insert_str(0, &prompt.text);
    }
    let stop = ask.stop.iter().filter(|stop| !stop.is_empty());
    if let Some(end) = stop.filter_map(|stop| text.find(stop.as_ref())).min() {
        text.truncate(end);
    }
    let kept = ask.max_tokens.map_or(text.len(), |most| tokens::prefix(&text, most));
    let finish = if kept < text.len() { Finish::Length } else { Finish::Stop };
    text.truncate(kept);
    Choice { tokens: tokens::count(&text), text, finish }
}

/// The answer to `response_format: json_object`.
fn object(prompt: &Prompt<'_>, target: u32, chance: &mut Chance) -> String {
    #[derive(Serialize)]
    struct Answer {
        answer: String,
        confidence: f64,
    }
    let answer = answer::text(&prompt.text, target, chance);
    let confidence = (chance.unit() * 100.0).round() / 100.0;
    serde_json::to_string(&Answer { answer, confidence }).expect("strings are always written")
}

/// Appends a server-sent event.
pub(crate) fn event(out: &mut Vec<u8>, data: &impl Serialize) {
    out.extend_from_slice(b"data: ");
    serde_json::to_writer(&mut *out, data).expect("plain structs are always written");
    out.extend_from_slice(b"\n\n");
}

/// A plain struct as JSON.
pub(crate) fn json(data: &impl Serialize) -> Vec<u8> {
    let mut out = Vec::with_capacity(768);
    serde_json::to_writer(&mut out, data).expect("plain structs are always written");
    out
}

/// `usage` of the chat and completions endpoints.
#[derive(Clone, Copy, Serialize)]
pub(crate) struct Usage {
    prompt_tokens: u32,
    completion_tokens: u32,
    total_tokens: u32,
    prompt_tokens_details: PromptDetails,
    completion_tokens_details: CompletionDetails,
}

#[derive(Clone, Copy, Default, Serialize)]
struct PromptDetails {
    cached_tokens: u32,
    audio_tokens: u32,
}

#[derive(Clone, Copy, Default, Serialize)]
struct CompletionDetails {
    reasoning_tokens: u32,
    audio_tokens: u32,
    accepted_prediction_tokens: u32,
    rejected_prediction_tokens: u32,
}

impl Usage {
    pub(crate) fn of(generation: &Generation) -> Self {
        Self::after(generation, generation.completion_tokens())
    }

    /// `usage` of an event of a stream, outermost whether there is the field at all: null in all
    /// but the last unless every event tells it.
    pub(crate) fn so_far(generation: &Generation) -> Option<Option<Self>> {
        match generation.told {
            Told::Never => None,
            Told::Last => Some(None),
            Told::Each => Some(Some(Self::after(generation, generation.sent))),
        }
    }

    fn after(generation: &Generation, completion_tokens: u32) -> Self {
        Self {
            prompt_tokens: generation.prompt_tokens,
            completion_tokens,
            total_tokens: generation.prompt_tokens.saturating_add(completion_tokens),
            prompt_tokens_details: PromptDetails::default(),
            completion_tokens_details: CompletionDetails::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(body: &str) -> Generation {
        let options = Options::default();
        Generation::plan(Dialect::Chat, body.as_bytes(), &options, |name| name.into(), false)
            .unwrap()
    }

    fn chat(more: &str) -> Generation {
        plan(&format!(
            r#"{{"model":"m","messages":[{{"role":"user","content":"Summarise: the tide turns at the gate at noon"}}]{more}}}"#
        ))
    }

    #[test]
    fn streaming_and_spacing_do_not_change_the_answer() {
        let (a, b) = (chat(""), chat(r#", "stream": true, "user":"x""#));
        assert_eq!(a.choices[0].text, b.choices[0].text);
        assert_eq!(a.id, b.id);
        assert_eq!(a.reply(), chat("").reply());
    }

    #[test]
    fn choices_differ_and_are_counted() {
        let three = chat(r#","n":3"#);
        assert_eq!(three.choices.len(), 3);
        assert_ne!(three.choices[0].text, three.choices[1].text);
        let counted: u32 = three.choices.iter().map(|choice| tokens::count(&choice.text)).sum();
        assert_eq!(three.completion_tokens(), counted);
    }

    #[test]
    fn max_tokens_and_stop_end_it() {
        let cut = chat(r#","max_tokens":4"#);
        assert_eq!((cut.choices[0].tokens, cut.choices[0].finish), (4, Finish::Length));
        let whole = chat("");
        assert_eq!(whole.choices[0].finish, Finish::Stop);
        let word = whole.choices[0].text.split(' ').nth(3).unwrap().to_string();
        let stopped = chat(&format!(r#","stop":["{word}"]"#));
        assert!(!stopped.choices[0].text.contains(&word));
        assert!(whole.choices[0].text.starts_with(&stopped.choices[0].text));
        assert_eq!(stopped.choices[0].finish, Finish::Stop);
        assert!(chat(r#","min_tokens":200"#).choices[0].tokens >= 200);
    }

    #[test]
    fn a_schema_is_answered_in_kind() {
        let asked = r#","response_format":{"type":"json_schema","json_schema":{"name":"x","schema":
            {"type":"object","properties":{"label":{"enum":["a","b"]}},"required":["label"]}}}"#;
        let value: serde_json::Value = serde_json::from_str(&chat(asked).choices[0].text).unwrap();
        assert!(["a", "b"].contains(&value["label"].as_str().unwrap()));
        let object = chat(r#","response_format":{"type":"json_object"}"#);
        assert!(object.choices[0].text.starts_with(r#"{"answer":"#));
    }
}
