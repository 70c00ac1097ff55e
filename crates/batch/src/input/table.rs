//! Tables: CSV and TSV, the first record naming the columns of the others.

use super::{Fault, rows::RowFile};
use crate::template::list;
use csv_core::ReadRecordResult;
use parking_lot::Mutex;
use std::io;

/// A CSV file: the records after its header.
#[derive(Debug)]
pub(crate) struct Table {
    records: RowFile,
    names: Vec<String>,
    parser: Mutex<Parser>,
}

/// Takes one record at a time into cells.
#[derive(Debug)]
struct Parser {
    reader: csv_core::Reader,
    out: Vec<u8>,
    ends: Vec<usize>,
}

impl Table {
    /// Reads the header of `records`.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub(crate) fn new(records: RowFile, delimiter: u8) -> io::Result<Result<Self, Fault>> {
        let reader = csv_core::ReaderBuilder::new().delimiter(delimiter).build();
        let mut parser = Parser { reader, out: Vec::new(), ends: Vec::new() };
        let names = records.row(0, |row| match row.len() > records.max_row_bytes {
            true => Err(records.too_long()),
            false => header(&mut parser, row),
        })?;
        Ok(names.map(|names| Self { records, names, parser: Mutex::new(parser) }))
    }

    /// How many records there are.
    pub(crate) fn len(&self) -> u64 {
        self.records.len() - 1
    }

    /// Names of the columns.
    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }

    /// Gives `read` the cells of record `at`.
    ///
    /// # Errors
    ///
    /// When the file cannot be read; within, what is wrong with the record.
    pub(crate) fn row<R>(
        &self,
        at: u64,
        read: impl FnOnce(&[&str]) -> Result<R, Fault>,
    ) -> io::Result<Result<R, Fault>> {
        self.records.row(at + 1, |row| {
            let mut parser = self.parser.lock();
            let max_bytes = self.records.max_row_bytes;
            match parser.parse(row) {
                Ok(length) if length <= max_bytes => {}
                Err(fault) if row.len() <= max_bytes => return Err(fault),
                // Cut off, so it cannot be told whether a quote is left open or the row is long.
                _ => {
                    let long = self.records.too_long();
                    return Err(Fault::new(long.message + "; is a quote never closed?"));
                }
            }
            let cells = parser.cells(&self.names)?;
            if cells.len() != self.names.len() {
                return Err(Fault::new(format!(
                    "the row has {} cells where the header has {} ({}): quote cells that hold \
                     commas, quotes or line breaks",
                    cells.len(),
                    self.names.len(),
                    list(&self.names)
                )));
            }
            read(&cells)
        })
    }

    /// The line record `at` begins on, from 1.
    ///
    /// # Errors
    ///
    /// When the file cannot be read.
    pub(crate) fn line(&self, at: u64) -> io::Result<u64> {
        self.records.line(at + 1)
    }
}

impl Parser {
    /// Takes the first record of `row`, and says how many bytes it has.
    fn parse(&mut self, row: &[u8]) -> Result<usize, Fault> {
        self.reader.reset();
        self.out.resize(row.len() + 1, 0);
        self.ends.resize(self.ends.len().max(16), 0);
        let (mut read, mut written, mut ended) = (0, 0, 0);
        loop {
            // Past the last byte stands a line end: a record the file ends with needs none.
            let rest = if read < row.len() { &row[read..] } else { b"\n" };
            let (result, in_bytes, out_bytes, end_count) =
                self.reader.read_record(rest, &mut self.out[written..], &mut self.ends[ended..]);
            read += in_bytes;
            written += out_bytes;
            ended += end_count;
            match result {
                ReadRecordResult::Record => break,
                ReadRecordResult::OutputEndsFull => self.ends.resize(ended * 2, 0),
                ReadRecordResult::InputEmpty if read <= row.len() => {}
                ReadRecordResult::InputEmpty
                | ReadRecordResult::OutputFull
                | ReadRecordResult::End => {
                    return Err(Fault::new(
                        "a quote opened in this row is never closed: it would swallow all rows \
                         after it; close it, or double it (\"\") where it is meant as text",
                    ));
                }
            }
        }
        self.out.truncate(written);
        self.ends.truncate(ended);
        Ok(read.min(row.len()))
    }

    fn cells(&self, names: &[String]) -> Result<Vec<&str>, Fault> {
        let mut start = 0;
        let mut cells = Vec::with_capacity(self.ends.len());
        for (at, &end) in self.ends.iter().enumerate() {
            let bytes = &self.out[start..end];
            start = end;
            let place = || match names.get(at) {
                Some(name) => format!("column '{name}'"),
                None => format!("cell {}", at + 1),
            };
            let fault = |message| Fault { column: Some(at as u64 + 1), ..Fault::new(message) };
            let text = std::str::from_utf8(bytes).map_err(|error| {
                let at = error.valid_up_to();
                fault(format!(
                    "{} is not UTF-8: byte {:#04x} at its byte {}; convert the file (iconv -t UTF-8)",
                    place(),
                    bytes[at],
                    at + 1
                ))
            })?;
            if memchr::memchr(0, bytes).is_some() {
                return Err(fault(format!(
                    "{} holds a NUL byte: is the file UTF-16 or damaged?",
                    place()
                )));
            }
            cells.push(text);
        }
        Ok(cells)
    }
}

/// Names of the columns; one without a name is called by its place.
fn header(parser: &mut Parser, row: &[u8]) -> Result<Vec<String>, Fault> {
    parser.parse(row)?;
    let names: Vec<String> = parser
        .cells(&[])?
        .iter()
        .enumerate()
        .map(|(at, name)| match name.trim() {
            "" => format!("column_{}", at + 1),
            name => name.to_owned(),
        })
        .collect();
    if names.len() == 1 && names[0].starts_with(['{', '[']) {
        return Err(Fault::new("the first line is JSON, not a header: is the file JSONL?"));
    }
    let mut seen = std::collections::BTreeSet::new();
    match names.iter().find(|name| !seen.insert(name.as_str())) {
        Some(name) => {
            Err(Fault::new(format!("the header names column '{name}' twice: rename one")))
        }
        None => Ok(names),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::rows::tests::file, *};

    fn table(bytes: &[u8]) -> Result<Table, Fault> {
        let rows = RowFile::records(file(bytes), 0, u64::MAX, 1000, b',').unwrap();
        Table::new(rows, b',').unwrap()
    }

    /// Every record with its line, as `line:cell|cell`, or `line:!message`.
    #[track_caller]
    fn check_csv(text: &str, expected: &[&str]) {
        let table = table(text.as_bytes()).unwrap();
        let got: Vec<String> = (0..table.len())
            .map(|at| {
                let cells = table.row(at, |cells| Ok(cells.join("|"))).unwrap();
                let said = cells.unwrap_or_else(|fault| format!("!{}", fault.message));
                format!("{}:{said}", table.line(at).unwrap())
            })
            .collect();
        assert_eq!(got.len(), expected.len(), "{got:?}");
        for (got, expected) in got.iter().zip(expected) {
            assert!(got.starts_with(expected), "{got}");
        }
    }

    #[test]
    fn records_keep_quoted_line_breaks() {
        check_csv("a,b\n1,2\n", &["2:1|2"]);
        check_csv(
            "a,b\r\n\"x\r\ny\",\"say \"\"hi\"\"\"\r\n\r\n3,4",
            &["2:x\r\ny|say \"hi\"", "5:3|4"],
        );
        check_csv("a\n\"\"\n", &["2:"]);
        check_csv("a,b\n", &[]);
    }

    #[test]
    fn bad_records_are_told_with_their_line() {
        check_csv("a,b\n1\n1,2,3\n4,5\n", &["2:!the row has 1 cells", "3:!the row has 3", "4:4|5"]);
        check_csv("a,b\n1,\"open\n3,4\n", &["2:!a quote opened"]);
        check_csv("a\nx\0y\n", &["2:!column 'a' holds a NUL"]);
        let long = format!("a\n{}\nok\n", "x".repeat(1001));
        check_csv(&long, &["2:!the row is longer", "3:ok"]);
        let table = table(b"a,text\n1,ab\xff\n").unwrap();
        let fault = table.row(0, |_| Ok(())).unwrap().unwrap_err();
        assert!(fault.message.starts_with("column 'text' is not UTF-8") && fault.column == Some(2));
    }

    #[test]
    fn headers_are_checked() {
        assert_eq!(table(b"a, b ,,\xc3\xa9\n").unwrap().names(), ["a", "b", "column_3", "é"]);
        assert!(table(b"a,b,a\n").unwrap_err().message.contains("'a' twice"));
        assert!(table(b"{\"x\":1}\n").unwrap_err().message.contains("JSONL"));
        let wide: Vec<String> = (0..5000).map(|i| format!("c{i}")).collect();
        let wide = wide.join(",");
        assert!(table(wide.as_bytes()).unwrap_err().message.contains("longer than 1000"));
        let rows = RowFile::records(file(wide.as_bytes()), 0, u64::MAX, 100_000, b',').unwrap();
        assert_eq!(Table::new(rows, b',').unwrap().unwrap().names().len(), 5000);
    }
}
