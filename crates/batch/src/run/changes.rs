//! How the input differs from what an earlier run answered.

use super::{
    dispatch::INVALID,
    rows::{Known, Rows},
};
use crate::{
    Failure, Job, Manifest,
    input::Input,
    job::Confirm,
    journal::{Status, identity},
    progress::Reporter,
    summary::grouped,
};

/// Rows of each kind of change that are named; all are counted.
const MOST_NAMED: usize = 20;

/// How the input differs from what the journal answered.
#[derive(Default)]
pub(super) struct Changes {
    changed: u64,
    /// Of them, rows that had been answered.
    paid: u64,
    named: Vec<u32>,
}

/// Lets the records stand whose rows are still the same.
pub(super) fn match_rows(input: &Input, rows: &mut Rows, order: &[u32]) -> Changes {
    let mut changes = Changes::default();
    for &row in order {
        let index = u64::from(row);
        let hash = input.hash(index).unwrap_or(INVALID);
        let custom_id = || match hash == INVALID {
            true => identity(input.is_bad(index).and_then(|bad| bad.custom_id).as_deref()),
            false => identity(input.custom_id(index).as_deref()),
        };
        match rows.known(row, hash, custom_id) {
            Known::New => {}
            Known::Done(_) => rows.accept(row),
            Known::Changed(status) => {
                changes.changed += 1;
                changes.paid += u64::from(status == Status::Ok);
                if changes.named.len() < MOST_NAMED {
                    changes.named.push(row);
                }
            }
        }
    }
    changes
}

impl Changes {
    pub(super) fn tell(
        &self,
        job: &Job,
        input: &Input,
        earlier: Option<&Manifest>,
        rows: &Rows,
        reporter: &mut Reporter,
    ) {
        if self.changed > 0 {
            let mut lines: Vec<_> =
                self.named.iter().map(|row| input.line(u64::from(*row)).to_string()).collect();
            if self.changed > lines.len() as u64 {
                lines.push("…".into());
            }
            reporter.note(&format!(
                "{} rows changed since they were answered and are called again: lines {}",
                grouped(self.changed),
                lines.join(", ")
            ));
        }
        let partial = job.input.limit.is_some() || job.input.sample.is_some();
        if partial {
            return;
        }
        if rows.removed > 0 {
            reporter.note(&format!(
                "{} rows answered earlier are no longer in the input, and not in the output",
                grouped(rows.removed)
            ));
        }
        if let Some(earlier) = earlier
            && !earlier.partial
            && input.rows() > earlier.rows
        {
            let added = input.rows() - earlier.rows;
            reporter.note(&format!("{} rows were added to the input", grouped(added)));
        }
    }

    /// Asks before rows that were paid for are paid for again.
    pub(super) fn ask(&self, confirm: Option<&Confirm>) -> Result<(), Failure> {
        let question = format!(
            "{} rows were answered before with another request. Call them again?",
            grouped(self.paid)
        );
        if self.paid == 0 || confirm.is_none_or(|confirm| confirm(&question)) {
            return Ok(());
        }
        Err(Failure::Usage(
            "nothing was called; write to another output with -o to keep both answers".into(),
        ))
    }
}
