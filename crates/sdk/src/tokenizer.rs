//! OpenAI's own tokenizers, for the prompts of its models: the feature `tokens-exact`.
//!
//! # Why
//!
//! Limits and soft budgets reserve a prompt's tokens before anybody has counted them. Bytes per
//! token, as learned from answers, are right on average and wrong for the one prompt that is all
//! code or all Chinese; where the vocabulary is public, counting is better. The vocabularies are
//! 50 MB of binary and take up to 100 MB of memory, so they are there only where they are asked for.
//!
//! # Rule
//!
//! ```text
//! chat        3 for each message, its texts, 1 for a name; and 3 that begin the answer
//! responses   the same, a text alone being a message of the user
//! completions, embeddings     the texts, or as many tokens as are listed
//! tools, schemas, tool calls  their JSON as it stands: somewhat more than the models' own form
//! pictures, sound, files      a token for every four bytes, as everywhere else
//! ```
//!
//! The numbers are those of OpenAI's cookbook ("How to count tokens with tiktoken"), which gives
//! them for GPT-3.5 to GPT-4o; for later models they are off by a token or two. What the models
//! add of their own is not known to anybody else.
//!
//! # Cost
//!
//! Some 25 µs per KiB, and no more than 100 for text made to be slow: a body of more than 32 KiB is
//! left to the learned estimate, which for long prompts is a good one.

use bpe_openai::{Tokenizer, cl100k_base, o200k_base};
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;
use std::{borrow::Cow, fmt};
use tidegate_core::{CountTokens, Operation};

/// Longest body that is counted: about a millisecond.
const MAX_BODY_BYTES: usize = 32 << 10;
/// Longest piece of text that is counted whole.
const MAX_PIECE_BYTES: usize = 64;

/// What stands around a message's texts, around a name, and before an answer.
const PER_MESSAGE: u64 = 3;
const PER_NAME: u64 = 1;
const PER_ANSWER: u64 = 3;

/// What is no text has a token for so many bytes.
const BYTES_PER_TOKEN: usize = 4;

/// Models by how their names begin, as tiktoken has them; longer beginnings first.
const VOCABULARIES: [(&str, Vocabulary); 15] = [
    ("gpt-4o", Vocabulary::O200k),
    ("chatgpt-4o", Vocabulary::O200k),
    ("gpt-4.1", Vocabulary::O200k),
    ("gpt-4.5", Vocabulary::O200k),
    ("gpt-5", Vocabulary::O200k),
    ("o1", Vocabulary::O200k),
    ("o3", Vocabulary::O200k),
    ("o4-mini", Vocabulary::O200k),
    ("gpt-4", Vocabulary::Cl100k),
    ("gpt-3.5-turbo", Vocabulary::Cl100k),
    ("gpt-35-turbo", Vocabulary::Cl100k),
    ("text-embedding-3-small", Vocabulary::Cl100k),
    ("text-embedding-3-large", Vocabulary::Cl100k),
    ("text-embedding-ada-002", Vocabulary::Cl100k),
    ("davinci-002", Vocabulary::Cl100k),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Vocabulary {
    Cl100k,
    O200k,
}

/// The tokenizer of the upstream's model `model`, loaded: some 50 ms for the first of its
/// vocabulary. Knows `openai/gpt-4o`, `ft:gpt-4o:…` and `gpt-4o-2024-08-06` by `gpt-4o`.
pub(crate) fn of(model: &str) -> Option<CountTokens> {
    match vocabulary(model)? {
        Vocabulary::Cl100k => {
            cl100k_base();
            Some(|operation, body| count(cl100k_base(), operation, body))
        }
        Vocabulary::O200k => {
            o200k_base();
            Some(|operation, body| count(o200k_base(), operation, body))
        }
    }
}

/// Loads all of them, where calls will say which they need: the first would wait for it.
pub(crate) fn load() {
    cl100k_base();
    o200k_base();
}

fn vocabulary(model: &str) -> Option<Vocabulary> {
    let name = model.rsplit('/').next().unwrap_or(model);
    let name = name.strip_prefix("ft:").unwrap_or(name);
    let (_, vocabulary) = VOCABULARIES.into_iter().find(|(begins, _)| {
        // `gpt-5.1` and `gpt-4-turbo` are named after them, `gpt-4x` is another model. `gpt-4.9`
        // is none that is known.
        name.strip_prefix(begins).is_some_and(|rest| match rest.bytes().next() {
            None | Some(b'-' | b':') => true,
            Some(b'.') => *begins == "gpt-5",
            Some(_) => false,
        })
    })?;
    Some(vocabulary)
}

/// Tokens of the prompt in `body`; `None` when it is too long, or not of the operation's shape.
fn count(tokenizer: &Tokenizer, operation: Operation, body: &[u8]) -> Option<u64> {
    if body.len() > MAX_BODY_BYTES {
        return None;
    }
    let Prompt { messages, prompt, input, instructions, tools, functions, schema, format } =
        serde_json::from_slice(body).ok()?;
    let counter = Counter(tokenizer);
    let beside: u64 = [tools, functions, schema, format]
        .into_iter()
        .flatten()
        .map(|json| counter.value(json))
        .sum();
    let prompt = match operation {
        Operation::ChatCompletions => counter.messages(messages?)? + PER_ANSWER,
        Operation::Responses => {
            let instructions = instructions.map_or(0, |text| counter.message_of(text));
            counter.messages(input?)? + instructions + PER_ANSWER
        }
        Operation::Completions => counter.texts(prompt?),
        Operation::Embeddings => counter.texts(input?),
    };
    Some(prompt + beside)
}

/// What counts of a body, of whichever operation.
#[derive(Deserialize)]
struct Prompt<'a> {
    #[serde(borrow)]
    messages: Option<&'a RawValue>,
    #[serde(borrow)]
    prompt: Option<&'a RawValue>,
    #[serde(borrow)]
    input: Option<&'a RawValue>,
    #[serde(borrow)]
    instructions: Option<&'a RawValue>,
    #[serde(borrow)]
    tools: Option<&'a RawValue>,
    #[serde(borrow)]
    functions: Option<&'a RawValue>,
    #[serde(borrow, rename = "response_format")]
    schema: Option<&'a RawValue>,
    /// Where responses have their schema.
    #[serde(borrow, rename = "text")]
    format: Option<&'a RawValue>,
}

struct Counter<'t>(&'t Tokenizer);

impl Counter<'_> {
    fn text(&self, text: &str) -> u64 {
        self.0.split(text).map(|piece| self.piece(piece)).sum()
    }

    /// A word, a number, a run of spaces or dashes. Of a very long one the beginning is counted,
    /// and the rest taken to be like it: rows of dashes take twenty times as long as prose.
    fn piece(&self, piece: &str) -> u64 {
        let beginning = &piece.as_bytes()[..piece.floor_char_boundary(MAX_PIECE_BYTES)];
        let tokens = self.0.bpe.count(beginning);
        (tokens * piece.len()).div_ceil(beginning.len().max(1)) as u64
    }

    /// A string's text; of anything else its JSON, and of `null` nothing.
    fn value(&self, value: &RawValue) -> u64 {
        match text(value) {
            Some(text) => self.text(&text),
            None if value.get() == "null" => 0,
            None => self.text(value.get()),
        }
    }

    /// Messages, or one text that is the user's. `None` for anything else.
    fn messages(&self, messages: &RawValue) -> Option<u64> {
        if text(messages).is_some() {
            return Some(self.message_of(messages));
        }
        let messages: Vec<&RawValue> = serde_json::from_str(messages.get()).ok()?;
        Some(messages.into_iter().map(|message| self.message(message)).sum())
    }

    /// A message of one text, its role being one token.
    fn message_of(&self, text: &RawValue) -> u64 {
        PER_MESSAGE + 1 + self.value(text)
    }

    fn message(&self, message: &RawValue) -> u64 {
        let Ok(Members(members)) = serde_json::from_str(message.get()) else {
            return self.value(message);
        };
        let values = members.into_iter().map(|(name, value)| match &*name {
            "name" => PER_NAME + self.value(value),
            "content" => self.content(value),
            _ => self.value(value),
        });
        PER_MESSAGE + values.sum::<u64>()
    }

    /// One text, or a list of parts.
    fn content(&self, content: &RawValue) -> u64 {
        match serde_json::from_str::<Vec<&RawValue>>(content.get()) {
            Ok(parts) => parts.into_iter().map(|part| self.part(part)).sum(),
            Err(_) => self.value(content),
        }
    }

    /// A text; or something that has none.
    fn part(&self, part: &RawValue) -> u64 {
        #[derive(Deserialize)]
        struct Part<'a> {
            #[serde(borrow)]
            text: Option<&'a RawValue>,
        }
        let said = serde_json::from_str::<Part<'_>>(part.get()).ok().and_then(|part| part.text);
        match said.and_then(text) {
            Some(text) => self.text(&text),
            None => part.get().len().div_ceil(BYTES_PER_TOKEN) as u64,
        }
    }

    /// A text, a list of texts, a list of tokens, or a list of such lists.
    fn texts(&self, prompts: &RawValue) -> u64 {
        match serde_json::from_str::<Vec<&RawValue>>(prompts.get()) {
            Ok(prompts) => prompts.into_iter().map(|prompt| self.text_or_tokens(prompt)).sum(),
            Err(_) => self.text_or_tokens(prompts),
        }
    }

    /// A text, a list of tokens, or one token.
    fn text_or_tokens(&self, prompt: &RawValue) -> u64 {
        match text(prompt) {
            Some(text) => self.text(&text),
            None => serde_json::from_str::<Vec<&RawValue>>(prompt.get())
                .map_or(1, |tokens| tokens.len() as u64),
        }
    }
}

/// The text of a string, borrowed where nothing in it is escaped; `None` of anything else.
fn text(value: &RawValue) -> Option<Cow<'_, str>> {
    let is_text = value.get().starts_with('"');
    is_text.then(|| serde_json::from_str::<Text<'_>>(value.get()).ok()).flatten().map(|text| text.0)
}

/// A string, borrowed where it can be: serde's own `Cow` never is in a list.
struct Text<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Borrowing;
        impl<'de> Visitor<'de> for Borrowing {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        from.deserialize_str(Borrowing)
    }
}

/// The members of an object, in order.
struct Members<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Collecting;
        impl<'de> Visitor<'de> for Collecting {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::with_capacity(4);
                while let Some(Text(name)) = map.next_key()? {
                    members.push((name, map.next_value()?));
                }
                Ok(Members(members))
            }
        }
        from.deserialize_map(Collecting)
    }
}

#[cfg(test)]
mod tests;
