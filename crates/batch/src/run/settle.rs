//! What becomes of a row that comes back: its line, another turn, or the end of the job.

use super::{
    attempt::{Bad, Ended, Good},
    dispatch::{Dispatch, INVALID},
    echo::Echo,
    equal::Turn,
};
use crate::{
    End,
    journal::{Head, Status, identity},
    output::{self, Answered, Failed, Outcome, Row},
    request::{BadLine, Request, RequestHash},
};
use tidegate_core::{Clock, Kind};
use tokio::time::Instant;

/// Rows nobody answered in a row, none ever having been answered, that stop the job.
const UNREACHABLE_AT_START: usize = 2;

/// Rows nobody answered since the last answer that stop the job, or as many as may be in flight.
const UNREACHABLE_LATER: usize = 64;

impl Dispatch<'_> {
    /// Takes a row that came back.
    pub(super) fn settle(&mut self, ended: Ended) {
        let cost = cost(&ended);
        let output = ended.usage.filter(|_| ended.result.is_ok()).map(|usage| usage.output);
        let charged = match (&ended.result, cost) {
            (_, Some(cost)) => cost,
            (Ok(_), None) => ended.sent.reserved,
            (Err(_), None) => 0.0,
        };
        self.budget.settle(ended.sent.reserved, charged, output);
        if !is_unanswered(&ended) {
            self.state.is_warm = true;
            self.state.silence.end();
        }
        if let Err(bad) = &ended.result
            && !self.is_final(&ended, bad)
        {
            if let Some(group) = ended.sent.group {
                self.equals.set(group, Turn::Open);
            }
            return;
        }
        self.end_called(&ended, cost);
        if ended.result.is_ok() {
            self.state.answered += 1;
            self.state.latencies.record(ended.latency.as_micros() as u64);
            self.state.last_chance = false;
            self.release_held();
        }
        if let Some(group) = ended.sent.group {
            self.settle_group(group, ended);
        }
        let tally = &self.rows.tally;
        if let Some(most) = self.job.max_errors
            && tally.failed > 0
            && most.reached(tally.failed, tally.failed + tally.ok)
        {
            self.stop(End::Errors);
        }
    }

    /// Whether a failed row stays failed. One that says something about the job, or that was cut
    /// off by the job's own end, is called again: now, or by the next run.
    fn is_final(&mut self, ended: &Ended, bad: &Bad) -> bool {
        let row = ended.sent.row;
        match bad.kind {
            Some(Kind::UpstreamCredential | Kind::Unauthenticated) => {
                self.stop(End::Refused(format!(
                    "the upstream refuses the credential ({}); put a valid key into the variable \
                     named by --api-key-env (default OPENAI_API_KEY)",
                    bad.message
                )));
                false
            }
            Some(Kind::UpstreamQuota) => {
                self.stop(End::Refused(format!(
                    "the account at the upstream is out of quota ({}); add credit or use another \
                     key",
                    bad.message
                )));
                false
            }
            _ if is_unanswered(ended) => {
                // Others were answered while it was tried, twice: it is the row's own fault.
                let alone = self.state.answered > ended.sent.answered_before;
                let fails = alone && self.state.held_before.contains(&row);
                if !fails {
                    self.hold(row, &bad.message);
                }
                fails
            }
            // The engine itself is stopping.
            Some(Kind::Cancelled) if self.state.stopping.is_some() => false,
            Some(Kind::DeadlineExceeded | Kind::UpstreamTimeout(_))
                if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) =>
            {
                self.stop(End::Deadline);
                false
            }
            _ => true,
        }
    }

    /// Keeps a row nobody answered for later.
    fn hold(&mut self, row: u32, why: &str) {
        self.state.held.push(row);
        why.clone_into(&mut self.state.held_why);
        let enough = match self.state.answered {
            0 => UNREACHABLE_AT_START,
            _ => UNREACHABLE_LATER.max(self.target()),
        };
        if self.state.held.len() >= enough {
            self.state.is_hopeless = true;
            self.stop(End::Unreachable(why.to_owned()));
        }
    }

    pub(super) fn release_held(&mut self) {
        self.state.held_before.extend(&self.state.held);
        self.state.again.extend(self.state.held.drain(..));
    }

    /// Passes the answer of a row on to its equals, or their turn to the next of them.
    fn settle_group(&mut self, group: u32, ended: Ended) {
        let shares = match &ended.result {
            Ok(_) => true,
            // The same request would be refused the same way.
            Err(bad) => bad.class == "caller",
        };
        if shares {
            self.equals.set(group, Turn::Answered);
            self.state.echoes.push_back(Echo::of(group, ended));
            return;
        }
        self.equals.set(group, Turn::Open);
        let rows = &self.rows;
        let next = self.equals.members(group).iter().find(|row| rows.ended(**row).is_none());
        self.state.again.extend(next);
    }

    fn end_called(&mut self, ended: &Ended, cost: Option<f64>) {
        let request = &ended.sent.request;
        let row = Row {
            index: request.index,
            custom_id: request.custom_id.as_deref(),
            columns: request.columns.as_deref(),
            model: Some(&ended.sent.model),
            attempts: ended.attempts,
            latency_ms: Some(ended.latency.as_millis() as u64),
            cached: false,
            usage: ended.usage,
            cost,
            outcome: outcome(&ended.result),
        };
        self.end(ended.sent.row, request.hash, &row);
    }

    pub(super) fn end_echo(&mut self, at: u32, request: &Request, echo: &Echo) {
        let row = Row {
            index: request.index,
            custom_id: request.custom_id.as_deref(),
            columns: request.columns.as_deref(),
            model: echo.model.as_deref(),
            attempts: 0,
            latency_ms: None,
            cached: true,
            usage: None,
            cost: Some(0.0),
            outcome: outcome(&echo.result),
        };
        self.end(at, request.hash, &row);
    }

    pub(super) fn end_bad(&mut self, at: u32, bad: &BadLine) {
        let place = bad.column.map_or_else(String::new, |column| format!(", column {column}"));
        let message = format!("line {}{place}: {}", bad.line, bad.message);
        let row = Row {
            index: bad.index,
            custom_id: bad.custom_id.as_deref(),
            columns: None,
            model: None,
            attempts: 0,
            latency_ms: None,
            cached: false,
            usage: None,
            cost: Some(0.0),
            outcome: Outcome::Failed(Failed {
                code: "invalid_row",
                message: &message,
                class: "invalid",
                retryable: false,
                answer: None,
            }),
        };
        self.end(at, INVALID, &row);
    }

    /// Journals a row.
    fn end(&mut self, at: u32, hash: RequestHash, row: &Row<'_>) {
        let (status, class) = match &row.outcome {
            Outcome::Ok(_) => (Status::Ok, None),
            Outcome::Failed(failed) | Outcome::Skipped(failed) => {
                (Status::Failed, Some(failed.class))
            }
        };
        let head = Head {
            index: row.index,
            hash,
            custom_id: identity(row.custom_id),
            status,
            cached: row.cached,
            attempts: row.attempts,
            usage: row.usage.unwrap_or_default(),
            cost: row.cost,
        };
        let place = self.writer.append(&head, |out| output::encode(row, out));
        self.rows.record(at, place, &head, class);
        self.state.unwritten.push_back(place.offset + u64::from(place.len));
        self.state.ended += 1;
    }
}

/// Whether no connection took the row: nobody has seen it.
fn is_unanswered(ended: &Ended) -> bool {
    matches!(&ended.result, Err(bad) if matches!(
        bad.kind,
        Some(Kind::Unavailable | Kind::UpstreamTimeout(Clock::Connect))
    ))
}

/// What a row's tokens cost; `None` when that is not known.
fn cost(ended: &Ended) -> Option<f64> {
    match (ended.usage, ended.sent.price) {
        (Some(usage), Some(price)) => Some(price.of(usage).usd()),
        (None, _) if ended.result.is_err() => Some(0.0),
        (Some(_) | None, _) => None,
    }
}

fn outcome(result: &Result<Good, Bad>) -> Outcome<'_> {
    match result {
        Ok(good) => Outcome::Ok(Answered {
            status: good.status,
            request_id: good.request_id.as_deref(),
            body: &good.body,
        }),
        Err(bad) => Outcome::Failed(Failed {
            code: bad.code,
            message: &bad.message,
            class: bad.class,
            retryable: bad.retryable,
            answer: bad.answer.as_ref().map(|(status, body)| (*status, &body[..])),
        }),
    }
}
