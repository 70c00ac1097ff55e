//! The output as a table: the row's own columns first, then ours.

use super::row::{Line, LineUsage};
use crate::input::json;
use serde_json::value::RawValue;
use std::{
    collections::HashMap,
    io::{self, Write},
};

/// Our columns. One that the input has too is written as `batch_…`.
const OURS: [&str; 15] = [
    "custom_id",
    "status",
    "answer",
    "error_code",
    "error_class",
    "error_message",
    "model",
    "input_tokens",
    "cached_input_tokens",
    "output_tokens",
    "reasoning_tokens",
    "cost",
    "attempts",
    "latency_ms",
    "cached",
];

/// The input's own columns, in the order they were first seen.
#[derive(Default)]
pub(super) struct Columns {
    names: Vec<String>,
    places: HashMap<String, usize>,
}

/// Most columns a table may have: beyond it the input is no table.
const MAX_COLUMNS: usize = 10_000;

impl Columns {
    /// Takes note of a row's columns.
    pub(super) fn see(&mut self, line: &Line<'_>) -> io::Result<()> {
        let Some(input) = line.input else { return Ok(()) };
        json::fields(input.get(), |key, _| {
            if !self.places.contains_key(&*key.0) {
                self.places.insert(key.0.to_string(), self.names.len());
                self.names.push(key.0.to_string());
            }
        })
        .map_err(|fault| io::Error::other(fault.message))?;
        if self.names.len() > MAX_COLUMNS {
            return Err(io::Error::other(format!(
                "the rows have more than {MAX_COLUMNS} different columns, which no table holds; \
                 write .jsonl instead"
            )));
        }
        Ok(())
    }
}

/// Writes rows as a table.
pub(super) struct Table<W: Write> {
    columns: Columns,
    out: csv::Writer<W>,
    cells: Vec<String>,
}

impl<W: Write> Table<W> {
    /// Writes the head of the table to `out`.
    pub(super) fn new(columns: Columns, out: W) -> io::Result<Self> {
        let mut out = csv::WriterBuilder::new().from_writer(out);
        let ours = OURS.iter().map(|name| {
            if columns.places.contains_key(*name) {
                format!("batch_{name}")
            } else {
                (*name).into()
            }
        });
        out.write_record(columns.names.iter().cloned().chain(ours))?;
        Ok(Self { columns, out, cells: Vec::new() })
    }

    /// Writes one row.
    pub(super) fn push(&mut self, line: &Line<'_>) -> io::Result<()> {
        let own = self.columns.names.len();
        self.cells.clear();
        self.cells.resize(own + OURS.len(), String::new());
        if let Some(input) = line.input {
            json::fields(input.get(), |key, value| {
                self.cells[self.columns.places[&*key.0]] = text(value);
            })
            .map_err(|fault| io::Error::other(fault.message))?;
        }
        for (cell, value) in self.cells[own..].iter_mut().zip(ours(line)) {
            *cell = value;
        }
        self.out.write_record(&self.cells)?;
        Ok(())
    }

    /// Writes what is left.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// The values of [`OURS`].
fn ours(line: &Line<'_>) -> [String; OURS.len()] {
    let error = line.error.as_ref();
    let usage = |field: fn(&LineUsage) -> u64| {
        line.usage.as_ref().map(|usage| field(usage).to_string()).unwrap_or_default()
    };
    let answer = line.response.as_ref().filter(|_| error.is_none());
    [
        line.custom_id.as_deref().unwrap_or_default().into(),
        line.status.as_ref().into(),
        answer.map(|response| answer_text(response.body)).unwrap_or_default(),
        error.map(|error| error.code.to_string()).unwrap_or_default(),
        error.map(|error| error.class.to_string()).unwrap_or_default(),
        error.map(|error| error.message.to_string()).unwrap_or_default(),
        line.model.as_deref().unwrap_or_default().into(),
        usage(|usage| usage.input_tokens),
        usage(|usage| usage.cached_input_tokens),
        usage(|usage| usage.output_tokens),
        usage(|usage| usage.reasoning_tokens),
        line.cost.map(|cost| cost.get().to_owned()).unwrap_or_default(),
        line.attempts.to_string(),
        line.latency_ms.map(|ms| ms.to_string()).unwrap_or_default(),
        line.cached.to_string(),
    ]
}

/// A JSON value as a cell: a string is its text, null is empty, anything else stays JSON.
fn text(value: &RawValue) -> String {
    match value.get() {
        "null" => String::new(),
        other => match json::text_of(value) {
            Some(text) => text.into_owned(),
            None => other.to_owned(),
        },
    }
}

/// What the model said: its text, an embedding's vector, or the whole body.
fn answer_text(body: &RawValue) -> String {
    let Ok(value) = serde_json::from_str::<serde_json::Value>(body.get()) else {
        return body.get().to_owned();
    };
    let texts = |list: &serde_json::Value, at: &str| -> Option<String> {
        let mut said = String::new();
        for part in list.as_array()? {
            said.push_str(part.pointer(at).and_then(|text| text.as_str()).unwrap_or_default());
        }
        (!said.is_empty()).then_some(said)
    };
    if let Some(text) = ["/choices/0/message/content", "/choices/0/text", "/output_text"]
        .into_iter()
        .find_map(|at| value.pointer(at)?.as_str())
    {
        return text.to_owned();
    }
    if let Some(items) = value.get("output").and_then(|output| output.as_array()) {
        let said: String =
            items.iter().filter_map(|item| texts(item.get("content")?, "/text")).collect();
        if !said.is_empty() {
            return said;
        }
    }
    match value.pointer("/data/0/embedding") {
        Some(vector) => vector.to_string(),
        None => body.get().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{Answered, Outcome, Row, encode, read};

    fn line(columns: &str, body: &str) -> Vec<u8> {
        let row = Row {
            index: 0,
            custom_id: None,
            columns: Some(columns.as_bytes()),
            model: Some("m"),
            attempts: 1,
            latency_ms: Some(5),
            cached: false,
            usage: None,
            cost: None,
            outcome: Outcome::Ok(Answered { status: 200, request_id: None, body: body.as_bytes() }),
        };
        let mut out = Vec::new();
        encode(&row, &mut out);
        out
    }

    #[test]
    fn own_columns_come_first() {
        let lines = [
            line(
                r#"{"text":"a,b","status":null}"#,
                r#"{"choices":[{"message":{"content":"x\ny"}}]}"#,
            ),
            line(r#"{"text":"c","n":1.50}"#, r#"{"data":[{"embedding":[1,2]}]}"#),
        ];
        let mut columns = Columns::default();
        for line in &lines {
            columns.see(&read(line).unwrap()).unwrap();
        }
        let mut out = Vec::new();
        let mut table = Table::new(columns, &mut out).unwrap();
        for line in &lines {
            table.push(&read(line).unwrap()).unwrap();
        }
        table.finish().unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "text,status,n,custom_id,batch_status,answer,error_code,error_class,error_message,\
             model,input_tokens,cached_input_tokens,output_tokens,reasoning_tokens,cost,attempts,\
             latency_ms,cached\n\
             \"a,b\",,,,ok,\"x\ny\",,,,m,,,,,,1,5,false\n\
             c,,1.50,,ok,\"[1,2]\",,,,m,,,,,,1,5,false\n"
        );
    }

    #[track_caller]
    fn check(body: &str, expected: &str) {
        let raw: &RawValue = serde_json::from_str(body).unwrap();
        assert_eq!(answer_text(raw), expected);
    }

    #[test]
    fn the_answer_is_what_the_model_said() {
        check(r#"{"choices":[{"text":"t"}]}"#, "t");
        check(r#"{"output":[{"type":"reasoning"},{"content":[{"text":"a"},{"text":"b"}]}]}"#, "ab");
        check(r#"{"score":1}"#, r#"{"score":1}"#);
    }
}
