//! Reads what an error body or event says, in any of the shapes servers use.

use serde::{Deserialize, de::IgnoredAny};
use std::borrow::Cow;

/// What an error body or event says, in any of the shapes servers use.
#[derive(Default)]
pub(super) struct Said<'a> {
    pub(super) is_error: bool,
    pub(super) kind: Option<Cow<'a, str>>,
    pub(super) code: Option<Cow<'a, str>>,
    pub(super) message: Option<Cow<'a, str>>,
}

impl<'a> Said<'a> {
    pub(super) fn read(body: &'a [u8]) -> Self {
        if !body.trim_ascii_start().starts_with(b"{") {
            return Self::default();
        }
        let Ok(envelope) = serde_json::from_slice::<Envelope<'a>>(body) else {
            return Self::default();
        };
        let text = |word: Option<Word<'a>>| word.and_then(Word::into_text);
        let kind = text(envelope.kind);
        let is_error = envelope.error.is_some() || kind.as_deref() == Some("error");
        match envelope.error {
            Some(Detail::Object { kind, code, message }) => {
                Self { is_error, kind: text(kind), code: text(code), message: text(message) }
            }
            Some(Detail::Text(message)) => {
                Self { is_error, kind, code: text(envelope.code), message: Some(message) }
            }
            // vLLM before 0.10 and FastAPI have no `error` around it.
            Some(Detail::Other(_)) | None => Self {
                is_error,
                kind,
                code: text(envelope.code),
                message: text(envelope.message).or_else(|| text(envelope.detail)),
            },
        }
    }

    /// An HTTP status given as the code.
    pub(super) fn status(&self) -> Option<u16> {
        self.code.as_ref()?.parse().ok().filter(|status| (400..600).contains(status))
    }

    /// Whether the account is empty. Words of a code only: messages of mere rate limits speak of
    /// quota and billing too (Gemini's do), all but one phrase.
    pub(super) fn is_out_of_money(&self) -> bool {
        const WORDS: [&str; 7] = [
            "insufficient_quota",
            "insufficient_credits",
            "insufficient_balance",
            "billing_",
            "credit_balance",
            "quota_exceeded",
            "enforced_spend_limit_reached",
        ];
        let word_says = [&self.code, &self.kind]
            .into_iter()
            .flatten()
            .any(|word| WORDS.into_iter().any(|needle| word.get(..needle.len()) == Some(needle)));
        word_says
            || self.message.as_ref().is_some_and(|text| text.contains("credit balance is too low"))
    }

    /// The upstream's message for the caller, cut at 1,000 characters.
    pub(super) fn text(&self, status: u16) -> Cow<'_, str> {
        const LONGEST_CHARS: usize = 1_000;
        match &self.message {
            Some(message) => match message.char_indices().nth(LONGEST_CHARS) {
                Some((end, _)) => format!("{}…", &message[..end]).into(),
                None => Cow::Borrowed(&**message),
            },
            None => format!("status {status}").into(),
        }
    }
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow, default)]
    error: Option<Detail<'a>>,
    #[serde(borrow, default, rename = "type")]
    kind: Option<Word<'a>>,
    #[serde(borrow, default)]
    code: Option<Word<'a>>,
    #[serde(borrow, default)]
    message: Option<Word<'a>>,
    #[serde(borrow, default)]
    detail: Option<Word<'a>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Detail<'a> {
    #[serde(borrow)]
    Text(Cow<'a, str>),
    Object {
        #[serde(borrow, default, rename = "type")]
        kind: Option<Word<'a>>,
        #[serde(borrow, default)]
        code: Option<Word<'a>>,
        #[serde(borrow, default)]
        message: Option<Word<'a>>,
    },
    Other(IgnoredAny),
}

/// A string, or a number seen as one; anything else says nothing.
#[derive(Deserialize)]
#[serde(untagged)]
enum Word<'a> {
    #[serde(borrow)]
    Text(Cow<'a, str>),
    Number(i64),
    Other(IgnoredAny),
}

impl<'a> Word<'a> {
    fn into_text(self) -> Option<Cow<'a, str>> {
        match self {
            Self::Text(text) => Some(text),
            Self::Number(number) => Some(number.to_string().into()),
            Self::Other(_) => None,
        }
    }
}
