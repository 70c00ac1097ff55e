//! Takes single events out of a stream while it passes.
//!
//! # Why
//!
//! The gateway may ask an upstream for an event that the caller did not: its stream's usage. That
//! one event is cut out, and every other byte goes on as it came. An event may arrive in pieces
//! and is known at its end only, so what is unfinished is held back until then; a comment never is.

use crate::sse::{MAX_EVENT_BYTES, Scanner, too_long};
use bytes::{Bytes, BytesMut};
use std::ops::Range;
use tidegate_core::Result;

/// Passes a stream on without the events that are not wanted.
///
/// # Bounds
///
/// At most one unfinished event is held, and it is refused beyond [`MAX_EVENT_BYTES`], its fields
/// of any name together.
///
/// # Cost
///
/// Nothing is copied of a chunk that begins and ends where events do, unless one is cut out of it.
/// An event in pieces is copied once, with the rest of the chunk that completes it.
#[derive(Debug, Default)]
pub struct Sieve {
    scanner: Scanner,
    /// The start of an unfinished event.
    held: BytesMut,
    /// A CR ended the event cut out last: an LF right behind it belongs to it.
    after_cr: bool,
}

impl Sieve {
    /// Looks at the next chunk, asks of the data of each event completed by it whether it
    /// `passes`, and gives back what goes on: perhaps nothing.
    ///
    /// # Errors
    ///
    /// [`tidegate_core::Kind::Upstream`] when an event is longer than allowed.
    pub fn push(&mut self, chunk: Bytes, mut passes: impl FnMut(&[u8]) -> bool) -> Result<Bytes> {
        let mut cut: Vec<Range<usize>> = Vec::new();
        if std::mem::take(&mut self.after_cr) {
            match chunk.first() {
                None => self.after_cr = true,
                Some(b'\n') => cut.push(0..1),
                Some(_) => {}
            }
        }
        let mut is_held_cut = false;
        let settled = self.scanner.scan(&chunk, |data, place| {
            if !passes(data) {
                is_held_cut |= place.start == 0;
                cut.push(place);
            }
        })?;
        if is_held_cut {
            self.held.clear();
        }
        self.after_cr |= cut
            .last()
            .is_some_and(|place| place.end == chunk.len() && chunk.last() == Some(&b'\r'));
        if self.held.is_empty() && cut.is_empty() && settled == chunk.len() {
            return Ok(chunk);
        }
        // Taken, not split off: what is kept would keep the memory of one long event for the rest of
        // the stream.
        let mut passed =
            if settled == 0 { BytesMut::new() } else { std::mem::take(&mut self.held) };
        let rest = &chunk[settled..];
        if self.held.len() + rest.len() > MAX_EVENT_BYTES {
            return Err(too_long(MAX_EVENT_BYTES));
        }
        self.held.extend_from_slice(rest);
        if passed.is_empty() && cut.is_empty() {
            return Ok(chunk.slice(..settled));
        }
        let mut from = 0;
        for place in cut {
            passed.extend_from_slice(&chunk[from..place.start]);
            from = place.end;
        }
        passed.extend_from_slice(&chunk[from..settled]);
        Ok(passed.freeze())
    }

    /// Takes the end of the stream for the end of a last event that lacks its empty line, and
    /// gives back what was held of it.
    pub fn finish(&mut self, mut passes: impl FnMut(&[u8]) -> bool) -> Bytes {
        let mut all = true;
        self.scanner.finish(|data| all &= passes(data));
        let held = std::mem::take(&mut self.held);
        if all { held.freeze() } else { Bytes::new() }
    }

    /// Whether an event has begun and is not complete.
    pub fn is_inside_event(&self) -> bool {
        self.scanner.is_inside_event()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNWANTED: &[u8] = b"no";

    fn sieve(chunks: &[&[u8]]) -> String {
        let mut sieve = Sieve::default();
        let mut passed = Vec::new();
        for chunk in chunks {
            let chunk = Bytes::copy_from_slice(chunk);
            passed.extend_from_slice(&sieve.push(chunk, |data| data != UNWANTED).unwrap());
        }
        passed.extend_from_slice(&sieve.finish(|data| data != UNWANTED));
        String::from_utf8(passed).unwrap()
    }

    /// The same bytes however the stream is cut: into three at every two bytes, and into single
    /// ones; with every line ending.
    fn check(stream: &str, expected: &str) {
        for line_end in ["\n", "\r\n", "\r"] {
            let stream = stream.replace('\n', line_end);
            let expected = expected.replace('\n', line_end);
            let bytes = stream.as_bytes();
            assert_eq!(sieve(&[bytes]), expected);
            for one in 0..=bytes.len() {
                for two in one..=bytes.len() {
                    let pieces = [&bytes[..one], &bytes[one..two], &bytes[two..]];
                    assert_eq!(sieve(&pieces), expected, "{line_end:?}, cut at {one} and {two}");
                }
            }
            assert_eq!(sieve(&bytes.chunks(1).collect::<Vec<_>>()), expected);
        }
    }

    #[test]
    fn an_event_is_cut_out_and_nothing_else() {
        check("data: a\n\ndata: no\n\ndata: [DONE]\n\n", "data: a\n\ndata: [DONE]\n\n");
        check("data: no\n\ndata: a\n\n", "data: a\n\n");
        check("data: a\n\ndata: no\n\n", "data: a\n\n");
        check("data: no\n\ndata: no\n\ndata: b\n\n", "data: b\n\n");
        check("data: a\n\ndata: b", "data: a\n\ndata: b");
        check("data: a\n\ndata: no", "data: a\n\n");
        check("", "");
    }

    #[test]
    fn its_other_fields_go_with_it_and_comments_around_it_stay() {
        check(
            ": x\n\nid: 1\n: y\nevent: e\ndata: no\n: z\n\n\n: ping\nid: 2\ndata: a\n\n",
            ": x\n\n\n: ping\nid: 2\ndata: a\n\n",
        );
    }

    #[test]
    fn what_is_whole_passes_at_once_and_uncopied() {
        let mut sieve = Sieve::default();
        let mut push = |chunk: &'static str| {
            let chunk = Bytes::from_static(chunk.as_bytes());
            let passed = sieve.push(chunk.clone(), |data| data != UNWANTED).unwrap();
            (
                !passed.is_empty() && passed.as_ptr() == chunk.as_ptr(),
                String::from_utf8(passed.to_vec()).unwrap(),
            )
        };
        let mut check = |chunk, passed: &str, is_shared| {
            assert_eq!(push(chunk), (is_shared, passed.to_owned()), "{chunk:?}");
        };
        check("data: a\n\ndata: b\n\n", "data: a\n\ndata: b\n\n", true);
        check(": ping\n", ": ping\n", true);
        check("data: a\n\nda", "data: a\n\n", true);
        check("ta: b\n", "", false);
        check("\n", "data: b\n\n", false);
        check(": ping\n\n", ": ping\n\n", true);
    }

    #[test]
    fn a_long_event_kept_its_memory_for_the_rest_of_the_stream() {
        let mut sieve = Sieve::default();
        let mut push = |text: String| sieve.push(Bytes::from(text), |_| true).unwrap().len();
        assert_eq!(push(format!("data: {}", "x".repeat(1 << 19))), 0);
        assert_eq!(push("\n\ndata: b".into()), 6 + (1 << 19) + 2);
        assert!(sieve.held.capacity() < 1024, "{}", sieve.held.capacity());
    }

    #[test]
    fn what_is_held_is_bounded() {
        let line = Bytes::from(format!("id: {}\n", "x".repeat(1020)));
        let mut sieve = Sieve::default();
        let end = (0..2048).find_map(|at| sieve.push(line.clone(), |_| true).err().map(|_| at));
        assert_eq!(end, Some(1023));
    }
}
