//! Requests as the bytes that are written: made before the run, sent as they are.

use crate::bodies::{Bodies, Pieces};
use bytes::Bytes;
use http::{HeaderMap, Uri};
use std::io::Write;

/// Requests, sent in turn.
pub(crate) struct Requests {
    /// All of a head but the length of the body.
    head: Vec<u8>,
    turns: Vec<Turn>,
}

enum Turn {
    /// Always the same: written from where it lies.
    Whole { bytes: Bytes, body_at: usize },
    /// With the request's number in it.
    Numbered(Pieces),
}

impl Requests {
    /// `POST` of each of `bodies` to `path`.
    pub(crate) fn new(path: &Uri, headers: &HeaderMap, bodies: Bodies) -> Self {
        let mut head = head("POST", path, headers);
        head.extend_from_slice(b"content-length: ");
        let turns = bodies.0.into_iter().map(|pieces| match pieces.whole() {
            None => Turn::Numbered(pieces),
            Some(body) => {
                let mut bytes = Vec::with_capacity(head.len() + body.len() + 24);
                bytes.extend_from_slice(&head);
                end_head(&mut bytes, body.len());
                let body_at = bytes.len();
                bytes.extend_from_slice(body);
                Turn::Whole { bytes: bytes.into(), body_at }
            }
        });
        let turns = turns.collect();
        Self { head, turns }
    }

    /// Request `number` for HTTP/1.1, and the length of its body; `scratch` is written when the
    /// number is in it.
    pub(crate) fn bytes<'a>(&'a self, number: u64, scratch: &'a mut Vec<u8>) -> (&'a [u8], usize) {
        match self.turn(number) {
            Turn::Whole { bytes, body_at } => (bytes, bytes.len() - body_at),
            Turn::Numbered(pieces) => {
                scratch.clear();
                scratch.extend_from_slice(&self.head);
                let len = pieces.len(number);
                end_head(scratch, len);
                pieces.write(number, scratch);
                (scratch, len)
            }
        }
    }

    /// The body of request `number`; shared unless the number is in it.
    pub(crate) fn body(&self, number: u64) -> Bytes {
        match self.turn(number) {
            Turn::Whole { bytes, body_at } => bytes.slice(body_at..),
            Turn::Numbered(pieces) => {
                let mut body = Vec::with_capacity(pieces.len(number));
                pieces.write(number, &mut body);
                body.into()
            }
        }
    }

    fn turn(&self, number: u64) -> &Turn {
        &self.turns[(number % self.turns.len() as u64) as usize]
    }
}

/// The request line and the headers, each with its line end; the empty line is still missing.
pub(crate) fn head(method: &str, path: &Uri, headers: &HeaderMap) -> Vec<u8> {
    let mut head = format!("{method} {path} HTTP/1.1\r\n").into_bytes();
    for (name, value) in headers {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            head.extend_from_slice(part);
        }
    }
    head
}

fn end_head(into: &mut Vec<u8>, body_len: usize) {
    // Writing to a vector cannot fail.
    let _ = write!(into, "{body_len}\r\n\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Shape;
    use http::header::{ACCEPT, HeaderValue};
    use tidegate_core::Operation;

    fn requests(prompt: &str) -> Requests {
        let shape = Shape {
            operation: Operation::Embeddings,
            model: "m".into(),
            overrides_model: false,
            max_tokens: None,
            stream: false,
        };
        let headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static("*/*"))]);
        Requests::new(&Uri::from_static("/v1/x"), &headers, Bodies::prompt(prompt, &shape))
    }

    #[test]
    fn bytes_are_those_of_the_protocol() {
        let (plain, numbered) = (requests("hi"), requests("{{number}}"));
        let mut scratch = Vec::new();
        for (requests, number, body) in [
            (&plain, 7, r#"{"input":"hi","model":"m"}"#),
            (&numbered, 7, r#"{"input":"7","model":"m"}"#),
            (&numbered, 10, r#"{"input":"10","model":"m"}"#),
        ] {
            let head = "POST /v1/x HTTP/1.1\r\naccept: */*\r\ncontent-length: ";
            let expected = format!("{head}{}\r\n\r\n{body}", body.len());
            let (bytes, len) = requests.bytes(number, &mut scratch);
            assert_eq!((str::from_utf8(bytes).unwrap(), len), (&*expected, body.len()));
            assert_eq!(requests.body(number), body);
        }
        let (one, other) = (plain.body(1), plain.body(2));
        assert_eq!(one.as_ptr(), other.as_ptr(), "what is the same is shared");
    }
}
