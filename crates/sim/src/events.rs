//! A stream of events: one per token, each when its time has come.

use crate::{
    Distribution, Faults, Outcome, Phase, Sim,
    body::{Broken, FLUSH, Pause},
    chance::Chance,
    faults::Fault,
    generation::{Dialect, Generation},
    observation::Observation,
    slots::Slot,
    tokens,
};
use bytes::Bytes;
use std::{
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio::time::Instant;

/// An event no parser takes.
const MALFORMED: &[u8] =
    b"data: {\"id\":\"broken\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\n\n";

/// A stream being sent.
///
/// Token times are added to the time the last one was due, not to the time it was sent, so
/// timers that fire late do not make a stream longer.
#[derive(Debug)]
pub(crate) struct Events {
    generation: Generation,
    faults: Arc<Faults>,
    slow: Distribution,
    fault: Option<Fault>,
    chance: Chance,
    stage: Stage,
    /// Bytes of each choice that are sent.
    sent: Vec<usize>,
    /// The choice whose token is next.
    choice: usize,
    /// The token before which a fault strikes.
    strike: u32,
    sequence: u64,
    first_token: Instant,
    due: Instant,
    pause: Pause,
    seen: Observation,
    _slot: Slot,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Stage {
    Opening,
    Tokens,
    Closing,
    Hanging,
    Breaking,
    Over,
}

enum Step {
    Send(Vec<u8>),
    Again,
    Hang,
    Break,
    End,
}

impl Events {
    pub(crate) fn new(
        generation: Generation,
        faults: Arc<Faults>,
        slow: Distribution,
        fault: Option<Fault>,
        mut chance: Chance,
        seen: Observation,
        slot: Slot,
    ) -> Self {
        let now = Instant::now();
        let wait = seen.sim().options.ttft.draw(&mut chance).mul_f64(faults.slowdown);
        let first_token = now + wait;
        // OpenAI's responses endpoint says `created` at once, the others nothing before a token.
        let is_early = generation.dialect == Dialect::Responses;
        Self {
            sent: vec![0; generation.choices.len()],
            strike: (generation.completion_tokens() / 2).max(1),
            due: if is_early { now } else { first_token },
            generation,
            faults,
            slow,
            fault,
            chance,
            stage: Stage::Opening,
            choice: 0,
            sequence: 0,
            first_token,
            pause: Pause::default(),
            seen,
            _slot: slot,
        }
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Broken>>> {
        loop {
            if self.stage != Stage::Over {
                ready!(self.pause.until(self.due, cx));
            }
            match self.step() {
                Step::Again => {}
                Step::Send(bytes) => {
                    self.seen.sent(bytes.len());
                    if !self.slow.is_zero() {
                        self.due = self.due.max(Instant::now()) + self.slow.draw(&mut self.chance);
                    }
                    return Poll::Ready(Some(Ok(bytes.into())));
                }
                // Nobody wakes this task again: it ends when the caller goes away.
                Step::Hang => return Poll::Pending,
                Step::Break => {
                    self.seen.end();
                    return Poll::Ready(Some(Err(Broken)));
                }
                Step::End => return Poll::Ready(None),
            }
        }
    }

    fn step(&mut self) -> Step {
        match self.stage {
            Stage::Opening => {
                self.stage = Stage::Tokens;
                self.due = self.first_token;
                let mut out = Vec::with_capacity(512);
                self.generation.opening(&mut out, &mut self.sequence);
                if out.is_empty() { Step::Again } else { Step::Send(out) }
            }
            Stage::Tokens | Stage::Closing if self.is_struck() => self.strike(),
            Stage::Tokens => self.token(),
            Stage::Closing => {
                let mut out = Vec::with_capacity(1024);
                self.generation.closing(&mut out, &mut self.sequence);
                self.over();
                Step::Send(out)
            }
            Stage::Hanging => Step::Hang,
            Stage::Breaking => Step::Break,
            Stage::Over => Step::End,
        }
    }

    /// Sends the next token and moves to the one after it.
    fn token(&mut self) -> Step {
        let Some(text) =
            self.generation.choices.get(self.choice).map(|choice| choice.text.as_str())
        else {
            self.next_step();
            return Step::Again;
        };
        let rest = &text[self.sent[self.choice]..];
        let length = tokens::first(rest);
        if length == 0 {
            self.choice += 1;
            return Step::Again;
        }
        let mut out = Vec::with_capacity(320);
        self.generation.sent += 1;
        self.generation.delta(self.choice, &rest[..length], &mut out, &mut self.sequence);
        self.sent[self.choice] += length;
        self.seen.entry.phase = Phase::Answering;
        self.seen.entry.completion_tokens += 1;
        self.seen.entry.chunks += 1;
        self.choice += 1;
        if self.choice == self.generation.choices.len() {
            self.next_step();
        }
        Step::Send(out)
    }

    /// Every choice has had its token: the next ones come after the inter-token time.
    fn next_step(&mut self) {
        let is_over = self
            .generation
            .choices
            .iter()
            .zip(&self.sent)
            .all(|(choice, sent)| *sent == choice.text.len());
        if is_over {
            self.stage = Stage::Closing;
            return;
        }
        self.choice = 0;
        let sim = self.seen.sim();
        let time = sim.options.itl.draw(&mut self.chance);
        self.due += time.mul_f64(token_factor(sim, &self.faults));
    }

    fn is_struck(&self) -> bool {
        let strikes = matches!(
            self.fault,
            Some(
                Fault::StallMid
                    | Fault::Truncate
                    | Fault::Unterminated
                    | Fault::Malformed
                    | Fault::ErrorEvent
            )
        );
        strikes && self.seen.entry.chunks >= self.strike
    }

    fn strike(&mut self) -> Step {
        let Some(fault) = self.fault.take() else { return Step::Again };
        self.seen.met(Outcome::Fault, fault.name());
        match fault {
            Fault::StallMid => {
                self.stage = Stage::Hanging;
                Step::Again
            }
            Fault::Truncate => {
                self.stage = Stage::Breaking;
                self.due = Instant::now() + FLUSH;
                Step::Again
            }
            Fault::Malformed => Step::Send(MALFORMED.to_vec()),
            Fault::ErrorEvent => {
                let mut out = Vec::with_capacity(256);
                self.generation.error(&mut out, &mut self.sequence);
                self.over();
                Step::Send(out)
            }
            _ => {
                self.over();
                Step::End
            }
        }
    }

    fn over(&mut self) {
        self.stage = Stage::Over;
        self.seen.end();
    }
}

/// What load and faults do to per-token times now.
pub(crate) fn token_factor(sim: &Sim, faults: &Faults) -> f64 {
    let slowdown = sim.options.batch_slowdown;
    if slowdown == 0.0 {
        return faults.slowdown;
    }
    faults.slowdown * sim.slots.batch_factor(slowdown)
}
