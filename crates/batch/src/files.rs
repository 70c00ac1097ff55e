//! Where a job's files lie, and how a finished file takes its name.
//!
//! `data.jsonl` -> `data.out.jsonl`, `data.errors.jsonl`, `data.run/`. The run directory follows
//! the output's name, so one input may be run twice, with two prompts, into two outputs.

use crate::{Failure, Format};
use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

/// The files of one job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// Where rows go; `None` is standard output.
    pub output: Option<PathBuf>,
    /// Where error rows go as well.
    pub errors: PathBuf,
    /// Journal, manifest, lock.
    pub run_dir: PathBuf,
    /// What the output is written as.
    pub format: Written,
}

/// How rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// One JSON object a line, our own fields.
    Jsonl,
    /// A table.
    Csv,
    /// OpenAI's batch output and error lines.
    OpenAiBatch,
}

impl Written {
    /// The word in the manifest.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Jsonl => "jsonl",
            Self::Csv => "csv",
            Self::OpenAiBatch => "openai-batch",
        }
    }
}

impl Files {
    /// The files of a job on `input` with `-o output` and `--format format`.
    ///
    /// # Errors
    ///
    /// When the output would replace the input, or its format cannot be written.
    pub fn of(input: &Path, output: Option<&Path>, format: Format) -> Result<Self, Failure> {
        let base = base(input);
        let to_stdout = output == Some(Path::new("-"));
        let target = match output {
            None => Some(with_suffix(&base, ".out.jsonl")),
            Some(_) if to_stdout => None,
            Some(path) => Some(path.to_owned()),
        };
        let stem = match &target {
            Some(path) if output.is_some() => stem(path),
            _ => base,
        };
        let files = Self {
            format: written(target.as_deref(), format)?,
            errors: with_suffix(&stem, ".errors.jsonl"),
            run_dir: with_suffix(&stem, ".run"),
            output: target,
        };
        files.refuse_input(input)?;
        Ok(files)
    }

    /// The output for people; `-` is standard output.
    pub(crate) fn output_name(&self) -> String {
        self.output.as_ref().map_or("-".into(), |path| path.display().to_string())
    }

    /// The journal of answered rows.
    pub(crate) fn journal(&self) -> PathBuf {
        self.run_dir.join("journal")
    }

    /// What the job is and how far it came.
    pub(crate) fn manifest(&self) -> PathBuf {
        self.run_dir.join("manifest.json")
    }

    /// Held by the process that runs the job.
    pub(crate) fn lock(&self) -> PathBuf {
        self.run_dir.join("lock")
    }

    fn refuse_input(&self, input: &Path) -> Result<(), Failure> {
        for path in self.output.iter().chain([&self.errors, &self.run_dir]) {
            let same = path == input
                || matches!((path.canonicalize(), input.canonicalize()), (Ok(a), Ok(b)) if a == b);
            if same {
                return Err(Failure::Usage(format!(
                    "the output {} would replace the input; choose another with -o",
                    path.display()
                )));
            }
        }
        Ok(())
    }
}

/// `format`, or what the output's extension says.
fn written(output: Option<&Path>, format: Format) -> Result<Written, Failure> {
    let extension = output.and_then(Path::extension).and_then(|extension| extension.to_str());
    match (format, extension.map(str::to_ascii_lowercase).as_deref()) {
        (Format::OpenAiBatch, Some("csv")) => Err(Failure::Usage(
            "--format openai-batch writes JSON lines; give the output a name ending in .jsonl"
                .into(),
        )),
        (Format::OpenAiBatch, _) => Ok(Written::OpenAiBatch),
        (Format::Csv, _) | (Format::Auto, Some("csv")) => Ok(Written::Csv),
        (Format::Auto, Some("parquet")) => Err(Failure::Usage(
            "Parquet output is not available; use a name ending in .jsonl or .csv".into(),
        )),
        (Format::Jsonl | Format::Auto, _) => Ok(Written::Jsonl),
    }
}

/// The input's name without its extension: what the job's files are named after.
fn base(input: &Path) -> PathBuf {
    let text = input.to_string_lossy();
    if text == "-" {
        return PathBuf::from("stdin");
    }
    if text.contains(['*', '?', '[']) {
        return PathBuf::from("images");
    }
    if input.is_dir() {
        return match input.canonicalize().ok().as_deref().and_then(Path::file_name) {
            Some(name) => input.parent().unwrap_or(Path::new("")).join(name),
            None => PathBuf::from("images"),
        };
    }
    input.with_extension("")
}

/// `x.out.jsonl` -> `x`, `x.csv` -> `x`.
fn stem(output: &Path) -> PathBuf {
    let stem = output.with_extension("");
    if stem.extension().is_some_and(|extension| extension == "out") {
        stem.with_extension("")
    } else {
        stem
    }
}

fn with_suffix(stem: &Path, suffix: &str) -> PathBuf {
    let mut name = stem.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Writes `path` whole or not at all: a temporary file beside it, fsync, rename, directory fsync.
///
/// Returns the file's length.
///
/// # Errors
///
/// What writing, syncing or renaming said; `path` is then as it was.
pub(crate) fn replace(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> io::Result<u64> {
    let temporary = with_suffix(path, ".tmp");
    let written = (|| {
        let mut out = BufWriter::with_capacity(256 << 10, File::create(&temporary)?);
        write(&mut out)?;
        out.flush()?;
        let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        let len = file.metadata()?.len();
        fs::rename(&temporary, path)?;
        sync_dir(path)?;
        Ok(len)
    })();
    if written.is_err() {
        // The error that matters is the first; a leftover temporary file is harmless.
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Makes a name just created in, or moved into, `path`'s directory durable.
pub(crate) fn sync_dir(path: &Path) -> io::Result<()> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(input: &str, output: Option<&str>, expected: &str) {
        let files = Files::of(Path::new(input), output.map(Path::new), Format::Auto);
        let shown = match files {
            Ok(files) => format!(
                "{} {} {}",
                files.output.as_deref().map_or("-".into(), Path::to_string_lossy),
                files.errors.display(),
                files.run_dir.display()
            ),
            Err(error) => error.to_string(),
        };
        assert_eq!(shown, expected);
    }

    #[test]
    fn files_are_named_after_the_input_or_the_output() {
        check("d/data.jsonl", None, "d/data.out.jsonl d/data.errors.jsonl d/data.run");
        check("data.csv", Some("x.csv"), "x.csv x.errors.jsonl x.run");
        check("data.csv", Some("o/x.out.jsonl"), "o/x.out.jsonl o/x.errors.jsonl o/x.run");
        check("-", None, "stdin.out.jsonl stdin.errors.jsonl stdin.run");
        check("-", Some("-"), "- stdin.errors.jsonl stdin.run");
        check("img/*.png", None, "images.out.jsonl images.errors.jsonl images.run");
    }

    #[test]
    fn the_input_is_never_the_output() {
        check(
            "data.jsonl",
            Some("data.jsonl"),
            "the output data.jsonl would replace the input; choose another with -o",
        );
    }

    #[test]
    fn a_file_is_replaced_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        assert_eq!(replace(&path, |out| out.write_all(b"one")).unwrap(), 3);
        let failed = replace(&path, |out| {
            out.write_all(b"tw")?;
            Err(io::Error::other("disk"))
        });
        assert!(failed.is_err());
        assert_eq!(fs::read(&path).unwrap(), b"one");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
