//! What is written about calls, and where.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{borrow::Cow, path::PathBuf};

/// What is written about calls.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Log {
    /// Where one line per call or refused request goes: "stderr", "off", or the path of a file to
    /// append to. JSON, except on a terminal. Default "stderr".
    pub(crate) access: AccessTo,
    /// What the process says of itself on standard error: "off", "error", "warn", "info", "debug" or "trace". Secrets are in none of it. Default "warn".
    pub(crate) level: Level,
}

/// How much the process says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    /// Nothing.
    Off,
    /// What went wrong on our side.
    Error,
    /// And what an operator should look at.
    #[default]
    Warn,
    /// And what was changed.
    Info,
    /// And why requests were refused.
    Debug,
    /// And all there is.
    Trace,
}

/// Where the access log goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[schemars(with = "String")]
pub(crate) enum AccessTo {
    /// Nowhere.
    Off,
    /// Standard error.
    #[default]
    Stderr,
    /// The end of this file.
    File(PathBuf),
}

impl<'de> Deserialize<'de> for AccessTo {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(from)?;
        match &*text {
            "off" => Ok(Self::Off),
            "stderr" => Ok(Self::Stderr),
            path if path.contains(['/', '\\']) => Ok(Self::File(path.into())),
            other => Err(de::Error::custom(format!(
                "`{other}` is neither \"stderr\" nor \"off\" nor a path: write a file of this \
                 directory as \"./{other}\""
            ))),
        }
    }
}

impl Serialize for AccessTo {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Off => to.serialize_str("off"),
            Self::Stderr => to.serialize_str("stderr"),
            Self::File(path) => path.serialize(to),
        }
    }
}
