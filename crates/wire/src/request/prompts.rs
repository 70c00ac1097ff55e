//! How many prompts a completion has, counted while they are walked over and nothing kept.

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use std::fmt;

/// How many prompts a completion has: a text is one, a list of numbers (tokens) is one, and any
/// other list has as many as it has items.
pub(super) struct Prompts(pub(super) u64);

impl Default for Prompts {
    fn default() -> Self {
        Self(1)
    }
}

impl<'de> Deserialize<'de> for Prompts {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let count = match from.deserialize_any(Shapes)? {
            Shape::List { items, of_numbers: false } => items.max(1),
            Shape::List { .. } | Shape::Number | Shape::Other => 1,
        };
        Ok(Self(count))
    }
}

/// What a value is, as far as prompts are told apart by it.
enum Shape {
    Number,
    List { items: u64, of_numbers: bool },
    Other,
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Shapes)
    }
}

struct Shapes;

impl<'de> Visitor<'de> for Shapes {
    type Value = Shape;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_u64<E>(self, _: u64) -> Result<Shape, E> {
        Ok(Shape::Number)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Shape, E> {
        Ok(Shape::Number)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Shape, E> {
        Ok(Shape::Number)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Shape, E> {
        Ok(Shape::Other)
    }

    fn visit_str<E>(self, _: &str) -> Result<Shape, E> {
        Ok(Shape::Other)
    }

    fn visit_unit<E>(self) -> Result<Shape, E> {
        Ok(Shape::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Shape, A::Error> {
        let (mut items, mut of_numbers) = (0, true);
        while let Some(item) = list.next_element()? {
            items += 1;
            of_numbers &= matches!(item, Shape::Number);
        }
        Ok(Shape::List { items, of_numbers })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Shape, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Shape::Other)
    }
}
