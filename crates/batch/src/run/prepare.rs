//! Before the first call: the files are ours, the input is sound, and what an earlier run has
//! done is known.

use super::{changes::match_rows, equal::Equals, rows::Rows};
use crate::{
    Failure, Files, Job, Manifest, Order, Written,
    input::Input,
    job::Confirm,
    journal::Repaired,
    lock::Lock,
    manifest::{now_ms, options_hash},
    output::{self, Assembled, Failed, Outcome, Row, Selection},
    progress::Reporter,
    summary::grouped,
};
use std::{
    borrow::Cow,
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
};

/// A job ready to run.
pub(super) struct Prepared {
    pub(super) desk: Desk,
    pub(super) rows: Rows,
    /// The journal, open at its end.
    pub(super) file: File,
    pub(super) end: u64,
}

/// What stays the same while the job runs.
pub(super) struct Desk {
    pub(super) files: Files,
    pub(super) journal: PathBuf,
    pub(super) input: Input,
    /// Rows to be answered, in working order.
    pub(super) order: Vec<u32>,
    pub(super) manifest: Manifest,
    _lock: Lock,
}

/// Opens everything a job needs, and says what it found.
///
/// # Errors
///
/// When anything is not usable. Nothing has been called, and nothing was replaced.
pub(super) fn prepare(
    job: &Job,
    reporter: &mut Reporter,
    confirm: Option<&Confirm>,
) -> Result<Prepared, Failure> {
    let files = Files::of(&job.input.path, job.output.as_deref(), job.format)?;
    if files.format == Written::Csv && job.order == Order::Completion {
        return Err(Failure::Usage(
            "a CSV is written in input order, for its columns are known only at the end; leave \
             out --order completion, or write .jsonl"
                .into(),
        ));
    }
    let fresh = RunDir::make(&files)?;
    let lock = Lock::take(&files.lock())?;
    let earlier = Manifest::read(&files)?;
    check_ours(job, &files, earlier.as_ref())?;
    let input = Input::open(&job.input, &files.run_dir)
        .map_err(|error| Failure::Usage(error.to_string()))?;
    if input.bad().total > 0 && !job.skip_invalid {
        return Err(bad_lines(&input));
    }
    let order = working_order(&input)?;

    let entries = order.iter().max().map_or(0, |row| u64::from(*row) + 1);
    let journal = files.journal();
    let manifest = manifest(job, &files, &input, earlier.as_ref(), order.len() as u64);
    let (mut rows, file, end) = Rows::open(&journal, entries)?;
    fresh.keep();
    tell_repairs(rows.repaired, reporter);
    let changes = match_rows(&input, &mut rows, &order);
    changes.tell(job, &input, earlier.as_ref(), &rows, reporter);
    changes.ask(confirm)?;
    let again = rows.classify(&journal, &order, job.retry.as_ref())?;
    if job.retry.is_some() {
        reporter.note(&format!("{} failed rows run again", grouped(again)));
    }
    let done = rows.tally.done();
    let left = order.len() as u64 - done;
    if done > 0 && left > 0 && job.retry.is_none() {
        reporter.note(&format!("resuming: {} done, {} left", grouped(done), grouped(left)));
    }
    let desk = Desk { files, journal, input, order, manifest, _lock: lock };
    Ok(Prepared { desk, rows, file, end })
}

impl Desk {
    /// Says on disk that the job runs and which output it will write.
    pub(super) fn begin(&mut self) -> Result<(), Failure> {
        self.manifest.state = "running".into();
        self.manifest.claim(&self.files);
        self.manifest.write(&self.files)
    }

    /// The groups of equal rows.
    pub(super) fn equals(&self) -> Equals {
        if self.input.duplicates() == 0 {
            return Equals::default();
        }
        let hash = |row: u32| self.input.hash(u64::from(row));
        let valid: Vec<u32> =
            self.order.iter().copied().filter(|row| hash(*row).is_some()).collect();
        Equals::find(&valid, |row| hash(row).expect("bad rows were left out"))
    }

    /// Whether the output is there already, as this job wrote it.
    pub(super) fn output_is_current(&self) -> bool {
        self.files.output.as_ref().is_some_and(|path| {
            self.manifest.wrote_all(path, self.files.format, self.order.len() as u64)
        })
    }

    /// What a streamed output came to.
    pub(super) fn streamed(&self, rows: &Rows) -> Assembled {
        let len = |path: &PathBuf| fs::metadata(path).map_or(0, |file| file.len());
        Assembled {
            output_bytes: self.files.output.as_ref().map_or(0, len),
            error_rows: rows.tally.failed,
        }
    }

    /// Writes the output of the rows that stand; the others are `skipped` in it.
    ///
    /// # Errors
    ///
    /// When it cannot be written; the journal still has every row.
    pub(super) fn write_output(&self, rows: &Rows) -> Result<Assembled, Failure> {
        let mut ascending = Cow::Borrowed(&self.order);
        if !ascending.is_sorted() {
            ascending.to_mut().sort_unstable();
        }
        let selection = Selection {
            rows: &ascending,
            place: &|row| rows.place(row),
            skipped: &|row, out| self.encode_skipped(row, out),
        };
        output::assemble(&self.files, &self.journal, &selection)
    }

    fn encode_skipped(&self, row: u32, out: &mut Vec<u8>) {
        let index = u64::from(row);
        let custom_id = self.input.custom_id(index);
        let row = Row {
            index,
            custom_id: custom_id.as_deref(),
            columns: None,
            model: None,
            attempts: 0,
            latency_ms: None,
            cached: false,
            usage: None,
            cost: None,
            outcome: Outcome::Skipped(Failed {
                code: "not_run",
                message: "the job stopped before this row; run the same command again",
                class: "skipped",
                retryable: true,
                answer: None,
            }),
        };
        output::encode(&row, out);
    }
}

/// A run directory made for this run is removed again when the run does not come to be.
struct RunDir {
    made: Option<PathBuf>,
}

impl RunDir {
    fn make(files: &Files) -> Result<Self, Failure> {
        let dir = &files.run_dir;
        let made = !dir.exists();
        fs::create_dir_all(dir).map_err(|error| Failure::io("create", dir, error))?;
        Ok(Self { made: made.then(|| dir.clone()) })
    }

    fn keep(mut self) {
        self.made = None;
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        if let Some(dir) = &self.made {
            // An empty leftover directory is harmless.
            let _ = fs::remove_dir_all(dir);
        }
    }
}

/// Refuses to touch files that another job, or the user, wrote.
fn check_ours(job: &Job, files: &Files, earlier: Option<&Manifest>) -> Result<(), Failure> {
    let input = job.input.path.to_string_lossy();
    if let Some(earlier) = earlier
        && earlier.input != input
    {
        return Err(Failure::Usage(format!(
            "{} belongs to a job on {}; choose another output with -o, or move it away",
            files.run_dir.display(),
            earlier.input
        )));
    }
    if earlier.is_none() && !job.overwrite && files.errors.exists() {
        return Err(not_ours(&files.errors));
    }
    let Some(output) = files.output.as_ref().filter(|output| output.exists()) else {
        return Ok(());
    };
    if output.is_dir() {
        return Err(Failure::Usage(format!(
            "the output {} is a directory; name a file with -o",
            output.display()
        )));
    }
    if job.overwrite || earlier.is_some_and(|earlier| earlier.owns(output)) {
        return Ok(());
    }
    Err(match earlier {
        Some(earlier) if earlier.outputs.contains_key(&*output.to_string_lossy()) => {
            Failure::Usage(format!(
                "{} was changed since this job wrote it; move it away to keep the changes, or \
                 pass --overwrite to write it again",
                output.display()
            ))
        }
        _ => not_ours(output),
    })
}

fn not_ours(path: &Path) -> Failure {
    Failure::Usage(format!(
        "{} exists and was not written by this job; choose another output with -o, move it away, \
         or pass --overwrite",
        path.display()
    ))
}

fn bad_lines(input: &Input) -> Failure {
    let bad = input.bad();
    let mut text = format!(
        "{} of {} rows cannot be sent; nothing was called. Mend them, or pass --skip-invalid to \
         run the others:",
        grouped(bad.total),
        grouped(input.rows())
    );
    // A wrong flag spoils every row in the same way: that is said once.
    for alike in bad.shown.chunk_by(|a, b| a.message == b.message && a.column == b.column) {
        let (first, last) = (&alike[0], &alike[alike.len() - 1]);
        text += &match alike.len() {
            1 => format!("\n  line {}", first.line),
            _ => format!("\n  lines {} to {}", first.line, last.line),
        };
        if let Some(column) = first.column {
            text += &format!(", column {column}");
        }
        if let (1, Some(id)) = (alike.len(), &first.custom_id) {
            text += &format!(" ({id})");
        }
        text += &format!(": {}", first.message);
    }
    let more = bad.total - bad.shown.len() as u64;
    if more > 0 {
        text += &format!("\n  … and {} more", grouped(more));
    }
    Failure::Usage(text)
}

fn working_order(input: &Input) -> Result<Vec<u32>, Failure> {
    let mut order = Vec::with_capacity(input.rows() as usize);
    for index in input.indexes() {
        order.push(u32::try_from(index).map_err(|_| {
            Failure::Usage(format!(
                "the input has more than {} rows; split it",
                grouped(u64::from(u32::MAX))
            ))
        })?);
    }
    Ok(order)
}

fn manifest(
    job: &Job,
    files: &Files,
    input: &Input,
    earlier: Option<&Manifest>,
    selected: u64,
) -> Manifest {
    // `retry` goes on with a job: the command that made it stays the one to run again.
    let arguments = match earlier {
        Some(earlier) if job.retry.is_some() => earlier.arguments.clone(),
        _ => job.arguments.clone(),
    };
    Manifest {
        version: Manifest::VERSION,
        tool: concat!("tidegate ", env!("CARGO_PKG_VERSION")).into(),
        job: earlier.map_or_else(|| format!("{:08x}", rand::random::<u32>()), |e| e.job.clone()),
        input: job.input.path.to_string_lossy().into_owned(),
        input_bytes: fs::metadata(&job.input.path)
            .ok()
            .filter(fs::Metadata::is_file)
            .map(|f| f.len()),
        kind: format!("{:?}", input.kind()).to_lowercase(),
        rows: input.rows(),
        selected,
        partial: job.input.limit.is_some() || job.input.sample.is_some(),
        options_hash: options_hash(&arguments),
        arguments,
        output: files.output_name(),
        outputs: earlier.map_or_else(BTreeMap::new, |earlier| earlier.outputs.clone()),
        state: earlier.map_or_else(|| "new".into(), |earlier| earlier.state.clone()),
        started_at_ms: earlier.map_or_else(now_ms, |earlier| earlier.started_at_ms),
        updated_at_ms: 0,
        elapsed_ms: earlier.map_or(0, |earlier| earlier.elapsed_ms),
        summary: earlier.and_then(|earlier| earlier.summary.clone()),
    }
}

fn tell_repairs(repaired: Repaired, reporter: &mut Reporter) {
    let Repaired { torn_bytes, damaged_bytes } = repaired;
    if torn_bytes > 0 {
        reporter.note(&format!(
            "the journal ended in the middle of a record: {torn_bytes} bytes were cut off, and \
             that row runs again"
        ));
    }
    if damaged_bytes > 0 {
        reporter.note(&format!(
            "the journal is damaged: {damaged_bytes} bytes were skipped, and the rows they held \
             run again. Check the disk"
        ));
    }
}
