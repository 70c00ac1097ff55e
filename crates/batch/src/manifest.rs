//! What a job is and how far it came: `manifest.json` in the run directory, for people, for
//! `batch status` and for `batch retry`.
//!
//! The journal is the truth about rows. The manifest says what the journal cannot: which command
//! made it, and which output file is ours.

use crate::{Failure, Files, Written, files::replace, summary::Summary};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fs, io, path::Path};

/// What a job is and how far it came.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this file.
    pub version: u32,
    /// Program and version that wrote it.
    pub tool: String,
    /// Random word in the request ids of this job.
    pub job: String,
    /// Input, as it was given.
    pub input: String,
    /// Length of the input, when it is a file.
    pub input_bytes: Option<u64>,
    /// `jsonl`, `csv` or `images`.
    pub kind: String,
    /// Rows of the input.
    pub rows: u64,
    /// Rows to be answered: fewer than there are with `--limit` or `--sample`.
    pub selected: u64,
    /// Whether the command took only some of the rows.
    pub partial: bool,
    /// BLAKE3 of the arguments: differs when the job was started with others.
    pub options_hash: String,
    /// Arguments of the command, without the program. Never a secret.
    pub arguments: Vec<String>,
    /// Output, `-` for standard output.
    pub output: String,
    /// Every output this job wrote: one input may be written in several formats.
    pub outputs: BTreeMap<String, OutputFile>,
    /// `running`, `finished`, or why it stopped.
    pub state: String,
    /// Unix milliseconds of the first start.
    pub started_at_ms: u64,
    /// Unix milliseconds of this file.
    pub updated_at_ms: u64,
    /// Milliseconds all runs took together.
    pub elapsed_ms: u64,
    /// How the last run ended.
    pub summary: Option<Summary>,
}

/// An output file of the job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputFile {
    /// Its format.
    pub format: String,
    /// Its length; `None` while it is being written.
    pub bytes: Option<u64>,
    /// Its rows.
    pub rows: u64,
}

impl Manifest {
    /// Version written and read.
    pub(crate) const VERSION: u32 = 1;

    /// Reads the manifest of the job; `None` when there is none.
    ///
    /// # Errors
    ///
    /// When it cannot be read or understood.
    pub fn read(files: &Files) -> Result<Option<Self>, Failure> {
        let path = files.manifest();
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Failure::io("read", &path, error)),
        };
        let manifest: Self = serde_json::from_slice(&bytes).map_err(|error| {
            Failure::Usage(format!(
                "{} is damaged ({error}); remove it and pass --overwrite to go on: the answers are \
                 in the journal beside it",
                path.display()
            ))
        })?;
        if manifest.version != Self::VERSION {
            return Err(Failure::Usage(format!(
                "{} was made by another version of tidegate ({}); finish the job with that, or \
                 move the directory away to start over",
                files.run_dir.display(),
                manifest.tool
            )));
        }
        Ok(Some(manifest))
    }

    /// Writes the manifest, whole or not at all.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub(crate) fn write(&mut self, files: &Files) -> Result<(), Failure> {
        self.updated_at_ms = now_ms();
        let path = files.manifest();
        replace(&path, |out| serde_json::to_writer_pretty(out, self).map_err(io::Error::from))
            .map_err(|error| Failure::io("write", &path, error))?;
        Ok(())
    }

    /// The command that runs this job again, to be pasted into a shell.
    pub fn command(&self) -> String {
        let mut command = String::from("tidegate");
        for argument in &self.arguments {
            command.push(' ');
            command += &quoted(argument);
        }
        command
    }

    /// Whether `path` is a file this job wrote, untouched since.
    pub(crate) fn owns(&self, path: &Path) -> bool {
        let Some(known) = self.outputs.get(&*path.to_string_lossy()) else { return false };
        known.bytes.is_none_or(|bytes| fs::metadata(path).is_ok_and(|file| file.len() == bytes))
    }

    /// Whether `path` is this job's output as it would be written now.
    pub(crate) fn wrote_all(&self, path: &Path, format: Written, rows: u64) -> bool {
        let known = self.outputs.get(&*path.to_string_lossy());
        known.is_some_and(|known| {
            known.bytes.is_some() && known.format == format.name() && known.rows == rows
        }) && self.owns(path)
    }

    /// Says that the output is about to be written: should the process die meanwhile, the file
    /// is ours whatever is in it.
    pub(crate) fn claim(&mut self, files: &Files) {
        self.wrote_part(files, 0, None);
    }

    /// Says that the output was written.
    pub(crate) fn wrote(&mut self, files: &Files, rows: u64, bytes: u64) {
        self.wrote_part(files, rows, Some(bytes));
    }

    fn wrote_part(&mut self, files: &Files, rows: u64, bytes: Option<u64>) {
        if let Some(path) = &files.output {
            let file = OutputFile { format: files.format.name().into(), bytes, rows };
            self.outputs.insert(path.to_string_lossy().into_owned(), file);
        }
    }
}

/// BLAKE3 of the arguments, each with its length before it.
pub(crate) fn options_hash(arguments: &[String]) -> String {
    let mut hasher = blake3::Hasher::new();
    for argument in arguments {
        hasher.update(&(argument.len() as u64).to_le_bytes());
        hasher.update(argument.as_bytes());
    }
    hasher.finalize().to_hex()[..32].to_owned()
}

pub(crate) fn now_ms() -> u64 {
    std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_millis() as u64)
}

/// `text` as one word of a POSIX shell.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn words_survive_the_shell() {
        assert_eq!(quoted("--set=body.x=1"), "--set=body.x=1");
        assert_eq!(quoted("Say: {{ text }}"), "'Say: {{ text }}'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
    }
}
