//! Which row goes next, and when none does.
//!
//! One task drives all rows of a job: a future per row in flight, no spawn, no channel. A row holds its
//! place among those in flight until its record is written, so a kill repeats no more calls than
//! that.

use super::{
    attempt::{Sent, Shared},
    budget::{Admission, Budget},
    echo::Echo,
    equal::{Equals, Turn},
    room::{FEWEST_IN_FLIGHT, MOST_IN_FLIGHT},
    rows::Rows,
    silence::Silence,
};
use crate::{
    End, Failure, Job,
    input::Input,
    job::Prices,
    journal::{Status, Writer},
    request::{BadLine, Request, RequestHash},
    summary::Histogram,
};
use std::{
    collections::{HashSet, VecDeque},
    sync::{Arc, atomic::Ordering},
};
use tidegate_core::{Price, UpstreamState};
use tidegate_wire::request;
use tokio::time::Instant;

/// Equal rows answered between two looks at the calls in flight.
const ECHOES_AT_ONCE: usize = 256;

/// A job under way.
pub(super) struct Dispatch<'a> {
    pub(super) job: &'a Job,
    pub(super) input: &'a Input,
    pub(super) prices: &'a Prices,
    pub(super) shared: Arc<Shared>,
    pub(super) rows: Rows,
    /// Rows to be answered, in working order.
    pub(super) order: &'a [u32],
    pub(super) writer: Writer,
    pub(super) journal: &'a std::path::Path,
    pub(super) equals: Equals,
    pub(super) budget: Budget,
    /// Random word in the ids of the calls.
    pub(super) word: &'a str,
    pub(super) deadline: Option<Instant>,
    pub(super) state: State,
}

/// What changes as rows go and come.
pub(super) struct State {
    pub(super) cursor: usize,
    /// Rows whose turn comes before those at the cursor.
    pub(super) again: VecDeque<u32>,
    /// Rows nobody answered: they go again as soon as anybody answers another. At most the rows of
    /// the job, as is the next.
    pub(super) held: Vec<u32>,
    pub(super) held_before: HashSet<u32>,
    /// Whether the held rows went again without anybody having answered another.
    pub(super) last_chance: bool,
    pub(super) silence: Silence,
    /// Whether nobody is expected to answer those in flight.
    pub(super) is_hopeless: bool,
    pub(super) held_why: String,
    pub(super) echoes: VecDeque<Echo>,
    /// Ends of records that are not written yet.
    pub(super) unwritten: VecDeque<u64>,
    pub(super) stopping: Option<End>,
    /// A stop that is an error of the user's.
    pub(super) failure: Option<Failure>,
    pub(super) model: Option<(Arc<str>, Option<Price>)>,
    pub(super) target: usize,
    pub(super) asked_at: Option<Instant>,
    pub(super) begun: Option<Instant>,
    pub(super) is_warm: bool,
    /// Rows that ended in this run.
    pub(super) ended: u64,
    /// Rows answered in this run, by a call.
    pub(super) answered: u64,
    pub(super) latencies: Histogram,
}

impl State {
    pub(super) fn new() -> Self {
        Self {
            cursor: 0,
            again: VecDeque::new(),
            held: Vec::new(),
            held_before: HashSet::new(),
            last_chance: false,
            silence: Silence::new(),
            is_hopeless: false,
            held_why: String::new(),
            echoes: VecDeque::new(),
            unwritten: VecDeque::new(),
            stopping: None,
            failure: None,
            model: None,
            target: FEWEST_IN_FLIGHT,
            asked_at: None,
            begun: None,
            is_warm: false,
            ended: 0,
            answered: 0,
            latencies: Histogram::new(),
        }
    }
}

/// What to do next.
pub(super) enum Next {
    /// Call this row.
    Call(Box<Sent>),
    /// Nothing can start before something has ended.
    Wait,
    /// No row is left to start.
    Nothing,
}

impl Dispatch<'_> {
    /// Forgets the records that have been written; `true` when some still have to be.
    pub(super) fn is_writing(&mut self) -> bool {
        let written = self.writer.written();
        while self.state.unwritten.front().is_some_and(|end| *end <= written) {
            self.state.unwritten.pop_front();
        }
        !self.state.unwritten.is_empty()
    }

    /// Whether every row has ended or is held: nothing is left to start.
    pub(super) fn is_through(&self) -> bool {
        self.state.stopping.is_some()
            || (self.state.cursor == self.order.len()
                && self.state.again.is_empty()
                && self.state.echoes.is_empty())
    }

    /// At the end, nothing being in flight: rows nobody answered go a last time, then stop the job.
    ///
    /// `true` when there is nothing more to do.
    pub(super) fn settle_held(&mut self) -> bool {
        if self.state.held.is_empty() || self.state.stopping.is_some() {
            return true;
        }
        if self.state.answered == 0 || self.state.last_chance {
            let why = std::mem::take(&mut self.state.held_why);
            self.stop(End::Unreachable(why));
            return true;
        }
        self.release_held();
        self.state.last_chance = true;
        false
    }

    /// Stops the job when its upstreams have fallen silent.
    pub(super) fn stop_if_silent(&mut self) {
        if self.state.silence.look(&self.shared.answer.upstreams()) {
            self.state.is_hopeless = true;
            let why = std::mem::take(&mut self.state.held_why);
            self.stop(End::Unreachable(match why.is_empty() {
                true => "attempts are sent, and nothing comes back".into(),
                false => why,
            }));
        }
    }

    /// Rows in flight that wait to be tried again: those neither at an upstream nor in line for
    /// one, and those nobody answered.
    pub(super) fn retrying(&self, in_flight: usize, upstreams: &[UpstreamState]) -> u64 {
        let busy: u64 =
            upstreams.iter().map(|one| u64::from(one.in_flight) + u64::from(one.waiting)).sum();
        let between = match upstreams.is_empty() {
            true => 0,
            false => (in_flight as u64).saturating_sub(busy),
        };
        let again = u64::from(self.shared.retrying.load(Ordering::Relaxed));
        (between + again).min(in_flight as u64) + self.state.held.len() as u64
    }

    /// Starts no more rows, for this reason; the first reason stands.
    pub(super) fn stop(&mut self, end: End) {
        self.state.stopping.get_or_insert(end);
    }

    /// The row whose turn it is.
    pub(super) fn next(&mut self) -> Next {
        loop {
            if self.writer.is_behind() || self.state.unwritten.len() > MOST_IN_FLIGHT {
                return Next::Wait;
            }
            let Some(row) = self.take() else { return Next::Nothing };
            if self.rows.ended(row).is_some() || !self.is_its_turn(row) {
                continue;
            }
            let request = match self.input.read(u64::from(row)) {
                Ok(request) => request,
                Err(bad) => {
                    self.end_bad(row, &bad);
                    continue;
                }
            };
            match self.prepare(row, request) {
                Ok(Some(next)) => return next,
                Ok(None) => {}
                Err(bad) => self.end_bad(row, &bad),
            }
            if self.state.stopping.is_some() {
                return Next::Nothing;
            }
        }
    }

    fn take(&mut self) -> Option<u32> {
        if let Some(row) = self.state.again.pop_front() {
            return Some(row);
        }
        let row = *self.order.get(self.state.cursor)?;
        self.state.cursor += 1;
        Some(row)
    }

    /// Whether a row is not one that waits for, or already has, the answer of an equal one.
    fn is_its_turn(&self, row: u32) -> bool {
        match self.equals.group(row).map(|group| self.equals.turn(group)) {
            None | Some(Turn::Open | Turn::Apart) => true,
            Some(Turn::Called | Turn::Answered) => false,
        }
    }

    /// Makes a row ready to be called; `None` when an equal row's answer will do.
    fn prepare(&mut self, row: u32, request: Request) -> Result<Option<Next>, BadLine> {
        let view = request::read(request.operation, &request.body).map_err(|error| BadLine {
            index: request.index,
            line: request.index + 1,
            column: None,
            custom_id: request.custom_id.clone(),
            message: error.message().to_owned(),
        })?;
        let group = self.equals.group(row).filter(|_| self.job.dedup || view.deterministic);
        match (group, self.equals.group(row)) {
            (None, Some(group)) => self.equals.set(group, Turn::Apart),
            (Some(group), _) if self.echo_earlier(group) => return Ok(None),
            _ => {}
        }
        let (model, price) = self.model(&view.model);
        if price.is_none() && self.budget.is_capped() {
            self.state.failure = Some(Failure::Usage(unpriced(&model)));
            self.stop(End::Budget);
            return Ok(Some(Next::Nothing));
        }
        let tokens = request::estimate(request.operation, request.counted_bytes, &view);
        let max_output = request::max_output(request.operation, &view);
        let reserved = match self.budget.admit(price, tokens) {
            Admission::Start(reserved) => reserved,
            Admission::Wait => {
                self.state.again.push_front(row);
                return Ok(Some(Next::Wait));
            }
            Admission::Spent => {
                self.state.again.push_front(row);
                self.stop(End::Budget);
                return Ok(Some(Next::Nothing));
            }
        };
        if let Some(group) = group {
            self.equals.set(group, Turn::Called);
        }
        let id = format!("batch-{}-{}", self.word, request.index).into();
        let deadline = self.row_deadline();
        let model_span = view.model_span;
        let sent = Sent {
            row,
            request,
            id,
            model,
            model_span,
            tokens,
            max_output,
            choices: view.choices,
            deadline,
            group,
            price,
            reserved,
            answered_before: self.state.answered,
        };
        Ok(Some(Next::Call(Box::new(sent))))
    }

    fn row_deadline(&self) -> Instant {
        let own = Instant::now() + self.job.timeout;
        self.deadline.map_or(own, |job| own.min(job))
    }

    /// The name shared with the row before, which mostly asks for the same model, and its price.
    fn model(&mut self, name: &str) -> (Arc<str>, Option<Price>) {
        match &self.state.model {
            Some((model, price)) if **model == *name => (model.clone(), *price),
            _ => {
                let found = (Arc::from(name), (self.prices)(name));
                self.state.model.insert(found).clone()
            }
        }
    }

    /// Answers a group whose answer an earlier run has journaled.
    fn echo_earlier(&mut self, group: u32) -> bool {
        let members = self.equals.members(group);
        let Some(place) = members
            .iter()
            .find(|row| self.rows.ended(**row) == Some(Status::Ok))
            .and_then(|row| self.rows.place(*row))
        else {
            return false;
        };
        match Echo::from_journal(self.journal, place, group) {
            Ok(echo) => {
                self.equals.set(group, Turn::Answered);
                self.state.echoes.push_back(echo);
                true
            }
            // It is called instead: dearer, never wrong.
            Err(_) => false,
        }
    }

    /// Writes answers of equal rows, a few at a time; `true` when there are more.
    pub(super) fn echo(&mut self) -> bool {
        for _ in 0..ECHOES_AT_ONCE {
            if self.writer.is_behind() || self.state.stopping.is_some() {
                return false;
            }
            let Some(mut echo) = self.state.echoes.pop_front() else { return false };
            let Some(&row) = self.equals.members(echo.group).get(echo.at) else { continue };
            echo.at += 1;
            if self.rows.ended(row).is_none() {
                match self.input.read(u64::from(row)) {
                    Ok(request) => self.end_echo(row, &request, &echo),
                    Err(bad) => self.end_bad(row, &bad),
                }
            }
            self.state.echoes.push_front(echo);
        }
        true
    }
}

/// Stands for the hash of a row that is no request.
pub(super) const INVALID: RequestHash = RequestHash([0; 16]);

fn unpriced(model: &str) -> String {
    format!(
        "--max-cost needs the price of the model '{model}', which is unknown: give --price-input \
         and --price-output (US dollars per million tokens), or set the price in the configuration"
    )
}
