//! Bodies of requests: the caller's bytes with our model's name in them, in as few pieces as it pays.

use crate::{compress::Packed, stream_usage::Ask};
use bytes::{BufMut, Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};
use tidegate_core::{Attempt, Result};

/// Bodies shorter than this are sent in one piece: copying them costs less than more frames do.
const ONE_PIECE_BYTES: usize = 64 * 1024;

/// The body of a request, in order.
pub(crate) struct RequestBody {
    pieces: Pieces,
}

/// How a body goes out.
#[derive(Clone, Copy)]
pub(crate) enum Form<'p> {
    /// As the caller sent it, with our model's name, and with what is asked for its stream.
    Plain(Option<Ask>),
    /// The same, compressed.
    Packed(&'p Packed),
}

/// A body in order, those behind the last piece empty.
pub(crate) type Pieces = [Bytes; 4];

impl RequestBody {
    pub(super) fn plain(attempt: &Attempt<'_>, ask: Option<Ask>) -> Self {
        Self { pieces: in_few_pieces(pieces(attempt, ask)) }
    }

    pub(super) fn packed(packed: &Packed) -> Self {
        Self::whole(packed.bytes.clone())
    }

    pub(crate) const fn whole(bytes: Bytes) -> Self {
        Self { pieces: [bytes, Bytes::new(), Bytes::new(), Bytes::new()] }
    }

    fn len(&self) -> usize {
        self.pieces.iter().map(Bytes::len).sum()
    }
}

/// The caller's body with the upstream's model name in it, and with the member that asks for its
/// stream's usage; white space before its brace is left out then.
pub(crate) fn pieces(attempt: &Attempt<'_>, ask: Option<Ask>) -> Pieces {
    let quoted = serde_json::to_vec(attempt.model).expect("strings always serialize");
    let [first, model, rest] = attempt.call.payload.with_model(quoted.into());
    match ask.zip(attempt.call.payload.opening()) {
        Some((ask, opening)) => {
            [Bytes::from_static(ask.opening()), first.slice(opening..), model, rest]
        }
        None => [first, model, rest, Bytes::new()],
    }
}

fn in_few_pieces(pieces: Pieces) -> Pieces {
    let len: usize = pieces.iter().map(Bytes::len).sum();
    if len >= ONE_PIECE_BYTES || len == pieces[0].len() {
        return pieces;
    }
    let mut whole = BytesMut::with_capacity(len);
    pieces.iter().for_each(|piece| whole.put_slice(piece));
    [whole.freeze(), Bytes::new(), Bytes::new(), Bytes::new()]
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = self.pieces.iter_mut().find(|piece| !piece.is_empty());
        Poll::Ready(next.map(|piece| Ok(Frame::data(std::mem::take(piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.len() == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_bodies_are_not_copied() {
        let long = Bytes::from(vec![b'x'; ONE_PIECE_BYTES]);
        let of = |start| {
            let [model, end] = [b"m", b"}"].map(|piece| Bytes::from_static(piece));
            in_few_pieces([start, model, end, Bytes::new()])
        };
        assert_eq!(of(long.clone())[0].as_ptr(), long.as_ptr());
        assert_eq!(of(Bytes::from_static(b"{"))[0], "{m}");
    }
}
