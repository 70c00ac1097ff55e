//! The invariants themselves, file by file.

use super::{
    Broken, Checker, Counts, Report, Rows, Violation,
    line::{Answer, Entry, Outcome, Row, is_error},
};
use std::{
    collections::HashMap,
    fmt,
    fs::File,
    io::{self, BufRead, BufReader},
    path::Path,
};

/// What is kept of the upstream calls of one id: a call and its further attempts.
#[derive(Default)]
struct Sent {
    answers: u32,
    accepted: u32,
    tokens: u64,
}

/// How often a row was seen, and with what.
#[derive(Clone, Copy, Default)]
struct Seen {
    output: u32,
    errors: u32,
    /// The output's row is an error row.
    failed: bool,
}

pub(super) struct Check<'r> {
    rows: &'r Rows,
    slots: HashMap<&'r str, usize>,
    seen: Vec<Seen>,
    sent: HashMap<Box<str>, Sent>,
    report: Report,
    broken: Broken,
    /// Upstream calls that were answered or cancelled: what a provider bills.
    paid: u64,
    accepted: u64,
}

impl<'r> Check<'r> {
    pub(super) fn new(rows: &'r Rows) -> Self {
        let slots: HashMap<&str, usize> = match rows {
            Rows::Count(_) => HashMap::new(),
            Rows::Ids(ids) => ids.iter().enumerate().map(|(slot, id)| (&**id, slot)).collect(),
        };
        let count = match rows {
            Rows::Count(count) => usize::try_from(*count).expect("rows fit in memory"),
            Rows::Ids(ids) => ids.len(),
        };
        Self {
            rows,
            slots,
            seen: vec![Seen::default(); count],
            sent: HashMap::new(),
            report: Report::default(),
            broken: Broken::default(),
            paid: 0,
            accepted: 0,
        }
    }

    fn violation(&mut self, invariant: u8, what: impl fmt::Display) {
        self.broken.total += 1;
        if self.broken.violations.len() < 100 {
            self.broken.violations.push(Violation { invariant, what: what.to_string() });
        }
    }

    pub(super) fn read_ledger(&mut self, path: Option<&Path>) {
        let Some(path) = path else { return };
        let read = lines(path, |number, line| {
            let entry: Entry<'_> = match serde_json::from_slice(line) {
                Ok(entry) => entry,
                Err(why) => return self.violation(3, at(path, number, why)),
            };
            self.report.calls += 1;
            if !matches!(entry.outcome, Outcome::Ok | Outcome::Cancelled) {
                return;
            }
            self.paid += 1;
            let Some(id) = entry.id else { return };
            let sent = self.sent.entry(id.into()).or_default();
            if entry.outcome == Outcome::Ok {
                sent.answers += 1;
                sent.tokens = entry.prompt_tokens + entry.completion_tokens;
            }
        });
        self.unreadable(path, read);
    }

    pub(super) fn read_output(&mut self, checker: &Checker<'_>) {
        let Some(path) = &checker.output else { return };
        let read = lines(path, |number, line| {
            let Some((row, slot)) = self.row(path, number, line) else { return };
            let failed = is_error(&row);
            self.seen[slot].output += 1;
            self.seen[slot].failed = failed;
            if failed {
                self.report.failed += 1;
            } else {
                self.report.ok += 1;
                self.answer(checker, path, number, &row, slot);
            }
        });
        self.unreadable(path, read);
    }

    pub(super) fn read_errors(&mut self, checker: &Checker<'_>) {
        let Some(path) = &checker.errors else { return };
        if checker.output.is_some() && !path.exists() {
            return;
        }
        let read = lines(path, |number, line| {
            let Some((row, slot)) = self.row(path, number, line) else { return };
            if !is_error(&row) {
                self.violation(1, at(path, number, "a row with an answer in the error file"));
            }
            self.seen[slot].errors += 1;
            let Seen { output, failed, .. } = self.seen[slot];
            if output == 0 {
                self.report.failed += 1;
            } else if !failed {
                self.violation(1, at(path, number, "the output has an answer for this row"));
            }
        });
        self.unreadable(path, read);
    }

    /// Reads a line as a row we know.
    fn row<'l>(&mut self, path: &Path, number: u64, line: &'l [u8]) -> Option<(Row<'l>, usize)> {
        let row: Row<'l> = match serde_json::from_slice(line) {
            Ok(row) => row,
            Err(why) => {
                self.violation(3, at(path, number, why));
                return None;
            }
        };
        let slot = match self.rows {
            Rows::Count(count) => row
                .index
                .filter(|index| index < count)
                .and_then(|index| usize::try_from(index).ok()),
            Rows::Ids(_) => row.custom_id.as_deref().and_then(|id| self.slots.get(id).copied()),
        };
        if slot.is_none() {
            let who = (row.index, row.custom_id.as_deref());
            self.violation(2, at(path, number, format_args!("foreign row {who:?}")));
        }
        slot.map(|slot| (row, slot))
    }

    /// I5 and I7 of one row.
    fn answer(
        &mut self,
        checker: &Checker<'_>,
        path: &Path,
        number: u64,
        row: &Row<'_>,
        slot: usize,
    ) {
        let Some(body) = row.response.as_ref().and_then(|response| response.body) else {
            return self.violation(5, at(path, number, "an ok row without a response body"));
        };
        if let Some(is_answer) = &checker.is_answer
            && !is_answer(&self.name(slot), body.get())
        {
            let what = format!("the answer is not that of row {}: {}", self.name(slot), body.get());
            self.violation(5, at(path, number, what));
        }
        let answer: Answer = match serde_json::from_str(body.get()) {
            Ok(answer) => answer,
            Err(why) => return self.violation(5, at(path, number, why)),
        };
        let usage = answer.usage.unwrap_or_default();
        let tokens = usage.prompt_tokens + usage.completion_tokens;
        self.report.tokens += tokens;
        if checker.ledger.is_none() {
            return;
        }
        let Some(id) = row.response.as_ref().and_then(|response| response.request_id.as_deref())
        else {
            return self.violation(5, at(path, number, "the response has no request_id"));
        };
        let what = match self.sent.get_mut(id) {
            None => Some((5, format!("the ledger knows no request {id}"))),
            Some(sent) if sent.answers == 0 => {
                Some((5, format!("request {id} was cancelled, not answered, in the ledger")))
            }
            Some(sent) if sent.accepted == sent.answers && !checker.shared_answers => {
                Some((5, format!("the answer to request {id} was given to an earlier row")))
            }
            Some(sent) => {
                let first = u32::from(sent.accepted < sent.answers);
                sent.accepted += first;
                self.accepted += u64::from(first);
                (sent.tokens != tokens).then(|| {
                    (7, format!("request {id}: {tokens} tokens told, {} sent", sent.tokens))
                })
            }
        };
        if let Some((invariant, what)) = what {
            self.violation(invariant, at(path, number, what));
        }
    }

    pub(super) fn every_row_once(&mut self) {
        for slot in 0..self.seen.len() {
            let Seen { output, errors, .. } = self.seen[slot];
            let what = match (output, errors) {
                (1, 0 | 1) | (0, 1) => continue,
                (0, 0) => "is missing".to_owned(),
                _ => format!("is {output} times in the output and {errors} in the errors"),
            };
            let name = self.name(slot);
            self.violation(1, format_args!("row {name} {what}"));
        }
    }

    pub(super) fn counts(&mut self, told: Option<Counts>) {
        let Report { ok, failed, .. } = self.report;
        if let Some(told) = told.filter(|told| *told != Counts { ok, failed }) {
            self.violation(4, format_args!("{told:?} told, {ok} ok and {failed} failed found"));
        }
    }

    pub(super) fn calls(&mut self, has_ledger: bool, allowed: u64) {
        if !has_ledger {
            return;
        }
        let extra = self.paid - self.accepted;
        self.report.extra_calls = extra;
        if extra > allowed {
            self.violation(6, format_args!("{extra} calls gave no row its answer, {allowed} may"));
        }
    }

    pub(super) fn acknowledged(&mut self, ids: &[String]) {
        for id in ids {
            let slot = match self.rows {
                Rows::Count(_) => id.parse().ok(),
                Rows::Ids(_) => self.slots.get(&**id).copied(),
            };
            let seen = slot.and_then(|slot: usize| self.seen.get(slot));
            if seen.is_none_or(|seen| seen.output + seen.errors == 0) {
                self.violation(8, format_args!("row {id} was acknowledged and is missing"));
            }
        }
    }

    pub(super) fn finish(self) -> Result<Report, Broken> {
        if self.broken.total == 0 { Ok(self.report) } else { Err(self.broken) }
    }

    fn name(&self, slot: usize) -> String {
        match self.rows {
            Rows::Count(_) => slot.to_string(),
            Rows::Ids(ids) => ids[slot].clone(),
        }
    }

    /// Notes what [`lines`] could not read.
    fn unreadable(&mut self, path: &Path, read: io::Result<Option<u64>>) {
        match read {
            Ok(None) => {}
            Ok(Some(number)) => self.violation(3, at(path, number, "no newline at the end")),
            Err(why) => self.violation(3, format_args!("{}: {why}", path.display())),
        }
    }
}

fn at(path: &Path, number: u64, what: impl fmt::Display) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    format!("{}:{number}: {what}", name.display())
}

/// Calls `each` for every line with its number, from 1. Returns the number of a last line that
/// lacks its newline; it is not given to `each` only when it is empty.
fn lines(path: &Path, mut each: impl FnMut(u64, &[u8])) -> io::Result<Option<u64>> {
    let mut file = BufReader::with_capacity(1 << 20, File::open(path)?);
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        if file.read_until(b'\n', &mut line)? == 0 {
            break;
        }
        match line.strip_suffix(b"\n") {
            Some(line) => each(number, line),
            None => {
                each(number, &line);
                return Ok(Some(number));
            }
        }
    }
    Ok(None)
}
