//! A configuration before it means anything: tables and values, each knowing where it was
//! written, so that an error found at the end of all layers still names line and column.

use super::problem::{Place, Problem};
use std::{collections::BTreeMap, sync::Arc};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Syntax errors shown of one file: after the first few the parser is only guessing.
const MAX_SYNTAX_ERRORS: usize = 10;

/// A value and where it was written.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) place: Place,
    pub(crate) value: Value,
}

/// What a node holds.
#[derive(Clone)]
pub(crate) enum Value {
    Table(BTreeMap<String, Entry>),
    Array(Vec<Node>),
    String(String),
    Integer(i64),
    Float(f64),
    Boolean(bool),
    /// `text` from outside a file, and what it would mean in one: the reader's type decides.
    Loose {
        text: String,
        meaning: Box<Value>,
    },
}

/// A table's value and where its key was written.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) key_place: Place,
    pub(crate) node: Node,
}

impl Node {
    /// A table with nothing in it.
    pub(crate) fn empty(place: Place) -> Self {
        Self { place, value: Value::Table(BTreeMap::new()) }
    }

    /// Reads one TOML document.
    pub(crate) fn parse(file: &Arc<str>, text: &str) -> Result<Self, Vec<Problem>> {
        let mut reader = Reader { lines: Lines::new(file.clone(), text), problems: Vec::new() };
        let (table, errors) = DeTable::parse_recoverable(text);
        // Only `message`: the error's own text repeats the line, which may hold a secret.
        let mut last_line = None;
        for error in errors.iter().take(MAX_SYNTAX_ERRORS) {
            let place = reader.lines.place(error.span().map_or(0, |span| span.start));
            let line = if let Place::File { line, .. } = place { Some(line) } else { None };
            if line != last_line {
                reader.problems.push(Problem::new(place, format!("not TOML: {}", error.message())));
            }
            last_line = line;
        }
        let node = reader.table(table.get_ref(), reader.lines.place(0));
        if reader.problems.is_empty() { Ok(node) } else { Err(reader.problems) }
    }

    /// Reads a value from outside a file: TOML if it is, else the text itself.
    pub(crate) fn loose(place: Place, text: &str) -> Self {
        let document = format!("value = {text}");
        // A line break would begin a second key, and is no part of a value on one line.
        let parsed = if text.contains('\n') { None } else { DeTable::parse(&document).ok() };
        let meaning = parsed.and_then(|table| {
            let mut reader = Reader { lines: Lines::fixed(place.clone()), problems: Vec::new() };
            let node = reader.value(table.get_ref().get("value")?);
            reader.problems.is_empty().then_some(node.value)
        });
        let value = match meaning {
            Some(value @ (Value::Table(_) | Value::Array(_) | Value::String(_))) => value,
            Some(scalar) => Value::Loose { text: text.into(), meaning: Box::new(scalar) },
            None => Value::String(text.into()),
        };
        Self { place, value }
    }

    /// Lays `over` on top: tables are joined key by key, anything else is replaced.
    pub(crate) fn overlay(&mut self, over: Self) {
        match (&mut self.value, over.value) {
            (Value::Table(base), Value::Table(over)) => {
                for (key, entry) in over {
                    put(base, key, entry);
                }
            }
            (value, over_value) => {
                *value = over_value;
                self.place = over.place;
            }
        }
    }

    /// Sets the value at `path`, whose words match keys in any case.
    ///
    /// # Errors
    ///
    /// A sentence, when the way there is blocked or a word matches two keys.
    pub(crate) fn set(&mut self, path: &[&str], over: Self) -> Result<(), String> {
        let Some((word, rest)) = path.split_first() else {
            self.overlay(over);
            return Ok(());
        };
        match &mut self.value {
            Value::Table(table) => {
                let key = matching_key(table, word)?;
                let place = over.place.clone();
                if rest.is_empty() {
                    put(table, key, Entry { key_place: place, node: over });
                    return Ok(());
                }
                let entry = table.entry(key).or_insert_with(|| Entry {
                    key_place: place.clone(),
                    node: Self::empty(place),
                });
                entry.node.set(rest, over)
            }
            Value::Array(items) => {
                let count = items.len();
                let item = word.parse().ok().and_then(|index: usize| items.get_mut(index));
                item.ok_or_else(|| format!("`{word}` is not one of the {count} items of the list"))?
                    .set(rest, over)
            }
            _ => Err(format!("`{word}` names a key inside of what is not a table")),
        }
    }

    /// The node at `path`, or the nearest there is on the way to it.
    pub(crate) fn nearest(&self, path: &[&str]) -> &Self {
        let Some((word, rest)) = path.split_first() else { return self };
        let next = match &self.value {
            Value::Table(table) => table.get(*word).map(|entry| &entry.node),
            Value::Array(items) => word.parse().ok().and_then(|index: usize| items.get(index)),
            _ => None,
        };
        next.map_or(self, |next| next.nearest(rest))
    }

    /// Reads a number or truth value from outside a file as the text it was written as; `false`
    /// when the node at `path` is none.
    pub(crate) fn make_text(&mut self, path: &[String]) -> bool {
        if let Some((word, rest)) = path.split_first() {
            let next = match &mut self.value {
                Value::Table(table) => table.get_mut(word).map(|entry| &mut entry.node),
                Value::Array(items) => word.parse().ok().and_then(|at: usize| items.get_mut(at)),
                _ => None,
            };
            return next.is_some_and(|next| next.make_text(rest));
        }
        let Value::Loose { text, .. } = &mut self.value else { return false };
        self.value = Value::String(std::mem::take(text));
        true
    }

    /// Takes the node at `path` out; `false` when there is none.
    pub(crate) fn remove(&mut self, path: &[String]) -> bool {
        let Some((word, rest)) = path.split_first() else { return false };
        match &mut self.value {
            Value::Table(table) if rest.is_empty() => table.remove(word).is_some(),
            Value::Table(table) => table.get_mut(word).is_some_and(|entry| entry.node.remove(rest)),
            Value::Array(items) => match word.parse() {
                Ok(index) if index < items.len() && rest.is_empty() => {
                    items.remove(index);
                    true
                }
                Ok(index) => items.get_mut::<usize>(index).is_some_and(|item| item.remove(rest)),
                Err(_) => false,
            },
            _ => false,
        }
    }
}

/// Puts an entry into a table, joining it with what is there.
fn put(table: &mut BTreeMap<String, Entry>, key: String, entry: Entry) {
    // `{ env = … }` over `{ file = … }` is one secret written anew, not a table with both.
    let is_source = |key: &str| key == "env" || key == "file";
    if is_source(&key) && table.len() == 1 && table.keys().all(|key| is_source(key)) {
        table.clear();
    }
    match table.get_mut(&key) {
        Some(there) => {
            there.node.overlay(entry.node);
            there.key_place = entry.key_place;
        }
        None => {
            table.insert(key, entry);
        }
    }
}

/// The key that `word` means: environment variables have no lower case, dots or dashes.
fn matching_key(table: &BTreeMap<String, Entry>, word: &str) -> Result<String, String> {
    let plain = |text: &str| text.to_lowercase().replace(['-', '.'], "_");
    if table.contains_key(word) {
        return Ok(word.into());
    }
    let mut matching = table.keys().filter(|key| plain(key) == plain(word));
    match (matching.next(), matching.next()) {
        (Some(one), Some(other)) => {
            Err(format!("`{word}` could mean `{one}` or `{other}`: rename one of them"))
        }
        (Some(key), None) => Ok(key.clone()),
        _ => Ok(word.to_lowercase()),
    }
}

struct Reader {
    lines: Lines,
    problems: Vec<Problem>,
}

impl Reader {
    fn table(&mut self, table: &DeTable<'_>, place: Place) -> Node {
        let entries = table.iter().map(|(key, value)| {
            let key_place = self.lines.place(key.span().start);
            (key.get_ref().to_string(), Entry { key_place, node: self.value(value) })
        });
        Node { place, value: Value::Table(entries.collect()) }
    }

    fn value(&mut self, value: &Spanned<DeValue<'_>>) -> Node {
        let place = self.lines.place(value.span().start);
        let value = match value.get_ref() {
            DeValue::Table(table) => return self.table(table, place),
            DeValue::Array(items) => {
                Value::Array(items.iter().map(|item| self.value(item)).collect())
            }
            DeValue::String(text) => Value::String(text.to_string()),
            DeValue::Boolean(value) => Value::Boolean(*value),
            // A date has no meaning in our configuration; as a string it can at least be named.
            DeValue::Datetime(date) => Value::String(date.to_string()),
            DeValue::Integer(number) => {
                match i64::from_str_radix(number.as_str(), number.radix()) {
                    Ok(number) => Value::Integer(number),
                    Err(_) => self.bad_number(&place),
                }
            }
            DeValue::Float(number) => match number.as_str().parse() {
                Ok(number) => Value::Float(number),
                Err(_) => self.bad_number(&place),
            },
        };
        Node { place, value }
    }

    fn bad_number(&mut self, place: &Place) -> Value {
        self.problems.push(Problem::new(place.clone(), "the number is too large"));
        Value::Integer(0)
    }
}

/// Turns byte offsets into lines and columns.
enum Lines {
    Fixed(Place),
    Of { file: Arc<str>, text: Box<str>, starts: Vec<usize> },
}

impl Lines {
    fn new(file: Arc<str>, text: &str) -> Self {
        let breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        let starts = std::iter::once(0).chain(breaks.map(|(at, _)| at + 1)).collect();
        Self::Of { file, text: text.into(), starts }
    }

    fn fixed(place: Place) -> Self {
        Self::Fixed(place)
    }

    fn place(&self, offset: usize) -> Place {
        match self {
            Self::Fixed(place) => place.clone(),
            Self::Of { file, text, starts } => {
                let line = starts.partition_point(|start| *start <= offset).max(1);
                let before = text.get(starts[line - 1]..offset.min(text.len())).unwrap_or_default();
                Place::File { file: file.clone(), line, column: before.chars().count() + 1 }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Node {
        Node::parse(&"t.toml".into(), text).unwrap_or_else(|problems| panic!("{problems:?}"))
    }

    fn place(node: &Node, path: &[&str]) -> String {
        node.nearest(path).place.to_string()
    }

    #[test]
    fn every_value_knows_its_line_and_column() {
        let node = parse("a = 1\n[b.c]\nd = [ { e = 'x' },\n  { e = 'y' } ]\n\"é\" = { f = 2 }\n");
        for (path, expected) in [
            (&["a"][..], "t.toml:1:5"),
            (&["b", "c"], "t.toml:2:1"),
            (&["b", "c", "d", "1", "e"], "t.toml:4:9"),
            (&["b", "c", "é", "f"], "t.toml:5:13"),
            (&["b", "c", "missing"], "t.toml:2:1"),
        ] {
            assert_eq!(place(&node, path), expected, "{path:?}");
        }
    }

    #[test]
    fn a_later_layer_wins_key_by_key() {
        let mut node = parse("[a]\nx = 1\ny = 2\nlist = [1, 2]\n");
        node.overlay(Node::parse(&"over.toml".into(), "[a]\ny = 3\nlist = [9]").unwrap());
        assert_eq!(place(&node, &["a", "x"]), "t.toml:2:5");
        assert_eq!(place(&node, &["a", "y"]), "over.toml:2:5");
        assert_eq!(place(&node, &["a", "list", "0"]), "over.toml:3:9");
        assert!(
            matches!(&node.nearest(&["a", "list"]).value, Value::Array(items) if items.len() == 1)
        );
    }

    #[test]
    fn a_secret_is_replaced_whole() {
        let mut node = parse("key = { file = '/x' }\ntls = { cert = 'a' }\n");
        node.overlay(parse("key = { env = 'X' }\ntls = { key = 'b' }\n"));
        assert!(matches!(&node.nearest(&["key"]).value, Value::Table(t) if t.keys().eq(["env"])));
        assert!(matches!(&node.nearest(&["tls"]).value, Value::Table(t) if t.len() == 2));
    }

    #[test]
    fn a_word_finds_its_key_in_any_case() {
        let mut node = parse("[upstreams.my-vLLM]\nbase_url = 'x'\n[[list]]\na = 1\n");
        let env = || Node::loose(Place::Env("E".into()), "5");
        node.set(&["UPSTREAMS", "MY_VLLM", "BASE_URL"], env()).unwrap();
        node.set(&["LIST", "0", "A"], env()).unwrap();
        node.set(&["NEW", "KEY"], env()).unwrap();
        for path in
            [&["upstreams", "my-vLLM", "base_url"][..], &["list", "0", "a"], &["new", "key"]]
        {
            assert_eq!(place(&node, path), "environment variable E", "{path:?}");
        }
        assert!(node.set(&["LIST", "7", "A"], env()).unwrap_err().contains("1 items"));
        assert!(node.set(&["NEW", "KEY", "X"], env()).unwrap_err().contains("not a table"));
        let mut twins = parse("a-b = 1\nA_b = 2\n");
        assert!(twins.set(&["A_B"], env()).unwrap_err().contains("could mean"));
    }

    #[test]
    fn text_from_outside_is_toml_when_it_can_be() {
        let read = |text| Node::loose(Place::Nowhere, text).value;
        assert!(matches!(read("127.0.0.1:80"), Value::String(text) if text == "127.0.0.1:80"));
        assert!(matches!(read("'quoted'"), Value::String(text) if text == "quoted"));
        assert!(matches!(read("{ env = 'X' }"), Value::Table(_)));
        assert!(matches!(read("[1, 2]"), Value::Array(_)));
        assert!(
            matches!(read("7"), Value::Loose { meaning, .. } if matches!(*meaning, Value::Integer(7)))
        );
        assert!(matches!(read("1\nother = 2"), Value::String(_)));
        assert!(matches!(read(""), Value::String(text) if text.is_empty()));
    }
}
