//! A JSON value that fits a JSON Schema: the answer to `response_format: json_schema`.
//!
//! Covers what structured-output schemas use: types, `properties`, `items`, `enum`, `const`,
//! `anyOf`/`oneOf`/`allOf`, local `$ref`, bounds on numbers, strings and arrays, the common
//! formats. Keywords beyond that (`pattern`, `not`, `if`) are not looked at.

use crate::chance::Chance;
use serde_json::{Map, Number, Value, json};

/// Levels of nesting written; below them optional parts are left out.
const MAX_DEPTH: usize = 12;
/// Items written in an array that does not ask for more, and at most.
const MAX_ITEMS: u64 = 64;

/// A value that fits `schema`, with strings made of `words`.
pub(crate) fn value(schema: &Value, words: &[&str], chance: &mut Chance) -> Value {
    Writer { root: schema, words, chance }.write(schema, "", 0)
}

struct Writer<'a> {
    root: &'a Value,
    words: &'a [&'a str],
    chance: &'a mut Chance,
}

impl Writer<'_> {
    /// `name` is the property's, and picks a likely text for it.
    fn write(&mut self, schema: &Value, name: &str, depth: usize) -> Value {
        if depth > MAX_DEPTH * 2 {
            return Value::Null;
        }
        let Some(object) = schema.as_object() else { return json!(self.text(name, None)) };
        if let Some(target) = object.get("$ref").and_then(Value::as_str) {
            let target = target.strip_prefix('#').and_then(|at| self.root.pointer(at)).cloned();
            return target.map_or(Value::Null, |target| self.write(&target, name, depth + 1));
        }
        if let Some(value) = object.get("const") {
            return value.clone();
        }
        if let Some(values) = list(object, "enum") {
            return values[self.chance.below(values.len())].clone();
        }
        for any in ["anyOf", "oneOf"] {
            if let Some(schemas) = list(object, any) {
                return self.write_one_of(schemas, name, depth);
            }
        }
        if let Some(schemas) = list(object, "allOf") {
            return self.write(&merged(object, schemas), name, depth + 1);
        }
        self.write_type(object, name, depth)
    }

    /// Deep down the simplest alternative ends a recursion.
    fn write_one_of(&mut self, schemas: &[Value], name: &str, depth: usize) -> Value {
        let simple = |schema: &&Value| schema.get("type").and_then(Value::as_str) == Some("null");
        let index = self.chance.below(schemas.len());
        let schema = match schemas.iter().find(simple) {
            Some(null) if depth > MAX_DEPTH / 2 => null,
            _ => &schemas[index],
        };
        self.write(schema, name, depth + 1)
    }

    fn write_type(&mut self, schema: &Map<String, Value>, name: &str, depth: usize) -> Value {
        let kind = match schema.get("type") {
            Some(Value::String(kind)) => kind.as_str(),
            // The first of several that is not null, except deep down.
            Some(Value::Array(kinds)) => kinds
                .iter()
                .filter_map(Value::as_str)
                .find(|kind| (*kind == "null") == (depth > MAX_DEPTH / 2))
                .or_else(|| kinds.iter().find_map(Value::as_str))
                .unwrap_or("string"),
            _ if schema.contains_key("properties") => "object",
            _ if schema.contains_key("items") => "array",
            _ => "string",
        };
        match kind {
            "object" => self.object(schema, depth),
            "array" => self.array(schema, name, depth),
            "integer" => json!(self.integer(schema)),
            "number" => self.number(schema),
            "boolean" => json!(self.chance.below(2) == 1),
            "null" => Value::Null,
            _ => json!(self.text(name, Some(schema))),
        }
    }

    fn object(&mut self, schema: &Map<String, Value>, depth: usize) -> Value {
        let required = list(schema, "required").unwrap_or_default();
        let is_required = |name: &str| required.iter().any(|known| known == name);
        let mut object = Map::new();
        for (name, property) in
            schema.get("properties").and_then(Value::as_object).into_iter().flatten()
        {
            if depth < MAX_DEPTH / 2 || is_required(name) {
                object.insert(name.clone(), self.write(property, name, depth + 1));
            }
        }
        // Required and not described: the value of `additionalProperties`, if it is a schema.
        for name in required.iter().filter_map(Value::as_str) {
            if !object.contains_key(name) {
                let other = schema.get("additionalProperties").unwrap_or(&Value::Null);
                object.insert(name.into(), self.write(other, name, depth + 1));
            }
        }
        Value::Object(object)
    }

    fn array(&mut self, schema: &Map<String, Value>, name: &str, depth: usize) -> Value {
        let least = schema.get("minItems").and_then(Value::as_u64).unwrap_or(0);
        let most = schema.get("maxItems").and_then(Value::as_u64).unwrap_or(MAX_ITEMS.max(least));
        let wanted = if depth > MAX_DEPTH / 2 { 0 } else { 1 + self.chance.below(3) as u64 };
        let length = wanted.max(least).min(most).min(MAX_ITEMS);
        let first = list(schema, "prefixItems").unwrap_or_default();
        let items = schema.get("items").unwrap_or(&Value::Null);
        let length = length.max(first.len() as u64) as usize;
        (0..length).map(|at| self.write(first.get(at).unwrap_or(items), name, depth + 1)).collect()
    }

    fn integer(&mut self, schema: &Map<String, Value>) -> i64 {
        let whole = |name: &str| schema.get(name).and_then(Value::as_f64).map(|bound| bound as i64);
        let low = whole("minimum").map(|low| low.max(ceil(schema, "minimum")));
        let low = low.or_else(|| whole("exclusiveMinimum").map(|low| low.saturating_add(1)));
        let high = whole("maximum");
        let high = high.or_else(|| Some(whole("exclusiveMaximum")?.saturating_sub(1)));
        let low = low.unwrap_or_else(|| high.map_or(0, |high| high.min(0)));
        let high = high.unwrap_or_else(|| low.saturating_add(100)).max(low);
        let span = high.abs_diff(low).min(1_000_000) as usize;
        let number = low.saturating_add(self.chance.below(span + 1) as i64);
        match schema.get("multipleOf").and_then(Value::as_i64).filter(|step| *step > 0) {
            None => number,
            Some(step) => {
                let down = number - number.rem_euclid(step);
                if down < low { down.saturating_add(step) } else { down }
            }
        }
    }

    fn number(&mut self, schema: &Map<String, Value>) -> Value {
        let bound = |name: &str| schema.get(name).and_then(Value::as_f64);
        if bound("multipleOf").is_some() {
            return json!(self.integer(schema));
        }
        let low = bound("minimum").or_else(|| bound("exclusiveMinimum"));
        let high = bound("maximum").or_else(|| bound("exclusiveMaximum"));
        let low = low.unwrap_or_else(|| high.map_or(0.0, |high| high.min(0.0)));
        let high = high.unwrap_or(low + 1.0).max(low);
        // Strictly inside, so that exclusive bounds hold as well.
        let share = 0.01 + 0.98 * self.chance.unit();
        let exact = low + (high - low) * share;
        let short = (exact * 100.0).round() / 100.0;
        let number = if low < short && short < high { short } else { exact };
        Number::from_f64(number).map_or(json!(0), Value::Number)
    }

    fn text(&mut self, name: &str, schema: Option<&Map<String, Value>>) -> String {
        let format = schema.and_then(|schema| schema.get("format")).and_then(Value::as_str);
        let (a, b) = (self.chance.below(28) + 1, self.chance.below(12) + 1);
        match format.unwrap_or(name) {
            "date" => return format!("2026-{b:02}-{a:02}"),
            "date-time" => return format!("2026-{b:02}-{a:02}T12:00:00Z"),
            "time" => return format!("{:02}:{:02}:00Z", a % 24, b),
            "duration" => return format!("PT{a}M"),
            "email" => return format!("user{a}@example.com"),
            "uri" | "url" => return format!("https://example.com/{a}/{b}"),
            "hostname" => return format!("host{a}.example.com"),
            "ipv4" => return format!("192.0.2.{a}"),
            "ipv6" => return format!("2001:db8::{a}"),
            "uuid" => {
                let (high, low) = (self.chance.next(), self.chance.next());
                return format!(
                    "{:08x}-{:04x}-4{:03x}-8{:03x}-{:012x}",
                    high >> 32,
                    high & 0xffff,
                    (high >> 16) & 0xfff,
                    low & 0xfff,
                    low >> 16
                );
            }
            _ => {}
        }
        let length = |name: &str| Some(schema?.get(name)?.as_u64()?.min(10_000) as usize);
        let mut text = String::new();
        let wanted = 2 + self.chance.below(4);
        let start = self.chance.below(self.words.len());
        for word in self.words.iter().cycle().skip(start).take(wanted) {
            if !text.is_empty() {
                text.push(' ');
            }
            text.push_str(word);
        }
        let (mut characters, least) = (text.chars().count(), length("minLength").unwrap_or(0));
        while characters < least {
            text.push('x');
            characters += 1;
        }
        if let Some((end, _)) = length("maxLength").and_then(|most| text.char_indices().nth(most)) {
            text.truncate(end);
        }
        text
    }
}

fn list<'a>(schema: &'a Map<String, Value>, name: &str) -> Option<&'a [Value]> {
    schema.get(name)?.as_array().filter(|list| !list.is_empty()).map(Vec::as_slice)
}

fn ceil(schema: &Map<String, Value>, name: &str) -> i64 {
    schema.get(name).and_then(Value::as_f64).map_or(i64::MIN, |bound| bound.ceil() as i64)
}

/// `schema` and all of `parts` in one: properties and required names together, the rest by the
/// last that says it.
fn merged(schema: &Map<String, Value>, parts: &[Value]) -> Value {
    let mut whole = schema.clone();
    whole.remove("allOf");
    for part in parts.iter().filter_map(Value::as_object) {
        for (name, value) in part {
            match (whole.get_mut(name), value) {
                (Some(Value::Object(known)), Value::Object(more)) if name == "properties" => {
                    known.extend(more.clone());
                }
                (Some(Value::Array(known)), Value::Array(more)) if name == "required" => {
                    known.extend(more.clone());
                }
                _ => drop(whole.insert(name.clone(), value.clone())),
            }
        }
    }
    Value::Object(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(schema: &Value, fits: impl Fn(&Value) -> bool) {
        for seed in 0..50 {
            let value = value(schema, &["tide", "gate", "sea"], &mut Chance::new(&[seed]));
            assert!(fits(&value), "{schema}\n{value}");
        }
    }

    #[test]
    fn scalars_keep_their_bounds() {
        check(&json!({"type":"integer","minimum":3,"maximum":5}), |v| {
            v.as_i64().is_some_and(|v| (3..=5).contains(&v))
        });
        check(&json!({"type":"integer","exclusiveMinimum":3,"multipleOf":5}), |v| {
            v.as_i64().is_some_and(|v| v > 3 && v % 5 == 0)
        });
        check(&json!({"type":"number","exclusiveMinimum":0,"exclusiveMaximum":1}), |v| {
            v.as_f64().is_some_and(|v| v > 0.0 && v < 1.0)
        });
        check(&json!({"type":"number","minimum":0.5,"maximum":0.501}), |v| {
            v.as_f64().is_some_and(|v| (0.5..=0.501).contains(&v))
        });
        check(&json!({"type":"string","minLength":30,"maxLength":31}), |v| {
            v.as_str().is_some_and(|v| (30..=31).contains(&v.chars().count()))
        });
        check(&json!({"type":"string","maxLength":2}), |v| v.as_str().unwrap().len() <= 2);
        check(&json!({"enum":["a","b",3]}), |v| ["a".into(), "b".into(), json!(3)].contains(v));
        check(&json!({"const":{"a":1}}), |v| *v == json!({"a":1}));
        check(&json!({"type":["null","string"]}), Value::is_string);
        check(&json!({"type":"boolean"}), Value::is_boolean);
    }

    #[test]
    fn objects_have_what_is_required() {
        let schema = json!({
            "type": "object",
            "properties": {
                "label": {"enum": ["pos", "neg"]},
                "tags": {"type": "array", "items": {"type": "string"}, "minItems": 2, "maxItems": 3},
                "child": {"$ref": "#/$defs/child"}
            },
            "required": ["label", "tags", "child", "extra"],
            "$defs": {"child": {"allOf": [
                {"properties": {"x": {"type": "integer"}}, "required": ["x"]},
                {"type": "object", "properties": {"y": {"type": "null"}}, "required": ["y"]}
            ]}}
        });
        check(&schema, |v| {
            ["pos", "neg"].contains(&v["label"].as_str().unwrap())
                && (2..=3).contains(&v["tags"].as_array().unwrap().len())
                && v["child"]["x"].is_i64()
                && v["child"]["y"].is_null()
                && v.get("extra").is_some()
        });
    }

    #[test]
    fn recursion_ends() {
        let tree = json!({
            "type": "object",
            "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
                           "all": {"type": "array", "items": {"$ref": "#"}}},
            "required": ["next", "all"]
        });
        check(&tree, |v| v["all"].is_array() && v.to_string().len() < 1 << 20);
        check(&json!({"$ref": "#"}), Value::is_null);
        check(&json!({"$ref": "https://example.com/x"}), Value::is_null);
    }
}
