//! A report for a terminal.

use crate::{Report, Summary, exchange::Class, show};
use std::fmt::Write;

/// Width of the first column.
const NAMES: usize = 16;

impl Report {
    /// A table to read.
    pub fn to_text(&self) -> String {
        let mut out = format!("{}\n{}\n\n", self.setup.url, self.headline());
        self.figures(&mut out);
        self.table(&mut out);
        if self.setup.rate_per_s.is_some() {
            out.push_str(
                "\ntotal and first token count from when a request was due (corrected for \
                 coordinated\nomission), service from when it was sent.\n",
            );
        }
        for warning in &self.warnings {
            line(&mut out, format_args!("\nWARNING: {warning}"));
        }
        out
    }

    /// What was asked for, in a line.
    pub(crate) fn headline(&self) -> String {
        let setup = &self.setup;
        let arrivals = setup.arrivals.as_deref().unwrap_or_default();
        let rate = setup.rate_per_s.unwrap_or_default();
        let load = match &*setup.load {
            "open" => format!("open loop, {rate}/s {arrivals}"),
            "paced" => format!("{rate}/s {arrivals}, at most {} at once", setup.concurrency),
            _ => format!("closed loop, {} at once", setup.concurrency),
        };
        let stream = if setup.stream { ", streamed" } else { "" };
        let protocol = if setup.protocol == "h2" { ", HTTP/2" } else { "" };
        let warmup = match setup.warmup_s {
            0.0 => String::new(),
            warmup => format!(" after {warmup} s of warm-up"),
        };
        format!(
            "{}{stream}{protocol} · {} · {load} · {:.1} s{warmup}",
            setup.operation, setup.model, self.elapsed_s
        )
    }

    fn figures(&self, out: &mut String) {
        let (requests, rates) = (&self.requests, &self.rates);
        let mut parts = vec![
            format!("{} measured", show::count(requests.measured)),
            format!(
                "{} ok ({})",
                show::count(requests.ok),
                show::share(requests.ok, requests.measured)
            ),
            format!("{} failed", show::count(requests.failed)),
        ];
        for (number, word) in [(requests.dropped, "DROPPED"), (requests.unfinished, "unfinished")] {
            if number > 0 {
                parts.push(format!("{} {word}", show::count(number)));
            }
        }
        parts.push(format!("at most {} in flight", show::count(requests.peak_in_flight)));
        row(out, "requests", &parts.join(" · "));
        let mut parts = Vec::new();
        if let Some(offered) = rates.offered {
            parts.push(format!("offered {}", show::rate(offered)));
        }
        parts.push(format!("achieved {}", show::rate(rates.achieved)));
        parts.push(format!("ok {}", show::rate(rates.ok)));
        if let (Some(goodput), Some(slo)) = (rates.goodput, &self.setup.slo) {
            parts.push(format!(
                "goodput {} ({} within {slo})",
                show::rate(goodput),
                show::share(requests.within_slo, requests.measured + requests.dropped)
            ));
        }
        row(out, "per second", &parts.join(" · "));
        let about = match self.tokens.answers_without_usage {
            0 => "",
            _ if self.setup.stream => " (counted by events where the server tells no usage)",
            _ => " (without the answers that tell no usage)",
        };
        let tokens = format!(
            "in {} · out {}{about}",
            show::rate(rates.tokens_in),
            show::rate(rates.tokens_out)
        );
        row(out, "tokens/s", &tokens);
        let bytes = format!(
            "sent {} · received {}",
            show::bytes(rates.bytes_sent),
            show::bytes(rates.bytes_received)
        );
        row(out, "bytes/s", &bytes);
        if let Some([busy, each]) = self.generator_cost() {
            row(out, "this tool", &format!("{busy}, {each}"));
        }
        self.errors(out);
    }

    fn errors(&self, out: &mut String) {
        let errors = self.errors_by_class();
        if errors.is_empty() {
            return;
        }
        let parts: Vec<String> =
            errors.iter().map(|(class, n)| format!("{class}: {}", show::count(*n))).collect();
        row(out, "errors", &parts.join(" · "));
        if self.refusals.count > 0 {
            let told = show::share(self.refusals.with_retry_after, self.refusals.count);
            row(out, "refusals", &format!("{told} said when to come back (retry-after)"));
        }
        for sample in self.samples.iter().take(5) {
            let count = show::count(sample.count);
            row(out, "", &format!("{count} × {}: {}", sample.class, sample.message));
        }
    }

    /// What the load cost the tool itself: how busy it was, and for each request.
    pub(crate) fn generator_cost(&self) -> Option<[String; 2]> {
        let generator = self.generator.as_ref()?;
        let threads = show::plural(generator.threads, "thread");
        let each = match generator.cpu_us_per_request {
            Some(micros) => show::ms(micros / 1000.0),
            None => "–".into(),
        };
        Some([
            format!("{threads} busy {:.0} % of the time", generator.busy * 100.0),
            format!("{each} of processor time per request"),
        ])
    }

    /// Classes of errors that occurred, in a fixed order.
    pub(crate) fn errors_by_class(&self) -> Vec<(&'static str, u64)> {
        Class::ALL
            .into_iter()
            .filter(|class| *class != Class::Ok)
            .map(|class| (class.name(), self.classes.get(class.name()).copied().unwrap_or(0)))
            .filter(|(_, count)| *count > 0)
            .collect()
    }

    /// The kinds of times there are, with their names and what they mean.
    pub(crate) fn summaries(&self) -> Vec<(&'static str, &'static str, &Summary)> {
        let times = &self.latency;
        let is_scheduled = self.setup.rate_per_s.is_some();
        let corrected = |name, plain| if is_scheduled { name } else { plain };
        let mut all = vec![
            (
                "total",
                corrected(
                    "good answers, from when they were due: corrected for coordinated omission",
                    "good answers, from when they were sent; a closed loop asks a slow server \
                     for less, and cannot be corrected",
                ),
                &times.total,
            ),
            (
                "first token",
                corrected("streams, from when they were due", "streams, from when sent"),
                &times.first_token,
            ),
            ("inter-token", "between two events with text", &times.inter_token),
            (
                "per token",
                "first to last token, divided by the tokens after the first",
                &times.per_output_token,
            ),
        ];
        if is_scheduled {
            all.insert(
                1,
                ("service", "good answers, from when they were sent: uncorrected", &times.service),
            );
            let meaning = "streams, from when they were sent: uncorrected";
            all.insert(3, ("first, service", meaning, &times.first_token_service));
            all.push(("send lag", "from when a request was due to when it was sent", &times.lag));
        }
        all.push(("connect", "opening a connection", &times.connect));
        all.push(("refusal", "answers 429 and 503, from when sent", &times.refusal));
        all.push(("failure", "other failures, from when sent", &times.failure));
        all.into_iter()
            .filter_map(|(name, meaning, summary)| Some((name, meaning, summary.as_ref()?)))
            .collect()
    }

    fn table(&self, out: &mut String) {
        let columns = ["p50", "p90", "p99", "p99.9", "max", "mean", "count"];
        write_row(out, "\nlatency", columns.map(str::to_owned));
        for (name, _, times) in self.summaries() {
            let cells = [
                show::ms(times.p50_ms),
                show::ms(times.p90_ms),
                show::ms(times.p99_ms),
                show::ms(times.p999_ms),
                show::ms(times.max_ms),
                show::ms(times.mean_ms),
                show::count(times.count),
            ];
            write_row(out, name, cells);
        }
    }
}

fn row(out: &mut String, name: &str, text: &str) {
    line(out, format_args!("{name:<NAMES$}{text}"));
}

fn write_row(out: &mut String, name: &str, cells: [String; 7]) {
    let breaks = name.chars().take_while(|c| *c == '\n').count();
    let width = NAMES + breaks;
    let mut text = format!("{name:<width$}");
    for cell in cells {
        // Writing to a string cannot fail.
        let _ = write!(text, "{cell:>10}");
    }
    line(out, format_args!("{text}"));
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    let _ = writeln!(out, "{text}");
}
