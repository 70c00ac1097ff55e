//! Lines of JSONL: which of the three shapes a line has, and its request.
//!
//! | line | is |
//! |---|---|
//! | `{"custom_id", "method", "url", "body": {…}}` | OpenAI's batch line |
//! | `{"messages": […], …}`, or with `prompt` or `input` | a body |
//! | any other object, and with `--prompt` all but the first two | a row of columns |

use super::{NO_MODEL, Prepared, Recipe, content_fields, example};
use crate::{
    input::{Fault, json},
    order,
    template::{Columns, list},
};
use std::{borrow::Cow, sync::Arc};
use tidegate_core::Operation;
use tidegate_wire::batch_line;

/// Longest `custom_id`, as in OpenAI's batch lines.
const MAX_CUSTOM_ID_BYTES: usize = 512;

/// What a line of JSONL is.
enum Shape {
    BatchLine,
    Body,
    Row,
    Nothing(String),
}

/// The fields of an object that decide what it is.
#[derive(Default)]
struct Known<'a> {
    custom_id: Option<json::Raw<'a>>,
    method: Option<json::Raw<'a>>,
    url: Option<json::Raw<'a>>,
    body: Option<json::Raw<'a>>,
    model: Option<json::Raw<'a>>,
    messages: Option<json::Raw<'a>>,
    prompt: Option<json::Raw<'a>>,
    input: Option<json::Raw<'a>>,
    priority: Option<json::Raw<'a>>,
    /// A field of these that stands a second time.
    twice: Option<(&'static str, json::Raw<'a>)>,
}

impl Recipe {
    /// The request of one line of JSONL, whichever of its three shapes it has.
    ///
    /// # Errors
    ///
    /// What makes it none.
    pub(crate) fn line<'a>(&self, text: &'a str) -> Result<Prepared<'a>, Fault> {
        let known = Known::read(text, self.priority_column.as_deref())?;
        let id = known.custom_id.and_then(|raw| id_of(raw.get()));
        let prepared = match self.shape(text, &known) {
            Shape::BatchLine => self.batch_line(text, &known),
            Shape::Body => self.body(text, &known),
            Shape::Row => self.row(Columns::Object(text)),
            Shape::Nothing(why) => Err(Fault::new(why)),
        };
        let prepared = prepared.and_then(|mut prepared| {
            prepared.priority = match known.priority {
                Some(raw) => priority(raw.get().trim_matches('"'), || {
                    Fault::of(text, raw.get(), self.bad_priority(raw.get()))
                })?,
                None => prepared.priority,
            };
            Ok(prepared)
        });
        prepared.map_err(|mut fault| {
            fault.custom_id = fault.custom_id.or(id.map(|id| Arc::from(&*id)));
            fault
        })
    }

    fn shape(&self, text: &str, known: &Known<'_>) -> Shape {
        let has_body = known.body.is_some_and(|raw| raw.get().starts_with('{'));
        let named = known.url.is_some() || known.method.is_some() || known.custom_id.is_some();
        let templated = self.templates.is_some();
        if has_body && (named || !templated) || known.url.is_some() && known.method.is_some() {
            return Shape::BatchLine;
        }
        let messages = known.messages.is_some_and(|raw| raw.get().starts_with('['));
        if templated {
            return if messages { Shape::Body } else { Shape::Row };
        }
        if known.messages.is_some() || known.prompt.is_some() || known.input.is_some() {
            return Shape::Body;
        }
        let names = Columns::Object(text).names();
        Shape::Nothing(format!(
            "the line is no request: it has no 'messages', 'prompt', 'input' or 'body'; to make a \
             request of its columns ({}), name them in a template: --prompt '{{{{ {} }}}}'",
            list(&names),
            example(&names)
        ))
    }

    fn batch_line<'a>(&self, text: &'a str, known: &Known<'a>) -> Result<Prepared<'a>, Fault> {
        let line = batch_line::read(text.as_bytes()).map_err(|error| {
            let at = match error.param() {
                Some("custom_id") => known.custom_id,
                Some("method") => known.method,
                Some("url") => known.url,
                Some("body") => known.body,
                _ => None,
            };
            match at {
                Some(raw) => Fault::of(text, raw.get(), error.message()),
                None => Fault::new(error.message()),
            }
        })?;
        let body = &text[line.body];
        let inner = Known::read(body, None).map_err(|fault| Fault { column: None, ..fault })?;
        let mut prepared = self.ready(line.operation, text, Cow::Borrowed(body), &inner)?;
        prepared.custom_id = line.custom_id.map(|id| Cow::Owned(id.into_string()));
        Ok(prepared)
    }

    fn body<'a>(&self, text: &'a str, known: &Known<'a>) -> Result<Prepared<'a>, Fault> {
        let operation = match self.endpoint {
            // A body that is plainly for another operation says so by its field.
            Operation::ChatCompletions if known.messages.is_none() && known.prompt.is_some() => {
                Operation::Completions
            }
            Operation::ChatCompletions if known.messages.is_none() => {
                return Err(Fault::new(
                    "a body with 'input' is for embeddings or responses: say which with \
                     --endpoint embeddings or --endpoint responses",
                ));
            }
            endpoint => endpoint,
        };
        let (id, body) = match known.custom_id {
            Some(raw) => {
                let id = id_of(raw.get()).map(checked_id).transpose();
                let id = id.map_err(|fault| Fault::of(text, raw.get(), fault.message))?;
                // The id is ours: an upstream would refuse a field it does not know.
                (id, Cow::Owned(json::without(text, "custom_id", raw)))
            }
            None => (None, Cow::Borrowed(text.trim_ascii())),
        };
        let mut prepared = self.ready(operation, text, body, known)?;
        prepared.custom_id = id;
        Ok(prepared)
    }

    /// A ready-made `body`, whose fields `known` stand somewhere in `line`.
    fn ready<'a>(
        &self,
        operation: Operation,
        line: &'a str,
        mut body: Cow<'a, str>,
        known: &Known<'a>,
    ) -> Result<Prepared<'a>, Fault> {
        if let Some((name, raw)) = known.twice {
            return Err(Fault::of(line, raw.get(), format!("'{name}' stands twice: keep one")));
        }
        let prompt = content_of(operation, known).map_err(|(raw, message)| match raw {
            Some(raw) => Fault::of(line, raw.get(), message),
            None => Fault::new(message),
        })?;
        let own = known.model.filter(|raw| raw.get() != "null");
        let model = match (&self.model, own) {
            (None, Some(raw)) => json::text_of(raw)
                .ok_or_else(|| Fault::of(line, raw.get(), "'model' must be a string"))?,
            (Some(model), _) => Cow::Owned(model.clone()),
            (None, None) => Cow::Owned(self.default_model.clone().ok_or(Fault::new(NO_MODEL))?),
        };
        if self.model.is_some() || own.is_none() {
            let mut quoted = String::new();
            json::push_string(&mut quoted, &model);
            body = Cow::Owned(json::set(&body, &["model".to_owned()], &quoted)?);
        }
        body = self.with_extras(operation, body)?;
        Ok(Prepared {
            operation,
            model,
            custom_id: None,
            body,
            columns: None,
            image: None,
            priority: 0.0,
            prefix_key: if self.by_prefix { order::prefix_key(prompt) } else { 0 },
        })
    }

    pub(super) fn bad_priority(&self, found: &str) -> String {
        let column = self.priority_column.as_deref().unwrap_or_default();
        format!("the priority column '{column}' is {found}, which is not a number")
    }
}

impl<'a> Known<'a> {
    fn read(text: &'a str, priority: Option<&str>) -> Result<Self, Fault> {
        let mut known = Self::default();
        json::fields(text, |key, raw| {
            if priority == Some(&*key.0) {
                known.priority = Some(raw);
            }
            let (slot, name) = match &*key.0 {
                "custom_id" => (&mut known.custom_id, "custom_id"),
                "method" => (&mut known.method, "method"),
                "url" => (&mut known.url, "url"),
                "body" => (&mut known.body, "body"),
                "model" => (&mut known.model, "model"),
                "messages" => (&mut known.messages, "messages"),
                "prompt" => (&mut known.prompt, "prompt"),
                "input" => (&mut known.input, "input"),
                _ => return,
            };
            if slot.replace(raw).is_some() {
                known.twice = Some((name, raw));
            }
        })?;
        Ok(known)
    }
}

/// The part of a ready-made body that is its prompt.
fn content_of<'a>(
    operation: Operation,
    known: &Known<'a>,
) -> Result<&'a str, (Option<json::Raw<'a>>, String)> {
    let found = match operation {
        Operation::ChatCompletions => match known.messages {
            Some(raw) if !raw.get().starts_with('[') => {
                return Err((Some(raw), "'messages' must be an array".into()));
            }
            messages => messages,
        },
        Operation::Completions => known.prompt,
        Operation::Embeddings => known.input,
        Operation::Responses => known.input.or(known.prompt),
    };
    found.map(|raw| raw.get()).ok_or_else(|| {
        let field = content_fields(operation)[0];
        (None, format!("'{field}' is missing, which /v1{} needs", operation.path()))
    })
}

/// A row's own id: its text, or a number's digits; nothing for null and empty.
fn id_of(json: &str) -> Option<Cow<'_, str>> {
    match json.as_bytes().first() {
        Some(b'"') => serde_json::from_str::<json::Key<'_>>(json)
            .ok()
            .map(|key| key.0)
            .filter(|id| !id.is_empty()),
        Some(b'-' | b'0'..=b'9') => Some(Cow::Borrowed(json)),
        _ => None,
    }
}

/// `id`, unless it is too long.
pub(super) fn checked_id(id: Cow<'_, str>) -> Result<Cow<'_, str>, Fault> {
    match id.len() <= MAX_CUSTOM_ID_BYTES {
        true => Ok(id),
        false => {
            Err(Fault::new(format!("the custom_id is longer than {MAX_CUSTOM_ID_BYTES} bytes")))
        }
    }
}

/// A priority as it stands in a row; none is 0.
pub(super) fn priority(text: &str, fault: impl FnOnce() -> Fault) -> Result<f64, Fault> {
    match text.trim() {
        "" | "null" => Ok(0.0),
        text => text.parse().ok().filter(|number: &f64| number.is_finite()).ok_or_else(fault),
    }
}

#[cfg(test)]
mod tests;
