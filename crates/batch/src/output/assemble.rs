//! The final files, in input order, made from the journal alone.

use super::{csv, openai, row};
use crate::{
    Failure, Files, Written,
    files::replace,
    journal::{Place, Status, Window},
};
use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::Path,
};

/// The rows of an output and where they lie.
pub(crate) struct Selection<'a> {
    /// Rows of the output, ascending.
    pub(crate) rows: &'a [u32],
    /// Where a row's record lies; `None` when it was not run.
    pub(crate) place: &'a dyn Fn(u32) -> Option<Place>,
    /// Writes the line of a row that was not run.
    pub(crate) skipped: &'a dyn Fn(u32, &mut Vec<u8>),
}

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Assembled {
    /// Length of the output; zero for standard output.
    pub(crate) output_bytes: u64,
    /// Lines in the error file.
    pub(crate) error_rows: u64,
}

/// Writes the output and, when there are any, the error rows.
///
/// # Errors
///
/// When the journal cannot be read or a file not be written: the old file is then still there.
pub(crate) fn assemble(
    files: &Files,
    journal: &Path,
    selection: &Selection<'_>,
) -> Result<Assembled, Failure> {
    let journal = File::open(journal).map_err(|error| Failure::io("open", journal, error))?;
    let mut done = Assembled::default();
    match &files.output {
        Some(path) => {
            done.output_bytes =
                replace(path, |out| write_rows(files.format, &journal, selection, out))
                    .map_err(|error| Failure::io("write", path, error))?;
        }
        None => {
            let mut out = BufWriter::with_capacity(256 << 10, io::stdout().lock());
            write_rows(files.format, &journal, selection, &mut out)
                .and_then(|()| out.flush())
                .map_err(|error| Failure::io("write", Path::new("standard output"), error))?;
        }
    }
    done.error_rows = write_errors(files, &journal, selection)?;
    Ok(done)
}

fn write_rows(
    format: Written,
    journal: &File,
    selection: &Selection<'_>,
    out: &mut impl Write,
) -> io::Result<()> {
    match format {
        Written::Jsonl => each(journal, selection, |_, line| out.write_all(line)),
        Written::OpenAiBatch => {
            let mut text = Vec::new();
            each(journal, selection, |status, line| {
                if status != Some(Status::Ok) {
                    return Ok(());
                }
                text.clear();
                openai::encode(&row::read(line)?, &mut text);
                out.write_all(&text)
            })
        }
        Written::Csv => {
            let mut columns = csv::Columns::default();
            each(journal, selection, |_, line| columns.see(&row::read(line)?))?;
            let mut table = csv::Table::new(columns, out)?;
            each(journal, selection, |_, line| table.push(&row::read(line)?))?;
            table.finish()
        }
    }
}

/// Writes the error file, or removes the one of an earlier run when no row failed.
fn write_errors(files: &Files, journal: &File, selection: &Selection<'_>) -> Result<u64, Failure> {
    let mut errors = 0;
    let written = replace(&files.errors, |out| {
        let mut text = Vec::new();
        let openai = files.format == Written::OpenAiBatch;
        each(journal, selection, |status, line| {
            if status == Some(Status::Ok) || (status.is_none() && !openai) {
                return Ok(());
            }
            errors += 1;
            if !openai {
                return out.write_all(line);
            }
            text.clear();
            openai::encode(&row::read(line)?, &mut text);
            out.write_all(&text)
        })
    });
    written.map_err(|error| Failure::io("write", &files.errors, error))?;
    if errors == 0 {
        fs::remove_file(&files.errors)
            .map_err(|error| Failure::io("remove", &files.errors, error))?;
    }
    Ok(errors)
}

/// Shows every line of the output in order; a row that was not run has no status.
fn each(
    journal: &File,
    selection: &Selection<'_>,
    mut show: impl FnMut(Option<Status>, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut window = Window::new(journal.try_clone()?);
    let mut line = Vec::new();
    for &row in selection.rows {
        match (selection.place)(row) {
            Some(place) => {
                let (head, line) = window.record(place)?;
                show(Some(head.status), line)?;
            }
            None => {
                line.clear();
                (selection.skipped)(row, &mut line);
                show(None, &line)?;
            }
        }
    }
    Ok(())
}
