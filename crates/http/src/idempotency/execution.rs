//! One execution of a call with a key: to its last byte, whether its caller is still there or
//! not, recorded as it passes.

use super::Idempotency;
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt as _, stream};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Poll, ready},
};
use tidegate_core::{
    Answer, Body, Call, Ended, Error, Execution, KeptAnswer, Kind, Origin, Reply, Result, Unkept,
};
use tidegate_wire::error_body;
use tokio::sync::{mpsc, oneshot};

/// Streams being recorded may hold so much memory together; what does not fit is not kept.
const MAX_RECORDED_BYTES: usize = 64 << 20;
/// Pieces of a stream that wait for their caller.
const PIECES_AHEAD: usize = 1;

/// From the call to its last byte, whether its caller is still there or not.
pub(super) async fn carry_out(
    answer: &dyn Answer,
    call: Call,
    execution: Box<dyn Execution>,
    recording: Recording,
    caller: oneshot::Sender<Result<Reply>>,
) {
    let mut reply = match answer.call(call).await {
        Ok(reply) => reply,
        Err(error) => {
            let status = error_body::status(&error);
            if is_final(status) {
                let content_type = "application/json".into();
                let body = error_body::encode(&error);
                let answer = KeptAnswer { status, content_type, body };
                keep(execution, Ended::Answered(answer)).await;
            }
            let _ = caller.send(Err(error));
            return;
        }
    };
    let kept = KeptAnswer {
        status: reply.status,
        content_type: reply.content_type.as_str().into(),
        body: Bytes::new(),
    };
    if let Some(whole) = reply.body.as_whole() {
        let ended = recording.of_whole(whole.clone(), kept);
        // Who has the answer can have it again: it is kept before it is given.
        keep(execution, ended).await;
        let _ = caller.send(Ok(reply));
        return;
    }
    let (pieces, passed_on) = mpsc::channel(PIECES_AHEAD);
    let body = std::mem::replace(&mut reply.body, body_of(passed_on));
    let caller = caller.send(Ok(reply)).is_ok().then_some(pieces);
    pass_on(body, caller, kept, execution, recording).await;
}

/// Passes a stream on and records it; its end follows when the record is kept.
async fn pass_on(
    mut body: Body,
    mut caller: Option<mpsc::Sender<Piece>>,
    kept: KeptAnswer,
    execution: Box<dyn Execution>,
    mut recording: Recording,
) {
    while let Some(next) = body.next().await {
        let broke_off = next.is_err();
        if let Ok(chunk) = &next {
            recording.add(chunk);
        }
        if let Some(pieces) = &caller
            && pieces.send(Piece::Next(next)).await.is_err()
        {
            caller = None;
        }
        if broke_off {
            return;
        }
        if caller.is_none() && recording.too_long {
            // Nobody will ever read the rest.
            break;
        }
    }
    // Settles the call before its end is told.
    drop(body);
    keep(execution, recording.of_stream(kept)).await;
    if let Some(pieces) = caller {
        let _ = pieces.send(Piece::End).await;
    }
}

/// A piece of a stream on its way to the caller.
enum Piece {
    Next(Result<Bytes>),
    /// It is complete: a stream that merely stops must not look so.
    End,
}

fn body_of(mut pieces: mpsc::Receiver<Piece>) -> Body {
    let mut is_over = false;
    Body::stream(stream::poll_fn(move |cx| {
        if is_over {
            return Poll::Ready(None);
        }
        let next = match ready!(pieces.poll_recv(cx)) {
            Some(Piece::Next(next)) => Some(next),
            Some(Piece::End) => None,
            None => Some(Err(lost())),
        };
        is_over = !matches!(next, Some(Ok(_)));
        Poll::Ready(next)
    }))
}

/// The task of a call is gone: it panicked, or was cut.
pub(super) fn lost() -> Error {
    let message = "an error on our side; the operator's log has it under this request's id";
    Error::new(Kind::Internal, Origin::Gateway, message)
}

/// Keeps how a call ended. When that fails the caller has its answer all the same.
async fn keep(execution: Box<dyn Execution>, ended: Ended) {
    if let Err(error) = execution.finish(ended).await {
        let why = error.message();
        tracing::warn!(why, "the answer of a call with an Idempotency-Key is not kept");
    }
}

/// Whether a refusal would come again, so that it is the answer of its key.
const fn is_final(status: u16) -> bool {
    matches!(status, 400..=498) && !matches!(status, 401 | 402 | 408 | 409 | 425 | 429)
}

/// An answer as it passes, up to the length that is kept.
pub(super) struct Recording {
    bytes: BytesMut,
    /// Of the bytes all recordings hold.
    held: usize,
    too_long: bool,
    max_answer: usize,
    recorded: Arc<AtomicUsize>,
}

impl Recording {
    pub(super) fn new(idempotency: &Idempotency) -> Self {
        let Idempotency { max_answer, recorded, .. } = idempotency;
        let (max_answer, recorded) = (*max_answer, Arc::clone(recorded));
        Self { bytes: BytesMut::new(), held: 0, too_long: false, max_answer, recorded }
    }

    fn add(&mut self, chunk: &[u8]) {
        if self.too_long {
            return;
        }
        let all = self.recorded.fetch_add(chunk.len(), Ordering::Relaxed) + chunk.len();
        self.held += chunk.len();
        self.too_long = self.held > self.max_answer || all > MAX_RECORDED_BYTES;
        if self.too_long {
            self.bytes = BytesMut::new();
            self.give_back();
        } else {
            self.bytes.extend_from_slice(chunk);
        }
    }

    fn give_back(&mut self) {
        self.recorded.fetch_sub(std::mem::take(&mut self.held), Ordering::Relaxed);
    }

    /// The end of an answer that was there whole.
    fn of_whole(&self, body: Bytes, kept: KeptAnswer) -> Ended {
        if body.len() > self.max_answer {
            return Ended::Unkept(Unkept::TooLong);
        }
        Ended::Answered(KeptAnswer { body, ..kept })
    }

    /// The end of one that was recorded. Its bytes count until the recording is dropped.
    fn of_stream(&mut self, kept: KeptAnswer) -> Ended {
        if self.too_long {
            return Ended::Unkept(Unkept::TooLong);
        }
        Ended::Answered(KeptAnswer { body: self.bytes.split().freeze(), ..kept })
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        self.give_back();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_core::{Begun, BoxFuture, ReplayKey, Replays};

    #[test]
    fn refusals_that_may_pass_are_not_kept() {
        let kept: Vec<u16> = (100..600).filter(|status| is_final(*status)).collect();
        let not: Vec<u16> = (400..499).filter(|status| !kept.contains(status)).collect();
        assert!(kept.iter().all(|status| (400..499).contains(status)));
        assert_eq!(not, [401, 402, 408, 409, 425, 429]);
    }

    #[test]
    fn recordings_together_are_bounded_and_give_back_what_they_held() {
        let replays = Arc::new(Nobody);
        let idempotency = Idempotency::new(replays, MAX_RECORDED_BYTES);
        let mut first = Recording::new(&idempotency);
        let mut second = Recording::new(&idempotency);
        let half = vec![0; MAX_RECORDED_BYTES / 2 + 1];
        first.add(&half);
        second.add(&half);
        assert!(!first.too_long && second.too_long);
        drop(first);
        assert_eq!(idempotency.recorded.load(Ordering::Relaxed), 0);
        let kept = KeptAnswer { status: 200, content_type: "a".into(), body: Bytes::new() };
        assert_eq!(second.of_stream(kept), Ended::Unkept(Unkept::TooLong));
        assert_eq!(idempotency.recorded.load(Ordering::Relaxed), 0);
    }

    struct Nobody;

    impl Replays for Nobody {
        fn begin(&self, _: ReplayKey) -> BoxFuture<'_, Result<Begun>> {
            Box::pin(std::future::pending())
        }

        fn sweep(&self) -> BoxFuture<'_, Result<()>> {
            Box::pin(std::future::ready(Ok(())))
        }
    }
}
