//! One line of the output, SPEC §7: written once, read again by the other formats.

use serde::Deserialize;
use serde_json::value::RawValue;
use std::{borrow::Cow, io::Write};
use tidegate_core::Usage;
use tidegate_wire::batch_line::push_on_one_line;

/// A row, ready to be written.
pub(crate) struct Row<'a> {
    pub(crate) index: u64,
    pub(crate) custom_id: Option<&'a str>,
    /// The row's own columns, one JSON object.
    pub(crate) columns: Option<&'a [u8]>,
    pub(crate) model: Option<&'a str>,
    pub(crate) attempts: u32,
    pub(crate) latency_ms: Option<u64>,
    pub(crate) cached: bool,
    /// Tokens used for this row, over all its attempts.
    pub(crate) usage: Option<Usage>,
    /// US dollars; `None` is unknown, never free.
    pub(crate) cost: Option<f64>,
    pub(crate) outcome: Outcome<'a>,
}

/// How a row ended.
pub(crate) enum Outcome<'a> {
    /// Answered.
    Ok(Answered<'a>),
    /// Failed after all its attempts.
    Failed(Failed<'a>),
    /// Not run: the job stopped before its turn.
    Skipped(Failed<'a>),
}

/// An upstream's answer.
pub(crate) struct Answered<'a> {
    pub(crate) status: u16,
    pub(crate) request_id: Option<&'a str>,
    /// JSON, as the upstream sent it.
    pub(crate) body: &'a [u8],
}

/// Why there is no answer.
pub(crate) struct Failed<'a> {
    pub(crate) code: &'a str,
    pub(crate) message: &'a str,
    pub(crate) class: &'a str,
    pub(crate) retryable: bool,
    /// The upstream's own refusal.
    pub(crate) answer: Option<(u16, &'a [u8])>,
}

/// Appends `row` as one line, newline included.
pub(crate) fn encode(row: &Row<'_>, out: &mut Vec<u8>) {
    put(out, format_args!("{{\"index\":{},\"custom_id\":", row.index));
    put_text(out, row.custom_id);
    let (status, answer, failed) = match &row.outcome {
        Outcome::Ok(answer) => ("ok", Some((answer.status, answer.body, answer.request_id)), None),
        Outcome::Failed(failed) => {
            let answer = failed.answer.map(|(status, body)| (status, body, None));
            ("error", answer, Some(failed))
        }
        Outcome::Skipped(failed) => ("skipped", None, Some(failed)),
    };
    put(out, format_args!(",\"status\":\"{status}\",\"response\":"));
    match answer {
        None => out.extend_from_slice(b"null"),
        Some((status, body, request_id)) => {
            put(out, format_args!("{{\"status_code\":{status},\"request_id\":"));
            put_text(out, request_id);
            out.extend_from_slice(b",\"body\":");
            push_on_one_line(out, body);
            out.push(b'}');
        }
    }
    out.extend_from_slice(b",\"error\":");
    match failed {
        None => out.extend_from_slice(b"null"),
        Some(failed) => put_failed(out, failed),
    }
    put_rest(out, row);
}

fn put_failed(out: &mut Vec<u8>, failed: &Failed<'_>) {
    out.extend_from_slice(b"{\"code\":");
    put_text(out, Some(failed.code));
    out.extend_from_slice(b",\"message\":");
    put_text(out, Some(failed.message));
    out.extend_from_slice(b",\"class\":");
    put_text(out, Some(failed.class));
    put(out, format_args!(",\"retryable\":{}}}", failed.retryable));
}

fn put_rest(out: &mut Vec<u8>, row: &Row<'_>) {
    out.extend_from_slice(b",\"usage\":");
    match row.usage {
        None => out.extend_from_slice(b"null"),
        Some(usage) => put(
            out,
            format_args!(
                "{{\"input_tokens\":{},\"cached_input_tokens\":{},\"output_tokens\":{},\
                 \"reasoning_tokens\":{},\"total_tokens\":{}}}",
                usage.input,
                usage.cached_input,
                usage.output,
                usage.reasoning,
                usage.total()
            ),
        ),
    }
    out.extend_from_slice(b",\"cost\":");
    put_number(out, row.cost.map(rounded));
    put(out, format_args!(",\"attempts\":{},\"latency_ms\":", row.attempts));
    put_number(out, row.latency_ms);
    out.extend_from_slice(b",\"model\":");
    put_text(out, row.model);
    put(out, format_args!(",\"cached\":{}", row.cached));
    if let Some(columns) = row.columns {
        out.extend_from_slice(b",\"input\":");
        push_on_one_line(out, columns);
    }
    out.extend_from_slice(b"}\n");
}

/// To a thousandth of a millionth of a dollar: no tail of binary fractions in the file.
fn rounded(cost: f64) -> f64 {
    (cost * 1e9).round() / 1e9
}

fn put(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("a Vec takes all");
}

fn put_number(out: &mut Vec<u8>, number: Option<impl std::fmt::Display>) {
    match number {
        Some(number) => put(out, format_args!("{number}")),
        None => out.extend_from_slice(b"null"),
    }
}

fn put_text(out: &mut Vec<u8>, text: Option<&str>) {
    match text {
        Some(text) => serde_json::to_writer(out, text).expect("a Vec takes all"),
        None => out.extend_from_slice(b"null"),
    }
}

/// A line of the output, as far as the other formats need it.
#[derive(Deserialize)]
pub(crate) struct Line<'a> {
    pub(crate) index: u64,
    #[serde(borrow)]
    pub(crate) custom_id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub(crate) status: Cow<'a, str>,
    #[serde(borrow)]
    pub(crate) response: Option<LineResponse<'a>>,
    #[serde(borrow)]
    pub(crate) error: Option<LineError<'a>>,
    pub(crate) usage: Option<LineUsage>,
    #[serde(borrow)]
    pub(crate) cost: Option<&'a RawValue>,
    pub(crate) attempts: u32,
    pub(crate) latency_ms: Option<u64>,
    #[serde(borrow)]
    pub(crate) model: Option<Cow<'a, str>>,
    pub(crate) cached: bool,
    #[serde(borrow)]
    pub(crate) input: Option<&'a RawValue>,
}

#[derive(Deserialize)]
pub(crate) struct LineResponse<'a> {
    pub(crate) status_code: u16,
    #[serde(borrow)]
    pub(crate) request_id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub(crate) body: &'a RawValue,
}

#[derive(Deserialize)]
pub(crate) struct LineError<'a> {
    #[serde(borrow)]
    pub(crate) code: Cow<'a, str>,
    #[serde(borrow)]
    pub(crate) message: Cow<'a, str>,
    #[serde(borrow)]
    pub(crate) class: Cow<'a, str>,
}

#[derive(Deserialize)]
pub(crate) struct LineUsage {
    pub(crate) input_tokens: u64,
    pub(crate) cached_input_tokens: u64,
    pub(crate) output_tokens: u64,
    pub(crate) reasoning_tokens: u64,
}

/// Reads back a line this file wrote.
///
/// # Errors
///
/// When it is none: the journal was written by something else.
pub(crate) fn read(line: &[u8]) -> std::io::Result<Line<'_>> {
    serde_json::from_slice(line).map_err(std::io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row<'a>(outcome: Outcome<'a>) -> Row<'a> {
        Row {
            index: 3,
            custom_id: Some("a\"\n"),
            columns: None,
            model: Some("m"),
            attempts: 2,
            latency_ms: Some(51),
            cached: false,
            usage: Some(Usage {
                input: 10,
                cached_input: 1,
                cache_write: 0,
                output: 5,
                reasoning: 2,
            }),
            cost: Some(0.1 + 0.2),
            outcome,
        }
    }

    #[track_caller]
    fn check(row: &Row<'_>, expected: &str) {
        let mut out = Vec::new();
        encode(row, &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), format!("{expected}\n"));
    }

    #[test]
    fn an_answer_is_spliced_as_it_came() {
        let body = b" {\"b\": 1.0,\r\n\"a\": \"\\n\"}\n";
        let answered = Answered { status: 200, request_id: Some("req_1"), body };
        check(
            &row(Outcome::Ok(answered)),
            "{\"index\":3,\"custom_id\":\"a\\\"\\n\",\"status\":\"ok\",\"response\":\
             {\"status_code\":200,\"request_id\":\"req_1\",\"body\":{\"b\": 1.0,\"a\": \"\\n\"}},\
             \"error\":null,\"usage\":{\"input_tokens\":10,\"cached_input_tokens\":1,\
             \"output_tokens\":5,\"reasoning_tokens\":2,\"total_tokens\":15},\"cost\":0.3,\
             \"attempts\":2,\"latency_ms\":51,\"model\":\"m\",\"cached\":false}",
        );
    }

    #[test]
    fn an_unknown_cost_is_null() {
        let failed = Failed {
            code: "upstream_timeout",
            message: "no answer",
            class: "timeout",
            retryable: true,
            answer: None,
        };
        let mut row = row(Outcome::Failed(failed));
        (row.usage, row.cost, row.custom_id) = (None, None, None);
        row.columns = Some(b"{\"x\":1}");
        check(
            &row,
            "{\"index\":3,\"custom_id\":null,\"status\":\"error\",\"response\":null,\"error\":\
             {\"code\":\"upstream_timeout\",\"message\":\"no answer\",\"class\":\"timeout\",\
             \"retryable\":true},\"usage\":null,\"cost\":null,\"attempts\":2,\"latency_ms\":51,\
             \"model\":\"m\",\"cached\":false,\"input\":{\"x\":1}}",
        );
    }

    #[test]
    fn a_line_is_read_back() {
        let answered = Answered { status: 200, request_id: None, body: b"{\"x\":\"\xc3\xa9\"}" };
        let mut out = Vec::new();
        encode(&row(Outcome::Ok(answered)), &mut out);
        let line = read(&out).unwrap();
        assert_eq!(line.custom_id.as_deref(), Some("a\"\n"));
        assert_eq!(line.response.unwrap().body.get(), "{\"x\":\"é\"}");
        assert_eq!(line.usage.unwrap().output_tokens, 5);
    }
}
