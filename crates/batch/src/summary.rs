//! How a job went: counts, tokens, money, times; for the terminal, a file and the exit code.

use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, time::Duration};
use tidegate_core::Usage;

/// A job that ran, to its end or to a stop.
#[derive(Clone, Debug)]
pub struct Finished {
    /// How it went.
    pub summary: Summary,
    /// Why it ended.
    pub end: End,
    /// The command that goes on with it.
    pub resume: String,
}

/// Why a job ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Every row was called; some may have failed.
    Complete,
    /// Every row had been called by an earlier run: nothing was done.
    AlreadyComplete,
    /// The upstream refuses the credential, or the account is empty.
    Refused(String),
    /// The money is spent.
    Budget,
    /// The job's time is over.
    Deadline,
    /// Too many rows failed.
    Errors,
    /// Nobody answers.
    Unreachable(String),
    /// The user asked for it.
    Interrupted,
}

impl End {
    /// The word in the summary and the manifest.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Complete | Self::AlreadyComplete => "finished",
            Self::Refused(_) => "credential or quota refused",
            Self::Budget => "budget reached",
            Self::Deadline => "deadline reached",
            Self::Errors => "too many errors",
            Self::Unreachable(_) => "upstream unreachable",
            Self::Interrupted => "interrupted",
        }
    }

    /// Whether the rows that ran are written out although others did not run.
    pub(crate) const fn writes_partial_output(&self) -> bool {
        matches!(self, Self::Budget | Self::Deadline | Self::Errors)
    }
}

impl Finished {
    /// The process exit code of SPEC §2.
    pub const fn exit_code(&self) -> u8 {
        match self.end {
            End::Complete | End::AlreadyComplete if self.summary.failed == 0 => 0,
            End::Complete | End::AlreadyComplete | End::Errors => 3,
            End::Refused(_) => 4,
            End::Budget | End::Deadline => 5,
            End::Unreachable(_) => 6,
            End::Interrupted => 130,
        }
    }
}

/// How a job went so far, earlier runs of it included unless said otherwise.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Why the last run ended.
    pub state: String,
    /// Exit code of the last run.
    pub exit_code: u8,
    /// Rows to be answered.
    pub rows: u64,
    /// Rows answered.
    pub ok: u64,
    /// Rows that failed after all their attempts.
    pub failed: u64,
    /// Rows not called yet.
    pub left: u64,
    /// Rows answered with an equal row's answer.
    pub cached: u64,
    /// Failed rows by class.
    pub failed_by_class: BTreeMap<String, u64>,
    /// Attempts sent upstream.
    pub attempts: u64,
    /// Tokens used.
    pub usage: Tokens,
    /// US dollars; `null` when a price is unknown.
    pub cost: Option<f64>,
    /// Seconds the last run took.
    pub elapsed_s: f64,
    /// Rows the last run finished, per second.
    pub rows_per_s: f64,
    /// Time of a row answered by the last run, in milliseconds.
    pub latency_ms: Quantiles,
    /// Where the rows are; `null` when the last run wrote no output.
    pub output: Option<String>,
    /// Where the error rows are; `null` when there are none.
    pub errors: Option<String>,
}

/// Tokens used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tokens {
    /// Prompt tokens, cached ones included.
    pub input_tokens: u64,
    /// Prompt tokens the upstream had in its own cache.
    pub cached_input_tokens: u64,
    /// Answer tokens, reasoning included.
    pub output_tokens: u64,
    /// Tokens of hidden reasoning.
    pub reasoning_tokens: u64,
}

impl From<Usage> for Tokens {
    fn from(usage: Usage) -> Self {
        Self {
            input_tokens: usage.input,
            cached_input_tokens: usage.cached_input,
            output_tokens: usage.output,
            reasoning_tokens: usage.reasoning,
        }
    }
}

/// Quantiles; `null` while nothing was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Quantiles {
    /// Half are below.
    pub p50: Option<f64>,
    /// 95 % are below.
    pub p95: Option<f64>,
    /// 99 % are below.
    pub p99: Option<f64>,
}

impl fmt::Display for Summary {
    /// A few lines for the terminal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} of {} rows ok", self.state, grouped(self.ok), grouped(self.rows))?;
        if self.failed > 0 {
            let classes: Vec<_> = self
                .failed_by_class
                .iter()
                .map(|(class, rows)| format!("{class} {}", grouped(*rows)))
                .collect();
            write!(f, ", {} failed ({})", grouped(self.failed), classes.join(", "))?;
        }
        if self.left > 0 {
            write!(f, ", {} left", grouped(self.left))?;
        }
        if self.cached > 0 {
            write!(f, ", {} cached", grouped(self.cached))?;
        }
        writeln!(f)?;
        writeln!(
            f,
            "  attempts {} · tokens {} in, {} out · cost {}",
            grouped(self.attempts),
            grouped(self.usage.input_tokens),
            grouped(self.usage.output_tokens),
            money(self.cost)
        )?;
        write!(
            f,
            "  this run {} · {:.1} rows/s",
            short(Duration::from_secs_f64(self.elapsed_s.max(0.0))),
            self.rows_per_s
        )?;
        if let Quantiles { p50: Some(p50), p95: Some(p95), p99: Some(p99) } = self.latency_ms {
            write!(f, " · latency p50 {p50:.0} ms, p95 {p95:.0} ms, p99 {p99:.0} ms")?;
        }
        match &self.output {
            Some(output) => write!(f, "\n  output {output}")?,
            None => {
                f.write_str("\n  no output yet: the answers so far are kept for the next run")?
            }
        }
        match &self.errors {
            Some(errors) => write!(f, "\n  errors {errors}"),
            None => Ok(()),
        }
    }
}

/// `1234567` -> `1,234,567`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// US dollars; an unknown price is said to be unknown.
pub(crate) fn money(cost: Option<f64>) -> String {
    match cost {
        None => "unknown".into(),
        Some(cost) if cost < 1.0 => format!("${cost:.4}"),
        Some(cost) => format!("${cost:.2}"),
    }
}

/// `3.2s`, `4m10s`, `2h05m`.
pub(crate) fn short(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..=59 => format!("{:.1}s", time.as_secs_f64()),
        60..=3599 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
    }
}

/// Counts values in buckets 6 % wide: quantiles of any number of rows in 4 KiB.
#[derive(Clone)]
pub(crate) struct Histogram {
    buckets: Box<[u32; Self::BUCKETS]>,
    count: u64,
    sum: u64,
}

impl Histogram {
    /// Buckets per doubling, as a power of two.
    const FINE: u32 = 4;
    const BUCKETS: usize = 64 << Self::FINE;

    pub(crate) fn new() -> Self {
        Self { buckets: Box::new([0; Self::BUCKETS]), count: 0, sum: 0 }
    }

    pub(crate) fn record(&mut self, value: u64) {
        let bucket = &mut self.buckets[Self::bucket(value)];
        *bucket = bucket.saturating_add(1);
        self.count += 1;
        self.sum = self.sum.saturating_add(value);
    }

    /// Values seen.
    pub(crate) const fn count(&self) -> u64 {
        self.count
    }

    /// The value below which a `share` (0 to 1) of them lie, rounded up to its bucket's end.
    pub(crate) fn quantile(&self, share: f64) -> Option<u64> {
        let rank = (share * self.count as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (bucket, &rows) in self.buckets.iter().enumerate() {
            seen += u64::from(rows);
            if seen >= rank && self.count > 0 {
                return Some(Self::end_of(bucket));
            }
        }
        None
    }

    fn bucket(value: u64) -> usize {
        let fine = 1 << Self::FINE;
        if value < fine {
            return value as usize;
        }
        let shift = value.ilog2() - Self::FINE;
        (((shift as u64 + 1) << Self::FINE) + ((value >> shift) & (fine - 1))) as usize
    }

    /// The largest value of a bucket.
    fn end_of(bucket: usize) -> u64 {
        let (group, at) = (bucket >> Self::FINE, (bucket as u64) & ((1 << Self::FINE) - 1));
        if group == 0 {
            return at;
        }
        let shift = group as u32 - 1;
        let end = (u128::from((1 << Self::FINE) + at + 1) << shift) - 1;
        u64::try_from(end).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_in_a_bucket_not_wider_than_six_percent() {
        for value in (0..2000).chain([1 << 20, (1 << 40) + 12345, u64::MAX]) {
            let end = Histogram::end_of(Histogram::bucket(value));
            assert!(end >= value, "{value} {end}");
            assert!(end as f64 <= value as f64 * 1.07, "{value} {end}");
        }
    }

    #[test]
    fn quantiles_count_rows() {
        let mut histogram = Histogram::new();
        assert_eq!(histogram.quantile(0.5), None);
        for value in 1..=10 {
            histogram.record(value);
        }
        assert_eq!(histogram.quantile(0.5), Some(5));
        assert_eq!(histogram.quantile(0.95), Some(10));
        assert_eq!(histogram.count(), 10);
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(grouped(999), "999");
        assert_eq!(money(None), "unknown");
        assert_eq!(money(Some(0.5)), "$0.5000");
        assert_eq!(short(Duration::from_millis(61_500)), "1m01s");
    }
}
