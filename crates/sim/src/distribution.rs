//! How long something takes: a fixed time or a draw, written on the command line.
//!
//! ```text
//! 50ms | fixed:50ms | uniform:10ms,90ms | lognormal:300ms,0.4 (median, sigma)
//!      | gamma:50ms,2 (mean, shape)
//! ```

use crate::chance::Chance;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{borrow::Cow, fmt, str::FromStr, time::Duration};
use tidegate_policy::setting::{parse_duration, show_duration};

/// Longest time drawn, whatever the tail: one day.
const LONGEST: Duration = Duration::from_secs(86_400);

/// A distribution of times.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Distribution {
    /// Always the same.
    Fixed(Duration),
    /// Even between the two.
    Uniform(Duration, Duration),
    /// `median * exp(sigma * normal)`: the usual shape of first-token times.
    LogNormal {
        /// Half of the draws are shorter.
        median: Duration,
        /// Spread, 0 to 5.
        sigma: f64,
    },
    /// Gamma: shape 1 is exponential, a large shape nearly fixed.
    Gamma {
        /// Mean of the draws.
        mean: Duration,
        /// Shape, 0.1 to 1000.
        shape: f64,
    },
}

impl Distribution {
    /// No time at all.
    pub const ZERO: Self = Self::Fixed(Duration::ZERO);

    pub(crate) fn is_zero(&self) -> bool {
        *self == Self::ZERO
    }

    /// One draw, at most a day.
    pub(crate) fn draw(&self, chance: &mut Chance) -> Duration {
        let seconds = match self {
            Self::Fixed(time) => return (*time).min(LONGEST),
            Self::Uniform(low, high) => {
                low.as_secs_f64() + (high.as_secs_f64() - low.as_secs_f64()) * chance.unit()
            }
            Self::LogNormal { median, sigma } => {
                median.as_secs_f64() * (sigma * chance.normal()).exp()
            }
            Self::Gamma { mean, shape } => mean.as_secs_f64() / shape * gamma(*shape, chance),
        };
        Duration::try_from_secs_f64(seconds).map_or(LONGEST, |time| time.min(LONGEST))
    }

    /// The sum of `count` draws, at most a day.
    pub(crate) fn draw_sum(&self, count: u32, chance: &mut Chance) -> Duration {
        match self {
            Self::Fixed(time) => time.saturating_mul(count).min(LONGEST),
            _ => (0..count).fold(Duration::ZERO, |sum, _| sum + self.draw(chance)).min(LONGEST),
        }
    }
}

/// A gamma draw of scale 1 (Marsaglia and Tsang 2000; shapes below 1 by their boost).
fn gamma(shape: f64, chance: &mut Chance) -> f64 {
    if shape < 1.0 {
        return gamma(shape + 1.0, chance) * chance.unit().powf(1.0 / shape);
    }
    let d = shape - 1.0 / 3.0;
    let c = (9.0 * d).sqrt().recip();
    loop {
        let x = chance.normal();
        let v = (1.0 + c * x).powi(3);
        if v > 0.0 && (1.0 - chance.unit()).ln() < 0.5 * x * x + d - d * v + d * v.ln() {
            return d * v;
        }
    }
}

impl FromStr for Distribution {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (form, rest) = match text.split_once(':') {
            None => ("fixed", text),
            Some((form, rest)) => (form.trim(), rest),
        };
        if form == "fixed" {
            return time(rest).map(Self::Fixed);
        }
        let Some((first, second)) = rest.split_once(',') else {
            return Err(format!("`{text}` is not a distribution: {FORMS}"));
        };
        match form {
            "uniform" => {
                let (low, high) = (time(first)?, time(second)?);
                if low > high {
                    return Err(format!("`{text}`: the first time is the longer one, swap them"));
                }
                Ok(Self::Uniform(low, high))
            }
            "lognormal" => {
                Ok(Self::LogNormal { median: time(first)?, sigma: number(second, 0.0, 5.0)? })
            }
            "gamma" => Ok(Self::Gamma { mean: time(first)?, shape: number(second, 0.1, 1000.0)? }),
            _ => Err(format!("`{form}` is not a distribution: {FORMS}")),
        }
    }
}

const FORMS: &str = "write \"50ms\", \"uniform:10ms,90ms\", \"lognormal:300ms,0.4\" (median, \
                     sigma) or \"gamma:50ms,2\" (mean, shape)";

fn time(text: &str) -> Result<Duration, String> {
    if text.trim() == "0" {
        return Ok(Duration::ZERO);
    }
    parse_duration(text)
}

fn number(text: &str, low: f64, high: f64) -> Result<f64, String> {
    match text.trim().parse::<f64>() {
        Ok(number) if (low..=high).contains(&number) => Ok(number),
        _ => Err(format!("`{}` must be a number from {low} to {high}", text.trim())),
    }
}

impl fmt::Display for Distribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(time) => f.write_str(&show_duration(*time)),
            Self::Uniform(low, high) => {
                write!(f, "uniform:{},{}", show_duration(*low), show_duration(*high))
            }
            Self::LogNormal { median, sigma } => {
                write!(f, "lognormal:{},{sigma}", show_duration(*median))
            }
            Self::Gamma { mean, shape } => write!(f, "gamma:{},{shape}", show_duration(*mean)),
        }
    }
}

impl Serialize for Distribution {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Distribution {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Cow::<'de, str>::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, shown: &str) {
        let distribution: Distribution = text.parse().unwrap();
        assert_eq!(distribution.to_string(), shown);
        assert_eq!(shown.parse(), Ok(distribution), "reads what it writes");
    }

    #[test]
    fn forms_read_and_write() {
        check("50ms", "50ms");
        check("fixed:1500ms", "1s 500ms");
        check("0", "0s");
        check("uniform: 10ms, 90ms", "uniform:10ms,90ms");
        check("lognormal:300ms,0.4", "lognormal:300ms,0.4");
        check("gamma:50ms,2", "gamma:50ms,2");
    }

    #[test]
    fn bad_forms_say_how_to_write_them() {
        for bad in ["", "50", "normal:1s,2", "uniform:1s", "uniform:2s,1s", "gamma:1s,0", "x:y,z"] {
            let error = bad.parse::<Distribution>().unwrap_err();
            assert!(!error.is_empty(), "{bad}");
        }
        let error = "zipf:1s,2".parse::<Distribution>().unwrap_err();
        assert!(error.contains("lognormal:300ms,0.4"), "{error}");
    }

    fn mean_ms(text: &str) -> f64 {
        let distribution: Distribution = text.parse().unwrap();
        let mut chance = Chance::new(&[1]);
        distribution.draw_sum(20_000, &mut chance).as_secs_f64() * 1000.0 / 20_000.0
    }

    #[test]
    fn draws_have_the_told_mean() {
        for (text, mean) in [
            ("uniform:10ms,30ms", 20.0),
            ("gamma:50ms,2", 50.0),
            ("gamma:50ms,0.5", 50.0),
            ("lognormal:100ms,0.5", 100.0 * (0.125_f64).exp()),
        ] {
            let got = mean_ms(text);
            assert!((got / mean - 1.0).abs() < 0.03, "{text}: {got}");
        }
    }

    #[test]
    fn no_draw_is_longer_than_a_day() {
        let wild = Distribution::LogNormal { median: LONGEST, sigma: 5.0 };
        let mut chance = Chance::new(&[1]);
        assert!((0..100).all(|_| wild.draw(&mut chance) <= LONGEST));
    }
}
