//! Looking at one JSON object without building it: its fields as spans of the line.
//!
//! # Why
//!
//! A body must reach the upstream as it was written. A tree would lose number spellings, the
//! order of keys and the speed; spans lose nothing, and setting a field is a splice.

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::{borrow::Cow, fmt, sync::Arc};

/// What is wrong with a row, before it is known which row it is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Fault {
    /// Column in the line, from 1, counted in bytes.
    pub(crate) column: Option<u64>,
    /// The row's id, when it could be read.
    pub(crate) custom_id: Option<Arc<str>>,
    /// What is wrong and what to do.
    pub(crate) message: String,
}

impl Fault {
    /// A fault of the row as a whole.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { column: None, custom_id: None, message: message.into() }
    }

    /// A fault of the byte at `offset` of the line.
    pub(crate) fn at(offset: usize, message: impl Into<String>) -> Self {
        Self { column: Some(offset as u64 + 1), custom_id: None, message: message.into() }
    }

    /// A fault of `part`, a piece of `line`.
    pub(crate) fn of(line: &str, part: &str, message: impl Into<String>) -> Self {
        match offset_in(line, part) {
            Some(offset) => Self::at(offset, message),
            None => Self::new(message),
        }
    }
}

/// A value as it stands in the line.
pub(crate) type Raw<'a> = &'a RawValue;

/// Calls `each` with every field of the object `text`, in order.
///
/// # Errors
///
/// When `text` is not one JSON object, with the column.
pub(crate) fn fields<'a>(text: &'a str, each: impl FnMut(&Key<'a>, Raw<'a>)) -> Result<(), Fault> {
    let start = text.len() - text.trim_ascii_start().len();
    match text.as_bytes().get(start) {
        Some(b'{') => {}
        Some(b'[') => return Err(Fault::at(start, NOT_AN_OBJECT_BUT_ARRAY)),
        _ => return Err(Fault::at(start, NOT_AN_OBJECT)),
    }
    let mut json = serde_json::Deserializer::from_str(text);
    json.deserialize_map(Fields { each, _text: std::marker::PhantomData })
        .and_then(|()| json.end())
        .map_err(|error| not_json(text, &error))
}

const NOT_AN_OBJECT: &str = "the line is not a JSON object: each line holds one object in braces";
const NOT_AN_OBJECT_BUT_ARRAY: &str = "the line is a JSON array: each line holds one object \
    (for a file that is one array: jq -c '.[]' FILE > FILE.jsonl)";

/// The parser's complaint about `text`, with its column.
pub(crate) fn not_json(text: &str, error: &serde_json::Error) -> Fault {
    let said = error.to_string();
    let said = said.split(" at line ").next().unwrap_or(&said);
    let column = (error.line() == 1 && error.column() > 0).then_some(error.column() as u64);
    let message = if error.is_eof() {
        format!("the line ends before its JSON does ({said}): one object must stand on one line")
    } else {
        format!("the line is not valid JSON: {said}")
    };
    Fault { column: column.or(Some(text.len() as u64)), custom_id: None, message }
}

/// A field's name; borrowed unless it is written with escapes.
pub(crate) struct Key<'a>(pub(crate) Cow<'a, str>);

impl<'de> Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Name;
        impl<'de> Visitor<'de> for Name {
            type Value = Key<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_str<E>(self, name: &'de str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Borrowed(name)))
            }
            fn visit_str<E>(self, name: &str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Owned(name.to_owned())))
            }
        }
        deserializer.deserialize_str(Name)
    }
}

struct Fields<'a, F> {
    each: F,
    _text: std::marker::PhantomData<&'a str>,
}

impl<'a, F: FnMut(&Key<'a>, Raw<'a>)> Visitor<'a> for Fields<'a, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'a>>(mut self, mut map: M) -> Result<(), M::Error> {
        while let Some(key) = map.next_key::<Key<'a>>()? {
            (self.each)(&key, map.next_value::<Raw<'a>>()?);
        }
        Ok(())
    }
}

/// Where `part` begins in `whole`, when it is a piece of it.
pub(crate) fn offset_in(whole: &str, part: &str) -> Option<usize> {
    let offset = (part.as_ptr() as usize).checked_sub(whole.as_ptr() as usize)?;
    (offset + part.len() <= whole.len()).then_some(offset)
}

/// The string a value is, or `None` when it is something else.
pub(crate) fn text_of(raw: Raw<'_>) -> Option<Cow<'_, str>> {
    serde_json::from_str::<Key<'_>>(raw.get()).ok().map(|Key(text)| text)
}

/// Appends `text` as a JSON string, quotes included.
pub(crate) fn push_string(out: &mut String, text: &str) {
    out.push_str(&serde_json::to_string(text).expect("a string is always JSON"));
}

/// The object `text` with the field at `path` set to `value` (JSON); everything else stays as written.
///
/// Missing objects on the way are made; a value on the way that is no object is replaced.
///
/// # Errors
///
/// When a name on the way stands twice in its object: there is no telling which one counts.
pub(crate) fn set(text: &str, path: &[String], value: &str) -> Result<String, Fault> {
    let (name, below) = path.split_first().expect("a path has a name");
    let mut found: Option<Raw<'_>> = None;
    let (mut twice, mut empty) = (false, true);
    fields(text, |key, raw| {
        empty = false;
        if key.0 == *name {
            twice |= found.replace(raw).is_some();
        }
    })?;
    if twice {
        return Err(Fault::new(format!("'{name}' stands twice in one object: keep one of them")));
    }
    let new = match (below, found) {
        ([], _) => value.to_owned(),
        (_, Some(old)) if old.get().starts_with('{') => set(old.get(), below, value)?,
        _ => below.iter().rev().fold(value.to_owned(), |inner, name| {
            let mut object = String::from("{");
            push_string(&mut object, name);
            object + ":" + &inner + "}"
        }),
    };
    let mut out = String::with_capacity(text.len() + name.len() + new.len() + 8);
    if let Some(old) = found {
        let at = offset_in(text, old.get()).expect("a field is a piece of its object");
        out += &text[..at];
        out += &new;
        out += &text[at + old.get().len()..];
    } else {
        let end = text.rfind('}').expect("an object ends in a brace");
        out += &text[..end];
        if !empty {
            out.push(',');
        }
        push_string(&mut out, name);
        out.push(':');
        out += &new;
        out += &text[end..];
    }
    Ok(out)
}

/// The object `text` without its field `name`, whose value is `raw`.
pub(crate) fn without(text: &str, name: &str, raw: Raw<'_>) -> String {
    let Some(value) = offset_in(text, raw.get()) else { return text.to_owned() };
    let Some(start) = text[..value].rfind(&format!("\"{name}\"")) else { return text.to_owned() };
    let end = value + raw.get().len();
    let (before, after) = (text[..start].trim_ascii_end(), text[end..].trim_ascii_start());
    match after.strip_prefix(',') {
        Some(after) => format!("{before}{}", after.trim_ascii_start()),
        None => format!("{}{after}", before.strip_suffix(',').unwrap_or(before)),
    }
}

/// JSON text without the white space between its tokens: keys keep their order, numbers their spelling.
pub(crate) fn minified(text: &str) -> String {
    let (mut in_string, mut escaped) = (false, false);
    text.chars()
        .filter(|&c| {
            if in_string {
                in_string = escaped || c != '"';
                escaped = !escaped && c == '\\';
                return true;
            }
            in_string = c == '"';
            !c.is_ascii_whitespace()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_set(text: &str, path: &str, value: &str, expected: &str) {
        let path: Vec<_> = path.split('.').map(str::to_owned).collect();
        assert_eq!(set(text, &path, value).unwrap(), expected);
    }

    #[test]
    fn setting_changes_nothing_else() {
        check_set(r#"{"b":1.50,"a":2}"#, "a", "3", r#"{"b":1.50,"a":3}"#);
        check_set(r#" { "b" : 1 } "#, "a", "3", r#" { "b" : 1 ,"a":3} "#);
        check_set("{}", "a", "3", r#"{"a":3}"#);
        check_set(r#"{"a":{"x":1,"y":"}"}}"#, "a.y", "2", r#"{"a":{"x":1,"y":2}}"#);
        check_set(r#"{"a":null}"#, "a.b.c", "2", r#"{"a":{"b":{"c":2}}}"#);
        check_set(r#"{"m":"{\"a\":1}"}"#, "q\"", "[]", r#"{"m":"{\"a\":1}","q\"":[]}"#);
        assert!(set(r#"{"a":1,"a":2}"#, &["a".into()], "3").is_err());
    }

    #[test]
    fn a_field_is_taken_out() {
        for (text, expected) in [
            (r#"{"id":"x","b":1}"#, r#"{"b":1}"#),
            (r#"{"b":1, "id" : "x" }"#, r#"{"b":1}"#),
            (r#"{"b":1,"id":"x","c":2}"#, r#"{"b":1,"c":2}"#),
            (r#"{"id":"x"}"#, r#"{}"#),
        ] {
            let mut id = None;
            fields(text, |key, raw| {
                if key.0 == "id" {
                    id = Some(raw);
                }
            })
            .unwrap();
            assert_eq!(without(text, "id", id.unwrap()), expected);
        }
    }

    #[track_caller]
    fn check_fault(text: &str, column: u64, said: &str) {
        let fault = fields(text, |_, _| {}).unwrap_err();
        assert_eq!(fault.column, Some(column), "{}", fault.message);
        assert!(fault.message.contains(said), "{}", fault.message);
    }

    #[test]
    fn faults_name_their_column() {
        check_fault(r#"{"a":1"#, 6, "ends before");
        check_fault(r#"{"a":tru}"#, 9, "not valid JSON");
        check_fault(r#"{"a":1} x"#, 9, "trailing");
        check_fault("  [1]", 3, "jq -c");
        check_fault("hello", 1, "not a JSON object");
        check_fault("{\"a\":\"\u{0}\"}", 6, "control character");
    }

    #[test]
    fn minifying_keeps_strings_and_order() {
        let text = "{ \"b\" : [ 1.0 ,\n 2 ] , \"a \\\" b\" : \" \\\\\" , \"c\": true }";
        assert_eq!(minified(text), r#"{"b":[1.0,2],"a \" b":" \\","c":true}"#);
    }
}
