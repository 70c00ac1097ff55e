//! Whether there is anything in a JSON value, found while it is walked over and nothing kept.

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use std::fmt;

/// Whether there is anything in a value: not for null, false, and strings, lists and objects with
/// nothing in them.
#[derive(Clone, Copy, Default)]
pub(super) struct Filled(pub(super) bool);

/// The same for a chat message or a piece of one, whose role and name say nothing.
#[derive(Clone, Copy, Default)]
pub(super) struct Delta(pub(super) bool);

impl<'de> Deserialize<'de> for Filled {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Look { skip: &[] }).map(Self)
    }
}

impl<'de> Deserialize<'de> for Delta {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Look { skip: &["role", "name"] }).map(Self)
    }
}

struct Look {
    /// Keys of the outermost object that do not count.
    skip: &'static [&'static str],
}

impl<'de> Visitor<'de> for Look {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_unit<E>(self) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_bool<E>(self, value: bool) -> Result<bool, E> {
        Ok(value)
    }

    fn visit_i64<E>(self, _: i64) -> Result<bool, E> {
        Ok(true)
    }

    fn visit_u64<E>(self, _: u64) -> Result<bool, E> {
        Ok(true)
    }

    fn visit_f64<E>(self, _: f64) -> Result<bool, E> {
        Ok(true)
    }

    fn visit_str<E>(self, text: &str) -> Result<bool, E> {
        Ok(!text.is_empty())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<bool, A::Error> {
        let mut any = false;
        while let Some(Filled(filled)) = list.next_element()? {
            any |= filled;
        }
        Ok(any)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<bool, A::Error> {
        let mut any = false;
        while let Some(Key(counts)) = object.next_key_seed(KeyOf { skip: self.skip })? {
            if counts {
                any |= object.next_value::<Filled>()?.0;
            } else {
                object.next_value::<IgnoredAny>()?;
            }
        }
        Ok(any)
    }
}

/// Whether the value behind a key counts.
struct Key(bool);

struct KeyOf {
    skip: &'static [&'static str],
}

impl<'de> DeserializeSeed<'de> for KeyOf {
    type Value = Key;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Key, D::Error> {
        from.deserialize_str(self)
    }
}

impl Visitor<'_> for KeyOf {
    type Value = Key;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Key, E> {
        Ok(Key(!self.skip.contains(&key)))
    }
}
