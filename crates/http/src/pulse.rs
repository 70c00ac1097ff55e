//! What one connection is doing now, told by its socket and its calls, read by its driver.
//!
//! *Why:* hyper's own header timer also runs while a kept-alive connection waits for its next
//! request, so ten seconds for a head and sixty for idling cannot both be had from it; and it has
//! no timer at all for a caller that stops reading. One lock taken a few times per request buys
//! every clock of a connection with a single timer that is hardly ever moved.

use crate::Options;
use parking_lot::Mutex;
use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;

/// How long a connection that was refused mid-body is still read and discarded, so that the
/// refusal reaches the caller instead of being destroyed by a reset (RFC 9112 §9.6).
const LINGER: Duration = Duration::from_secs(3);
/// Longest head of a request, the request line included.
pub(crate) const MAX_HEAD_BYTES: usize = 64 << 10;
/// What the record of a head may keep allocated between requests.
const KEEP_HEAD_BYTES: usize = 4 << 10;

/// The state of one connection.
#[derive(Debug)]
pub(crate) struct Pulse {
    state: Mutex<State>,
    flushes: AtomicU64,
    http2: bool,
    peer: Option<IpAddr>,
}

#[derive(Debug)]
struct State {
    in_flight: u32,
    answered: bool,
    waiting_since: Instant,
    head_since: Option<Instant>,
    stalled_since: Option<Instant>,
    lingering_since: Option<Instant>,
    linger: bool,
    in_body: bool,
    /// The bytes of the head being read, up to [`MAX_HEAD_BYTES`], as the caller sent them.
    head: Vec<u8>,
}

/// A clock of the connection that runs out if nothing happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clock {
    /// The head of a request, or the very first byte.
    Header,
    /// The next request on a kept-alive connection.
    Idle,
    /// The caller does not read.
    Write,
    /// The caller was refused and still sends.
    Linger,
}

impl Pulse {
    /// A connection opened `since`.
    pub(crate) fn new(since: Instant, http2: bool, peer: Option<IpAddr>) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                in_flight: 0,
                answered: http2,
                waiting_since: since,
                head_since: None,
                stalled_since: None,
                lingering_since: None,
                linger: false,
                in_body: false,
                head: Vec::new(),
            }),
            flushes: AtomicU64::new(0),
            http2,
            peer,
        })
    }

    /// The address at the other end, where there is a network between.
    pub(crate) const fn peer(&self) -> Option<IpAddr> {
        self.peer
    }

    /// Whether this is an HTTP/2 connection.
    pub(crate) const fn is_http2(&self) -> bool {
        self.http2
    }

    /// The clock that runs out next, and when.
    pub(crate) fn deadline(&self, options: &Options) -> Option<(Instant, Clock)> {
        let state = self.state.lock();
        if let Some(since) = state.lingering_since {
            return Some((since + LINGER, Clock::Linger));
        }
        if let Some(since) = state.stalled_since {
            return Some((since + options.write_timeout, Clock::Write));
        }
        if state.in_flight > 0 {
            return None;
        }
        Some(match state.head_since {
            Some(since) => (since + options.header_timeout, Clock::Header),
            None if state.answered => (state.waiting_since + options.idle_timeout, Clock::Idle),
            None => (state.waiting_since + options.header_timeout, Clock::Header),
        })
    }

    /// Starts the idle clock again, when the connection was told to close and may take a moment.
    pub(crate) fn restart(&self) {
        self.state.lock().waiting_since = Instant::now();
    }

    /// The socket read `bytes`.
    pub(crate) fn read(&self, bytes: &[u8]) {
        if self.http2 {
            return;
        }
        let mut state = self.state.lock();
        if state.in_flight == 0 && state.head_since.is_none() {
            state.head_since = Some(Instant::now());
        }
        if !state.in_body {
            let room = MAX_HEAD_BYTES.saturating_sub(state.head.len());
            state.head.extend_from_slice(&bytes[..bytes.len().min(room)]);
        }
    }

    /// The socket takes no bytes.
    pub(crate) fn stalled(&self) {
        self.state.lock().stalled_since = Some(Instant::now());
    }

    /// The socket took bytes. While an answer that is complete on our side leaves slowly, the
    /// connection is not idle.
    pub(crate) fn wrote(&self) {
        let mut state = self.state.lock();
        state.stalled_since = None;
        if state.in_flight == 0 {
            state.waiting_since = Instant::now();
        }
    }

    /// Everything written so far has left.
    pub(crate) fn flushed(&self) {
        self.flushes.fetch_add(1, Ordering::Relaxed);
    }

    /// How often everything written had left.
    pub(crate) fn flushes(&self) -> u64 {
        self.flushes.load(Ordering::Relaxed)
    }

    /// A call starts; the connection is busy until the returned guard is dropped.
    pub(crate) fn begin(self: &Arc<Self>, has_body: bool, chunked: bool) -> Busy {
        let mut state = self.state.lock();
        state.in_flight += 1;
        state.head_since = None;
        state.in_body = has_body && !self.http2;
        let two_lengths = chunked && names_content_length(&state.head);
        let bare_line_end = has_bare_line_end(&state.head);
        if state.head.capacity() > KEEP_HEAD_BYTES {
            state.head = Vec::new();
        }
        state.head.clear();
        Busy { pulse: Arc::clone(self), two_lengths, bare_line_end }
    }

    /// The body of the call has been read to its end.
    pub(crate) fn body_ended(&self) {
        self.state.lock().in_body = false;
    }

    /// Whether bytes of the request's body may still come. (On HTTP/2 it does not matter.)
    pub(crate) fn is_body_unread(&self) -> bool {
        self.state.lock().in_body
    }

    /// The caller may still be sending when the connection is closed.
    pub(crate) fn linger(&self) {
        self.state.lock().linger = true;
    }

    /// Whether to read on after closing our side, and from when.
    pub(crate) fn lingers(&self) -> bool {
        let mut state = self.state.lock();
        if state.linger && state.lingering_since.is_none() {
            state.lingering_since = Some(Instant::now());
        }
        state.linger
    }
}

/// Held from the head of a request to the last byte of its answer.
#[derive(Debug)]
pub(crate) struct Busy {
    pulse: Arc<Pulse>,
    /// The head had both a `Content-Length` and a `Transfer-Encoding`.
    ///
    /// hyper removes the former before a service can see it (and closes the connection after the
    /// answer), so it is looked for in the bytes themselves. Requests sent in a burst before any
    /// answer are the exception: of theirs only the first is looked at.
    pub(crate) two_lengths: bool,
    /// A line of the head ended in a line feed without its carriage return, which hyper takes and
    /// others do not. As above, of a burst only the first head is looked at.
    pub(crate) bare_line_end: bool,
}

impl Busy {
    /// The connection it is on.
    pub(crate) const fn pulse(&self) -> &Arc<Pulse> {
        &self.pulse
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut state = self.pulse.state.lock();
        state.in_flight -= 1;
        state.answered = true;
        state.in_body = false;
        if state.in_flight == 0 {
            state.waiting_since = Instant::now();
        }
    }
}

/// Whether the head at the start of `bytes` has a `Content-Length` line.
fn names_content_length(bytes: &[u8]) -> bool {
    const NAME: &[u8] = b"content-length:";
    bytes[start_of_head(bytes)..]
        .split(|byte| *byte == b'\n')
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line))
        .take_while(|line| !line.is_empty())
        .any(|line| line.get(..NAME.len()).is_some_and(|name| name.eq_ignore_ascii_case(NAME)))
}

/// Whether a line of the head at the start of `bytes`, the empty one at its end included, ends in
/// a line feed alone.
fn has_bare_line_end(bytes: &[u8]) -> bool {
    let head = &bytes[start_of_head(bytes)..];
    let mut start_of_line = 0;
    for (at, _) in head.iter().enumerate().filter(|(_, byte)| **byte == b'\n') {
        if at == 0 || head[at - 1] != b'\r' {
            return true;
        }
        if at - start_of_line == 1 {
            return false;
        }
        start_of_line = at + 1;
    }
    false
}

/// Empty lines before the request line are allowed (RFC 9112 §2.2).
fn start_of_head(bytes: &[u8]) -> usize {
    bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n')).unwrap_or(bytes.len())
}

#[cfg(test)]
mod tests {
    use super::{has_bare_line_end, names_content_length};

    #[test]
    fn a_content_length_is_found_in_the_head_only() {
        for (bytes, found) in [
            (&b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n"[..], true),
            (b"\r\n\r\nPOST / HTTP/1.1\r\ncontent-LENGTH:3\r\n\r\n", true),
            (b"POST / HTTP/1.1\nContent-Length: 3\n\n", true),
            (b"POST / HTTP/1.1\r\nHost: a\r\n\r\n1\r\nContent-Length: 3\r\n", false),
            (b"POST / HTTP/1.1\r\nX-Content-Length: 3\r\n\r\n", false),
            (b"", false),
        ] {
            assert_eq!(names_content_length(bytes), found, "{}", String::from_utf8_lossy(bytes));
        }
    }
    #[test]
    fn a_bare_line_feed_is_found_in_the_head_only() {
        for (bytes, found) in [
            (&b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..], false),
            (b"\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", false),
            (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n{\n}", false),
            (b"GET / HTTP/1.1\nHost: a\r\n\r\n", true),
            (b"GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n", true),
            (b"GET / HTTP/1.1\r\nHost: a\r\n\n", true),
            // The end of a head whose start came in a burst.
            (b"\n", false),
            (b"\nX: b\r\n\r\n", false),
            (b"", false),
        ] {
            assert_eq!(has_bare_line_end(bytes), found, "{}", String::from_utf8_lossy(bytes));
        }
    }
}
