//! Two reports side by side.

use crate::{Report, Summary, show};
use std::fmt::Write;

/// A percentile counts when so many times lie beyond it: the outermost ones are a handful of
/// requests, and differ between two runs of the same thing.
const BEYOND: f64 = 5.0;

/// Two reports, figure by figure.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    figures: Vec<Figure>,
    differences: Vec<String>,
    /// Of the two reports, in their order.
    warnings: [Vec<String>; 2],
}

#[derive(Clone, Debug, PartialEq)]
struct Figure {
    name: String,
    before: f64,
    after: f64,
    unit: Unit,
    better: Better,
    /// Whether it takes part in [`Comparison::worse_than`].
    is_judged: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Unit {
    PerSecond,
    Percent,
    Millis,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Better {
    More,
    Less,
}

/// Compares two reports; the first is what the second is measured against.
pub fn compare(before: &Report, after: &Report) -> Comparison {
    use {Better::*, Unit::*};
    let mut figures = Vec::new();
    let mut add = |name: &str, [before, after]: [Option<f64>; 2], unit, better| {
        if let (Some(before), Some(after)) = (before, after) {
            let name = name.to_owned();
            figures.push(Figure { name, before, after, unit, better, is_judged: true });
        }
    };
    let both = [before, after];
    add("requests/s", both.map(|r| Some(r.rates.achieved)), PerSecond, More);
    add("ok/s", both.map(|r| Some(r.rates.ok)), PerSecond, More);
    add("goodput/s", both.map(|r| r.rates.goodput), PerSecond, More);
    add("tokens out/s", both.map(|r| Some(r.rates.tokens_out)), PerSecond, More);
    add("ok share", both.map(|r| Some(100.0 - 100.0 * r.error_share())), Percent, More);
    add("dropped", both.map(dropped_percent), Percent, Less);
    for (name, pick) in KINDS {
        let [Some(before), Some(after)] = both.map(pick) else { continue };
        let count = before.count.min(after.count) as f64;
        for (name_of_share, share, of) in SHARES {
            figures.push(Figure {
                name: format!("{name} {name_of_share}"),
                before: of(before),
                after: of(after),
                unit: Millis,
                better: Less,
                is_judged: share <= 0.99 && count * (1.0 - share) >= BEYOND - 1e-6,
            });
        }
    }
    let warnings = both.map(|report| report.warnings.clone());
    Comparison { figures, differences: differences(before, after), warnings }
}

type Pick = fn(&Report) -> Option<&Summary>;

const KINDS: [(&str, Pick); 6] = [
    ("total", |report| report.latency.total.as_ref()),
    ("service", |report| report.latency.service.as_ref()),
    ("first token", |report| report.latency.first_token.as_ref()),
    ("inter-token", |report| report.latency.inter_token.as_ref()),
    ("per token", |report| report.latency.per_output_token.as_ref()),
    ("refusal", |report| report.latency.refusal.as_ref()),
];

type Time = fn(&Summary) -> f64;

const SHARES: [(&str, f64, Time); 5] = [
    ("p50", 0.5, |times| times.p50_ms),
    ("p90", 0.9, |times| times.p90_ms),
    ("p99", 0.99, |times| times.p99_ms),
    ("p99.9", 0.999, |times| times.p999_ms),
    ("max", 1.0, |times| times.max_ms),
];

fn dropped_percent(report: &Report) -> Option<f64> {
    let requests = &report.requests;
    let due = requests.dropped + requests.measured + requests.unfinished;
    report.rates.offered.map(|_| requests.dropped as f64 * 100.0 / due.max(1) as f64)
}

/// What makes the two not the same experiment.
fn differences(before: &Report, after: &Report) -> Vec<String> {
    let [a, b] = [before, after].map(|report| {
        let setup = &report.setup;
        [
            ("operation", setup.operation.clone()),
            ("model", setup.model.clone()),
            ("stream", setup.stream.to_string()),
            ("protocol", setup.protocol.clone()),
            ("load", setup.load.clone()),
            ("rate", setup.rate_per_s.map_or("none".into(), |rate| rate.to_string())),
            ("arrivals", setup.arrivals.clone().unwrap_or("none".into())),
            ("concurrency", setup.concurrency.to_string()),
            ("prompts", setup.bodies.to_string()),
            ("requests", setup.requests.map_or("by time".into(), |n| n.to_string())),
            ("duration", seconds_unless(setup.duration_s, setup.requests)),
            ("warm-up", format!("{} s", setup.warmup_s)),
            ("seed", setup.rate_per_s.map_or("none".into(), |_| setup.seed.to_string())),
            ("timeout", format!("{} s", setup.timeout_s)),
            ("slo", setup.slo.clone().unwrap_or("none".into())),
        ]
    });
    a.into_iter()
        .zip(b)
        .filter(|(a, b)| a.1 != b.1)
        .map(|((name, a), (_, b))| format!("{name} {a} and {b}"))
        .collect()
}

/// The length of a run by number is nobody's choice.
fn seconds_unless(seconds: f64, requests: Option<u64>) -> String {
    requests.map_or_else(|| format!("{seconds} s"), |_| "as it takes".into())
}

impl Figure {
    /// How much worse the second is: 0.1 is a tenth. 0 when it is not.
    fn worse(&self) -> f64 {
        let (from, to) = match self.better {
            Better::More => (self.after, self.before),
            Better::Less => (self.before, self.after),
        };
        if self.unit == Unit::Percent && self.better == Better::Less {
            // From nothing there is no ratio: points of a hundred.
            return ((to - from) / 100.0).max(0.0);
        }
        match (from, to) {
            (from, to) if to <= from => 0.0,
            (from, _) if from <= 0.0 => f64::INFINITY,
            (from, to) => to / from - 1.0,
        }
    }

    fn show(&self, value: f64) -> String {
        match self.unit {
            Unit::PerSecond => show::rate(value),
            Unit::Percent => format!("{value:.2} %"),
            Unit::Millis => show::ms(value),
        }
    }

    fn ratio(&self) -> String {
        match self.before {
            before if before <= 0.0 && self.after <= 0.0 => "1.00".into(),
            before if before <= 0.0 => "–".into(),
            before => format!("{:.2}", self.after / before),
        }
    }
}

impl Comparison {
    /// Figures that are worse in the second report by more than `bound` (0.1 is a tenth): the
    /// rates, the shares, and percentiles up to the 99th with five times beyond them.
    pub fn worse_than(&self, bound: f64) -> Vec<&str> {
        self.figures
            .iter()
            .filter(|figure| figure.is_judged && figure.worse() > bound)
            .map(|figure| &*figure.name)
            .collect()
    }

    /// A table to read; figures beyond `bound` are marked.
    pub fn to_text(&self, names: [&str; 2], bound: Option<f64>) -> String {
        let mut out = String::new();
        let width = names.iter().map(|name| name.chars().count() + 2).max().unwrap_or(0).max(12);
        let [a, b] = names;
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{:<18}{a:>width$}{b:>width$}{:>9}", "", "ratio");
        for figure in &self.figures {
            let mark = match bound {
                Some(bound) if figure.worse() > bound && figure.is_judged => "  WORSE",
                _ if figure.worse() > 0.05 => "  worse",
                _ => "",
            };
            let Figure { name, before, after, .. } = figure;
            let (before, after) = (figure.show(*before), figure.show(*after));
            let ratio = figure.ratio();
            let _ = writeln!(out, "{name:<18}{before:>width$}{after:>width$}{ratio:>9}{mark}");
        }
        if !self.differences.is_empty() {
            let _ = writeln!(out, "\nnot the same load: {}", self.differences.join("; "));
        }
        for (name, warnings) in names.iter().zip(&self.warnings) {
            for warning in warnings {
                let _ = writeln!(out, "\nWARNING of {name}: {warning}");
            }
        }
        out
    }
}
