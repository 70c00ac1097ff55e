//! The output in completion order: every row as soon as it is in the journal.
//!
//! The file is made anew from the journal when a run starts, so that a line torn by a kill is
//! never kept, and rows that run again do not stand in it twice.

use super::{openai, row};
use crate::{
    Failure, Files, Written,
    files::sync_dir,
    journal::{Head, Place, Sink, Status, Window},
};
use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

/// Writes rows as they come.
pub(crate) struct Stream {
    format: Written,
    output: Option<File>,
    errors: Option<File>,
    errors_path: PathBuf,
    text: Vec<u8>,
}

impl Stream {
    /// Starts the output with the rows that are in the journal already.
    ///
    /// # Errors
    ///
    /// When the journal cannot be read or a file not be written.
    pub(crate) fn start(
        files: &Files,
        journal: &Path,
        places: impl Iterator<Item = Place>,
    ) -> Result<Self, Failure> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |error| Failure::io("write", &path, error)
        };
        let output = match &files.output {
            Some(path) => Some(File::create(path).map_err(failed(path))?),
            None => None,
        };
        if files.errors.exists() {
            fs::remove_file(&files.errors).map_err(failed(&files.errors))?;
        }
        let mut this = Self {
            format: files.format,
            output,
            errors: None,
            errors_path: files.errors.clone(),
            text: Vec::new(),
        };
        let journal = File::open(journal).map_err(failed(journal))?;
        this.replay(journal, places).map_err(failed(&this.errors_path.clone()))?;
        Ok(this)
    }

    fn replay(&mut self, journal: File, places: impl Iterator<Item = Place>) -> io::Result<()> {
        let mut window = Window::new(journal);
        // Buffered, unlike the lines to come: nobody waits for these one by one.
        let mut out: BufWriter<Box<dyn Write>> = match &self.output {
            Some(file) => BufWriter::new(Box::new(file.try_clone()?)),
            None => BufWriter::new(Box::new(io::stdout())),
        };
        for place in places {
            let (head, line) = window.record(place)?;
            self.push(&mut out, head.status, line)?;
        }
        out.flush()
    }

    /// This stream as the journal's sink.
    pub(crate) fn into_sink(mut self) -> Sink {
        Box::new(move |head: &Head, line: &[u8]| {
            self.push_out(head.status, line).map_err(|error| {
                io::Error::new(error.kind(), format!("the output cannot be written: {error}"))
            })
        })
    }

    fn push_out(&mut self, status: Status, line: &[u8]) -> io::Result<()> {
        let Some(mut file) = self.output.take() else {
            let mut out = io::stdout().lock();
            self.push(&mut out, status, line)?;
            return out.flush();
        };
        let done = self.push(&mut file, status, line);
        self.output = Some(file);
        done
    }

    fn push(&mut self, out: &mut impl Write, status: Status, line: &[u8]) -> io::Result<()> {
        let openai = self.format == Written::OpenAiBatch;
        if openai {
            self.text.clear();
            openai::encode(&row::read(line)?, &mut self.text);
        }
        let line = if openai { &self.text } else { line };
        if status == Status::Ok || !openai {
            out.write_all(line)?;
        }
        if status == Status::Failed {
            if self.errors.is_none() {
                self.errors = Some(File::create(&self.errors_path)?);
                sync_dir(&self.errors_path)?;
            }
            self.errors.as_mut().expect("it was just opened").write_all(line)?;
        }
        Ok(())
    }
}

impl Drop for Stream {
    /// Makes the files durable: the journal is already, so a failure loses nothing.
    fn drop(&mut self) {
        for file in [&self.output, &self.errors].into_iter().flatten() {
            let _ = file.sync_all();
        }
    }
}
