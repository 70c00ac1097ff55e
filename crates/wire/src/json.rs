//! What the readers of this crate have in common about JSON text.

use serde::de::IgnoredAny;
use tidegate_core::{Error, Kind, Origin, Result};

/// How deep objects and arrays of a caller's body may nest.
pub const MAX_DEPTH: usize = 64;

/// Whether `body` is one whole JSON value in UTF-8, and nothing else.
///
/// About 2 µs per KiB: it walks the text and keeps nothing.
pub fn is_valid(body: &[u8]) -> bool {
    std::str::from_utf8(body).is_ok_and(|text| serde_json::from_str::<IgnoredAny>(text).is_ok())
}

/// The text of a caller's JSON object, checked for what no upstream should be sent.
///
/// # Errors
///
/// [`Kind::InvalidJson`] for an empty body, a byte order mark, bytes that are not UTF-8, and
/// anything that is not an object.
pub(crate) fn object_text<'a>(what: &str, body: &'a [u8]) -> Result<&'a str> {
    if body.starts_with(b"\xef\xbb\xbf") {
        return Err(invalid(format!(
            "{what} starts with a byte order mark (bytes EF BB BF); send the JSON without it"
        )));
    }
    let text = std::str::from_utf8(body).map_err(|error| {
        let (line, column) = position(body, error.valid_up_to());
        invalid(format!("{what} is not UTF-8 at line {line} column {column}; JSON must be UTF-8"))
    })?;
    match text.trim_ascii_start().as_bytes().first() {
        Some(b'{') => Ok(text),
        Some(_) => Err(invalid(format!("{what} must be a JSON object: {{ … }}"))),
        None => Err(invalid(format!("{what} is empty; send a JSON object"))),
    }
}

/// Refuses text that nests deeper than [`MAX_DEPTH`]. The text must be valid JSON.
pub(crate) fn check_depth(what: &str, text: &str) -> Result<()> {
    let bytes = text.as_bytes();
    let (mut depth, mut at) = (0_usize, 0);
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'{' | b'[' => {
                depth += 1;
                if depth > MAX_DEPTH {
                    let (line, column) = position(bytes, at);
                    return Err(invalid(format!(
                        "{what} nests deeper than {MAX_DEPTH} levels at line {line} column {column}"
                    )));
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            b'"' => at = string_end(bytes, at),
            _ => {}
        }
        at += 1;
    }
    Ok(())
}

/// Position of the quote that closes the string opened at `open`.
fn string_end(bytes: &[u8], open: usize) -> usize {
    let mut at = open + 1;
    while let Some(next) = bytes.get(at..).and_then(|rest| memchr::memchr2(b'"', b'\\', rest)) {
        at += next;
        if bytes[at] == b'"' {
            return at;
        }
        at += 2;
    }
    bytes.len()
}

/// Line and column, both from 1 and in bytes, of the byte at `at`.
fn position(bytes: &[u8], at: usize) -> (usize, usize) {
    let before = &bytes[..at];
    let line = memchr::memchr_iter(b'\n', before).count() + 1;
    let column = at - memchr::memrchr(b'\n', before).map_or(0, |newline| newline + 1) + 1;
    (line, column)
}

pub(crate) fn invalid(message: String) -> Error {
    Error::new(Kind::InvalidJson, Origin::Caller, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn validity() {
        assert!(is_valid(br#" {"a":[1,2,{"b":null}]} "#));
        for bad in [&b""[..], b"{", b"{}{}", b"{\"a\":\"\xff\"}", b"<html>", b"{\"a\":01}"] {
            assert!(!is_valid(bad), "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn depth_counts_only_structure() {
        let strings = format!(r#"{{"a":"{}\"[["}}"#, "[".repeat(500));
        assert!(check_depth("it", &strings).is_ok());
        let deep = |levels| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert!(check_depth("it", &deep(MAX_DEPTH)).is_ok());
        let error = check_depth("it", &deep(MAX_DEPTH + 1)).unwrap_err();
        assert_eq!(error.message(), "it nests deeper than 64 levels at line 1 column 65");
    }
}
