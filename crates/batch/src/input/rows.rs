//! Rows of a text file by number: found in one pass, read again one by one.
//!
//! # Why
//!
//! A million rows do not fit in memory, and a resumed or regrouped job wants them in any order. So
//! the pass keeps eight bytes per row, where it begins, and a window of the file serves the reads.

use super::Fault;
use csv_core::ReadRecordResult;
use parking_lot::Mutex;
use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
};

/// Bytes read at once while going through a file in order.
const WINDOW_BYTES: usize = 256 * 1024;
/// Rows between two remembered line numbers.
const ROWS_PER_MARK: u64 = 64;

/// A file and where its rows begin.
#[derive(Debug)]
pub(crate) struct RowFile {
    window: Mutex<Window>,
    /// First byte of each row, and at last of what follows them.
    offsets: Vec<u64>,
    /// Line number of every 64th row.
    marks: Vec<u64>,
    pub(super) max_row_bytes: usize,
}

/// A piece of the file.
#[derive(Debug)]
struct Window {
    file: File,
    start: u64,
    bytes: Vec<u8>,
}

impl RowFile {
    /// Finds the lines that are not blank, at most `limit` of them.
    ///
    /// # Errors
    ///
    /// When the file cannot be read.
    pub(crate) fn lines(
        file: File,
        start: u64,
        limit: u64,
        max_row_bytes: usize,
    ) -> io::Result<Self> {
        let mut found = Found::new(start, limit);
        let file =
            found.scan(file, start, b" \t\r", |rest, ended| match memchr::memchr(b'\n', rest) {
                Some(at) => {
                    *ended = true;
                    at + 1
                }
                None => rest.len(),
            })?;
        Ok(found.into_rows(file, max_row_bytes))
    }

    /// Finds the records of a CSV file, at most `limit` of them; the first one is no other.
    ///
    /// # Errors
    ///
    /// When the file cannot be read.
    pub(crate) fn records(
        file: File,
        start: u64,
        limit: u64,
        max_row_bytes: usize,
        delimiter: u8,
    ) -> io::Result<Self> {
        let mut found = Found::new(start, limit);
        let mut reader = csv_core::ReaderBuilder::new().delimiter(delimiter).build();
        let (mut out, mut ends) = ([0; 4096], [0; 256]);
        let file = found.scan(file, start, b"\r", |rest, ended| {
            let (result, read, _, _) = reader.read_record(rest, &mut out, &mut ends);
            // What is written is not wanted: a full buffer is simply used again.
            *ended = matches!(result, ReadRecordResult::Record | ReadRecordResult::End);
            if *ended {
                reader.reset();
            }
            read
        })?;
        Ok(found.into_rows(file, max_row_bytes))
    }

    /// How many rows there are.
    pub(crate) fn len(&self) -> u64 {
        self.offsets.len() as u64 - 1
    }

    /// Gives `read` the bytes of row `at`, up to the next row or a little over the longest allowed.
    ///
    /// # Errors
    ///
    /// When the file cannot be read.
    pub(crate) fn row<R>(&self, at: u64, read: impl FnOnce(&[u8]) -> R) -> io::Result<R> {
        let (start, end) = (self.offsets[at as usize], self.offsets[at as usize + 1]);
        let wanted = (end - start).min(self.max_row_bytes as u64 + 3) as usize;
        let mut window = self.window.lock();
        window.show(start, wanted)?;
        let from = (start - window.start) as usize;
        let to = (from + wanted).min(window.bytes.len());
        Ok(read(&window.bytes[from..to]))
    }

    /// The line row `at` begins on, from 1.
    ///
    /// # Errors
    ///
    /// When the file cannot be read.
    pub(crate) fn line(&self, at: u64) -> io::Result<u64> {
        let marked = at / ROWS_PER_MARK;
        let from = self.offsets[(marked * ROWS_PER_MARK) as usize];
        let mut left = self.offsets[at as usize] - from;
        let mut line = self.marks[marked as usize];
        let mut window = self.window.lock();
        window.file.seek(SeekFrom::Start(from))?;
        let mut chunk = vec![0; left.clamp(1, 64 * 1024) as usize];
        while left > 0 {
            let size = chunk.len().min(left as usize);
            let read = window.file.read(&mut chunk[..size])?;
            if read == 0 {
                break;
            }
            line += memchr::memchr_iter(b'\n', &chunk[..read]).count() as u64;
            left -= read as u64;
        }
        Ok(line)
    }

    /// The text of a JSONL line in the bytes of its row.
    ///
    /// # Errors
    ///
    /// A line that is too long, holds NUL bytes or is not UTF-8.
    pub(crate) fn text<'a>(&self, row: &'a [u8]) -> Result<&'a str, Fault> {
        let line = match memchr::memchr(b'\n', row) {
            Some(end) => &row[..end],
            None => row,
        };
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.len() > self.max_row_bytes {
            return Err(self.too_long());
        }
        std::str::from_utf8(line)
            .map_err(|error| {
                let at = error.valid_up_to();
                Fault::at(
                    at,
                    format!(
                        "the line is not UTF-8: byte {:#04x}; convert the file (iconv -t UTF-8)",
                        line[at]
                    ),
                )
            })
            .and_then(|text| match memchr::memchr(0, line) {
                Some(at) => Err(Fault::at(at, "the line holds a NUL byte: is the file damaged?")),
                None => Ok(text),
            })
    }

    /// A row longer than allowed.
    pub(super) fn too_long(&self) -> Fault {
        Fault::new(format!(
            "the row is longer than {} bytes (the limit is --max-row)",
            self.max_row_bytes
        ))
    }
}

impl Window {
    /// Makes `wanted` bytes from `start` readable, as far as the file has them.
    fn show(&mut self, start: u64, wanted: usize) -> io::Result<()> {
        let end = self.start + self.bytes.len() as u64;
        if start >= self.start && start + wanted as u64 <= end {
            return Ok(());
        }
        // In order, read ahead; out of order, read the row alone.
        let in_order = start >= self.start && start <= end;
        let size = if in_order { wanted.max(WINDOW_BYTES) } else { wanted };
        self.bytes.clear();
        self.bytes.shrink_to(size.max(WINDOW_BYTES));
        self.start = start;
        self.file.seek(SeekFrom::Start(start))?;
        (&mut self.file).take(size as u64).read_to_end(&mut self.bytes)?;
        Ok(())
    }
}

/// What the pass found so far.
struct Found {
    offsets: Vec<u64>,
    marks: Vec<u64>,
    line: u64,
    limit: u64,
    end: u64,
}

impl Found {
    const fn new(start: u64, limit: u64) -> Self {
        Self { offsets: Vec::new(), marks: Vec::new(), line: 1, limit, end: start }
    }

    /// Goes through the file; `take` takes bytes of a row and says when it has ended. Rows do not
    /// begin with `blanks`.
    fn scan(
        &mut self,
        mut file: File,
        start: u64,
        blanks: &[u8],
        mut take: impl FnMut(&[u8], &mut bool) -> usize,
    ) -> io::Result<File> {
        file.seek(SeekFrom::Start(start))?;
        let mut chunk = vec![0; WINDOW_BYTES];
        let mut in_row = false;
        // The first byte of the line at hand: a row begins there, its indent included.
        let mut line_start = start;
        let mut base = start;
        loop {
            let size = file.read(&mut chunk)?;
            if size == 0 {
                self.end = if in_row { base } else { line_start };
                return Ok(file);
            }
            let mut at = 0;
            while at < size {
                if in_row {
                    let mut ended = false;
                    let taken = take(&chunk[at..size], &mut ended);
                    self.line += memchr::memchr_iter(b'\n', &chunk[at..at + taken]).count() as u64;
                    at += taken;
                    in_row = !ended;
                    line_start = base + at as u64;
                    continue;
                }
                match chunk[at] {
                    b'\n' => {
                        self.line += 1;
                        at += 1;
                        line_start = base + at as u64;
                    }
                    byte if blanks.contains(&byte) => at += 1,
                    _ if self.offsets.len() as u64 == self.limit => {
                        self.end = line_start;
                        return Ok(file);
                    }
                    _ => {
                        if (self.offsets.len() as u64).is_multiple_of(ROWS_PER_MARK) {
                            self.marks.push(self.line);
                        }
                        self.offsets.push(line_start);
                        in_row = true;
                    }
                }
            }
            base += size as u64;
        }
    }

    fn into_rows(mut self, file: File, max_row_bytes: usize) -> RowFile {
        self.offsets.push(self.end);
        self.offsets.shrink_to_fit();
        let start = self.offsets[0];
        let window = Window { file, start, bytes: Vec::new() };
        RowFile {
            window: Mutex::new(window),
            offsets: self.offsets,
            marks: self.marks,
            max_row_bytes,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::io::Write;

    pub(in crate::input) fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    /// Every row with its line, as `line:text`.
    #[track_caller]
    fn check_lines(text: &str, expected: &[&str]) {
        let rows = RowFile::lines(file(text.as_bytes()), 0, u64::MAX, 1000).unwrap();
        let got: Vec<String> = (0..rows.len())
            .map(|at| {
                let line = rows.line(at).unwrap();
                rows.row(at, |row| format!("{line}:{}", rows.text(row).unwrap())).unwrap()
            })
            .collect();
        assert_eq!(got, expected);
    }

    #[test]
    fn lines_are_found_whatever_ends_them() {
        check_lines("", &[]);
        check_lines("\n \r\n\t", &[]);
        check_lines("a", &["1:a"]);
        check_lines("a\nb\n", &["1:a", "2:b"]);
        check_lines("\r\na\r\n\r\n  b\r\n \n", &["2:a", "4:  b"]);
    }

    #[test]
    fn lines_across_windows_and_out_of_order() {
        let text: String = (0..5000)
            .map(|i| format!("{i}{}\n{}", "x".repeat(i % 300), "\n".repeat(i % 2)))
            .collect();
        let rows = RowFile::lines(file(text.as_bytes()), 0, u64::MAX, 1000).unwrap();
        assert_eq!(rows.len(), 5000);
        for at in [0, 1, 4999, 17, 63, 64, 65, 2500, 2501, 3] {
            let got = rows.row(at, |row| rows.text(row).unwrap().to_owned()).unwrap();
            assert_eq!(got.trim_end_matches('x'), at.to_string());
            assert_eq!(rows.line(at).unwrap(), at + at / 2 + 1);
        }
    }

    #[test]
    fn a_limit_ends_the_pass_and_the_last_row() {
        let rows = RowFile::lines(file(b"a\n\nb\nc\n"), 0, 2, 1000).unwrap();
        assert_eq!(rows.len(), 2);
        assert_eq!(rows.row(1, |row| rows.text(row).unwrap().to_owned()).unwrap(), "b");
    }

    #[test]
    fn bad_lines_name_their_column() {
        let bytes = [&b"ab\xffc\n"[..], b"a\0b\n", &[b'x'; 11], b"\n", &[b'y'; 10]].concat();
        let rows = RowFile::lines(file(&bytes), 0, u64::MAX, 10).unwrap();
        let fault = |at| rows.row(at, |row| rows.text(row).map(str::to_owned)).unwrap();
        assert_eq!(fault(0).unwrap_err().column, Some(3));
        assert_eq!(fault(1).unwrap_err().column, Some(2));
        assert!(fault(2).unwrap_err().message.contains("longer than 10"));
        assert_eq!(fault(3).unwrap(), "yyyyyyyyyy");
    }
}
