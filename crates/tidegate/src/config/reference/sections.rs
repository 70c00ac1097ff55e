//! The tables of the configuration, read out of its schema.

use super::{super::schema, ORDER, toml_of};
use serde_json::{Map, Value};

/// A table of the file, and its keys.
pub(super) struct Section {
    /// `upstreams.NAME` in the reference, `upstreams.vllm` in the example.
    pub(super) path: Vec<String>,
    pub(super) about: String,
    pub(super) keys: Vec<Key>,
    pub(super) shape: Shape,
}

/// How a table is written.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Shape {
    /// `[path]`
    Table,
    /// On the line of its key: `price = { … }`.
    Inline,
    /// In a list: `targets = [{ … }]`.
    List,
}

pub(super) struct Key {
    pub(super) name: String,
    pub(super) about: String,
    pub(super) kind: String,
    pub(super) default: Option<Value>,
}

/// Every table of the configuration, in the order of the schema; `name` names entries of maps.
pub(super) fn sections(name: &dyn Fn(&str) -> String) -> Vec<Section> {
    let root = serde_json::to_value(schema()).unwrap();
    let mut found = Vec::new();
    let walk = Walk { root: &root, name };
    let tables = properties(&root);
    assert!(tables.keys().all(|key| ORDER.contains(&&**key)), "a new table: add it to ORDER");
    for key in ORDER.iter().copied() {
        walk.table(&[key.to_owned()], &tables[key], Shape::Table, &mut found);
    }
    found
}

struct Walk<'a> {
    root: &'a Value,
    name: &'a dyn Fn(&str) -> String,
}

impl Walk<'_> {
    fn table(&self, path: &[String], written: &Value, shape: Shape, found: &mut Vec<Section>) {
        let schema = self.resolved(written);
        if let Some(entry) = schema.get("additionalProperties").filter(|entry| entry.is_object()) {
            let (mut path, mut entry) = (path.to_vec(), entry.clone());
            if path.len() > 1 {
                // One of several of the same kind: what it is, is said where it is used.
                entry["description"] = schema["description"].clone();
            }
            path.push((self.name)(&path.join(".")));
            return self.table(&path, &entry, shape, found);
        }
        let about =
            |value: &Value| value["description"].as_str().map(|text| text.replace('\n', " "));
        let mut keys = Vec::new();
        let mut inner = Vec::new();
        for (name, property) in &properties(&schema) {
            let kind = self.resolved(property);
            let path = [path, std::slice::from_ref(name)].concat();
            let entry = kind.get("additionalProperties").filter(|entry| entry.is_object());
            if entry.is_some_and(|entry| !properties(&self.resolved(entry)).is_empty()) {
                inner.push((path, property.clone(), Shape::Table));
                continue;
            }
            let is_table = !properties(&kind).is_empty();
            let items = kind.get("items").map(|items| self.resolved(items));
            let list = items.filter(|items| !properties(items).is_empty());
            let default = self.default_of(&schema, name, property);
            let default = default.filter(|default| !default.is_null());
            // A table with a default of its own gets a section; one that may be absent, a line.
            match list {
                Some(list) => inner.push((path, list, Shape::List)),
                None if is_table && default.is_none() => {
                    inner.push((path, property.clone(), Shape::Inline));
                }
                None if is_table => {
                    inner.push((path, property.clone(), Shape::Table));
                    continue;
                }
                None => {}
            }
            keys.push(Key {
                name: name.clone(),
                about: about(property).or_else(|| about(&kind)).unwrap_or_default(),
                kind: self.kind_of(property),
                default,
            });
        }
        if !keys.is_empty() {
            let about = about(written).or_else(|| about(&schema)).unwrap_or_default();
            found.push(Section { path: path.to_vec(), about, keys, shape });
        }
        for (path, schema, own) in inner {
            let shape = match (shape, own) {
                (Shape::Table, own) | (_, own @ Shape::List) => own,
                (shape, _) => shape,
            };
            self.table(&path, &schema, shape, found);
        }
    }

    /// The schema behind references and options, with the outer words kept.
    fn resolved(&self, schema: &Value) -> Value {
        let mut schema = schema.clone();
        for _ in 0..8 {
            let next = if let Some(reference) = schema["$ref"].as_str() {
                self.root.pointer(reference.trim_start_matches('#')).cloned()
            } else {
                let choices = schema["anyOf"].as_array();
                let real = choices.map(|choices| {
                    choices.iter().filter(|choice| choice["type"] != "null").collect::<Vec<_>>()
                });
                real.filter(|real| real.len() == 1).map(|real| real[0].clone())
            };
            let Some(next) = next else { break };
            let outer = schema.as_object().cloned().unwrap_or_default();
            schema = next;
            for word in ["description", "default"] {
                if let (Some(value), Some(schema)) = (outer.get(word), schema.as_object_mut()) {
                    schema.insert(word.into(), value.clone());
                }
            }
        }
        schema
    }

    fn default_of(&self, table: &Value, name: &str, property: &Value) -> Option<Value> {
        let own = property.get("default").cloned();
        own.or_else(|| table["default"].get(name).cloned())
    }

    fn kind_of(&self, property: &Value) -> String {
        let schema = self.resolved(property);
        let words = |list: &Value| -> Option<Vec<String>> {
            let list = list.as_array()?;
            let parts = list.iter().filter(|part| part["type"] != "null");
            Some(parts.map(|part| self.kind_of(part)).collect())
        };
        if let Some(word) = schema.get("const") {
            return format!("`{}`", toml_of(word));
        }
        if let Some(choices) = schema["enum"].as_array() {
            return choices
                .iter()
                .map(|word| format!("`{}`", toml_of(word)))
                .collect::<Vec<_>>()
                .join(" or ");
        }
        if let Some(mut words) = words(&schema["oneOf"]).or_else(|| words(&schema["anyOf"])) {
            words.dedup();
            return words.join(" or ");
        }
        let items = schema.get("items").map(|items| self.resolved(items)["type"].clone());
        let of_type = |name: &str| match name {
            "integer" => "whole number",
            "number" => "number",
            "boolean" => "true or false",
            "array" if items == Some("string".into()) => "list of strings",
            "array" if items == Some("integer".into()) => "list of whole numbers",
            "array" => "list of tables",
            "object" => "table",
            _ => "string",
        };
        match &schema["type"] {
            Value::Array(types) => types
                .iter()
                .filter_map(Value::as_str)
                .filter(|name| *name != "null")
                .map(of_type)
                .collect::<Vec<_>>()
                .join(" or "),
            kind => of_type(kind.as_str().unwrap_or("string")).to_owned(),
        }
    }
}

fn properties(schema: &Value) -> Map<String, Value> {
    schema["properties"].as_object().cloned().unwrap_or_default()
}
