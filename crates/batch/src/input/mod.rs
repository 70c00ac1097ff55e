//! The input of a batch: rows in a file, a folder or a pipe, each a request.
//!
//! # Why
//!
//! Every line is checked before the first call is paid for. What stays in memory is where a row
//! begins and what its request hashes to, 24 bytes; the row itself is read again when its turn
//! comes. A million rows take 24 MB, 32 MB when they are reordered.

pub(crate) mod json;
mod options;
mod pass;
mod rows;
mod source;
mod table;
#[cfg(test)]
mod tests;

use crate::{
    body::{self, Prepared, Recipe, Unloaded},
    order,
    request::{BadLine, Request, RequestHash},
    schema::Schema,
    template::Columns,
};
pub(crate) use json::Fault;
pub use options::{GroupBy, InputError, InputOptions};
use source::Source;
use std::{fmt, path::Path, sync::Arc};
use tidegate_core::Operation;
use tidegate_wire::request::View;

/// What an input is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InputKind {
    /// Lines of JSON.
    Jsonl,
    /// A table with a header.
    Csv,
    /// Pictures.
    Images,
}

/// An input that was opened and checked, every row of it.
#[derive(Debug)]
pub(crate) struct Input {
    source: Source,
    recipe: Recipe,
    /// Rows taken, by index; `None` is all of them.
    selected: Option<Vec<u64>>,
    /// One for each row taken; [`BAD`] for bad ones.
    hashes: Vec<[u8; 16]>,
    /// Positions in working order; `None` is input order.
    order: Option<Vec<u64>>,
    bad: BadLines,
    duplicates: u64,
}

/// Stands for the hash of a bad row. No request hashes to it but by a chance of 2⁻¹²⁸.
const BAD: [u8; 16] = [0; 16];

/// The lines that are no requests.
#[derive(Debug, Default)]
pub(crate) struct BadLines {
    /// How many there are.
    pub(crate) total: u64,
    /// The first of them.
    pub(crate) shown: Vec<BadLine>,
}

/// What planning needs of a row; its picture is not read for it.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) operation: Operation,
    pub(crate) counted_bytes: usize,
    pub(crate) view: View,
}

impl Input {
    /// Opens the input and checks every row: about 3 µs for a short JSONL line.
    ///
    /// A pipe is copied into `spool_dir` first, to be read again.
    ///
    /// # Errors
    ///
    /// An option that is not usable, an input that is missing, unreadable or empty, or a template
    /// that names a column the input lacks. Bad lines are no error here: see [`Input::bad`].
    pub(crate) fn open(options: &InputOptions, spool_dir: &Path) -> Result<Self, InputError> {
        for (flag, count) in [("--limit", options.limit), ("--sample", options.sample)] {
            if count == Some(0) {
                return Err(InputError::new(format!("{flag} 0 takes no row: give 1 or more")));
            }
        }
        let recipe = Recipe::new(options)?;
        let source = Source::open(options, spool_dir)?;
        match &source {
            Source::Lines(_) => {}
            Source::Table(table) => recipe.check_columns(table.names(), "CSV rows")?,
            Source::Images(_) => recipe.check_images()?,
        }
        if source.len() == 0 {
            return Err(match &source {
                Source::Table(_) => {
                    InputError::new(format!("{} has a header but no rows", options.path.display()))
                }
                Source::Lines(_) | Source::Images(_) => InputError::empty(&options.path),
            });
        }
        let selected =
            options.sample.map(|wanted| order::sample(source.len(), wanted, options.seed));
        let mut input = Self {
            source,
            recipe,
            selected,
            hashes: Vec::new(),
            order: None,
            bad: BadLines::default(),
            duplicates: 0,
        };
        input.check_rows(options);
        Ok(input)
    }

    /// Rows taken, bad ones included.
    pub(crate) fn rows(&self) -> u64 {
        self.selected.as_ref().map_or(self.source.len(), |selected| selected.len() as u64)
    }

    /// Indexes of the rows taken, in working order.
    pub(crate) fn indexes(&self) -> impl Iterator<Item = u64> + '_ {
        (0..self.rows()).map(|turn| self.index_at(turn))
    }

    /// Index of the row whose turn is `turn`, from 0 to [`Input::rows`].
    pub(crate) fn index_at(&self, turn: u64) -> u64 {
        let position = self.order.as_ref().map_or(turn, |order| order[turn as usize]);
        self.index_of(position)
    }

    /// The lines that are no requests.
    pub(crate) const fn bad(&self) -> &BadLines {
        &self.bad
    }

    /// What is wrong with row `index`, when something is.
    pub(crate) fn is_bad(&self, index: u64) -> Option<BadLine> {
        match self.position_of(index) {
            Some(position) if self.hashes[position] != BAD => None,
            _ => self.read(index).err(),
        }
    }

    /// What identifies the request of row `index`; `None` when it is bad or not taken.
    pub(crate) fn hash(&self, index: u64) -> Option<RequestHash> {
        let hash = self.hashes[self.position_of(index)?];
        (hash != BAD).then_some(RequestHash(hash))
    }

    /// The request of row `index`, its picture read now. Cheap in input order.
    ///
    /// # Errors
    ///
    /// What is wrong with it; also when the input changed since it was opened.
    pub(crate) fn read(&self, index: u64) -> Result<Request, BadLine> {
        let bad = |fault| self.bad_line(index, fault);
        if self.position_of(index).is_none() {
            let message = format!("row {index} is not one of this batch");
            return Err(BadLine { index, line: 0, column: None, custom_id: None, message });
        }
        let known = self.hash(index);
        let unloaded: Unloaded = self
            .prepare(index, |line, prepared| {
                let hash = prepared.hash();
                if known == Some(hash) {
                    return Ok(prepared.unloaded(index, hash));
                }
                let id = prepared.custom_id.as_deref().map(Arc::<str>::from);
                if known.is_some() {
                    return Err(Fault { custom_id: id, ..Fault::new(CHANGED) });
                }
                self.check(line, &prepared)?;
                // Nothing else is wrong with it, so this is why the pass found it bad.
                Err(used_before(id.unwrap_or_default(), "an earlier line"))
            })
            .map_err(bad)?;
        unloaded.load().map_err(bad)
    }

    /// What planning needs of row `index`.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub(crate) fn measure(&self, index: u64) -> Result<Measured, BadLine> {
        self.prepare(index, |line, prepared| {
            Ok(Measured {
                operation: prepared.operation,
                counted_bytes: prepared.counted_bytes(),
                view: self.check(line, &prepared)?,
            })
        })
        .map_err(|fault| self.bad_line(index, fault))
    }

    /// Rows whose request an earlier row has too.
    pub(crate) const fn duplicates(&self) -> u64 {
        self.duplicates
    }

    /// What the input is.
    pub(crate) const fn kind(&self) -> InputKind {
        self.source.kind()
    }

    /// The id of row `index`, when it gave one. Its picture is not read.
    pub(crate) fn custom_id(&self, index: u64) -> Option<Arc<str>> {
        self.prepare(index, |_, row| Ok(row.custom_id.as_deref().map(Arc::from))).ok().flatten()
    }

    /// Line of row `index` in the file, from 1.
    pub(crate) fn line(&self, index: u64) -> u64 {
        self.source.line(index)
    }

    /// The schema answers must follow.
    pub(crate) const fn schema(&self) -> Option<&Arc<Schema>> {
        self.recipe.schema()
    }

    /// Builds the request of row `index` and gives it, with its line, to `take`.
    fn prepare<R>(
        &self,
        index: u64,
        take: impl FnOnce(Option<&str>, Prepared<'_>) -> Result<R, Fault>,
    ) -> Result<R, Fault> {
        let read = match &self.source {
            Source::Lines(rows) => rows.row(index, |row| {
                let text = rows.text(row)?;
                take(Some(text), self.recipe.line(text)?)
            }),
            Source::Table(table) => table.row(index, |cells| {
                let columns = Columns::Cells { names: table.names(), cells };
                take(None, self.recipe.row(columns)?)
            }),
            Source::Images(paths) => Ok(self
                .recipe
                .image(&paths[index as usize])
                .and_then(|prepared| take(None, prepared))),
        };
        read.unwrap_or_else(|error| Err(Fault::new(format!("the input cannot be read: {error}"))))
    }

    fn check(&self, line: Option<&str>, prepared: &Prepared<'_>) -> Result<View, Fault> {
        let view = self
            .recipe
            .check_size(prepared)
            .and_then(|()| body::check(line, prepared.operation, &prepared.body));
        view.map_err(|fault| {
            let custom_id = prepared.custom_id.as_deref().map(Arc::from);
            Fault { custom_id, ..fault }
        })
    }

    fn bad_line(&self, index: u64, fault: Fault) -> BadLine {
        BadLine {
            index,
            line: self.source.line(index),
            column: fault.column,
            custom_id: fault.custom_id,
            message: fault.message,
        }
    }

    fn index_of(&self, position: u64) -> u64 {
        self.selected.as_ref().map_or(position, |selected| selected[position as usize])
    }

    fn position_of(&self, index: u64) -> Option<usize> {
        match &self.selected {
            Some(selected) => selected.binary_search(&index).ok(),
            None => ((index as usize) < self.hashes.len()).then_some(index as usize),
        }
    }
}

const CHANGED: &str = "the row changed since the batch began: leave the input alone while it runs";

fn used_before(id: Arc<str>, place: &str) -> Fault {
    let message = format!("custom_id '{id}' was already used in {place}: every id must be its own");
    Fault { custom_id: Some(id), ..Fault::new(message) }
}

impl fmt::Display for BadLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}", self.line)?;
        if let Some(column) = self.column {
            write!(f, ", column {column}")?;
        }
        write!(f, ": {}", self.message)
    }
}
