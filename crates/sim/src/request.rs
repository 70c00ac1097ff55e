//! What the simulator reads of a request for text: borrowed from the body, unknown fields
//! skipped.

use crate::{
    chance::{hash, mix},
    fields::{Content, Input, Text},
    refusal::Refusal,
    tokens,
};
use serde::Deserialize;
use serde_json::{Value, value::RawValue};
use std::borrow::Cow;

/// Tokens an image counts for, as OpenAI's low detail does.
const IMAGE_TOKENS: u32 = 85;
/// Choices answered at most, all prompts together.
const MAX_CHOICES: usize = 4096;

/// A request for text, whichever endpoint it came to.
#[derive(Debug)]
pub(crate) struct Ask<'a> {
    pub(crate) model: Cow<'a, str>,
    /// One for a chat; a completion may have many.
    pub(crate) prompts: Vec<Prompt<'a>>,
    /// Answers per prompt.
    pub(crate) choices: usize,
    pub(crate) max_tokens: Option<u32>,
    pub(crate) min_tokens: u32,
    pub(crate) stop: Vec<Cow<'a, str>>,
    pub(crate) stream: bool,
    pub(crate) told: Told,
    pub(crate) format: Format,
    /// Whether a completion repeats its prompt first.
    pub(crate) echo: bool,
}

/// When a stream tells its usage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Told {
    #[default]
    Never,
    /// In an event of its own, the last one.
    Last,
    /// So far in every event too, as vLLM's `continuous_usage_stats` asks.
    Each,
}

/// What is asked, reduced to what an answer is made from.
#[derive(Debug)]
pub(crate) struct Prompt<'a> {
    /// The last user text.
    pub(crate) text: Cow<'a, str>,
    /// Over all of the prompt: roles, texts, images.
    pub(crate) hash: u64,
    pub(crate) tokens: u32,
}

/// The form an answer must have.
#[derive(Debug)]
pub(crate) enum Format {
    Text,
    Object,
    Schema(Value),
}

#[derive(Debug, Deserialize)]
struct Message<'a> {
    #[serde(borrow, default)]
    role: Text<'a>,
    #[serde(borrow)]
    content: Option<Content<'a>>,
}

#[derive(Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
    continuous_usage_stats: Option<bool>,
}

impl StreamOptions {
    /// Continuous stats alone ask for nothing.
    fn told(&self) -> Told {
        match (self.include_usage.unwrap_or(false), self.continuous_usage_stats.unwrap_or(false)) {
            (false, _) => Told::Never,
            (true, false) => Told::Last,
            (true, true) => Told::Each,
        }
    }
}

#[derive(Deserialize)]
struct ResponseFormat {
    r#type: String,
    json_schema: Option<JsonSchema>,
    /// The responses endpoint has it one level up.
    schema: Option<Value>,
}

#[derive(Deserialize)]
struct JsonSchema {
    schema: Option<Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Stop {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
struct TextOptions {
    format: Option<ResponseFormat>,
}

/// The fields of all three endpoints; each uses its own.
#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    model: Option<Text<'a>>,
    #[serde(borrow)]
    messages: Option<Vec<Message<'a>>>,
    /// Raw, as `input`: other endpoints have fields of that name with other shapes.
    #[serde(borrow)]
    prompt: Option<&'a RawValue>,
    #[serde(borrow)]
    input: Option<&'a RawValue>,
    #[serde(borrow)]
    instructions: Option<Text<'a>>,
    n: Option<u32>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    max_output_tokens: Option<u32>,
    min_tokens: Option<u32>,
    stop: Option<Stop>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    response_format: Option<ResponseFormat>,
    text: Option<TextOptions>,
    echo: Option<bool>,
}

/// Reads the body of `/v1/chat/completions`.
pub(crate) fn chat(body: &[u8]) -> Result<Ask<'_>, Refusal> {
    let mut body: Body<'_> = parse(body)?;
    let messages = body.messages.take().ok_or_else(|| Refusal::missing("messages"))?;
    if messages.is_empty() {
        return Err(Refusal::invalid("messages", "`messages` is empty: give at least one message"));
    }
    let prompt = conversation(&messages);
    ask(body, vec![prompt])
}

/// Reads the body of `/v1/completions`.
pub(crate) fn completions(body: &[u8]) -> Result<Ask<'_>, Refusal> {
    let body: Body<'_> = parse(body)?;
    let prompt = body.prompt.ok_or_else(|| Refusal::missing("prompt"))?;
    let prompt: Input<'_> = serde_json::from_str(prompt.get())
        .map_err(|error| Refusal::invalid("prompt", format!("`prompt` is not right: {error}")))?;
    let prompts = prompt
        .into_items()
        .into_iter()
        .map(|(text, tokens)| Prompt { hash: hash(text.as_bytes()), text, tokens })
        .collect();
    ask(body, prompts)
}

/// Reads the body of `/v1/responses`.
pub(crate) fn responses(body: &[u8]) -> Result<Ask<'_>, Refusal> {
    let body: Body<'_> = parse(body)?;
    let input = body.input.ok_or_else(|| Refusal::missing("input"))?;
    let user = || Text(Cow::Borrowed("user"));
    let mut messages: Vec<Message<'_>> = match serde_json::from_str(input.get()) {
        Ok(Content::Text(text)) => {
            vec![Message { role: user(), content: Some(Content::Text(text)) }]
        }
        _ => serde_json::from_str(input.get()).map_err(|error| {
            Refusal::invalid(
                "input",
                format!("`input` is not a string or a list of messages: {error}"),
            )
        })?,
    };
    if let Some(text) = &body.instructions {
        let content = Some(Content::Text(Cow::Owned(text.0.to_string())));
        messages.insert(0, Message { role: Text("system".into()), content });
    }
    let prompt = conversation(&messages);
    ask(body, vec![prompt])
}

pub(crate) fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| Refusal::invalid_json(&error))
}

fn ask<'a>(body: Body<'a>, prompts: Vec<Prompt<'a>>) -> Result<Ask<'a>, Refusal> {
    let model = body.model.ok_or_else(|| Refusal::missing("model"))?.0;
    let choices = body.n.unwrap_or(1) as usize;
    if choices == 0 || choices * prompts.len() > MAX_CHOICES || choices > 128 {
        return Err(Refusal::invalid("n", "`n` must be from 1 to 128"));
    }
    let max_tokens = body.max_completion_tokens.or(body.max_tokens).or(body.max_output_tokens);
    if max_tokens == Some(0) {
        return Err(Refusal::invalid("max_tokens", "`max_tokens` must be at least 1"));
    }
    let stop = match body.stop {
        None => Vec::new(),
        Some(Stop::One(stop)) => vec![stop.into()],
        Some(Stop::Many(stops)) => stops.into_iter().map(Cow::Owned).collect(),
    };
    let format = body.response_format.or_else(|| body.text.and_then(|text| text.format));
    Ok(Ask {
        model,
        prompts,
        choices,
        max_tokens,
        min_tokens: body.min_tokens.unwrap_or(0),
        stop,
        stream: body.stream.unwrap_or(false),
        told: body.stream_options.map(|options| options.told()).unwrap_or_default(),
        format: format.map_or(Ok(Format::Text), read_format)?,
        echo: body.echo.unwrap_or(false),
    })
}

fn read_format(format: ResponseFormat) -> Result<Format, Refusal> {
    match format.r#type.as_str() {
        "text" => Ok(Format::Text),
        "json_object" => Ok(Format::Object),
        "json_schema" => format
            .json_schema
            .and_then(|named| named.schema)
            .or(format.schema)
            .map(Format::Schema)
            .ok_or_else(|| Refusal::missing("response_format.json_schema.schema")),
        other => Err(Refusal::invalid(
            "response_format",
            format!("`{other}` is no response format: give text, json_object or json_schema"),
        )),
    }
}

/// A conversation as one prompt: the last user text, and a hash and a token count of it all.
///
/// Tokens: each message's texts, and four around it; three before the answer.
fn conversation<'a>(messages: &[Message<'a>]) -> Prompt<'a> {
    let mut prompt = Prompt { text: Cow::Borrowed(""), hash: 0, tokens: 3 };
    for message in messages {
        prompt.tokens += 4;
        let mut add = |tokens: u32, bytes: &[u8]| {
            prompt.tokens = prompt.tokens.saturating_add(tokens);
            prompt.hash = mix(prompt.hash ^ hash(bytes));
        };
        add(0, message.role.0.as_bytes());
        let mut text = Cow::Borrowed("");
        match &message.content {
            None => {}
            Some(Content::Text(content)) => {
                add(tokens::count(content), content.as_bytes());
                text.clone_from(content);
            }
            Some(Content::Parts(parts)) => {
                for part in parts {
                    if let Some(Text(content)) = &part.text {
                        add(tokens::count(content), content.as_bytes());
                        text = match text.is_empty() {
                            true => content.clone(),
                            false => Cow::Owned(format!("{text} {content}")),
                        };
                    }
                    if let Some(image) = part.image_url {
                        add(IMAGE_TOKENS, image.get().as_bytes());
                    }
                }
            }
        }
        if prompt.text.is_empty() || message.role.0 == "user" {
            prompt.text = text;
        }
    }
    prompt
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chat_is_read_without_copies() {
        let body =
            br#"{"model":"m","x":{"y":[1]},"messages":[{"role":"system","content":"Be brief."},
            {"role":"user","content":"Hello, world!"}],"n":null,"max_tokens":5,"stop":"x"}"#;
        let ask = chat(body).unwrap();
        assert!(matches!(ask.model, Cow::Borrowed("m")));
        assert!(matches!(ask.prompts[0].text, Cow::Borrowed("Hello, world!")));
        assert_eq!(ask.prompts[0].tokens, 3 + 4 + 4 + 4 + 6);
        assert_eq!((ask.max_tokens, ask.choices, ask.stop.len()), (Some(5), 1, 1));
    }

    #[test]
    fn images_count_and_change_the_hash() {
        let read = |image: &str| {
            let body = format!(
                r#"{{"model":"m","messages":[{{"role":"user","content":[
                {{"type":"text","text":"What is it?"}},
                {{"type":"image_url","image_url":{{"url":"{image}"}}}}]}}]}}"#
            );
            let ask = chat(body.as_bytes()).unwrap();
            (ask.prompts[0].hash, ask.prompts[0].tokens, ask.prompts[0].text.to_string())
        };
        let (a, b) = (read("data:a"), read("data:b"));
        assert_ne!(a.0, b.0);
        assert_eq!((a.1, a.2.as_str()), (3 + 4 + 4 + 85, "What is it?"));
    }

    #[test]
    fn responses_take_a_string_or_messages() {
        let one = responses(br#"{"model":"m","input":"Hi there"}"#).unwrap();
        let many = br#"{"model":"m","input":[{"role":"user","content":[{"type":"input_text","text":"Hi there"}]}]}"#;
        let many = responses(many).unwrap();
        assert_eq!(one.prompts[0].hash, many.prompts[0].hash);
        assert_eq!(many.prompts[0].text, "Hi there");
    }

    #[test]
    fn prompts_in_every_form() {
        for (prompt, count) in
            [("\"a\"", 1), ("[\"a\",\"b\"]", 2), ("[1,2,3]", 1), ("[[1],[2,3]]", 2)]
        {
            let body = format!(r#"{{"model":"m","prompt":{prompt}}}"#);
            assert_eq!(completions(body.as_bytes()).unwrap().prompts.len(), count, "{prompt}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (body, named) in [
            (r#"{"messages":[]}"#, "messages"),
            (r#"{"messages":[{"role":"user","content":"x"}]}"#, "model"),
            (r#"{"model":"m"}"#, "messages"),
            (r#"{"model":"m","messages":[{"role":"user","content":"x"}],"n":0}"#, "`n`"),
            ("{\n  \"model\": 1}", "line 2 column"),
            ("", "EOF"),
        ] {
            let refusal = chat(body.as_bytes()).unwrap_err();
            assert!(refusal.message.contains(named), "{body}: {}", refusal.message);
        }
    }
}
