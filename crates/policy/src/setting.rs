//! How settings are written: durations (`"30s"`), sizes (`"16MiB"`), secrets by reference.
//!
//! Used as `#[serde(with = "setting::duration")]` on a field, with `#[schemars(with = "String")]`
//! beside it.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{borrow::Cow, path::PathBuf, time::Duration};
use tidegate_core::Secret;

/// A `Duration` written as `"250ms"`, `"30s"`, `"10m"` or `"1h 30m"`.
pub mod duration {
    use super::*;

    /// Writes `"30s"`.
    ///
    /// # Errors
    ///
    /// The serializer's own.
    pub fn serialize<S: Serializer>(value: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&show_duration(*value))
    }

    /// Reads `"30s"`.
    ///
    /// # Errors
    ///
    /// When the text is not a duration.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        let text = Cow::<'de, str>::deserialize(from)?;
        parse_duration(&text).map_err(serde::de::Error::custom)
    }
}

/// An `Option<Duration>`; absent means `None`.
pub mod opt_duration {
    use super::*;

    /// Writes `"30s"` or nothing.
    ///
    /// # Errors
    ///
    /// The serializer's own.
    pub fn serialize<S: Serializer>(value: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => to.serialize_some(&show_duration(*value)),
            None => to.serialize_none(),
        }
    }

    /// Reads `"30s"`.
    ///
    /// # Errors
    ///
    /// When the text is not a duration.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
        duration::deserialize(from).map(Some)
    }
}

/// A share, written as a number from 0 to 1.
pub mod share {
    use super::*;

    /// Writes the number.
    ///
    /// # Errors
    ///
    /// The serializer's own.
    pub fn serialize<S: Serializer>(value: &f64, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_f64(*value)
    }

    /// Reads `0.25`.
    ///
    /// # Errors
    ///
    /// When the number is not from 0 to 1.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
        let value = f64::deserialize(from)?;
        if (0.0..=1.0).contains(&value) {
            return Ok(value);
        }
        let message = format!("{value} is not a share: write a number from 0 to 1");
        Err(serde::de::Error::custom(message))
    }
}

/// An `Option<Money>`, written as a number of US dollars; absent means `None`.
pub mod opt_usd {
    use super::*;
    use tidegate_core::Money;

    /// Writes the dollars or nothing.
    ///
    /// # Errors
    ///
    /// The serializer's own.
    pub fn serialize<S: Serializer>(value: &Option<Money>, to: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(money) => to.serialize_some(&money.usd()),
            None => to.serialize_none(),
        }
    }

    /// Reads `12.5`.
    ///
    /// # Errors
    ///
    /// When the number is no amount of money.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Money>, D::Error> {
        let usd = f64::deserialize(from)?;
        let message = "is no amount of US dollars: write a number from 0 to 18 million";
        let money = Money::from_usd(usd);
        money.map(Some).ok_or_else(|| serde::de::Error::custom(format!("{usd} {message}")))
    }
}

/// A number of bytes, written as `"16MiB"`, `"512KiB"` or a plain number.
pub mod size {
    use super::*;

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written<'a> {
        Number(u64),
        #[serde(borrow)]
        Text(Cow<'a, str>),
    }

    /// Writes `"16MiB"`.
    ///
    /// # Errors
    ///
    /// The serializer's own.
    pub fn serialize<S: Serializer>(value: &usize, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&show_size(*value))
    }

    /// Reads `"16MiB"` or a number of bytes.
    ///
    /// # Errors
    ///
    /// When the text is not a size.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<usize, D::Error> {
        match Written::deserialize(from)? {
            Written::Number(bytes) => usize::try_from(bytes).map_err(serde::de::Error::custom),
            Written::Text(text) => parse_size(&text).map_err(serde::de::Error::custom),
        }
    }
}

/// Whatever comes from a setting can be added to an instant.
const LONGEST: Duration = Duration::from_secs(100 * 366 * 24 * 3600);

/// Reads `"250ms"`, `"30s"`, `"10m"`, `"1h 30m"`, up to a century.
///
/// # Errors
///
/// A sentence that says how durations are written.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text.trim()).map_err(|_| {
        format!("`{text}` is not a duration: write it like \"250ms\", \"30s\" or \"10m\"")
    })?;
    if duration > LONGEST {
        return Err(format!("`{text}` is longer than a century: write at most \"100years\""));
    }
    Ok(duration)
}

/// Writes a duration as [`parse_duration`] reads it.
pub fn show_duration(value: Duration) -> String {
    humantime::format_duration(value).to_string()
}

const UNITS: [(&str, usize); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// Reads `"16MiB"`, `"512KiB"`, `"1GiB"`, `"100B"` or a plain number of bytes.
///
/// # Errors
///
/// A sentence that says how sizes are written.
pub fn parse_size(text: &str) -> Result<usize, String> {
    let text = text.trim();
    let (number, unit) = UNITS
        .iter()
        .find_map(|(name, unit)| Some((text.strip_suffix(name)?.trim(), *unit)))
        .unwrap_or((text, 1));
    number
        .parse::<usize>()
        .ok()
        .and_then(|number| number.checked_mul(unit))
        .ok_or_else(|| format!("`{text}` is not a size: write it like \"512KiB\" or \"16MiB\""))
}

/// Writes a size as [`parse_size`] reads it.
pub fn show_size(bytes: usize) -> String {
    let (name, unit) = UNITS
        .into_iter()
        .find(|(_, unit)| bytes >= *unit && bytes.is_multiple_of(*unit))
        .unwrap_or(("B", 1));
    format!("{}{name}", bytes / unit)
}

/// Where a secret comes from. The binary resolves it; nothing else reads environment or files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretRef {
    /// `{ env = "NAME" }`
    Env(String),
    /// `{ file = "/run/secrets/x" }`
    File(PathBuf),
    /// Written out. Works, and `check` warns.
    Literal(Secret<String>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum WrittenSecret {
    Literal(String),
    Reference(Reference),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
enum Reference {
    Env(String),
    File(PathBuf),
}

impl<'de> Deserialize<'de> for SecretRef {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        // The cause is not passed on: it could repeat what was written.
        let written = WrittenSecret::deserialize(from).map_err(|_| {
            serde::de::Error::custom(
                "a secret is written { env = \"NAME\" }, { file = \"/path\" } or as a string",
            )
        })?;
        Ok(match written {
            WrittenSecret::Literal(literal) => Self::Literal(literal.into()),
            WrittenSecret::Reference(Reference::Env(name)) => Self::Env(name),
            WrittenSecret::Reference(Reference::File(path)) => Self::File(path),
        })
    }
}

impl Serialize for SecretRef {
    /// A literal is written as `"[redacted]"`.
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Env(name) => Reference::Env(name.clone()).serialize(to),
            Self::File(path) => Reference::File(path.clone()).serialize(to),
            Self::Literal(_) => to.serialize_str("[redacted]"),
        }
    }
}

impl JsonSchema for SecretRef {
    fn schema_name() -> Cow<'static, str> {
        "Secret".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A secret: from the environment, from a file, or (with a warning) written out.",
            "oneOf": [
                { "type": "object", "properties": { "env": { "type": "string" } },
                  "required": ["env"], "additionalProperties": false },
                { "type": "object", "properties": { "file": { "type": "string" } },
                  "required": ["file"], "additionalProperties": false },
                { "type": "string" }
            ]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_and_write() {
        for (text, bytes) in
            [("16MiB", 16 << 20), ("512KiB", 512 << 10), ("7B", 7), ("1GiB", 1 << 30)]
        {
            assert_eq!(parse_size(text), Ok(bytes));
            assert_eq!(show_size(bytes), text);
        }
        assert_eq!(parse_size(" 42 "), Ok(42));
        for bad in ["", "MiB", "-1B", "1.5MiB", "99999999999GiB"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_read_and_write() {
        for (text, millis) in
            [("250ms", 250), ("30s", 30_000), ("10m", 600_000), ("1h 30m", 5_400_000)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)));
            assert_eq!(show_duration(Duration::from_millis(millis)), text);
        }
        assert!(parse_duration("30").unwrap_err().contains("30s"));
        assert!(parse_duration("300000000000years").unwrap_err().contains("longer"));
    }

    #[test]
    fn a_secret_is_never_written_back() {
        let literal: SecretRef = serde_json::from_str("\"sk-canary\"").unwrap();
        assert_eq!(serde_json::to_string(&literal).unwrap(), "\"[redacted]\"");
        assert!(!format!("{literal:?}").contains("canary"));
        let env: SecretRef = serde_json::from_str(r#"{"env":"KEY"}"#).unwrap();
        assert_eq!(serde_json::to_string(&env).unwrap(), r#"{"env":"KEY"}"#);
        let error = serde_json::from_str::<SecretRef>(r#"{"evn":"canary"}"#).unwrap_err();
        assert!(!error.to_string().contains("canary"));
    }
}
