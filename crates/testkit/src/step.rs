//! One step of a [`crate::script`]: its grammar and what it builds.
//!
//! ```text
//! step    = [COUNT "*"] outcome ["after" DURATION] {KEY "=" VALUE}
//! outcome = "ok" | "slow" | "dialing" | "refused" | "fault" | "reset" | "unreachable"
//!         | "no-connection" | "timeout" [CLOCK] | "credential" | "quota" | "rejected" [STATUS]
//!         | "stream" N "chunks" ["every" DURATION] ["then" ending]
//!         | "stream" "stall" "after" N
//! ending  = "fault" | "reset" | "stall" | "timeout"
//! CLOCK   = "connect" | "first_token" | "idle" | "total"
//! KEY     = "status" | "retry-after" | "limit-requests" | "remaining-requests" | "reset-requests"
//!         | "limit-tokens" | "remaining-tokens" | "reset-tokens" | "usage" (IN "+" OUT)
//! ```

use bytes::Bytes;
use std::{str::FromStr, time::Duration};
use tidegate_core::{Allowance, Clock, Error, Kind, Origin, RateLimits, Retry, Usage};

/// What the provider does with one attempt.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Step {
    /// The outcome's first word, as it stands in the trace.
    pub(crate) word: String,
    pub(crate) outcome: Outcome,
    /// Time from the attempt's start to the outcome.
    pub(crate) after: Duration,
    pub(crate) limits: RateLimits,
    pub(crate) usage: Option<Usage>,
    status: Option<u16>,
    retry_after: Option<Duration>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Outcome {
    /// The whole answer, or for a stream two chunks at once.
    #[default]
    Ok,
    /// Never answers.
    Slow,
    /// Never has a connection to write the request on.
    Dialing,
    /// Fails before anything is passed on.
    Fail(Failure),
    /// Answers with a stream, whatever was asked for.
    Stream { chunks: u32, every: Duration, ending: Ending },
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Ending {
    Clean,
    Stall,
    Fail(Failure),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Failure {
    Refused,
    Fault,
    Reset,
    Unreachable,
    /// All of our connections stayed in use.
    NoConnection,
    Timeout(Clock),
    Credential,
    Quota,
    Rejected,
}

impl Step {
    /// Reads a script: one step per line or between `;`, blank lines and `//` comments skipped.
    ///
    /// # Panics
    ///
    /// On a step that is not of the grammar above, naming it.
    #[track_caller]
    pub(crate) fn script(text: &str) -> Vec<Self> {
        let steps = text
            .lines()
            .map(|line| line.split("//").next().unwrap_or_default())
            .flat_map(|line| line.split(';'))
            .map(str::trim)
            .filter(|step| !step.is_empty());
        let mut script = Vec::new();
        for text in steps {
            let (times, step) = match text.split_once('*') {
                Some((times, step)) => (times.trim().parse().ok(), step),
                None => (Some(1), text),
            };
            match (times, step.parse::<Self>()) {
                (Some(times), Ok(step)) => script.extend(std::iter::repeat_n(step, times)),
                (None, _) => panic!("step `{text}`: what stands before `*` is a count"),
                (_, Err(why)) => panic!("step `{text}`: {why}"),
            }
        }
        script
    }

    /// Whether the upstream gets the request.
    pub(crate) const fn is_sent(&self) -> bool {
        use Failure::{NoConnection, Timeout, Unreachable};
        !matches!(
            self.outcome,
            Outcome::Dialing | Outcome::Fail(Unreachable | NoConnection | Timeout(Clock::Connect))
        )
    }

    pub(crate) fn error(&self, failure: Failure) -> Error {
        let (kind, origin, status, message) = match failure {
            Failure::Refused => (Kind::UpstreamCapacity, Origin::Upstream, 429, "slow down"),
            Failure::Fault => (Kind::Upstream, Origin::Upstream, 502, "the upstream failed"),
            Failure::Reset => (Kind::Upstream, Origin::Upstream, 0, "connection reset"),
            Failure::Unreachable => (Kind::Unavailable, Origin::Upstream, 0, "connection refused"),
            Failure::NoConnection => {
                (Kind::UpstreamTimeout(Clock::Total), Origin::Upstream, 0, "no connection is free")
            }
            Failure::Timeout(clock) => {
                (Kind::UpstreamTimeout(clock), Origin::Upstream, 0, "the upstream did not answer")
            }
            Failure::Credential => (Kind::UpstreamCredential, Origin::Upstream, 401, "wrong key"),
            Failure::Quota => (Kind::UpstreamQuota, Origin::Upstream, 429, "insufficient_quota"),
            Failure::Rejected => (Kind::Rejected, Origin::Caller, 400, "not a valid request"),
        };
        let retry = match failure {
            Failure::Refused | Failure::Fault => Retry::After(self.retry_after.unwrap_or_default()),
            Failure::Reset | Failure::Timeout(Clock::FirstToken) => Retry::After(Duration::ZERO),
            Failure::Unreachable | Failure::NoConnection | Failure::Timeout(Clock::Connect) => {
                Retry::Unsent
            }
            Failure::Timeout(Clock::Idle | Clock::Total)
            | Failure::Credential
            | Failure::Quota
            | Failure::Rejected => Retry::Never,
        };
        let error = Error::new(kind, origin, message)
            .with_retry(retry)
            .with_retry_after(self.retry_after)
            .with_limits(self.limits);
        match (failure, self.status.unwrap_or(status)) {
            (Failure::Reset, _) => {
                error.caused_by(std::io::Error::from(std::io::ErrorKind::ConnectionReset))
            }
            (Failure::Unreachable, _) => {
                error.caused_by(std::io::Error::from(std::io::ErrorKind::ConnectionRefused))
            }
            (_, 0) => error,
            (_, status) => {
                let body = format!(r#"{{"error":{{"message":"{message}","type":"scripted"}}}}"#);
                error.with_answer(status, Bytes::from(body))
            }
        }
    }
}

impl FromStr for Step {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (settings, words): (Vec<&str>, Vec<&str>) =
            text.split_whitespace().partition(|word| word.contains('='));
        let Some((&word, rest)) = words.split_first() else {
            return Err("an outcome is missing".into());
        };
        let mut step = Self { word: word.into(), ..Self::default() };
        let rest = step.read_outcome(word, rest)?;
        match rest {
            [] => {}
            ["after", wait] => step.after = duration(wait)?,
            other => return Err(format!("`{}` is not understood", other.join(" "))),
        }
        for setting in settings {
            step.set(setting)?;
        }
        Ok(step)
    }
}

impl Step {
    /// Takes the outcome from `rest` and returns what is left of it.
    fn read_outcome<'a, 'b>(
        &mut self,
        word: &str,
        rest: &'b [&'a str],
    ) -> Result<&'b [&'a str], String> {
        if let Some(failure) = failure(word) {
            let (failure, rest) = match (failure, rest) {
                (Failure::Timeout(_), [name, rest @ ..]) if clock(name).is_some() => {
                    (clock(name).map_or(failure, Failure::Timeout), rest)
                }
                (Failure::Rejected, [status, rest @ ..]) if *status != "after" => {
                    self.status = Some(number(status)?);
                    (failure, rest)
                }
                _ => (failure, rest),
            };
            self.outcome = Outcome::Fail(failure);
            return Ok(rest);
        }
        match (word, rest) {
            ("ok", rest) => Ok(rest),
            ("slow", rest) => {
                self.outcome = Outcome::Slow;
                Ok(rest)
            }
            ("dialing", rest) => {
                self.outcome = Outcome::Dialing;
                Ok(rest)
            }
            ("stream", ["stall", "after", chunks, rest @ ..]) => {
                let chunks = number(chunks)?;
                self.outcome =
                    Outcome::Stream { chunks, every: Duration::ZERO, ending: Ending::Stall };
                Ok(rest)
            }
            ("stream", [chunks, "chunk" | "chunks", rest @ ..]) => {
                let (every, rest) = match rest {
                    ["every", every, rest @ ..] => (duration(every)?, rest),
                    rest => (Duration::ZERO, rest),
                };
                let (ending, rest) = match rest {
                    ["then", "stall", rest @ ..] => (Ending::Stall, rest),
                    ["then", word, rest @ ..] => {
                        let failure = failure(word).ok_or_else(|| unknown(word))?;
                        (Ending::Fail(failure), rest)
                    }
                    rest => (Ending::Clean, rest),
                };
                self.outcome = Outcome::Stream { chunks: number(chunks)?, every, ending };
                Ok(rest)
            }
            _ => Err(unknown(word)),
        }
    }

    fn set(&mut self, setting: &str) -> Result<(), String> {
        let (key, value) = setting.split_once('=').ok_or("a setting is KEY=VALUE")?;
        let allowance = |limits: &mut RateLimits| -> Result<(), String> {
            let (what, of) = key.split_once('-').unwrap_or((key, ""));
            let allowance: &mut Allowance = match of {
                "requests" => &mut limits.requests,
                "tokens" => &mut limits.tokens,
                _ => return Err(unknown(key)),
            };
            match what {
                "limit" => allowance.limit = Some(number(value)?),
                "remaining" => allowance.remaining = Some(number(value)?),
                "reset" => allowance.reset = Some(duration(value)?),
                _ => return Err(unknown(key)),
            }
            Ok(())
        };
        match key {
            "status" => self.status = Some(number(value)?),
            "retry-after" => self.retry_after = Some(duration(value)?),
            "usage" => {
                let (input, output) = value.split_once('+').ok_or("usage is IN+OUT")?;
                self.usage = Some(Usage {
                    input: number(input)?,
                    output: number(output)?,
                    ..Usage::default()
                });
            }
            _ => allowance(&mut self.limits)?,
        }
        Ok(())
    }
}

fn failure(word: &str) -> Option<Failure> {
    Some(match word {
        "refused" => Failure::Refused,
        "fault" => Failure::Fault,
        "reset" => Failure::Reset,
        "unreachable" => Failure::Unreachable,
        "no-connection" => Failure::NoConnection,
        "timeout" => Failure::Timeout(Clock::FirstToken),
        "credential" => Failure::Credential,
        "quota" => Failure::Quota,
        "rejected" => Failure::Rejected,
        _ => return None,
    })
}

fn clock(word: &str) -> Option<Clock> {
    [Clock::Connect, Clock::FirstToken, Clock::Idle, Clock::Total]
        .into_iter()
        .find(|clock| clock.name() == word)
}

fn unknown(word: &str) -> String {
    format!("`{word}` is not a word of scripts here")
}

fn number<N: FromStr>(text: &str) -> Result<N, String> {
    text.parse().map_err(|_| format!("`{text}` is not a number that fits here"))
}

/// `250ms`, `1.5s` or `2m`.
fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("`{text}` is not a duration such as 250ms, 1.5s or 2m");
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
    let (value, unit) = text.split_at(split);
    let scale = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(bad()),
    };
    let value: f64 = value.parse().map_err(|_| bad())?;
    Duration::try_from_secs_f64(value * scale).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Step {
        let mut script = Step::script(text);
        assert_eq!(script.len(), 1, "{text}");
        script.remove(0)
    }

    #[test]
    fn every_sort_of_step_is_read() {
        assert_eq!(Step::script("ok; 3 * refused\n\n slow // for ever").len(), 5);
        assert_eq!(one("ok after 50ms").after, Duration::from_millis(50));
        assert_eq!(one("ok usage=7+3").usage.map(|usage| usage.total()), Some(10));
        assert_eq!(one("timeout idle").outcome, Outcome::Fail(Failure::Timeout(Clock::Idle)));
        assert_eq!(
            one("stream 3 chunks every 10ms then fault after 1s").outcome,
            Outcome::Stream {
                chunks: 3,
                every: Duration::from_millis(10),
                ending: Ending::Fail(Failure::Fault),
            }
        );
        assert_eq!(
            one("stream stall after 1").outcome,
            Outcome::Stream { chunks: 1, every: Duration::ZERO, ending: Ending::Stall }
        );
        let told = one("ok limit-requests=600 remaining-requests=3 reset-tokens=1.5s").limits;
        assert_eq!((told.requests.limit, told.requests.remaining), (Some(600), Some(3)));
        assert_eq!(told.tokens.reset, Some(Duration::from_millis(1500)));
    }

    #[test]
    fn a_bad_step_says_which_word() {
        for (text, word) in [
            ("okay", "okay"),
            ("ok in 5s", "in 5s"),
            ("refused retry-after=5", "`5`"),
            ("stream 3 chunks then dance", "dance"),
            ("ok colour=red", "colour"),
            ("", "missing"),
        ] {
            let why = text.parse::<Step>().unwrap_err();
            assert!(why.contains(word), "{text}: {why}");
        }
    }

    #[test]
    fn errors_are_built_as_a_provider_would() {
        let refused = one("refused retry-after=1s remaining-requests=0");
        let error = refused.error(Failure::Refused);
        assert_eq!(error.kind(), Kind::UpstreamCapacity);
        assert_eq!(error.retry(), Retry::After(Duration::from_secs(1)));
        assert_eq!(error.retry_after(), Some(Duration::from_secs(1)));
        assert_eq!(error.answer().map(|answer| answer.status), Some(429));
        assert_eq!(error.limits().requests.remaining, Some(0));

        let rejected = one("rejected 422");
        assert_eq!(rejected.outcome, Outcome::Fail(Failure::Rejected));
        assert_eq!(rejected.error(Failure::Rejected).answer().map(|a| a.status), Some(422));
        assert_eq!(one("unreachable").error(Failure::Unreachable).retry(), Retry::Unsent);
        assert_eq!(one("quota").error(Failure::Quota).retry(), Retry::Never);
        let full = one("no-connection").error(Failure::NoConnection);
        assert_eq!(full.kind(), Kind::UpstreamTimeout(Clock::Total));
        assert_eq!(full.retry(), Retry::Unsent);
    }
}
