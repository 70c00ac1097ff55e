//! The input of a batch: rows in a file, a folder or a pipe, each a request.
//!
//! # Why
//!
//! Every line is checked before the first call is paid for. What stays in memory is where a row
//! begins and what its request hashes to, 24 bytes; the row itself is read again when its turn
//! comes. A million rows take 24 MB, 32 MB when they are reordered.

pub(crate) mod json;
mod options;
mod rows;
mod source;
mod table;

use crate::{
    body::{self, Prepared, Recipe, Unloaded},
    order::{self, Rank},
    request::{BadLine, Request, RequestHash},
    schema::Schema,
    template::Columns,
};
pub(crate) use json::Fault;
pub use options::{GroupBy, InputError, InputOptions};
use source::Source;
use std::{
    collections::{HashMap, hash_map::Entry},
    fmt,
    hash::{BuildHasher, RandomState},
    path::Path,
    sync::Arc,
};
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

    /// The pass over all rows: hashes, bad lines, ids used twice, working order.
    fn check_rows(&mut self, options: &InputOptions) {
        let rows = self.rows();
        let mut hashes = Vec::with_capacity(rows as usize);
        let ranked = options.group_by.is_some() || options.priority_column.is_some();
        let mut ranks = Vec::with_capacity(if ranked { rows as usize } else { 0 });
        let mut ids = Ids::default();
        for position in 0..rows {
            let index = self.index_of(position);
            let checked = self.prepare(index, |line, prepared| {
                let rank = Rank {
                    priority: prepared.priority,
                    group: match options.group_by {
                        Some(GroupBy::Tokens) => order::size_key(prepared.counted_bytes()),
                        Some(GroupBy::Prefix) => prepared.prefix_key,
                        None => 0,
                    },
                };
                self.check(line, &prepared)?;
                let id = prepared.custom_id.as_deref();
                let first = id.and_then(|id| ids.first(id, index));
                let used = first.zip(id.map(Arc::<str>::from));
                Ok((prepared.hash().0, rank, used))
            });
            // Outside of the read: the other row is looked at only now.
            let checked = checked.and_then(|(hash, rank, used)| match used {
                Some((first, id)) if self.has_id(first, &id) => {
                    Err(used_before(id, &format!("line {}", self.source.line(first))))
                }
                _ => Ok((hash, rank)),
            });
            let (hash, rank) = checked.unwrap_or_else(|fault| {
                self.bad.total += 1;
                if self.bad.shown.len() < options.max_bad_shown {
                    let bad = self.bad_line(index, fault);
                    self.bad.shown.push(bad);
                }
                (BAD, Rank { priority: 0.0, group: 0 })
            });
            hashes.push(hash);
            if ranked {
                ranks.push(rank);
            }
        }
        drop(ids);
        self.duplicates = duplicates(&hashes);
        self.hashes = hashes;
        self.order = ranked.then(|| order::sorted(&ranks));
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

    fn has_id(&self, index: u64, id: &str) -> bool {
        self.prepare(index, |_, row| Ok(row.custom_id.as_deref() == Some(id))).unwrap_or(false)
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

/// The ids met in the pass, by hash: eight bytes each, and the row that had it first.
#[derive(Default)]
struct Ids {
    hasher: RandomState,
    rows: HashMap<u64, u64>,
}

impl Ids {
    /// The earlier row that (most likely) has `id` too; else `index` is now its row.
    fn first(&mut self, id: &str, index: u64) -> Option<u64> {
        match self.rows.entry(self.hasher.hash_one(id)) {
            Entry::Occupied(row) => Some(*row.get()),
            Entry::Vacant(free) => {
                free.insert(index);
                None
            }
        }
    }
}

fn duplicates(hashes: &[[u8; 16]]) -> u64 {
    let mut sorted: Vec<_> = hashes.iter().filter(|hash| **hash != BAD).collect();
    sorted.sort_unstable();
    sorted.windows(2).filter(|pair| pair[0] == pair[1]).count() as u64
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::{collections::HashSet, fs};
    use tempfile::TempDir;

    /// An input file that lasts as long as the test.
    struct Bench {
        dir: TempDir,
        options: InputOptions,
    }

    fn bench(name: &str, bytes: impl AsRef<[u8]>) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        let default_model = Some("m".to_owned());
        Bench { dir, options: InputOptions { path, default_model, ..InputOptions::default() } }
    }

    impl Bench {
        fn with(mut self, change: impl FnOnce(&mut InputOptions)) -> Self {
            change(&mut self.options);
            self
        }

        fn open(&self) -> Result<Input, InputError> {
            Input::open(&self.options, self.dir.path())
        }
    }

    fn chat(id: &str, content: &str) -> String {
        format!("{{\"custom_id\":\"{id}\",\"messages\":[{{\"content\":\"{content}\"}}]}}\n")
    }

    fn shown(input: &Input) -> Vec<String> {
        input.bad().shown.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn rows_are_read_by_index_in_any_order() {
        let lines: String = (0..3000).map(|i| chat(&format!("r{i}"), &i.to_string())).collect();
        let bench = bench("rows.jsonl", lines);
        let input = bench.open().unwrap();
        assert_eq!((input.rows(), input.bad().total, input.duplicates()), (3000, 0, 0));
        assert_eq!(input.kind(), InputKind::Jsonl);
        for index in [0, 1, 2999, 5, 1500, 1501] {
            let request = input.read(index).unwrap();
            assert_eq!(request.custom_id.as_deref(), Some(&*format!("r{index}")));
            assert_eq!(Some(request.hash), input.hash(index));
            assert_eq!(request.index, index);
        }
        assert_eq!(input.hash(3000), None);
        assert!(input.indexes().eq(0..3000));
    }

    #[test]
    fn every_bad_line_is_counted_and_the_first_are_shown() {
        let mut bytes = b"\xef\xbb\xbf".to_vec();
        bytes.extend_from_slice(chat("a", "1").trim_end().as_bytes());
        bytes.extend_from_slice(b"\r\n\r\n{\"messages\":\n \t\n");
        bytes.extend_from_slice(chat("a", "2").as_bytes());
        bytes.extend_from_slice(b"{\"messages\":[\"\xff\"]}\n");
        bytes.extend_from_slice(&b"nonsense\n".repeat(5));
        bytes.extend_from_slice(chat("b", "3").trim_end().as_bytes());
        let bench = bench("rows.jsonl", bytes).with(|options| options.max_bad_shown = 4);
        let input = bench.open().unwrap();
        assert_eq!((input.rows(), input.bad().total), (10, 8));
        let expected = [
            "line 3, column 12: the line ends before its JSON does",
            "line 5: custom_id 'a' was already used in line 1",
            "line 6, column 15: the line is not UTF-8",
            "line 7, column 1: the line is not a JSON object",
        ];
        for (got, expected) in shown(&input).iter().zip(expected) {
            assert!(got.starts_with(expected), "{got}");
        }
        assert_eq!(input.bad().shown[1].custom_id.as_deref(), Some("a"));
        assert!(input.is_bad(0).is_none() && input.is_bad(9).is_none());
        let late = input.is_bad(8).unwrap();
        assert_eq!((late.index, late.line), (8, 11));
        assert!(input.is_bad(2).unwrap().message.contains("'a' was already used"));
        assert_eq!(input.hash(1), None);
        assert_eq!(&*input.read(9).unwrap().body, br#"{"messages":[{"content":"3"}],"model":"m"}"#);
    }

    #[test]
    fn a_table_becomes_requests_with_its_columns() {
        let text = "id,text\r\n7,\"a\r\nb\"\r\n8\r\n9,c";
        let bench =
            bench("rows.csv", text).with(|options| options.prompt = Some("{{ text }}".into()));
        let input = bench.open().unwrap();
        assert_eq!((input.rows(), input.bad().total), (3, 1));
        assert!(shown(&input)[0].starts_with("line 4: the row has 1 cells"), "{:?}", shown(&input));
        let request = input.read(0).unwrap();
        assert_eq!(request.columns.unwrap(), "{\"id\":\"7\",\"text\":\"a\\r\\nb\"}");
        assert_eq!(request.custom_id, None, "only a column named custom_id is one");
        assert!(input.read(2).unwrap().body.ends_with(br#""content":"c"}]}"#));
    }

    #[test]
    fn what_cannot_be_used_at_all_is_an_error() {
        for (name, bytes, expected) in [
            ("a.jsonl", "", "is empty"),
            ("a.jsonl", "\n\r\n", "is empty"),
            ("a.csv", "text\n", "a header but no rows"),
            ("a.csv", "txt\n1\n", "column 'text', which the input lacks; its columns are: txt"),
        ] {
            let bench =
                bench(name, bytes).with(|options| options.prompt = Some("{{ text }}".into()));
            let said = bench.open().unwrap_err().to_string();
            assert!(said.contains(expected), "{said}");
        }
        let said = bench("a.csv", "text\n1\n").open().unwrap_err().to_string();
        assert!(said.contains("--prompt '{{ text }}'"), "{said}");
        let zero = bench("a.jsonl", "{}").with(|options| options.limit = Some(0));
        assert!(zero.open().unwrap_err().to_string().contains("--limit 0"));
    }

    #[test]
    fn limits_and_samples_keep_indexes() {
        let lines: String = (0..100).map(|i| chat(&i.to_string(), "x")).collect();
        let limited = bench("a.jsonl", &lines).with(|options| options.limit = Some(3));
        assert!(limited.open().unwrap().indexes().eq(0..3));
        let sampled = bench("a.jsonl", &lines).with(|options| {
            options.sample = Some(10);
            options.seed = 7;
        });
        let input = sampled.open().unwrap();
        let picked: Vec<u64> = input.indexes().collect();
        assert!(picked.len() == 10 && picked.is_sorted() && input.rows() == 10);
        for &index in &picked {
            assert_eq!(input.read(index).unwrap().custom_id.as_deref(), Some(&*index.to_string()));
        }
        assert!(sampled.open().unwrap().indexes().eq(picked.iter().copied()));
        assert_eq!(input.duplicates(), 9);
        let other = (0..100).find(|index| !picked.contains(index)).unwrap();
        assert!(input.read(other).is_err() && input.hash(other).is_none());
    }

    #[test]
    fn the_order_of_work() {
        let rows = [("a", 300, 0), ("b", 10, 5), ("c", 300, 0), ("d", 12, 0)];
        let lines: String = rows
            .iter()
            .map(|(id, length, p)| {
                let text = id.repeat(*length);
                format!("{{\"custom_id\":\"{id}\",\"p\":{p},\"messages\":[\"{text}\"]}}\n")
            })
            .collect();
        let order = |change: fn(&mut InputOptions)| {
            let bench = bench("a.jsonl", &lines).with(change);
            let input = bench.open().unwrap();
            input.indexes().collect::<Vec<_>>()
        };
        assert_eq!(order(|o| o.priority_column = Some("p".into())), [1, 0, 2, 3]);
        assert_eq!(order(|o| o.group_by = Some(GroupBy::Tokens)), [1, 3, 0, 2]);
        let mut all = order(|o| o.group_by = Some(GroupBy::Prefix));
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2, 3]);
    }

    #[test]
    fn a_row_that_changed_is_not_sent() {
        let long = "x".repeat(300_000);
        let bench = bench("a.jsonl", chat("a", &long) + &chat("b", "2"));
        let input = bench.open().unwrap();
        fs::write(&bench.options.path, chat("a", &long) + &chat("b", "3")).unwrap();
        assert!(input.read(0).is_ok());
        assert!(input.read(1).unwrap_err().message.contains("changed since"));
        fs::write(&bench.options.path, "").unwrap();
        let again = bench.open();
        assert!(again.unwrap_err().to_string().contains("is empty"));
    }

    #[test]
    fn pictures_are_rows() {
        let bench = bench("b.png", b"\x89PNG\r\n\x1a\nrest").with(|options| {
            options.prompt = Some("Describe".into());
            options.path.pop();
        });
        fs::write(bench.dir.path().join("a.png"), "").unwrap();
        let input = bench.open().unwrap();
        assert_eq!((input.kind(), input.rows(), input.bad().total), (InputKind::Images, 2, 1));
        assert!(shown(&input)[0].starts_with("line 1: the picture"), "{:?}", shown(&input));
        let measured = input.measure(1).unwrap();
        assert!(measured.counted_bytes > 3000 && measured.view.model.as_ref() == "m");
        let request = input.read(1).unwrap();
        assert!(request.body.windows(11).any(|part| part == b"iVBORw0KGgp"));
        fs::remove_file(bench.dir.path().join("b.png")).unwrap();
        assert!(input.read(1).unwrap_err().message.contains("does not exist"));
    }

    #[test]
    fn identity_is_endpoint_model_and_body() {
        let body = r#"{"model":"m","prompt":"x"}"#;
        let line = |url: &str, model: &str| {
            let body = body.replace("\"m\"", &format!("\"{model}\""));
            format!("{{\"url\":\"/v1/{url}\",\"method\":\"POST\",\"body\":{body}}}\n")
        };
        let lines = line("completions", "m")
            + &line("completions", "m")
            + &line("responses", "m")
            + &line("completions", "n")
            + body;
        let input = bench("a.jsonl", lines).open().unwrap();
        let hashes: Vec<_> = (0..5).map(|index| input.hash(index).unwrap()).collect();
        assert_eq!(hashes[0], hashes[1]);
        assert_eq!(hashes[0], hashes[4], "the shape of its line is not part of a row's identity");
        assert_eq!(hashes.iter().collect::<HashSet<_>>().len(), 3);
        assert_eq!(input.duplicates(), 2);
    }

    proptest::proptest! {
        /// Whatever the bytes: no panic, every row is either a request or bad, and stays so.
        #[test]
        fn any_bytes_are_rows_or_bad_lines(
            pieces in proptest::collection::vec(
                proptest::prop_oneof![
                    proptest::strategy::Just(br#"{"messages":[1],"model":"m"}"#.to_vec()),
                    proptest::strategy::Just(b"\n".to_vec()),
                    proptest::strategy::Just(b"\r\n\"".to_vec()),
                    proptest::strategy::Just(b",".to_vec()),
                    proptest::collection::vec(proptest::prelude::any::<u8>(), 0..8),
                ],
                1..20,
            ),
            table: bool,
        ) {
            let bytes = [b"{".as_slice(), &pieces.concat()].concat();
            let name = if table { "a.csv" } else { "a.jsonl" };
            let bytes = if table { [b"text\n".as_slice(), &bytes].concat() } else { bytes };
            let bench = bench(name, bytes).with(|options| {
                options.prompt = table.then(|| "{{ text }}".into());
            });
            if let Ok(input) = bench.open() {
                let mut bad = 0;
                for index in input.indexes() {
                    assert_eq!(input.read(index).is_err(), input.hash(index).is_none());
                    assert_eq!(input.is_bad(index).is_some(), input.hash(index).is_none());
                    bad += u64::from(input.hash(index).is_none());
                }
                assert_eq!(bad, input.bad().total);
            }
        }
    }
}
