//! serde over a tree: each error learns its place and path on the way out.

use super::{
    decode::{DecodeError, What},
    tree::{Entry, Node, Value},
};
use serde::de::{
    self, DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess, SeqAccess,
    VariantAccess, Visitor,
};
use std::collections::btree_map;

/// Reads from a node.
pub(super) struct Reader<'a>(pub(super) &'a Node);

impl<'de> Reader<'de> {
    fn visit<V: Visitor<'de>>(
        &self,
        value: &'de Value,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        match value {
            Value::Table(table) => visitor.visit_map(Entries { rest: table.iter(), value: None }),
            Value::Array(items) => visitor.visit_seq(Items { rest: items.iter().enumerate() }),
            Value::String(text) => visitor.visit_str(text),
            Value::Integer(number) => visitor.visit_i64(*number),
            Value::Float(number) => visitor.visit_f64(*number),
            Value::Boolean(value) => visitor.visit_bool(*value),
            Value::Loose { meaning, .. } => self.visit(meaning, visitor),
        }
    }
}

impl<'de> Deserializer<'de> for Reader<'de> {
    type Error = DecodeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.visit(&self.0.value, visitor).map_err(|error| error.at(&self.0.place))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match &self.0.value {
            Value::Loose { text, .. } => {
                visitor.visit_str(text).map_err(|error: DecodeError| error.at(&self.0.place))
            }
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        let read = match &self.0.value {
            Value::String(text) | Value::Loose { text, .. } => {
                visitor.visit_enum(text.as_str().into_deserializer())
            }
            Value::Table(table) => match table.iter().next() {
                Some((key, entry)) if table.len() == 1 => visitor.visit_enum(Choice { key, entry }),
                _ => Err(de::Error::custom("expected a table with one key")),
            },
            _ => return self.deserialize_any(visitor),
        };
        read.map_err(|error| error.at(&self.0.place))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char bytes byte_buf unit
        unit_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

struct Entries<'a> {
    rest: btree_map::Iter<'a, String, Entry>,
    value: Option<(&'a str, &'a Node)>,
}

impl<'de> MapAccess<'de> for Entries<'de> {
    type Error = DecodeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, DecodeError> {
        let Some((key, entry)) = self.rest.next() else { return Ok(None) };
        self.value = Some((key, &entry.node));
        let read = seed.deserialize(key.as_str().into_deserializer());
        read.map(Some).map_err(|error: DecodeError| error.at(&entry.key_place).under(key))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(
        &mut self,
        seed: V,
    ) -> Result<V::Value, DecodeError> {
        let (key, node) = self.value.take().expect("serde asks for the key first");
        // The place is given here too: a conversion after reading fails outside of the reader.
        seed.deserialize(Reader(node)).map_err(|error| error.at(&node.place).under(key))
    }
}

struct Items<'a> {
    rest: std::iter::Enumerate<std::slice::Iter<'a, Node>>,
}

impl<'de> SeqAccess<'de> for Items<'de> {
    type Error = DecodeError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, DecodeError> {
        let Some((index, node)) = self.rest.next() else { return Ok(None) };
        let read = seed.deserialize(Reader(node));
        read.map(Some).map_err(|error| error.at(&node.place).under(index.to_string()))
    }
}

/// `{ choice = value }`
struct Choice<'a> {
    key: &'a str,
    entry: &'a Entry,
}

impl<'de> EnumAccess<'de> for Choice<'de> {
    type Error = DecodeError;
    type Variant = Reader<'de>;

    fn variant_seed<V: DeserializeSeed<'de>>(
        self,
        seed: V,
    ) -> Result<(V::Value, Self::Variant), DecodeError> {
        let choice = seed
            .deserialize(self.key.into_deserializer())
            .map_err(|error: DecodeError| error.at(&self.entry.key_place).under(self.key))?;
        Ok((choice, Reader(&self.entry.node)))
    }
}

impl<'de> VariantAccess<'de> for Reader<'de> {
    type Error = DecodeError;

    fn unit_variant(self) -> Result<(), DecodeError> {
        Err(DecodeError::from(What::Said("this choice takes no value".into())).at(&self.0.place))
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(
        self,
        seed: T,
    ) -> Result<T::Value, DecodeError> {
        seed.deserialize(self)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_any(visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        self.deserialize_any(visitor)
    }
}
