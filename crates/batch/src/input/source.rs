//! What an input is: told by its name, or for standard input by its first bytes.

use super::{Fault, InputError, InputKind, InputOptions, rows::RowFile, table::Table};
use crate::images;
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek},
    path::{Path, PathBuf},
};

/// The rows of an input, by number.
#[derive(Debug)]
pub(crate) enum Source {
    /// Lines of JSON.
    Lines(RowFile),
    /// Records with a header.
    Table(Box<Table>),
    /// Pictures, by path.
    Images(Vec<PathBuf>),
}

/// Bytes looked at to tell what a file is.
const HEAD_BYTES: usize = 512;

impl Source {
    /// Opens what `options` name and finds its rows.
    ///
    /// # Errors
    ///
    /// When it is missing, unreadable, of no known kind, or its header is bad.
    pub(crate) fn open(options: &InputOptions, spool_dir: &Path) -> Result<Self, InputError> {
        let path = &options.path;
        if path.as_os_str() == "-" {
            let file = spool(&mut io::stdin().lock(), spool_dir)?;
            return Self::of_file(file, None, options);
        }
        let about = match fs::metadata(path) {
            Ok(about) => about,
            Err(error) if error.kind() == io::ErrorKind::NotFound && images::is_glob(path) => {
                return Ok(Self::Images(limited(images::matching(path)?, options)));
            }
            Err(error) => return Err(InputError::unreadable(path, error)),
        };
        if about.is_dir() {
            return Ok(Self::Images(limited(images::in_folder(path)?, options)));
        }
        if images::is_picture(path) {
            return Ok(Self::Images(limited(vec![path.clone()], options)));
        }
        let kind = kind_by_name(path)?;
        let mut file = File::open(path).map_err(|error| InputError::unreadable(path, error))?;
        if !about.is_file() {
            // A pipe (as from a shell's `<(…)`) can be read only once.
            file = spool(&mut file, spool_dir)?;
        }
        Self::of_file(file, kind, options)
    }

    /// How many rows there are.
    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Lines(rows) => rows.len(),
            Self::Table(table) => table.len(),
            Self::Images(paths) => paths.len() as u64,
        }
    }

    /// What the input is.
    pub(crate) const fn kind(&self) -> InputKind {
        match self {
            Self::Lines(_) => InputKind::Jsonl,
            Self::Table(_) => InputKind::Csv,
            Self::Images(_) => InputKind::Images,
        }
    }

    /// The line row `at` begins on, from 1; a picture's place in the list.
    pub(crate) fn line(&self, at: u64) -> u64 {
        // An unreadable file is told by whoever wants the row itself.
        match self {
            Self::Lines(rows) => rows.line(at).unwrap_or(0),
            Self::Table(table) => table.line(at).unwrap_or(0),
            Self::Images(_) => at + 1,
        }
    }

    fn of_file(
        mut file: File,
        kind: Option<Text>,
        options: &InputOptions,
    ) -> Result<Self, InputError> {
        let path = &options.path;
        let unreadable = |error| InputError::unreadable(path, error);
        let mut head = Vec::with_capacity(HEAD_BYTES);
        file.rewind().map_err(unreadable)?;
        (&mut file).take(HEAD_BYTES as u64).read_to_end(&mut head).map_err(unreadable)?;
        refuse_binary(path, &head)?;
        let start = if head.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 };
        let kind = match kind {
            Some(kind) => kind,
            None => kind_by_content(path, &head[start..])?,
        };
        let limit = options.limit.unwrap_or(u64::MAX);
        let (start, max_bytes) = (start as u64, options.max_row_bytes);
        match kind {
            Text::Jsonl => {
                let rows = RowFile::lines(file, start, limit, max_bytes).map_err(unreadable)?;
                Ok(Self::Lines(rows))
            }
            Text::Table(delimiter) => {
                let with_header = limit.saturating_add(1);
                let records = RowFile::records(file, start, with_header, max_bytes, delimiter)
                    .map_err(unreadable)?;
                if records.len() == 0 {
                    return Err(InputError::empty(path));
                }
                let table = Table::new(records, delimiter).map_err(unreadable)?;
                table.map(|table| Self::Table(Box::new(table))).map_err(|fault| {
                    InputError::new(format!("{}: {}", path.display(), fault.message))
                })
            }
        }
    }
}

/// A kind of text file.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Text {
    Jsonl,
    /// With this byte between cells.
    Table(u8),
}

fn limited(mut paths: Vec<PathBuf>, options: &InputOptions) -> Vec<PathBuf> {
    if let Some(limit) = options.limit {
        paths.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    }
    paths
}

/// The kind its extension names; `None` when that says nothing.
fn kind_by_name(path: &Path) -> Result<Option<Text>, InputError> {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or("");
    let shown = path.display();
    match extension.to_ascii_lowercase().as_str() {
        "jsonl" | "ndjson" | "json" => Ok(Some(Text::Jsonl)),
        "csv" => Ok(Some(Text::Table(b','))),
        "tsv" => Ok(Some(Text::Table(b'\t'))),
        "txt" | "text" | "md" => Err(InputError::new(format!(
            "{shown} is plain text, which has no rows to call: make it CSV with a header line, \
             or JSONL (jq -Rc '{{text: .}}' {shown} > rows.jsonl)"
        ))),
        "parquet" | "arrow" | "feather" | "xlsx" | "xls" => Err(InputError::new(format!(
            "{shown} is a {extension} file, which is not read yet: convert it to CSV or JSONL"
        ))),
        "gz" | "zst" | "bz2" | "xz" | "zip" => Err(InputError::new(format!(
            "{shown} is compressed: unpack it first, or pipe it (zcat {shown} | tidegate batch -)"
        ))),
        _ => Ok(None),
    }
}

fn kind_by_content(path: &Path, head: &[u8]) -> Result<Text, InputError> {
    match head.trim_ascii_start().first() {
        Some(b'{' | b'[') => Ok(Text::Jsonl),
        None => Err(InputError::empty(path)),
        Some(_) if path.as_os_str() == "-" => Ok(Text::Table(b',')),
        Some(_) => Err(InputError::new(format!(
            "{} is neither JSONL nor known by its extension: name it .jsonl, .csv or .tsv",
            path.display()
        ))),
    }
}

fn refuse_binary(path: &Path, head: &[u8]) -> Result<(), InputError> {
    let what = match head {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => {
            "is UTF-16: convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)"
        }
        [0x1f, 0x8b, ..] => "is compressed (gzip): unpack it first, for example with zcat",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "is compressed (zstd): unpack it first with zstdcat",
        [b'P', b'K', 3, 4, ..] => "is a zip archive or workbook: export it as CSV",
        [b'P', b'A', b'R', b'1', ..] => {
            "is Parquet, which is not read yet: convert it to CSV or JSONL"
        }
        _ => return Ok(()),
    };
    Err(InputError::new(format!("{} {what}", path.display())))
}

/// Copies what can be read only once to a file that can be read again; its disk space is free as
/// soon as the job ends, however it ends.
fn spool(from: &mut impl Read, dir: &Path) -> Result<File, InputError> {
    let path = dir.join(format!("input-{}.spool", std::process::id()));
    let mut copy = || {
        fs::create_dir_all(dir)?;
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path)?;
        // The open file stays usable without its name, and nothing is left behind after a crash.
        fs::remove_file(&path)?;
        io::copy(from, &mut file)?;
        Ok(file)
    };
    copy().map_err(|error: io::Error| {
        InputError::caused(format!("cannot keep a copy of the input in {}", dir.display()), error)
    })
}

impl InputError {
    /// An input with no rows.
    pub(crate) fn empty(path: &Path) -> Self {
        let shown = path.display();
        match path.as_os_str() == "-" {
            true => Self::new("standard input is empty: nothing was piped in"),
            false => Self::new(format!("{shown} is empty: it has no rows")),
        }
    }

    /// A file that cannot be read.
    pub(crate) fn unreadable(path: &Path, error: io::Error) -> Self {
        let shown = path.display();
        match error.kind() {
            io::ErrorKind::NotFound => Self::new(format!("{shown} does not exist: check the path")),
            _ => Self::caused(format!("cannot read {shown}"), error),
        }
    }
}

impl From<Fault> for InputError {
    fn from(fault: Fault) -> Self {
        Self::new(fault.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, bytes: &[u8], expected: &str) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        let options = InputOptions { path, ..InputOptions::default() };
        match Source::open(&options, dir.path()) {
            Ok(source) => assert_eq!(format!("{:?} {}", source.kind(), source.len()), expected),
            Err(error) => {
                let said = error.to_string();
                assert!(said.contains(name) && said.contains(expected), "{said}");
            }
        }
    }

    #[test]
    fn kinds_are_told_by_name_then_content() {
        check("a.jsonl", b"{}\n{}\n", "Jsonl 2");
        check("a.JSON", b"{}", "Jsonl 1");
        check("a.csv", b"a\n1\n", "Csv 1");
        check("a.tsv", b"a\tb\n1\t2\n\t3\n", "Csv 2");
        check("a.csv", b"\xef\xbb\xbfa\n1\n2\n", "Csv 2");
        check("a.csv", b"a,b\n", "Csv 0");
        check("data", b" {}", "Jsonl 1");
        check("a.png", b"", "Images 1");
    }

    #[test]
    fn what_is_no_input_is_refused_with_advice() {
        check("data", b"hello", "name it .jsonl");
        check("a.txt", b"hello", "jq -Rc");
        check("a.parquet", b"PAR1", "not read yet");
        check("a.jsonl.gz", b"\x1f\x8b", "compressed");
        check("a.jsonl", b"\x1f\x8b\x08", "gzip");
        check("a.csv", b"\xff\xfea\0", "UTF-16");
        check("a.csv", b"", "is empty");
        check("a.csv", b"\n\n", "is empty");
        check("a.csv", b"a,a\n", "'a' twice");
        let options = InputOptions { path: "/nowhere/x.jsonl".into(), ..InputOptions::default() };
        let said = Source::open(&options, Path::new(".")).unwrap_err().to_string();
        assert!(said.contains("/nowhere/x.jsonl does not exist"), "{said}");
    }

    #[test]
    fn a_pipe_is_kept_to_be_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let spools = dir.path().join("deep/run");
        let mut file = spool(&mut &b"{\"a\":1}\n"[..], &spools).unwrap();
        for _ in 0..2 {
            let mut text = String::new();
            file.rewind().unwrap();
            file.read_to_string(&mut text).unwrap();
            assert_eq!(text, "{\"a\":1}\n");
        }
        assert_eq!(fs::read_dir(&spools).unwrap().count(), 0, "nothing is left behind");
    }
}
