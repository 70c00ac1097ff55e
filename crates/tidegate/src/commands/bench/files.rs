//! The files a report goes to.

use crate::output;
use anyhow::Context;
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};
use tidegate_bench::Report;

/// Where reports go.
pub(super) struct Files {
    json: Option<PathBuf>,
    html: Option<PathBuf>,
    /// Made by us, and empty until there is a report.
    new: Vec<PathBuf>,
}

impl Files {
    /// Finds out before the run, not after it, what cannot be written.
    pub(super) fn claim(json: Option<PathBuf>, html: Option<PathBuf>) -> Result<Self, String> {
        let mut files = Self { json, html, new: Vec::new() };
        for file in [&files.json, &files.html].into_iter().flatten() {
            if is_stdout(file) {
                continue;
            }
            let is_new = !file.exists();
            if let Err(error) = File::options().append(true).create(true).open(file) {
                let why = format!("{} cannot be written: {error}", file.display());
                files.give_up();
                return Err(why);
            }
            if is_new {
                files.new.push(file.clone());
            }
        }
        Ok(files)
    }

    /// There will be no report.
    pub(super) fn give_up(&self) {
        for file in &self.new {
            // It stays behind, empty: no harm.
            drop(fs::remove_file(file));
        }
    }

    /// Writes all that can be written.
    pub(super) fn write(&self, report: &Report) -> anyhow::Result<()> {
        let to_stdout = self.json.as_deref().is_some_and(is_stdout);
        let shown = if to_stdout {
            output::note(&report.to_text());
            output::data(&report.to_json())
        } else {
            output::data(&report.to_text())
        };
        let json = self.json.as_ref().filter(|_| !to_stdout);
        let written = [
            (json, Report::to_json as fn(&Report) -> String),
            (self.html.as_ref(), Report::to_html),
        ]
        .map(|(file, text)| match file {
            Some(file) => {
                fs::write(file, text(report)).with_context(|| format!("writing {}", file.display()))
            }
            None => Ok(()),
        });
        shown.context("writing to standard output")?;
        written.into_iter().collect()
    }
}

pub(super) fn is_stdout(file: &Path) -> bool {
    file.as_os_str() == "-"
}
