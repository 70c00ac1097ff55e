//! From a tree to the types that mean something, with every mistake found and placed.
//!
//! serde stops at the first error. So the part at fault is taken out and reading starts again,
//! until it succeeds or nothing more can be taken out.

use super::{
    problem::{Place, Problem, hint, nearest},
    reader::Reader,
    tree::Node,
};
use serde::de::{self, DeserializeOwned, Expected, Unexpected};
use std::fmt;

/// Mistakes shown of one configuration.
const MAX_PROBLEMS: usize = 50;

/// What came of reading a tree.
pub(crate) struct Decoded<T> {
    /// What could be read; without the parts at fault when there are `problems`.
    pub(crate) value: Option<T>,
    pub(crate) problems: Vec<Problem>,
    /// Paths of what was taken out of `value` and would have belonged there: what depends on
    /// them cannot be judged.
    pub(super) lost: Vec<Vec<String>>,
}

/// Reads a `T`, collecting every mistake.
pub(crate) fn decode<T: DeserializeOwned>(mut tree: Node) -> Decoded<T> {
    let mut decoded = Decoded { value: None, problems: Vec::new(), lost: Vec::new() };
    let mut taken_out: Vec<Vec<String>> = Vec::new();
    let mut as_text: Option<DecodeError> = None;
    while decoded.problems.len() < MAX_PROBLEMS {
        let mut error = match T::deserialize(Reader(&tree)) {
            Ok(value) => {
                decoded.value = Some(value);
                break;
            }
            Err(error) => error,
        };
        let path: Vec<String> = error.path.iter().rev().cloned().collect();
        // `12345` from the environment may be a number or a password: when one fails, the other
        // is tried, and when both do, what was said of the first is right.
        if tree.make_text(&path) {
            as_text = Some(error);
            continue;
        }
        if let Some(first) = as_text.take().filter(|first| first.path == error.path) {
            error = first;
        }
        // A key that is missing because we took it out, or its misspelling, was spoken of.
        let spoken_of = |key: &str| {
            let mut inside = taken_out.iter().filter_map(|taken| taken.split_last());
            inside.any(|(word, table)| table == path && nearest(word, [key]).is_some())
        };
        let ours = matches!(&error.what, What::Missing(key) if spoken_of(key));
        if !ours {
            let place = error.place.clone().unwrap_or(Place::Nowhere);
            decoded.problems.push(Problem::new(place, error.what.sentence(&path)));
        }
        if !matches!(error.what, What::Unknown { .. }) {
            decoded.lost.push(path.clone());
        }
        if !tree.remove(&path) {
            break;
        }
        taken_out.push(path);
    }
    decoded
}

/// `models.chat.targets[1].upstream`
pub(crate) fn show_path<S: AsRef<str>>(path: &[S]) -> String {
    let mut shown = String::new();
    for word in path.iter().map(AsRef::as_ref) {
        if word.parse::<usize>().is_ok() {
            shown.push_str(&format!("[{word}]"));
        } else {
            let dot = if shown.is_empty() { "" } else { "." };
            shown.push_str(&format!("{dot}{word}"));
        }
    }
    shown
}

/// A mistake, and where it is once known. The path is collected from the inside out.
#[derive(Debug)]
pub(super) struct DecodeError {
    what: What,
    place: Option<Place>,
    path: Vec<String>,
}

#[derive(Debug)]
pub(super) enum What {
    Unknown { key: String, known: &'static [&'static str] },
    Missing(&'static str),
    Said(String),
}

impl What {
    fn sentence(&self, path: &[String]) -> String {
        match self {
            Self::Unknown { key, known } => {
                let table = show_path(path.split_last().map_or(&[][..], |(_, table)| table));
                let table = if table.is_empty() { table } else { format!(" in {table}") };
                format!("unknown key `{key}`{table}{}", hint(key, known.iter().copied(), "keys"))
            }
            Self::Missing(key) if path.is_empty() => format!("`{key}` is missing"),
            Self::Missing(key) => format!("{}: `{key}` is missing", show_path(path)),
            Self::Said(said) if path.is_empty() => said.clone(),
            Self::Said(said) => format!("{}: {said}", show_path(path)),
        }
    }
}

impl From<What> for DecodeError {
    fn from(what: What) -> Self {
        Self { what, place: None, path: Vec::new() }
    }
}

impl DecodeError {
    /// Names the place, if nobody further inside did.
    pub(super) fn at(mut self, place: &Place) -> Self {
        self.place.get_or_insert_with(|| place.clone());
        self
    }

    pub(super) fn under(mut self, word: impl Into<String>) -> Self {
        self.path.push(word.into());
        self
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what.sentence(&[]))
    }
}

impl std::error::Error for DecodeError {}

impl de::Error for DecodeError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        let said = message.to_string();
        if said.starts_with("data did not match any variant") {
            return What::Said("is not one of the ways to write this value".into()).into();
        }
        What::Said(said).into()
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        What::Said(format!("expected {}, found {}", wanted(expected), describe(found))).into()
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::invalid_type(found, expected)
    }

    fn unknown_variant(variant: &str, known: &'static [&'static str]) -> Self {
        let hint = hint(variant, known.iter().copied(), "choices");
        What::Said(format!("`{variant}` is not a choice here{hint}")).into()
    }

    fn unknown_field(key: &str, known: &'static [&'static str]) -> Self {
        What::Unknown { key: key.into(), known }.into()
    }

    fn missing_field(key: &'static str) -> Self {
        What::Missing(key).into()
    }
}

/// What was found, in words; never the text of a string, which may be a secret.
fn describe(found: Unexpected<'_>) -> String {
    match found {
        Unexpected::Bool(value) => format!("{value}"),
        Unexpected::Unsigned(number) => format!("the number {number}"),
        Unexpected::Signed(number) => format!("the number {number}"),
        Unexpected::Float(number) => format!("the number {number}"),
        Unexpected::Str(_) | Unexpected::Char(_) => "a string".into(),
        Unexpected::Seq | Unexpected::TupleVariant => "a list".into(),
        Unexpected::Map | Unexpected::StructVariant => "a table".into(),
        _ => "something else".into(),
    }
}

/// What serde expects, in words for people who do not read Rust.
fn wanted(expected: &dyn Expected) -> String {
    let expected = expected.to_string();
    match &*expected {
        "u8" => "a whole number from 0 to 255".into(),
        "u16" => "a whole number from 0 to 65535".into(),
        "u32" => "a whole number from 0 to 4294967295".into(),
        "u64" | "usize" => "a whole number from 0".into(),
        "i32" | "i64" | "isize" => "a whole number".into(),
        "f32" | "f64" => "a number".into(),
        "a boolean" => "true or false".into(),
        "a sequence" => "a list".into(),
        "a map" => "a table".into(),
        "path string" | "a borrowed string" => "a string".into(),
        other if other.starts_with("a nonzero") => "a whole number from 1".into(),
        other if other.starts_with("struct ") => "a table".into(),
        other if other.starts_with("enum ") => "one of its choices".into(),
        other => other.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use std::collections::BTreeMap;

    #[derive(Debug, Default, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Root {
        server: Server,
        models: BTreeMap<String, Model>,
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Server {
        listen: String,
        port: Option<u16>,
        on: bool,
        mode: Mode,
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(rename_all = "kebab-case")]
    enum Mode {
        #[default]
        Fast,
        Limited {
            #[expect(dead_code, reason = "only reading it matters")]
            calls: u32,
        },
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Model {
        #[expect(dead_code, reason = "only reading it matters")]
        targets: Vec<Target>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Target {
        #[expect(dead_code, reason = "only reading it matters")]
        upstream: String,
    }

    fn check(text: &str, expected: &[&str]) {
        let tree = Node::parse(&"t".into(), text).unwrap_or_else(|problems| panic!("{problems:?}"));
        let decoded = decode::<Root>(tree);
        let shown: Vec<String> = decoded.problems.iter().map(ToString::to_string).collect();
        assert_eq!(shown, expected, "of: {text}");
    }

    #[test]
    fn what_is_right_is_read() {
        check("[server]\nlisten = 'x'\nport = 1\non = true\nmode = 'fast'", &[]);
        check(
            "server.mode = { limited = { calls = 4 } }\n[[models.a.targets]]\nupstream = 'u'",
            &[],
        );
    }

    #[test]
    fn every_mistake_is_placed_and_said() {
        check("serve = 1", &["t:1:1: unknown key `serve`; did you mean `server`?"]);
        check(
            "[server]\nport = 70000\nlisten = 5\nflag = 1\n",
            &[
                "t:4:1: unknown key `flag` in server; the keys are: listen, port, on, mode",
                "t:3:10: server.listen: expected a string, found the number 5",
                "t:2:8: server.port: expected a whole number from 0 to 65535, found the number 70000",
            ],
        );
        check("server = 'x'", &["t:1:10: server: expected a table, found a string"]);
        check("server.on = 'yes'", &["t:1:13: server.on: expected true or false, found a string"]);
        check(
            "server.mode = 'fsat'",
            &["t:1:15: server.mode: `fsat` is not a choice here; did you mean `fast`?"],
        );
        check(
            "[models.a]\n[models.b]\ntargets = [ { upstream = 'u' }, { weight = 1 } ]",
            &[
                "t:1:1: models.a: `targets` is missing",
                "t:3:35: unknown key `weight` in models.b.targets[1]; the keys are: upstream",
                "t:3:33: models.b.targets[1]: `upstream` is missing",
            ],
        );
    }

    #[test]
    fn what_we_took_out_is_not_reported_as_missing() {
        check(
            "models.a.targets = 3",
            &["t:1:20: models.a.targets: expected a list, found the number 3"],
        );
    }

    #[test]
    fn text_from_outside_takes_the_type_that_is_wanted() {
        let mut tree = Node::parse(&"t".into(), "").unwrap_or_else(|_| panic!());
        let loose = |text| Node::loose(Place::Env("E".into()), text);
        tree.set(&["SERVER", "LISTEN"], loose("8080")).unwrap();
        tree.set(&["SERVER", "PORT"], loose("8080")).unwrap();
        let server = decode::<Root>(tree).value.unwrap().server;
        assert_eq!((&*server.listen, server.port), ("8080", Some(8080)));
    }
}
