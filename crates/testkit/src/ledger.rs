//! The invariants of a batch, checked over its files and the simulator's ledger.
//!
//! | | holds when |
//! |---|---|
//! | I1 | every input row is exactly once in output ∪ errors |
//! | I2 | no row is foreign |
//! | I3 | every line is valid JSON and ends in a newline |
//! | I4 | the counts told are the lines there are |
//! | I5 | each answer is the one the simulator sent for that row |
//! | I6 | extra upstream calls ≤ kills × calls in flight |
//! | I7 | tokens told = tokens of the accepted answers in the ledger |
//! | I8 | nothing acknowledged is missing |
//!
//! Files are read line by line; what is kept is a word or two per row, so a million rows pass
//! in about 200 MB.

mod check;
mod line;

use check::Check;
use std::{fmt, path::PathBuf};

/// Checks one finished batch; what is not given is not checked.
///
/// ```no_run
/// # use tidegate_testkit::ledger::{Checker, Rows};
/// let report = Checker::new(Rows::Count(10_000))
///     .output("data.out.jsonl")
///     .ledger("ledger.ndjson")
///     .kills(20, 64)
///     .check()
///     .unwrap_or_else(|broken| panic!("{broken}"));
/// assert_eq!(report.ok, 10_000);
/// ```
pub struct Checker<'a> {
    rows: Rows,
    output: Option<PathBuf>,
    errors: Option<PathBuf>,
    ledger: Option<PathBuf>,
    extra_calls: u64,
    counts: Option<Counts>,
    acknowledged: Vec<String>,
    is_answer: Option<Box<IsAnswer<'a>>>,
    shared_answers: bool,
}

type IsAnswer<'a> = dyn Fn(&str, &str) -> bool + 'a;

/// Which rows there are to be.
#[derive(Clone, Debug)]
pub enum Rows {
    /// Rows known by their `index`, from 0.
    Count(u64),
    /// Rows known by their `custom_id`.
    Ids(Vec<String>),
}

/// What the batch told of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Rows with an answer.
    pub ok: u64,
    /// Rows without one, skipped rows included.
    pub failed: u64,
}

/// What was found, when all of it holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Rows with an answer.
    pub ok: u64,
    /// Rows without one.
    pub failed: u64,
    /// Upstream calls of any end.
    pub calls: u64,
    /// Upstream calls that were answered or cancelled without giving a row its answer.
    pub extra_calls: u64,
    /// Tokens of the accepted answers.
    pub tokens: u64,
}

/// One broken invariant, at one row where a row is at fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// `1` to `8`.
    pub invariant: u8,
    /// Where and what.
    pub what: String,
}

/// All that is broken: the first hundred, and how many there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Broken {
    /// The first hundred.
    pub violations: Vec<Violation>,
    /// How many there are.
    pub total: usize,
}

impl<'a> Checker<'a> {
    /// A checker that expects `rows`.
    #[must_use]
    pub fn new(rows: Rows) -> Self {
        Self {
            rows,
            output: None,
            errors: None,
            ledger: None,
            extra_calls: 0,
            counts: None,
            acknowledged: Vec::new(),
            is_answer: None,
            shared_answers: false,
        }
    }

    /// The output file, in Tidegate's format or OpenAI's.
    #[must_use]
    pub fn output(mut self, path: impl Into<PathBuf>) -> Self {
        self.output = Some(path.into());
        self
    }

    /// The error file. A row may be in both files when the output's is an error row.
    #[must_use]
    pub fn errors(mut self, path: impl Into<PathBuf>) -> Self {
        self.errors = Some(path.into());
        self
    }

    /// The simulator's ledger (`GET /sim/ledger?format=ndjson`), saved.
    #[must_use]
    pub fn ledger(mut self, path: impl Into<PathBuf>) -> Self {
        self.ledger = Some(path.into());
        self
    }

    /// Extra calls that are allowed: those in flight at each kill.
    #[must_use]
    pub const fn kills(mut self, kills: u64, in_flight: u64) -> Self {
        self.extra_calls = kills * in_flight;
        self
    }

    /// What the batch's summary said.
    #[must_use]
    pub const fn told(mut self, counts: Counts) -> Self {
        self.counts = Some(counts);
        self
    }

    /// Rows seen as done before a crash (their `custom_id`, or their index in digits).
    #[must_use]
    pub fn acknowledged(mut self, ids: impl IntoIterator<Item = String>) -> Self {
        self.acknowledged.extend(ids);
        self
    }

    /// Whether a response body (second, JSON) is the right one for a row (first, its id).
    #[must_use]
    pub fn answers(mut self, is_answer: impl Fn(&str, &str) -> bool + 'a) -> Self {
        self.is_answer = Some(Box::new(is_answer));
        self
    }

    /// Lets several rows have the same answer: equal rows called once.
    #[must_use]
    pub const fn sharing_answers(mut self) -> Self {
        self.shared_answers = true;
        self
    }

    /// Reads everything.
    ///
    /// # Errors
    ///
    /// All that is broken, a file that cannot be read included (as I3).
    pub fn check(self) -> Result<Report, Broken> {
        let mut check = Check::new(&self.rows);
        check.read_ledger(self.ledger.as_deref());
        check.read_output(&self);
        check.read_errors(&self);
        check.every_row_once();
        check.counts(self.counts);
        check.calls(self.ledger.is_some(), self.extra_calls);
        check.acknowledged(&self.acknowledged);
        check.finish()
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "I{}: {}", self.invariant, self.what)
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} violations", self.total)?;
        self.violations.iter().try_for_each(|violation| writeln!(f, "  {violation}"))
    }
}

impl std::error::Error for Broken {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs::File, io};
    use tempfile::TempDir;

    fn row(index: u64, answer: &str) -> String {
        format!(
            r#"{{"index":{index},"custom_id":"r{index}","status":"ok","response":{{"status_code":200,"request_id":"{answer}","body":{{"usage":{{"prompt_tokens":2,"completion_tokens":3}}}}}}}}"#
        ) + "\n"
    }

    fn failed(index: u64) -> String {
        format!(
            r#"{{"index":{index},"custom_id":"r{index}","status":"error","response":null,"error":{{"code":"x"}}}}"#
        ) + "\n"
    }

    fn sent(id: &str, outcome: &str) -> String {
        format!(
            r#"{{"seq":0,"id":"{id}","status":200,"outcome":"{outcome}","prompt_tokens":2,"completion_tokens":3}}"#
        ) + "\n"
    }

    struct Files {
        dir: TempDir,
        rows: u64,
    }

    impl Files {
        fn new(rows: u64, output: &str, errors: &str, ledger: &str) -> Self {
            let dir = tempfile::tempdir().unwrap();
            for (name, text) in [("out", output), ("err", errors), ("ledger", ledger)] {
                std::fs::write(dir.path().join(name), text).unwrap();
            }
            Self { dir, rows }
        }

        fn checker(&self) -> Checker<'static> {
            let ids = (0..self.rows).map(|index| format!("r{index}")).collect();
            let path = |name| self.dir.path().join(name);
            Checker::new(Rows::Ids(ids))
                .output(path("out"))
                .errors(path("err"))
                .ledger(path("ledger"))
        }
    }

    #[track_caller]
    fn broken(result: Result<Report, Broken>, expected: &[(u8, &str)]) {
        let broken = result.unwrap_err();
        assert_eq!(broken.total, expected.len(), "{broken}");
        for (violation, (invariant, what)) in broken.violations.iter().zip(expected) {
            assert_eq!(violation.invariant, *invariant, "{broken}");
            assert!(violation.what.contains(what), "{violation} lacks {what}");
        }
    }

    #[test]
    fn a_sound_batch_passes() {
        let ledger = sent("a", "ok") + &sent("a", "refused") + &sent("b", "ok");
        let files = Files::new(3, &(row(0, "a") + &row(1, "b") + &failed(2)), &failed(2), &ledger);
        let told = Counts { ok: 2, failed: 1 };
        let report = files.checker().told(told).acknowledged(["r1".into()]).check().unwrap();
        let expected = Report { ok: 2, failed: 1, calls: 3, extra_calls: 0, tokens: 10 };
        assert_eq!(report, expected);
    }

    #[test]
    fn rows_lost_doubled_foreign_and_torn_are_named() {
        let output = row(0, "a") + &row(0, "b") + &row(9, "c") + "{\"index\":2";
        let ledger = ["a", "b", "c"].map(|id| sent(id, "ok")).concat();
        let files = Files::new(3, &output, "", &ledger);
        let checker = files.checker().kills(1, 1).acknowledged(["r2".into()]);
        broken(
            checker.told(Counts { ok: 2, failed: 1 }).check(),
            &[
                (2, "out:3: foreign"),
                (3, "out:4"),
                (3, "out:4: no newline"),
                (1, "row r0 is 2 times"),
                (1, "row r1 is missing"),
                (1, "row r2 is missing"),
                (4, "told"),
                (8, "row r2"),
            ],
        );
    }

    #[test]
    fn answers_are_traced_to_the_ledger() {
        let output = row(0, "a") + &row(1, "a") + &row(2, "b") + &row(3, "nobody");
        let ledger = sent("a", "ok") + &sent("b", "cancelled") + &sent("c", "ok");
        let files = Files::new(4, &output, "", &ledger);
        let is_answer = |id: &str, body: &str| id != "r2" || body.contains("zzz");
        broken(
            files.checker().answers(is_answer).kills(1, 1).check(),
            &[
                (5, "out:2: the answer to request a was given"),
                (5, "not that of row r2"),
                (5, "out:3: request b was cancelled"),
                (5, "out:4: the ledger knows no request nobody"),
                (6, "2 calls gave no row its answer, 1 may"),
            ],
        );
        let files = Files::new(2, &(row(0, "a") + &row(1, "a")), "", &sent("a", "ok"));
        assert!(files.checker().sharing_answers().check().is_ok());
    }

    #[test]
    fn an_error_row_may_not_have_an_answer_too() {
        let files = Files::new(1, &row(0, "a"), &failed(0), &sent("a", "ok"));
        broken(files.checker().check(), &[(1, "err:1: the output has an answer")]);
    }

    #[test]
    fn many_rows_pass_by_index() {
        use std::io::Write;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        let mut file = io::BufWriter::new(File::create(&path).unwrap());
        for index in 0..100_000 {
            file.write_all(row(index, "x").as_bytes()).unwrap();
        }
        file.flush().unwrap();
        let report = Checker::new(Rows::Count(100_000)).output(path).check().unwrap();
        assert_eq!((report.ok, report.tokens), (100_000, 500_000));
    }
}
