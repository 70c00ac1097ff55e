//! The bytes of one connection, whatever carries them, with everything told to its [`Pulse`].

use crate::pulse::Pulse;
use bytes::{Buf, Bytes};
use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;

/// What carries the bytes: a plain socket, one under TLS, or anything else (memory). One type, so
/// that hyper is compiled once.
pub(crate) type Carrier = Either<TcpStream, Either<Box<TlsStream<TcpStream>>, Box<dyn Duplex>>>;

/// Reads and writes.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A carrier whose doings are told to a [`Pulse`].
pub(crate) struct Socket {
    carrier: Carrier,
    /// Bytes read while the protocol was being found out.
    first: Bytes,
    pulse: Arc<Pulse>,
    stalled: bool,
    closed: bool,
}

impl Socket {
    pub(crate) const fn new(carrier: Carrier, first: Bytes, pulse: Arc<Pulse>) -> Self {
        Self { carrier, first, pulse, stalled: false, closed: false }
    }

    /// Notes whether a write went through.
    fn wrote<T>(&mut self, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = false;
            self.pulse.wrote();
        } else if !self.stalled {
            self.stalled = true;
            self.pulse.stalled();
        }
        written
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        if self.first.is_empty() {
            ready!(Pin::new(&mut self.carrier).poll_read(cx, buffer))?;
        } else {
            let taken = self.first.len().min(buffer.remaining());
            buffer.put_slice(&self.first[..taken]);
            self.first.advance(taken);
        }
        let read = &buffer.filled()[before..];
        if !read.is_empty() {
            self.pulse.read(read);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.carrier).poll_write(cx, bytes);
        self.wrote(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.carrier).poll_write_vectored(cx, slices);
        self.wrote(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.carrier.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.carrier).poll_flush(cx);
        if flushed.is_ready() {
            self.pulse.flushed();
        }
        // A plain socket has nothing to flush, so only TLS can wait here.
        if flushed.is_pending() || self.stalled {
            return self.wrote(flushed);
        }
        flushed
    }

    /// Closes our side; after a refusal also reads what the caller still sends, until it closes
    /// its side or the driver's clock runs out.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.closed {
            let closed = Pin::new(&mut self.carrier).poll_shutdown(cx);
            ready!(self.wrote(closed))?;
            self.closed = true;
        }
        if !self.pulse.lingers() {
            return Poll::Ready(Ok(()));
        }
        // Yields now and then: a fast sender must not keep the thread.
        for _ in 0..16 {
            let mut scratch = [0; 4096];
            let mut discarded = ReadBuf::new(&mut scratch);
            match ready!(Pin::new(&mut self.carrier).poll_read(cx, &mut discarded)) {
                Ok(()) if !discarded.filled().is_empty() => {}
                Ok(()) | Err(_) => return Poll::Ready(Ok(())),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}
