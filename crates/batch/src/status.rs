//! How a job stands, read from its run directory: also while another process runs it.

use crate::{
    Failure, Files, Manifest,
    journal::{self, Status as Row},
    lock::Lock,
    summary::{grouped, money, short},
};
use serde::Serialize;
use std::{fmt, fs::File, time::Duration};

/// How a job stands.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// What the job is; its state is that of its last checkpoint.
    pub manifest: Manifest,
    /// Whether a process is running it now.
    pub running: bool,
    /// Rows answered.
    pub ok: u64,
    /// Rows that failed.
    pub failed: u64,
    /// Rows not called yet.
    pub left: u64,
    /// US dollars so far; `null` when a price is unknown.
    pub cost: Option<f64>,
    /// The command that goes on with it.
    pub command: String,
}

/// Reads how the job of `files` stands.
///
/// # Errors
///
/// When there is no such job, or its files cannot be read.
pub fn status(files: &Files) -> Result<Status, Failure> {
    let Some(manifest) = Manifest::read(files)? else {
        return Err(Failure::Usage(format!(
            "there is no job in {}; start one with `tidegate batch`",
            files.run_dir.display()
        )));
    };
    let running = Lock::is_held(&files.lock());
    let journal = files.journal();
    let file = File::open(&journal).map_err(|error| Failure::io("open", &journal, error))?;
    let mut last: Vec<Option<Row>> = Vec::new();
    let mut cost = Some(0.0);
    journal::scan(&file, |_, head, _| {
        let at = head.index as usize;
        if at < manifest.rows as usize || manifest.partial {
            if at >= last.len() {
                last.resize(at + 1, None);
            }
            last[at] = Some(head.status);
        }
        cost = cost.zip(head.cost).map(|(sum, cost): (f64, f64)| sum + cost);
    })
    .map_err(|error| Failure::io("read", &journal, error))?;
    let count = |wanted| last.iter().filter(|row| **row == Some(wanted)).count() as u64;
    let (ok, failed) = (count(Row::Ok), count(Row::Failed));
    let left = manifest.selected.saturating_sub(ok + failed);
    let command = manifest.command();
    Ok(Status { running, ok, failed, left, cost, command, manifest })
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match (self.running, &*self.manifest.state) {
            (true, _) => "running",
            // The process died without a word.
            (false, "running") => "killed",
            (false, state) => state,
        };
        writeln!(
            f,
            "{}: {state} · {} of {} rows ok, {} failed, {} left · cost {}",
            self.manifest.input,
            grouped(self.ok),
            grouped(self.manifest.selected),
            grouped(self.failed),
            grouped(self.left),
            money(self.cost),
        )?;
        let idle = crate::manifest::now_ms().saturating_sub(self.manifest.updated_at_ms);
        writeln!(
            f,
            "  output {} · {} · last checkpoint {} ago",
            self.manifest.output,
            self.manifest.tool,
            short(Duration::from_millis(idle))
        )?;
        if self.running {
            return Ok(());
        }
        if self.left > 0 {
            writeln!(f, "  go on: {}", self.command)?;
        }
        if self.failed > 0 {
            let Manifest { input, output, arguments, .. } = &self.manifest;
            // The run directory follows the output: without its name another job would be meant.
            let is_named = |said: &String| said.starts_with("-o") || said.starts_with("--output");
            let output = match arguments.iter().any(is_named) {
                true => format!(" -o {output}"),
                false => String::new(),
            };
            writeln!(f, "  run the failed again: tidegate batch retry {input}{output}")?;
        }
        Ok(())
    }
}
