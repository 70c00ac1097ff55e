//! What a run is told.

use crate::{Arrivals, Bodies, Target};
use http::{HeaderMap, HeaderName, HeaderValue};
use std::{str::FromStr, time::Duration};
use tidegate_core::{Operation, Priority, Secret};
use tidegate_policy::setting::{parse_duration, show_duration};

/// A load on one server.
#[derive(Debug)]
pub struct Options {
    /// The server.
    pub target: Target,
    /// Which endpoint, below the target's base URL.
    pub operation: Operation,
    /// Model name for the report; bodies carry their own.
    pub model: String,
    /// What is sent, in turn.
    pub bodies: Bodies,
    /// Sent with every request.
    pub headers: Headers,
    /// Whether the bodies ask for a stream of events.
    pub stream: bool,
    /// How requests come.
    pub load: Load,
    /// How long requests are measured, above 0 and at most [`Options::LONGEST`].
    pub duration: Duration,
    /// How long they are sent before that, and not measured.
    pub warmup: Duration,
    /// Requests after which sending ends, warm-up not counted; none by default.
    pub requests: Option<u64>,
    /// Longest time of one request.
    pub timeout: Duration,
    /// What a good answer is, beside being complete.
    pub slo: Option<Slo>,
    /// Makes the schedule.
    pub seed: u64,
}

impl Options {
    /// Longest run: one day, one point a second.
    pub const LONGEST: Duration = Duration::from_secs(86_400);

    /// Says what cannot be.
    ///
    /// # Errors
    ///
    /// A sentence that names the option.
    pub fn check(&self) -> Result<(), String> {
        let (rate, workers) = match self.load {
            Load::Open { per_second, max_in_flight, .. } => (Some(per_second), max_in_flight),
            Load::Paced { per_second, workers, .. } => (Some(per_second), workers),
            Load::Closed { workers } => (None, workers),
        };
        if self.model.is_empty() {
            return Err("--model must not be empty".into());
        }
        if rate.is_some_and(|rate| !(0.001..=1e6).contains(&rate)) {
            return Err("--rate must be from 0.001 to 1000000 requests per second".into());
        }
        if !(1..=1_000_000).contains(&workers) {
            return Err("--concurrency and --max-in-flight must be from 1 to 1000000".into());
        }
        if self.duration.is_zero() || self.duration + self.warmup > Self::LONGEST {
            return Err("--duration must be above 0s, and with --warmup at most 24h".into());
        }
        if self.timeout.is_zero() || self.timeout > Self::LONGEST {
            return Err("--timeout must be above 0s and at most 24h".into());
        }
        if self.requests == Some(0) {
            return Err("--requests must be at least 1".into());
        }
        let slo = self.slo.unwrap_or_default();
        if !self.stream && (slo.first_token.or(slo.per_token)).is_some() {
            return Err("--slo with ttft or tpot needs --stream: an answer in one piece has \
                        no first token"
                .into());
        }
        if self.stream && self.operation == Operation::Embeddings {
            return Err("--stream does not go with --endpoint embeddings".into());
        }
        Ok(())
    }
}

/// How requests come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Load {
    /// By a schedule, as many at once as that makes.
    Open {
        /// Requests per second.
        per_second: f64,
        /// How they are spaced.
        arrivals: Arrivals,
        /// Requests that may be in flight; one more is dropped, and counted.
        max_in_flight: usize,
    },
    /// By a schedule, and at most so many at once: others wait, and the wait is measured.
    Paced {
        /// Requests per second.
        per_second: f64,
        /// How they are spaced.
        arrivals: Arrivals,
        /// Requests at once.
        workers: usize,
    },
    /// Each worker sends its next request when the last has ended.
    Closed {
        /// Requests at once.
        workers: usize,
    },
}

/// Times within which an answer is good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slo {
    /// To the first token.
    pub first_token: Option<Duration>,
    /// Per token after the first, on average.
    pub per_token: Option<Duration>,
    /// To the end.
    pub total: Option<Duration>,
}

impl FromStr for Slo {
    type Err = String;

    /// Reads `ttft=500ms,tpot=50ms,total=5s`.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut slo = Self::default();
        for part in text.split(',') {
            let (name, time) = part.split_once('=').ok_or_else(|| {
                format!("`{part}` is not a bound: write it like \"ttft=500ms,total=5s\"")
            })?;
            let bound = match name.trim() {
                "ttft" => &mut slo.first_token,
                "tpot" => &mut slo.per_token,
                "total" => &mut slo.total,
                other => return Err(format!("`{other}` is none of ttft, tpot and total")),
            };
            if bound.is_some() {
                return Err(format!("`{}` is given twice", name.trim()));
            }
            let time = parse_duration(time)?;
            if time.is_zero() {
                return Err(format!("`{}` must be above 0s", name.trim()));
            }
            *bound = Some(time);
        }
        Ok(slo)
    }
}

impl std::fmt::Display for Slo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut comma = "";
        for (name, bound) in
            [("ttft", self.first_token), ("tpot", self.per_token), ("total", self.total)]
        {
            if let Some(bound) = bound {
                write!(f, "{comma}{name}={}", show_duration(bound))?;
                comma = ",";
            }
        }
        Ok(())
    }
}

/// Headers of every request.
#[derive(Clone, Debug, Default)]
pub struct Headers {
    pub(crate) map: HeaderMap,
    /// To keep it out of what a server's error repeats.
    pub(crate) key: Option<Secret<String>>,
}

impl Headers {
    /// No header but those of the protocol.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `authorization: Bearer KEY`.
    ///
    /// # Errors
    ///
    /// When no header can carry it; the key is not repeated.
    pub fn with_key(mut self, key: Secret<String>) -> Result<Self, String> {
        let mut value = HeaderValue::try_from(format!("Bearer {}", key.expose()))
            .map_err(|_| "the key has a character no header may carry (a line end?)")?;
        value.set_sensitive(true);
        self.map.insert(http::header::AUTHORIZATION, value);
        self.key = Some(key);
        Ok(self)
    }

    /// Adds `x-tidegate-priority`.
    #[must_use]
    pub fn with_priority(mut self, priority: Priority) -> Self {
        let name = HeaderName::from_static("x-tidegate-priority");
        self.map.insert(name, HeaderValue::from_static(priority.name()));
        self
    }

    /// Adds a header written `Name: value`.
    ///
    /// # Errors
    ///
    /// When it is not one, or the connection sets it itself.
    pub fn with_line(mut self, line: &str) -> Result<Self, String> {
        const OURS: [&str; 4] = ["host", "content-length", "transfer-encoding", "connection"];
        let (name, value) = line
            .split_once(':')
            .ok_or("a header is written 'Name: value'; there is no colon in one")?;
        let name: HeaderName = name
            .trim()
            .parse()
            .map_err(|_| format!("`{}` is not a header's name", name.trim().escape_debug()))?;
        if OURS.contains(&name.as_str()) {
            return Err(format!("the header `{name}` is set by the connection itself"));
        }
        let value = HeaderValue::from_str(value.trim())
            .map_err(|_| format!("the header `{name}` has a character no header may carry"))?;
        self.map.insert(name, value);
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_read_and_write() {
        let slo: Slo = "total=5s, ttft=500ms".parse().unwrap();
        assert_eq!(slo.to_string(), "ttft=500ms,total=5s");
        for (bad, says) in [
            ("ttft", "like"),
            ("p99=1s", "none of"),
            ("total=5", "duration"),
            ("", "like"),
            ("ttft=1s,ttft=2s", "twice"),
            ("total=0s", "above"),
        ] {
            assert!(bad.parse::<Slo>().unwrap_err().contains(says), "{bad}");
        }
    }

    #[test]
    fn headers_are_checked_and_secrets_kept() {
        assert!(Headers::new().with_line("x-team: a:b").unwrap().map["x-team"] == "a:b");
        for bad in ["x-team", "a b: c", "Host: x", "x: a\nb"] {
            assert!(Headers::new().with_line(bad).is_err(), "{bad}");
        }
        let headers = Headers::new().with_key(Secret::new("canary".into())).unwrap();
        assert!(!format!("{headers:?}").contains("canary"));
        let why = Headers::new().with_key(Secret::new("canary\n".into())).unwrap_err();
        assert!(!why.contains("canary"));
    }
}
