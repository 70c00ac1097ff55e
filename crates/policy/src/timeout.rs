//! Timeouts: how long an attempt may take to show its first token, to go on, and in all.
//!
//! Three clocks are as they are written; the one of the first token may learn ([`FirstTokenClock`]).

mod clock;

pub use clock::{FirstTokenClock, Shape};

use crate::setting;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::time::Duration;

/// The clocks of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Opening a connection. Default "2s".
    #[serde(with = "setting::duration")]
    #[schemars(with = "String")]
    pub connect: Duration,
    /// From sending the request to the first token of a stream (or to a unary answer): a
    /// duration, or "adaptive" (the default).
    pub first_token: FirstToken,
    /// How "adaptive" learns. Default "quantile".
    pub estimator: Estimator,
    /// Between two chunks of a body. Default "30s".
    #[serde(with = "setting::duration")]
    #[schemars(with = "String")]
    pub idle: Duration,
    /// The whole attempt, its last byte included. Default "10m".
    #[serde(with = "setting::duration")]
    #[schemars(with = "String")]
    pub total: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            first_token: FirstToken::Adaptive,
            estimator: Estimator::Quantile,
            idle: Duration::from_secs(30),
            total: Duration::from_secs(600),
        }
    }
}

impl Options {
    /// The same clocks with the first token, idle and total ones shortened to `share` of theirs.
    #[must_use]
    pub fn shortened(mut self, share: f64) -> Self {
        if share >= 1.0 {
            return self;
        }
        if let FirstToken::Fixed(fixed) = &mut self.first_token {
            *fixed = fixed.mul_f64(share);
        }
        self.idle = self.idle.mul_f64(share);
        self.total = self.total.mul_f64(share);
        self
    }
}

/// The first-token clock: learned or fixed.
#[derive(Clone, Copy, Debug, PartialEq, JsonSchema)]
#[schemars(with = "String")]
pub enum FirstToken {
    /// Learned from what attempts took.
    Adaptive,
    /// Always this long.
    Fixed(Duration),
}

impl Serialize for FirstToken {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Adaptive => to.serialize_str("adaptive"),
            Self::Fixed(fixed) => setting::duration::serialize(fixed, to),
        }
    }
}

impl<'de> Deserialize<'de> for FirstToken {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        if text == "adaptive" {
            return Ok(Self::Adaptive);
        }
        setting::parse_duration(&text).map(Self::Fixed).map_err(|_| {
            serde::de::Error::custom(format!(
                "`{text}` is neither \"adaptive\" nor a duration like \"10s\""
            ))
        })
    }
}

/// How an adaptive clock learns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Estimator {
    /// 1.5 times the tracked 99.9th percentile, per prompt token; "30s" before 100 samples.
    #[default]
    Quantile,
    /// Mean plus two standard deviations; 500 ms before there is data.
    MeanStddev,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_read_as_written() {
        let read = |text| serde_json::from_str::<Options>(text);
        let options =
            read(r#"{"connect":"2s","first_token":"adaptive","idle":"30s","total":"120s"}"#)
                .unwrap();
        assert_eq!(options.total, Duration::from_secs(120));
        assert_eq!(
            read(r#"{"first_token":"10s","estimator":"mean-stddev"}"#).unwrap().first_token,
            FirstToken::Fixed(Duration::from_secs(10))
        );
        assert!(read(r#"{"first_token":"soon"}"#).unwrap_err().to_string().contains("adaptive"));
    }
}
