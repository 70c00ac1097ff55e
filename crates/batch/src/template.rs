//! Templates: a row's columns become a prompt.
//!
//! # Why
//!
//! A template that names a column the data lacks must never send "Summarise: " a million times.
//! Undefined names are errors, and for inputs with a header they are found before any row is read.

use crate::input::{Fault, InputError, json};
use minijinja::{
    AutoEscape, Environment, Error, ErrorKind, UndefinedBehavior, Value, escape_formatter,
    value::{Enumerator, Object, ObjectRepr, ValueKind},
};
use std::{borrow::Cow, collections::BTreeSet, fmt, sync::Arc};

/// The templates of a batch: the prompt, and the system message when there is one.
#[derive(Debug)]
pub(crate) struct Templates {
    env: Environment<'static>,
    has_system: bool,
    /// Columns either template names.
    named: BTreeSet<String>,
    /// Whether a template uses `row`, the object of all columns.
    whole_row: bool,
}

/// What the templates made of one row.
#[derive(Debug, PartialEq)]
pub(crate) struct Rendered {
    pub(crate) prompt: String,
    pub(crate) system: Option<String>,
}

/// The columns of one row.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Columns<'a> {
    /// Cells of a CSV record (or what is known of an image), as many as there are names.
    Cells { names: &'a [String], cells: &'a [&'a str] },
    /// A JSON object, one column per field.
    Object(&'a str),
}

const PROMPT: &str = "--prompt";
const SYSTEM: &str = "--system";
/// Name under which a template reaches columns whose names are no identifiers: `row["First name"]`.
const ROW: &str = "row";

impl Templates {
    /// Compiles both templates.
    ///
    /// # Errors
    ///
    /// A syntax error, with the flag and the template's line.
    pub(crate) fn new(prompt: String, system: Option<String>) -> Result<Self, InputError> {
        if prompt.trim().is_empty() {
            return Err(InputError::new(
                "--prompt is empty: write what to ask, for example --prompt 'Summarise: {{ text }}'",
            ));
        }
        let mut env = Environment::new();
        env.set_undefined_behavior(UndefinedBehavior::Strict);
        env.set_auto_escape_callback(|_| AutoEscape::None);
        env.set_formatter(|out, state, value| {
            // A JSON null is an empty cell, not the word "none".
            if value.is_none() { Ok(()) } else { escape_formatter(out, state, value) }
        });
        let has_system = system.is_some();
        for (name, source) in [(PROMPT, Some(prompt)), (SYSTEM, system)] {
            let Some(source) = source else { continue };
            env.add_template_owned(name, source).map_err(|error| bad_template(name, &error))?;
        }
        let mut named: BTreeSet<String> = BTreeSet::new();
        for (_, template) in env.templates() {
            named.extend(template.undeclared_variables(false));
        }
        for (global, _) in env.globals() {
            named.remove(global);
        }
        let whole_row = named.remove(ROW);
        Ok(Self { env, has_system, named, whole_row })
    }

    /// Checks the templates against the columns an input is known to have.
    ///
    /// # Errors
    ///
    /// Names the missing column and lists those there are.
    pub(crate) fn check(&self, columns: &[String]) -> Result<(), InputError> {
        match self.named.iter().find(|name| !columns.contains(name)) {
            Some(name) => Err(InputError::new(missing(name, columns, "the input"))),
            None => Ok(()),
        }
    }

    /// The prompt (and system message) of one row.
    ///
    /// # Errors
    ///
    /// A column the row lacks, by name, with the columns there are.
    pub(crate) fn render(&self, columns: Columns<'_>) -> Result<Rendered, Fault> {
        let values = columns.values(&self.named, self.whole_row)?;
        let context = Value::from_pairs(values);
        let render = |name| {
            let template = self.env.get_template(name).expect("it was added when made");
            template.render(&context).map_err(|error| self.fault(name, &error, columns))
        };
        let system = if self.has_system { Some(render(SYSTEM)?) } else { None };
        Ok(Rendered { prompt: render(PROMPT)?, system })
    }

    fn fault(&self, template: &str, error: &Error, columns: Columns<'_>) -> Fault {
        if error.kind() == ErrorKind::UndefinedError {
            let there = columns.names();
            if let Some(name) = self.named.iter().find(|name| !there.contains(name)) {
                return Fault::new(missing(name, &there, "this row"));
            }
            let line = error.line().map(|line| format!(", line {line}")).unwrap_or_default();
            return Fault::new(format!(
                "the template ({template}{line}) uses a field that its column lacks in this row; \
                 columns: {}",
                list(&there)
            ));
        }
        Fault::new(format!("the template ({template}) fails on this row: {error}"))
    }
}

impl<'a> Columns<'a> {
    /// Names of the columns, in their order.
    pub(crate) fn names(&self) -> Vec<String> {
        match self {
            Self::Cells { names, .. } => names.to_vec(),
            Self::Object(text) => {
                let mut names = Vec::new();
                // The object was read once already: it is valid.
                let _ = json::fields(text, |key, _| names.push(key.0.to_string()));
                names
            }
        }
    }

    /// The text of column `name`: of a string the string, of any other value its JSON.
    pub(crate) fn text(&self, name: &str) -> Option<Cow<'a, str>> {
        match self {
            Self::Cells { names, cells } => {
                let at = names.iter().position(|n| n == name)?;
                cells.get(at).map(|cell| Cow::Borrowed(*cell))
            }
            Self::Object(text) => {
                let mut found = None;
                let _ = json::fields(text, |key, raw| {
                    if key.0 == name {
                        found = Some(raw);
                    }
                });
                let raw = found?;
                if raw.get() == "null" {
                    return None;
                }
                Some(json::text_of(raw).unwrap_or(Cow::Borrowed(raw.get())))
            }
        }
    }

    /// The columns as one JSON object.
    pub(crate) fn to_json(self) -> String {
        match self {
            Self::Object(text) => text.to_owned(),
            Self::Cells { names, cells } => {
                let mut out = String::from("{");
                for (at, (name, cell)) in names.iter().zip(cells).enumerate() {
                    if at > 0 {
                        out.push(',');
                    }
                    json::push_string(&mut out, name);
                    out.push(':');
                    json::push_string(&mut out, cell);
                }
                out + "}"
            }
        }
    }

    fn values(
        self,
        named: &BTreeSet<String>,
        whole_row: bool,
    ) -> Result<Vec<(String, Value)>, Fault> {
        let mut all = Vec::new();
        let wanted = |name: &str| whole_row || named.contains(name);
        match self {
            Self::Cells { names, cells } => {
                for (name, cell) in names.iter().zip(cells) {
                    if wanted(name) {
                        all.push((name.clone(), cell_value(cell)));
                    }
                }
            }
            Self::Object(text) => {
                let mut fault = None;
                json::fields(text, |key, raw| {
                    if wanted(&key.0) {
                        match json_value(raw.get()) {
                            Ok(value) => all.push((key.0.to_string(), value)),
                            Err(error) => {
                                fault = Some(Fault::of(text, raw.get(), error.to_string()));
                            }
                        }
                    }
                })?;
                if let Some(fault) = fault {
                    return Err(fault);
                }
            }
        }
        if whole_row && !all.iter().any(|(name, _)| name == ROW) {
            let row = Value::from_pairs(all.clone());
            all.push((ROW.to_owned(), row));
        }
        Ok(all)
    }
}

/// A CSV cell: text, unless it holds a JSON object or array whose fields a template may want.
fn cell_value(cell: &str) -> Value {
    if cell.trim_ascii_start().starts_with(['{', '['])
        && let Ok(value) = json_value(cell)
    {
        return value;
    }
    Value::from(cell)
}

fn json_value(text: &str) -> Result<Value, serde_json::Error> {
    let value: Value = serde_json::from_str(text)?;
    Ok(match value.kind() {
        ValueKind::Map | ValueKind::Seq => {
            Value::from_object(JsonColumn { text: text.into(), value })
        }
        _ => value,
    })
}

/// An object or array column: its fields can be named, and printed whole it is the JSON it was.
#[derive(Debug)]
struct JsonColumn {
    text: Box<str>,
    value: Value,
}

impl Object for JsonColumn {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        if self.value.kind() == ValueKind::Map { ObjectRepr::Map } else { ObjectRepr::Seq }
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.value.get_item(key).ok().filter(|value| !value.is_undefined())
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        match (self.repr(), self.value.try_iter()) {
            (ObjectRepr::Map, Ok(keys)) => Enumerator::Values(keys.collect()),
            _ => Enumerator::Seq(self.value.len().unwrap_or(0)),
        }
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn bad_template(flag: &str, error: &Error) -> InputError {
    let line = error.line().map(|line| format!(", line {line}")).unwrap_or_default();
    let what = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    InputError::new(format!("{flag}{line}: {what}; columns are written {{{{ name }}}}"))
}

fn missing(name: &str, there: &[String], of: &str) -> String {
    format!(
        "the template names column '{name}', which {of} lacks; its columns are: {}",
        list(there)
    )
}

/// Names for a message, at most 30 of them.
pub(crate) fn list(names: &[String]) -> String {
    const SHOWN: usize = 30;
    let mut text = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text += &format!(" and {} more", names.len() - SHOWN);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(template: &str, row: &str, expected: &str) {
        let templates = Templates::new(template.into(), None).unwrap();
        let got = match templates.render(Columns::Object(row)) {
            Ok(rendered) => rendered.prompt,
            Err(fault) => format!("fault: {}", fault.message),
        };
        assert_eq!(got, expected);
    }

    #[test]
    fn rows_render() {
        check("Say: {{ text }}", r#"{"text":"a<b> \"c\""}"#, r#"Say: a<b> "c""#);
        check("{{ user.name }}/{{ tags[1] }}", r#"{"user":{"name":"Ann"},"tags":[1,2]}"#, "Ann/2");
        check("{{ user }}", r#"{"user":{"z":1.50, "a":null}}"#, r#"{"z":1.50, "a":null}"#);
        check("{% for t in tags %}{{ t }};{% endfor %}", r#"{"tags":["a","b"]}"#, "a;b;");
        check("{% for k in o %}{{ k }}={{ o[k] }};{% endfor %}", r#"{"o":{"a":1}}"#, "a=1;");
        check("[{{ x }}]", r#"{"x":null}"#, "[]");
        check("{{ x + 1 }} {{ b }}", r#"{"x":41,"b":true}"#, "42 True");
        check("{{ row['First name'] }}", r#"{"First name":"Bo"}"#, "Bo");
        check("{{ x | default('none given') }}", r#"{"y":1}"#, "none given");
        check("{% for i in range(2) %}{{ i }}{% endfor %}", "{}", "01");
    }

    #[test]
    fn a_missing_column_is_named_with_those_there_are() {
        check(
            "{{ a }}{{ text }}",
            r#"{"a":1,"txt":2}"#,
            "fault: the template names column 'text', which this row lacks; its columns are: a, txt",
        );
        check(
            "{{ user.nmae }}",
            r#"{"user":{"name":"Ann"}}"#,
            "fault: the template (--prompt, line 1) uses a field that its column lacks in this row; columns: user",
        );
    }

    #[test]
    fn a_header_is_checked_before_any_row() {
        let names = ["id".to_owned(), "text".to_owned()];
        let templates = |source: &str| Templates::new(source.into(), Some("{{ lang }}".into()));
        let error = templates("{{ text }}").unwrap().check(&names).unwrap_err();
        assert!(error.to_string().contains("'lang'") && error.to_string().contains("id, text"));
        let error = Templates::new("a\n{{ text".into(), None).unwrap_err();
        assert!(error.to_string().starts_with("--prompt, line 2"), "{error}");
        assert!(Templates::new(" ".into(), None).is_err());
    }

    #[test]
    fn cells_render_and_become_json() {
        let names = ["a b".to_owned(), "meta".to_owned()];
        let columns = Columns::Cells { names: &names, cells: &["x\n\"", r#"{"k": [1]}"#] };
        let templates = Templates::new("{{ meta.k[0] }} {{ meta }}".into(), None).unwrap();
        assert_eq!(templates.render(columns).unwrap().prompt, r#"1 {"k": [1]}"#);
        assert_eq!(columns.to_json(), r#"{"a b":"x\n\"","meta":"{\"k\": [1]}"}"#);
        assert_eq!(columns.text("a b").as_deref(), Some("x\n\""));
    }
}
