//! One HTTP/1.1 connection, driven by the request that uses it.
//!
//! No task and no channel of its own: the request's task writes and reads, so an answer costs one
//! wake-up, its body is looked at where it lies in the buffer, and a dropped request closes its
//! socket there and then.

use crate::{
    head::{self, Body, Head, Next, Parsed},
    target::Stream,
};
use std::{
    future::poll_fn,
    io,
    ops::Range,
    pin::Pin,
    task::{Context, Poll, Waker, ready},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

/// Bytes of a new connection's buffer; it grows when a read fills it.
const FIRST_BUFFER_BYTES: usize = 4 * 1024;
/// Most bytes of an answer's head, and most body bytes read at once.
const MAX_BUFFER_BYTES: usize = 64 * 1024;

/// An open connection.
pub(crate) struct Connection {
    stream: Stream,
    /// Initialized throughout; what was read and not yet used is at `unread`.
    buffer: Vec<u8>,
    unread: Range<usize>,
    body: Body,
    keeps: bool,
    /// When bytes came last.
    pub(crate) read_at: Instant,
}

/// Why no answer came.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The request never left.
    Unsent(String),
    /// It may have.
    Broken(String),
    /// Something came that is no answer.
    Odd(&'static str),
}

/// Why an answer has no end.
#[derive(Debug)]
pub(crate) enum Cut {
    /// The connection broke, in words.
    Off(String),
    /// Its framing is wrong.
    Odd(&'static str),
}

impl Connection {
    pub(crate) fn new(stream: Stream) -> Self {
        Self {
            stream,
            buffer: vec![0; FIRST_BUFFER_BYTES],
            unread: 0..0,
            body: Body::Length(0),
            keeps: true,
            read_at: Instant::now(),
        }
    }

    /// Whether it can take a request, as far as is known here: the last answer was read to its
    /// end, and nothing came since, not even the connection's end. Costs no system call while
    /// nothing did.
    pub(crate) fn is_ready(&mut self) -> bool {
        let mut byte = [0];
        let mut room = ReadBuf::new(&mut byte);
        let cx = &mut Context::from_waker(Waker::noop());
        self.keeps
            && self.unread.is_empty()
            && matches!(self.body.next(&[]), Ok(Next::End { .. }))
            && Pin::new(&mut self.stream).poll_read(cx, &mut room).is_pending()
    }

    /// Sends `request` and waits for the head of its answer.
    pub(crate) async fn exchange(&mut self, request: &[u8]) -> Result<Head, Failure> {
        let mut out = Out { left: request, is_flushed: false, broken: None };
        loop {
            match poll_fn(|cx| self.poll_turn(cx, &mut out)).await {
                Ok(1..) => {}
                Ok(0) => return Err(out.failed(request, "it was closed before an answer".into())),
                Err(error) => return Err(out.failed(request, error.to_string())),
            }
            match head::parse(&self.buffer[self.unread.clone()]) {
                Ok(Some(Parsed { head, len, body, keeps })) => {
                    self.unread.start += len;
                    self.body = body;
                    // Answered before it was sent whole: the rest would be taken for a request.
                    self.keeps = keeps && out.left.is_empty();
                    return Ok(head);
                }
                Ok(None) if self.unread.len() == MAX_BUFFER_BYTES => {
                    return Err(Failure::Odd("the answer's head is longer than 64 KiB"));
                }
                Ok(None) => {}
                Err(why) => return Err(Failure::Odd(why)),
            }
        }
    }

    /// The next piece of an answer's body, never empty, as a range for [`Connection::bytes`];
    /// `None` at its end. The piece is valid until the next call.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Range<usize>>, Cut> {
        loop {
            match self.chunk_at_hand() {
                Ok(Some(Next::Data { len, .. })) => {
                    return Ok(Some(self.unread.start - len..self.unread.start));
                }
                Ok(Some(Next::End { .. })) => return Ok(None),
                Ok(_) => {}
                Err(why) => return Err(Cut::Odd(why)),
            }
            match poll_fn(|cx| self.poll_fill(cx)).await {
                Ok(1..) => {}
                Ok(0) if self.body == Body::UntilClose => {
                    self.body = Body::Length(0);
                    return Ok(None);
                }
                Ok(0) => return Err(Cut::Off("the connection ended inside the answer".into())),
                Err(error) => return Err(Cut::Off(error.to_string())),
            }
        }
    }

    /// Whether the body has come to its end; needs no more bytes to be read to say so.
    pub(crate) fn is_at_end(&mut self) -> bool {
        let mut ahead = self.body;
        let bytes = &self.buffer[self.unread.clone()];
        let Ok(Next::End { skip }) = ahead.next(bytes) else { return false };
        self.body = ahead;
        self.unread.start += skip;
        true
    }

    /// The piece last told by [`Connection::chunk`].
    pub(crate) fn bytes(&self, piece: Range<usize>) -> &[u8] {
        &self.buffer[piece]
    }

    fn chunk_at_hand(&mut self) -> Result<Option<Next>, &'static str> {
        let next = self.body.next(&self.buffer[self.unread.clone()])?;
        let (Next::Data { skip, .. } | Next::More { skip } | Next::End { skip }) = next;
        self.unread.start += skip;
        if let Next::Data { len, .. } = next {
            self.unread.start += len;
        }
        Ok(Some(next))
    }

    /// Writes what is left of the request, and reads: a server may answer before it has read all.
    fn poll_turn(&mut self, cx: &mut Context<'_>, out: &mut Out<'_>) -> Poll<io::Result<usize>> {
        if !out.is_flushed
            && let Poll::Ready(Err(error)) = self.poll_write(cx, out)
        {
            // It may have said why before it hung up.
            out.is_flushed = true;
            out.broken = Some(error);
        }
        self.poll_fill(cx)
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, out: &mut Out<'_>) -> Poll<io::Result<()>> {
        while !out.left.is_empty() {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, out.left))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => out.left = &out.left[written..],
            }
        }
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        out.is_flushed = true;
        Poll::Ready(Ok(()))
    }

    /// Reads once; 0 at the connection's end.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.unread.is_empty() {
            self.unread = 0..0;
        } else if self.unread.end == self.buffer.len() {
            self.buffer.copy_within(self.unread.clone(), 0);
            self.unread = 0..self.unread.len();
        }
        if self.unread.end == self.buffer.len() {
            let len = (self.buffer.len() * 2).min(MAX_BUFFER_BYTES);
            self.buffer.resize(len, 0);
        }
        let mut room = ReadBuf::new(&mut self.buffer[self.unread.end..]);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut room))?;
        let (read, was_filled) = (room.filled().len(), room.remaining() == 0);
        if read > 0 {
            self.read_at = Instant::now();
        }
        self.unread.end += read;
        if was_filled && self.buffer.len() < MAX_BUFFER_BYTES {
            self.buffer.resize(self.buffer.len() * 2, 0);
        }
        Poll::Ready(Ok(read))
    }
}

/// A request being written.
struct Out<'a> {
    left: &'a [u8],
    is_flushed: bool,
    broken: Option<io::Error>,
}

impl Out<'_> {
    fn failed(self, request: &[u8], why: String) -> Failure {
        let why = self.broken.map_or(why, |error| error.to_string());
        if self.left.len() == request.len() { Failure::Unsent(why) } else { Failure::Broken(why) }
    }
}
