//! Kept answers that are forgotten at the end of the process: tests, and the SDK.

use super::{Options, full, now, ran};
use parking_lot::Mutex;
use std::{
    cmp::Reverse,
    collections::{HashMap, VecDeque},
    sync::Arc,
};
use tidegate_core::{
    Begun, BoxFuture, Ended, Error, Execution, KeptAnswer, ReplayKey, Replays, Result, Unkept,
};

type Id = [u8; 32];

/// Kept answers in memory.
#[derive(Default)]
pub struct Memory {
    options: Options,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    rows: HashMap<Id, Row>,
    /// Every row by its caller, oldest first, and of others that are gone their numbers.
    by_age: HashMap<u64, VecDeque<(Id, u64)>>,
    /// The same of those with an answer, by when it came.
    answers: VecDeque<(Id, u64)>,
    /// Of all answers together.
    bytes: u64,
    /// Executions begun: tells one row of a key from the next.
    begun: u64,
}

struct Row {
    number: u64,
    request: [u8; 32],
    begun_at: i64,
    stage: Stage,
}

enum Stage {
    Running,
    Done(KeptAnswer),
    Unkept(Unkept),
}

impl Memory {
    /// Nothing kept yet.
    pub fn new(options: Options) -> Self {
        Self { options, state: Arc::default() }
    }

    fn begin_now(&self, key: ReplayKey) -> Result<Begun> {
        let (now, state) = (now(), &mut *self.state.lock());
        if let Some(row) = state.rows.get(&key.id) {
            let is_running = matches!(row.stage, Stage::Running);
            if is_running || row.begun_at > self.options.cutoff(now) {
                return Ok(row.says(&key, now));
            }
            state.remove(&key.id);
        }
        state.make_room(self.options.max_keys)?;
        state.begun += 1;
        let number = state.begun;
        let row = Row { number, request: key.request, begun_at: now, stage: Stage::Running };
        state.rows.insert(key.id, row);
        state.by_age.entry(key.caller).or_default().push_back((key.id, number));
        let (state, max_bytes) = (Arc::clone(&self.state), self.options.max_bytes);
        Ok(Begun::Fresh(Box::new(Running { state, max_bytes, id: key.id, number })))
    }

    fn sweep_now(&self) {
        let (cutoff, state) = (self.options.cutoff(now()), &mut *self.state.lock());
        state.rows.retain(|_, row| matches!(row.stage, Stage::Running) || row.begun_at > cutoff);
        let State { rows, by_age, answers, .. } = state;
        let is_there = |(id, number): &(Id, u64)| rows.get(id).is_some_and(|r| r.number == *number);
        by_age.retain(|_, of_one| {
            of_one.retain(is_there);
            !of_one.is_empty()
        });
        answers.retain(is_there);
        state.bytes = state.rows.values().map(Row::bytes).sum();
    }
}

impl Replays for Memory {
    fn begin(&self, key: ReplayKey) -> BoxFuture<'_, Result<Begun>> {
        Box::pin(std::future::ready(self.begin_now(key)))
    }

    fn sweep(&self) -> BoxFuture<'_, Result<()>> {
        self.sweep_now();
        Box::pin(std::future::ready(Ok(())))
    }
}

impl Row {
    fn says(&self, key: &ReplayKey, now: i64) -> Begun {
        if self.request != key.request {
            return Begun::Mismatch;
        }
        match &self.stage {
            Stage::Running => Begun::Running(ran(self.begun_at, now)),
            Stage::Done(answer) => Begun::Done(answer.clone()),
            Stage::Unkept(why) => Begun::Unkept(*why),
        }
    }

    fn bytes(&self) -> u64 {
        match &self.stage {
            Stage::Done(answer) => answer.body.len() as u64,
            Stage::Running | Stage::Unkept(_) => 0,
        }
    }
}

impl State {
    fn remove(&mut self, id: &Id) {
        self.bytes -= self.rows.remove(id).map_or(0, |row| row.bytes());
    }

    /// Forgets the oldest ended row of the caller that has most, when there are too many.
    fn make_room(&mut self, max_keys: u64) -> Result<(), Error> {
        while self.rows.len() as u64 >= max_keys {
            let Some(id) = self.oldest_ended() else { return Err(full(max_keys)) };
            self.remove(&id);
        }
        Ok(())
    }

    fn oldest_ended(&mut self) -> Option<Id> {
        let mut callers: Vec<&mut VecDeque<(Id, u64)>> = self.by_age.values_mut().collect();
        callers.sort_by_key(|of_one| Reverse(of_one.len()));
        for of_one in callers {
            let mut at = 0;
            while let Some((id, number)) = of_one.get(at).copied() {
                match self.rows.get(&id).filter(|row| row.number == number) {
                    Some(Row { stage: Stage::Running, .. }) => at += 1,
                    found => {
                        of_one.remove(at);
                        if found.is_some() {
                            return Some(id);
                        }
                    }
                }
            }
        }
        None
    }

    fn end(&mut self, id: Id, number: u64, ended: Ended, max_bytes: u64) {
        let Some(row) = self.rows.get_mut(&id).filter(|row| row.number == number) else { return };
        row.stage = match ended {
            Ended::Answered(answer) => Stage::Done(answer),
            Ended::Unkept(why) => Stage::Unkept(why),
        };
        self.bytes += row.bytes();
        self.answers.push_back((id, number));
        while self.bytes > max_bytes {
            let Some((id, number)) = self.answers.pop_front() else { return };
            let row = self.rows.get_mut(&id).filter(|row| row.number == number);
            if let Some(row) = row.filter(|row| matches!(row.stage, Stage::Done(_))) {
                self.bytes -= row.bytes();
                row.stage = Stage::Unkept(Unkept::PushedOut);
            }
        }
    }
}

/// One row that is running.
struct Running {
    state: Arc<Mutex<State>>,
    max_bytes: u64,
    id: Id,
    number: u64,
}

impl Execution for Running {
    fn finish(self: Box<Self>, ended: Ended) -> BoxFuture<'static, Result<()>> {
        self.state.lock().end(self.id, self.number, ended, self.max_bytes);
        Box::pin(std::future::ready(Ok(())))
    }
}

impl Drop for Running {
    /// Without an end nothing is kept; with one there is nothing to undo.
    fn drop(&mut self) {
        let mut state = self.state.lock();
        let row = state.rows.get(&self.id).filter(|row| row.number == self.number);
        if row.is_some_and(|row| matches!(row.stage, Stage::Running)) {
            state.remove(&self.id);
        }
    }
}
