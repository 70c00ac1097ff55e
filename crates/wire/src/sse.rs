//! Looks at a stream of server-sent events while it passes.
//!
//! # Why
//!
//! The gateway forwards an upstream's chunks as they arrive; it only needs to see whether an
//! event is an error, tells the usage, or ends the stream. Chunks end anywhere, also between CR
//! and LF or inside a character, so the scanner keeps what is unfinished. Bytes are never
//! decoded: lines are split at CR, LF or CRLF and nothing else.
//!
//! Source: WHATWG HTML, §9.2.6 "Interpreting an event stream".

use std::ops::Range;
use tidegate_core::{Error, Kind, Origin, Result};

/// Longest event in bytes, unless told otherwise: 1 MiB.
pub const MAX_EVENT_BYTES: usize = 1024 * 1024;

/// Buffers grown beyond this by one long event are given back.
const KEPT_BYTES: usize = 16 * 1024;

/// Finds the events of a stream, chunk by chunk.
#[derive(Debug)]
pub struct Scanner {
    /// Start of a line whose end has not arrived.
    line: Vec<u8>,
    /// Data lines of the event so far, joined by LF.
    data: Vec<u8>,
    has_data: bool,
    /// A CR ended the last line: an LF right behind it belongs to it.
    after_cr: bool,
    /// No line has been completed yet: a byte order mark may stand before it.
    at_start: bool,
    /// A field has come since the last empty line: an event has begun. Comments are no fields.
    is_open: bool,
    is_broken: bool,
    max_event_bytes: usize,
}

impl Default for Scanner {
    fn default() -> Self {
        Self::new(MAX_EVENT_BYTES)
    }
}

impl Scanner {
    /// A scanner that refuses events longer than `max_event_bytes`.
    pub const fn new(max_event_bytes: usize) -> Self {
        Self {
            line: Vec::new(),
            data: Vec::new(),
            has_data: false,
            after_cr: false,
            at_start: true,
            is_open: false,
            is_broken: false,
            max_event_bytes,
        }
    }

    /// Looks at the next chunk and gives the data of each event completed by it to `on_event`.
    ///
    /// # Errors
    ///
    /// [`Kind::Upstream`] when an event (or a comment) is longer than allowed; from then on
    /// every push fails.
    pub fn push(&mut self, chunk: &[u8], mut on_event: impl FnMut(&[u8])) -> Result<()> {
        self.scan(chunk, |data, _| on_event(data)).map(|_| ())
    }

    /// As [`Scanner::push`], also telling where in the chunk each event stands, from 0 when it
    /// began in an earlier one. Gives back the length of what belongs to no unfinished event.
    pub(crate) fn scan(
        &mut self,
        chunk: &[u8],
        mut on_event: impl FnMut(&[u8], Range<usize>),
    ) -> Result<usize> {
        if self.is_broken {
            return Err(too_long(self.max_event_bytes));
        }
        let (mut rest, mut settled) = (chunk, 0);
        if self.after_cr && !rest.is_empty() {
            self.after_cr = false;
            rest = rest.strip_prefix(b"\n").unwrap_or(rest);
            settled = if self.is_open { 0 } else { chunk.len() - rest.len() };
        }
        while let Some(end) = memchr::memchr2(b'\n', b'\r', rest) {
            let (line, behind) = (&rest[..end], &rest[end + 1..]);
            self.check_room(line.len())?;
            rest = behind;
            if chunk[chunk.len() - behind.len() - 1] == b'\r' {
                self.after_cr = behind.is_empty();
                rest = behind.strip_prefix(b"\n").unwrap_or(behind);
            }
            let place = settled..chunk.len() - rest.len();
            let end = place.end;
            self.end_line(line, &mut |data: &[u8]| on_event(data, place.clone()));
            settled = if self.is_open { settled } else { end };
        }
        self.check_room(rest.len())?;
        self.line.extend_from_slice(rest);
        Ok(settled)
    }

    /// Takes the end of the stream for the end of a last event that lacks its empty line.
    ///
    /// The standard drops such an event; servers that forget the line after `[DONE]` exist.
    pub fn finish(&mut self, mut on_event: impl FnMut(&[u8])) {
        if !self.line.is_empty() {
            self.end_line(b"", &mut on_event);
        }
        self.end_event(&mut on_event);
    }

    /// Whether an event has begun and is not complete; a comment is none.
    pub fn is_inside_event(&self) -> bool {
        self.has_data || self.line.starts_with(b"data")
    }

    fn check_room(&mut self, more_bytes: usize) -> Result<()> {
        if self.line.len() + self.data.len() + more_bytes > self.max_event_bytes {
            self.is_broken = true;
            return Err(too_long(self.max_event_bytes));
        }
        Ok(())
    }

    /// `rest` completes the line whose start may be kept.
    fn end_line(&mut self, rest: &[u8], on_event: &mut impl FnMut(&[u8])) {
        if self.line.is_empty() {
            return self.take_line(rest, on_event);
        }
        let mut line = std::mem::take(&mut self.line);
        line.extend_from_slice(rest);
        self.take_line(&line, on_event);
        line.clear();
        line.shrink_to(KEPT_BYTES);
        self.line = line;
    }

    fn take_line(&mut self, mut line: &[u8], on_event: &mut impl FnMut(&[u8])) {
        if self.at_start {
            self.at_start = false;
            line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        }
        if line.is_empty() {
            self.is_open = false;
            return self.end_event(on_event);
        }
        self.is_open |= !line.starts_with(b":");
        let Some(field) = line.strip_prefix(b"data") else { return };
        let value = match field.strip_prefix(b":") {
            Some(value) => value.strip_prefix(b" ").unwrap_or(value),
            None if field.is_empty() => field,
            None => return,
        };
        if self.has_data {
            self.data.push(b'\n');
        }
        self.has_data = true;
        self.data.extend_from_slice(value);
    }

    fn end_event(&mut self, on_event: &mut impl FnMut(&[u8])) {
        if self.has_data {
            on_event(&self.data);
            self.has_data = false;
            self.data.clear();
            self.data.shrink_to(KEPT_BYTES);
        }
    }
}

pub(crate) fn too_long(max_event_bytes: usize) -> Error {
    Error::new(
        Kind::Upstream,
        Origin::Upstream,
        format!("an event of the upstream's stream is longer than {max_event_bytes} bytes"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(chunks: &[&[u8]]) -> Vec<String> {
        let mut scanner = Scanner::default();
        let mut events = Vec::new();
        let mut keep = |data: &[u8]| events.push(String::from_utf8_lossy(data).into_owned());
        for chunk in chunks {
            scanner.push(chunk, &mut keep).unwrap();
        }
        scanner.finish(&mut keep);
        events
    }

    /// The same events however the stream is cut: into two at every byte, and into single bytes.
    fn check(stream: &[u8], expected: &[&str]) {
        assert_eq!(scan(&[stream]), expected);
        for cut in 0..=stream.len() {
            assert_eq!(scan(&[&stream[..cut], &stream[cut..]]), expected, "cut at {cut}");
            assert_eq!(scan(&[&stream[..cut], b"", &stream[cut..]]), expected, "cut at {cut}");
        }
        let single: Vec<&[u8]> = stream.chunks(1).collect();
        assert_eq!(scan(&single), expected);
    }

    #[test]
    fn every_line_ending() {
        check(b"data: a\n\ndata: b\n\n", &["a", "b"]);
        check(b"data: a\r\n\r\ndata: b\r\n\r\n", &["a", "b"]);
        check(b"data: a\r\rdata: b\r\r", &["a", "b"]);
        check(b"data: a\r\n\ndata: b\n\r\n", &["a", "b"]);
    }

    #[test]
    fn data_of_many_lines() {
        check("data: a\ndata:b\ndata\ndata:  ü\n\n".as_bytes(), &["a\nb\n\n ü"]);
    }

    #[test]
    fn other_lines_are_skipped() {
        check(
            b": ping\n\nevent: x\nid: 1\nretry: 5\n\n:\ndatabase: no\ndata: a\nevent: y\n\n",
            &["a"],
        );
    }

    #[test]
    fn a_byte_order_mark_stands_before_the_first_line_only() {
        check(b"\xef\xbb\xbfdata: a\n\n\xef\xbb\xbfdata: b\n\n", &["a"]);
    }

    #[test]
    fn a_last_event_without_its_empty_line_counts() {
        check(b"data: a\n\ndata: [DONE]", &["a", "[DONE]"]);
        check(b"data: a\n\ndata: [DONE]\n", &["a", "[DONE]"]);
    }

    #[test]
    fn empty_data_is_an_event() {
        check(b"data:\n\ndata\n\n", &["", ""]);
    }

    #[test]
    fn an_event_begins_with_its_data() {
        let mut scanner = Scanner::default();
        for (piece, is_inside) in [
            (": pi", false),
            ("ng\n\n", false),
            ("event: x\n", false),
            ("data: ", true),
            ("a\n", true),
            ("id: 1\n", true),
            ("\n", false),
        ] {
            scanner.push(piece.as_bytes(), |_| ()).unwrap();
            assert_eq!(scanner.is_inside_event(), is_inside, "{piece:?}");
        }
    }

    #[test]
    fn events_are_bounded() {
        for stream in [&b"data: 12345678901234567890"[..], b": 90123456789012345678901\n"] {
            let mut scanner = Scanner::new(20);
            let mut sent = 0;
            let error = loop {
                match scanner.push(&stream[sent..=sent], |_| ()) {
                    Ok(()) => sent += 1,
                    Err(error) => break error,
                }
            };
            assert_eq!((error.kind(), sent), (Kind::Upstream, 20));
            assert!(scanner.push(b"\n", |_| ()).is_err());
        }
        let mut scanner = Scanner::new(20);
        let lines = "data: 1\n".repeat(30);
        assert!(scanner.push(lines.as_bytes(), |_| ()).is_err());
    }
}
