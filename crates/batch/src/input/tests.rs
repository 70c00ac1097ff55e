//! Files in, requests or bad lines out.

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
    let bench = bench("rows.csv", text).with(|options| options.prompt = Some("{{ text }}".into()));
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
        let bench = bench(name, bytes).with(|options| options.prompt = Some("{{ text }}".into()));
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
