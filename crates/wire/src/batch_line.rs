//! Lines of OpenAI's Batch API: `{"custom_id","method","url","body"}` in, results out.
//!
//! Success goes to the output file, everything else to the error file; both have the same shape.
//! A request the upstream rejected is a *response* with its status, not an `error`: `error` is
//! for requests that got no response at all.

use crate::json::{check_depth, invalid, object_text};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::{borrow::Cow, ops::Range};
use tidegate_core::{Error, Operation, Result};

/// One request of a batch's input file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The caller's own id of the request. OpenAI demands one, and that it is unique.
    pub custom_id: Option<Box<str>>,
    /// What is asked for.
    pub operation: Operation,
    /// Where the request's body, a JSON object, stands in the line.
    pub body: Range<usize>,
}

/// Longest `custom_id` in bytes.
const MAX_CUSTOM_ID_BYTES: usize = 512;

#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(borrow)]
    custom_id: Option<&'a RawValue>,
    #[serde(borrow)]
    method: Option<Cow<'a, str>>,
    #[serde(borrow)]
    url: Option<Cow<'a, str>>,
    #[serde(borrow)]
    body: Option<&'a RawValue>,
}

/// Reads one line, without its line end.
///
/// # Errors
///
/// [`tidegate_core::Kind::InvalidRequest`]; `param` names the field at fault, the message says
/// what to do, with the column for bad JSON.
pub fn read(line: &[u8]) -> Result<Line> {
    let text = object_text("the line", line)?;
    let fields: Fields<'_> = serde_json::from_str(text)
        .map_err(|error| invalid(format!("the line is not a valid batch request: {error}")))?;
    check_depth("the line", text)?;

    if let Some(method) = fields.method.filter(|method| method != "POST") {
        return Err(Error::invalid("method", format!("`method` must be \"POST\", not {method:?}")));
    }
    let url = fields.url.ok_or_else(|| {
        Error::invalid("url", format!("the field `url` is missing; it is one of {}", urls()))
    })?;
    let operation = Operation::from_path(&url).ok_or_else(|| {
        Error::invalid("url", format!("`url` must be one of {}, not {url:?}", urls()))
    })?;
    let body = fields.body.ok_or_else(|| {
        Error::invalid("body", "the field `body` is missing; it holds the request to send")
    })?;
    if !body.get().starts_with('{') {
        return Err(Error::invalid("body", "the field `body` must be a JSON object"));
    }
    let start = body.get().as_ptr().addr() - text.as_ptr().addr();
    Ok(Line {
        custom_id: fields.custom_id.map(custom_id).transpose()?,
        operation,
        body: start..start + body.get().len(),
    })
}

fn custom_id(raw: &RawValue) -> Result<Box<str>> {
    let id: Box<str> = serde_json::from_str(raw.get())
        .map_err(|_| Error::invalid("custom_id", "the field `custom_id` must be a string"))?;
    match id.len() {
        0 => Err(Error::invalid("custom_id", "the field `custom_id` is empty")),
        1..=MAX_CUSTOM_ID_BYTES => Ok(id),
        _ => Err(Error::invalid(
            "custom_id",
            format!("the field `custom_id` is longer than {MAX_CUSTOM_ID_BYTES} bytes"),
        )),
    }
}

fn urls() -> String {
    let paths: Vec<String> =
        Operation::ALL.iter().map(|operation| format!("/v1{}", operation.path())).collect();
    paths.join(", ")
}

/// A response, good or bad, as a line of the output or error file.
#[derive(Clone, Copy, Debug)]
pub struct Response<'a> {
    /// Id of the result, `batch_req_…`.
    pub id: &'a str,
    /// The caller's id, as in the input.
    pub custom_id: &'a str,
    /// HTTP status.
    pub status: u16,
    /// Id of the request.
    pub request_id: &'a str,
    /// The body: valid JSON, copied as it is but for line ends between its tokens.
    pub body: &'a [u8],
}

/// Appends `response` to `out`, line end included.
pub fn write_response(out: &mut Vec<u8>, response: &Response<'_>) {
    out.extend_from_slice(b"{\"id\":");
    push_string(out, response.id);
    out.extend_from_slice(b",\"custom_id\":");
    push_string(out, response.custom_id);
    out.extend_from_slice(b",\"response\":{\"status_code\":");
    push_json(out, &response.status);
    out.extend_from_slice(b",\"request_id\":");
    push_string(out, response.request_id);
    out.extend_from_slice(b",\"body\":");
    push_on_one_line(out, response.body);
    out.extend_from_slice(b"},\"error\":null}\n");
}

/// Appends the result of a request that got no response to `out`, line end included.
///
/// `code` is `batch_expired`, `batch_cancelled`, `request_timeout`, or an error's own code.
pub fn write_failure(out: &mut Vec<u8>, id: &str, custom_id: &str, code: &str, message: &str) {
    out.extend_from_slice(b"{\"id\":");
    push_string(out, id);
    out.extend_from_slice(b",\"custom_id\":");
    push_string(out, custom_id);
    out.extend_from_slice(b",\"response\":null,\"error\":{\"code\":");
    push_string(out, code);
    out.extend_from_slice(b",\"message\":");
    push_string(out, message);
    out.extend_from_slice(b"}}\n");
}

/// Appends the JSON value `json` without the line ends between its tokens.
///
/// Inside strings JSON has no bare line ends, so each one found is mere white space.
pub fn push_on_one_line(out: &mut Vec<u8>, json: &[u8]) {
    let mut rest = json.trim_ascii();
    while let Some(at) = memchr::memchr2(b'\n', b'\r', rest) {
        out.extend_from_slice(&rest[..at]);
        rest = rest[at..].trim_ascii_start();
    }
    out.extend_from_slice(rest);
}

fn push_string(out: &mut Vec<u8>, text: &str) {
    push_json(out, text);
}

fn push_json(out: &mut Vec<u8>, value: &(impl serde::Serialize + ?Sized)) {
    serde_json::to_writer(out, value).expect("strings and numbers always serialize to memory");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_request() {
        let line = br#"{"custom_id": "r-1", "method": "POST", "url": "/v1/embeddings", "body": {"model": "m"}, "x": 1}"#;
        let read = read(line).unwrap();
        assert_eq!(read.custom_id.as_deref(), Some("r-1"));
        assert_eq!(read.operation, Operation::Embeddings);
        assert_eq!(&line[read.body], br#"{"model": "m"}"#);
    }

    #[test]
    fn bad_lines() {
        for (line, param, message) in [
            (r#"{"url":"/v1/embeddings"}"#, Some("body"), "missing"),
            (r#"{"url":"/v1/embeddings","body":[]}"#, Some("body"), "must be a JSON object"),
            (r#"{"body":{}}"#, Some("url"), "missing"),
            (r#"{"url":"https://x/v1/embeddings","body":{}}"#, Some("url"), "must be one of"),
            (r#"{"url":"file:///etc/passwd","body":{}}"#, Some("url"), "/v1/chat/completions"),
            (r#"{"method":"GET","url":"/v1/embeddings","body":{}}"#, Some("method"), "POST"),
            (r#"{"custom_id":7,"url":"/v1/embeddings","body":{}}"#, Some("custom_id"), "string"),
            (r#"{"custom_id":"","url":"/v1/embeddings","body":{}}"#, Some("custom_id"), "empty"),
            (r#"{"body":{},"body":{}}"#, None, "duplicate field `body` at line 1 column 17"),
            (r#"{"body":{}"#, None, "line 1 column 10"),
            ("[]", None, "must be a JSON object"),
            ("", None, "is empty"),
        ] {
            let error = read(line.as_bytes()).unwrap_err();
            assert_eq!(error.param(), param, "{line}");
            assert!(error.message().contains(message), "{line}: {}", error.message());
        }
    }

    #[test]
    fn golden_lines() {
        let mut out = Vec::new();
        let response = Response {
            id: "batch_req_1",
            custom_id: "request-\"1\"",
            status: 200,
            request_id: "req_1",
            body: b" {\r\n  \"a\": \"x y\\n\",\n\n  \"b\": 1\n}\n",
        };
        write_response(&mut out, &response);
        write_failure(&mut out, "batch_req_3", "request-3", "batch_expired", "too late");
        let expected = concat!(
            r#"{"id":"batch_req_1","custom_id":"request-\"1\"","response":{"status_code":200,"request_id":"req_1","body":{"a": "x y\n","b": 1}},"error":null}"#,
            "\n",
            r#"{"id":"batch_req_3","custom_id":"request-3","response":null,"error":{"code":"batch_expired","message":"too late"}}"#,
            "\n",
        );
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
