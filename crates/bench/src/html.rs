//! A report as one page: no script, no file beside it, light or dark as the reader likes it.

use crate::{
    Report, Second, Summary,
    plot::{Axis, Kind, Line, Plot, nines, share_at},
    show,
};
use std::fmt::Write;

const STYLE: &str = include_str!("report.css");

/// Picks a number of one second.
type Count = fn(&Second) -> u64;

impl Report {
    /// The page.
    pub fn to_html(&self) -> String {
        let mut out = String::with_capacity(64 * 1024);
        let url = escaped(&self.setup.url);
        put(
            &mut out,
            format_args!(
                "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
                 <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
                 <meta name=\"color-scheme\" content=\"light dark\">\
                 <title>Load on {url}</title><style>{STYLE}</style></head><body><main>\n\
                 <header><h1>{url}</h1><p>{}</p><p class=\"quiet\">{} · {}</p></header>\n",
                escaped(&self.headline()),
                escaped(self.started_at.split('.').next().unwrap_or_default()).replace('T', " ")
                    + " UTC",
                escaped(&self.tool),
            ),
        );
        for warning in &self.warnings {
            put(&mut out, format_args!("<p class=\"warning\">{}</p>\n", escaped(warning)));
        }
        self.tiles(&mut out);
        self.percentiles(&mut out);
        self.over_time(&mut out);
        self.latency_table(&mut out);
        self.error_table(&mut out);
        self.setup_table(&mut out);
        out.push_str("</main></body></html>\n");
        out
    }

    fn tiles(&self, out: &mut String) {
        let (requests, rates) = (&self.requests, &self.rates);
        out.push_str("<section class=\"tiles\">");
        let offered = rates.offered.map(|rate| format!("of {} offered", show::rate(rate)));
        tile(out, "requests/s", &show::rate(rates.achieved), &offered.unwrap_or_default());
        let failed = format!("{} failed", show::count(requests.failed));
        tile(out, "ok", &show::share(requests.ok, requests.measured), &failed);
        if let (Some(goodput), Some(slo)) = (rates.goodput, &self.setup.slo) {
            tile(out, "goodput/s", &show::rate(goodput), &escaped(slo).replace(',', ", "));
        }
        for (name, summary) in [
            ("total latency", &self.latency.total),
            ("first token", &self.latency.first_token),
            ("inter-token", &self.latency.inter_token),
        ] {
            if let Some(times) = summary {
                let name = format!("{name} p50");
                let tail = format!("p99 {}", show::ms(times.p99_ms));
                tile(out, &name, &show::ms(times.p50_ms), &tail);
            }
        }
        let tokens_in = format!("{} in", show::rate(rates.tokens_in));
        tile(out, "tokens/s out", &show::rate(rates.tokens_out), &tokens_in);
        out.push_str("</section>\n");
    }

    fn percentiles(&self, out: &mut String) {
        let is_scheduled = self.setup.rate_per_s.is_some();
        let total = if is_scheduled { "total, corrected" } else { "total" };
        let first = if is_scheduled { "first token, corrected" } else { "first token" };
        let service = |times| if is_scheduled { times } else { &None };
        let curves = [
            (total, "c1", Kind::Solid, &self.latency.total),
            ("total, service time", "c1", Kind::Dashed, service(&self.latency.service)),
            (first, "c2", Kind::Solid, &self.latency.first_token),
            (
                "first token, service time",
                "c2",
                Kind::Dashed,
                service(&self.latency.first_token_service),
            ),
        ];
        let lines: Vec<Line> = curves
            .into_iter()
            .filter_map(|(name, class, kind, times)| {
                let points = curve(times.as_ref()?);
                Some(Line { name, class, kind, points })
            })
            .collect();
        let finest = lines.iter().flat_map(|line| &line.points).map(|point| point.0);
        let x = Axis::shares(share_at(finest.fold(0.0, f64::max)));
        let y = millis_axis(&lines);
        let note = "share of requests that took no longer; each step right is a tenth of the rest";
        let show_x = |x| {
            let share = format!("{:.4}", share_at(x) * 100.0);
            format!("{} %", share.trim_end_matches('0').trim_end_matches('.'))
        };
        let plot =
            Plot { title: "Latency by percentile", note, x, y, lines, show: show::ms, show_x };
        plot.write(out);
    }

    fn over_time(&self, out: &mut String) {
        let series = self.whole_seconds();
        if series.len() < 2 {
            return;
        }
        let line = |name, class, kind, pick: &dyn Fn(&Second) -> Option<f64>| Line {
            name,
            class,
            kind,
            points: series
                .iter()
                .filter_map(|second| Some((second.at_s as f64 + 0.5, pick(second)?)))
                .collect(),
        };
        let count = |name, class, kind, pick: Count| {
            line(name, class, kind, &|second| Some(pick(second) as f64))
        };
        let mut lines = vec![count("answered in full", "c3", Kind::Area, |second| second.ok)];
        if self.setup.rate_per_s.is_some() {
            lines.push(count("offered", "c6", Kind::Dashed, |second| second.offered));
        }
        let errors: [(_, _, Count); 3] = [
            ("refused (429, 503)", "c4", |second| second.refused),
            ("failed otherwise", "c5", |second| second.failed),
            ("dropped, never sent", "c2", |second| second.dropped),
        ];
        for (name, class, pick) in errors {
            if series.iter().any(|second| pick(second) > 0) {
                lines.push(count(name, class, Kind::Solid, pick));
            }
        }
        let seconds = series.len() as f64;
        let mut draw = |title, note, lines: Vec<Line>, y: Axis, show: fn(f64) -> String| {
            let lines: Vec<Line> =
                lines.into_iter().filter(|line| !line.points.is_empty()).collect();
            let x = Axis::seconds(seconds);
            Plot { title, note, x, y, lines, show, show_x: second }.write(out);
        };
        let y = Axis::linear(highest(&lines), show::rate_short);
        draw("Requests per second", "by when they ended", lines, y, show::rate);

        let lines = vec![
            line("total p50", "c1", Kind::Solid, &|second| second.p50_ms),
            line("total p99", "c1", Kind::Dashed, &|second| second.p99_ms),
            line("first token p50", "c2", Kind::Solid, &|second| second.first_token_p50_ms),
            line("first token p99", "c2", Kind::Dashed, &|second| second.first_token_p99_ms),
        ];
        let y = millis_axis(&lines);
        draw("Latency over time", "good answers, by when they ended", lines, y, show::ms);

        let lines = vec![count("in flight", "c1", Kind::Area, |second| second.in_flight)];
        let y = Axis::linear(highest(&lines), show::rate_short);
        draw("Requests in flight", "the most of each second", lines, y, show::rate);

        let lines = vec![count("answer tokens", "c2", Kind::Area, |second| second.tokens_out)];
        let y = Axis::linear(highest(&lines), show::rate_short);
        draw("Tokens per second", "of the answers that ended", lines, y, show::rate);
    }

    /// The measured window without the second it was cut in.
    fn whole_seconds(&self) -> &[Second] {
        let whole = (self.elapsed_s + 0.01).floor() as usize;
        &self.series[..whole.min(self.series.len())]
    }

    fn latency_table(&self, out: &mut String) {
        out.push_str(
            "<section><h2>Latency</h2><div class=\"scroll\"><table><thead><tr><th></th><th>p50</th>\
             <th>p90</th><th>p99</th><th>p99.9</th><th>max</th><th>mean</th><th>count</th></tr>\
             </thead><tbody>",
        );
        for (name, meaning, times) in self.summaries() {
            put(out, format_args!("<tr><th>{name}<small>{meaning}</small></th>"));
            let Summary { p50_ms, p90_ms, p99_ms, p999_ms, max_ms, mean_ms, count, .. } = times;
            for time in [p50_ms, p90_ms, p99_ms, p999_ms, max_ms, mean_ms] {
                put(out, format_args!("<td>{}</td>", show::ms(*time)));
            }
            put(out, format_args!("<td>{}</td></tr>", show::count(*count)));
        }
        out.push_str("</tbody></table></div></section>\n");
    }

    fn error_table(&self, out: &mut String) {
        let errors = self.errors_by_class();
        if errors.is_empty() {
            return;
        }
        out.push_str("<section><h2>Errors</h2><div class=\"scroll\"><table><tbody>");
        for (class, count) in errors {
            put(
                out,
                format_args!(
                    "<tr><th>{class}</th><td>{}</td><td>{}</td><td class=\"words\">",
                    show::count(count),
                    show::share(count, self.requests.measured)
                ),
            );
            for sample in self.samples.iter().filter(|sample| sample.class == class).take(5) {
                let (count, message) = (show::count(sample.count), escaped(&sample.message));
                put(out, format_args!("<div>{count} × {message}</div>"));
            }
            out.push_str("</td></tr>");
        }
        out.push_str("</tbody></table></div>");
        if self.refusals.count > 0 {
            let told = show::share(self.refusals.with_retry_after, self.refusals.count);
            put(
                out,
                format_args!(
                    "<p class=\"quiet\">{told} of the refusals (429, 503) said when to come \
                     back.</p>"
                ),
            );
        }
        out.push_str("</section>\n");
    }

    fn setup_table(&self, out: &mut String) {
        let (setup, requests) = (&self.setup, &self.requests);
        let [busy, each] = self.generator_cost().map_or([None, None], |cost| cost.map(Some));
        let bound = if setup.load == "open" { "most in flight" } else { "workers" };
        let rows = [
            ("endpoint", Some(setup.operation.clone())),
            ("model", Some(setup.model.clone())),
            ("protocol", Some(setup.protocol.clone())),
            ("streamed", Some(if setup.stream { "yes" } else { "no" }.to_owned())),
            ("load", Some(setup.load.clone())),
            ("rate", setup.rate_per_s.map(|rate| format!("{rate}/s"))),
            ("arrivals", setup.arrivals.clone()),
            ("seed", setup.rate_per_s.map(|_| setup.seed.to_string())),
            (bound, Some(show::count(setup.concurrency))),
            ("duration", Some(format!("{} s", setup.duration_s))),
            ("measured", Some(format!("{:.1} s", self.elapsed_s))),
            ("warm-up", Some(format!("{} s", setup.warmup_s))),
            ("requests asked for", setup.requests.map(show::count)),
            ("timeout", Some(format!("{} s", setup.timeout_s))),
            ("prompts", Some(show::count(setup.bodies))),
            ("slo", setup.slo.clone()),
            ("requests measured", Some(show::count(requests.measured))),
            ("in the warm-up", Some(show::count(requests.warmup))),
            ("dropped", Some(show::count(requests.dropped))),
            ("most in flight seen", Some(show::count(requests.peak_in_flight))),
            ("bytes sent", Some(format!("{}/s", show::bytes(self.rates.bytes_sent)))),
            ("bytes received", Some(format!("{}/s", show::bytes(self.rates.bytes_received)))),
            ("this tool", busy),
            ("per request", each),
        ];
        out.push_str("<section><h2>Setup</h2><dl>");
        for (name, value) in rows {
            if let Some(value) = value {
                let value = escaped(&value);
                put(out, format_args!("<div><dt>{name}</dt><dd>{value}</dd></div>"));
            }
        }
        out.push_str("</dl></section>\n");
    }
}

fn tile(out: &mut String, name: &str, value: &str, note: &str) {
    let note = if note.is_empty() { "&nbsp;" } else { note };
    put(out, format_args!("<div><h3>{name}</h3><b>{value}</b><span>{note}</span></div>"));
}

/// The points of a percentile curve; the longest time stands where its share is reached.
fn curve(times: &Summary) -> Vec<(f64, f64)> {
    let last = 1.0 - 1.0 / (times.count.max(1) as f64 + 1.0);
    times.curve.iter().map(|(share, ms)| (nines(share.min(last)), *ms)).collect()
}

fn millis_axis(lines: &[Line]) -> Axis {
    let values = || lines.iter().flat_map(|line| &line.points).map(|point| point.1);
    let lowest = values().filter(|value| *value > 0.0).fold(f64::INFINITY, f64::min);
    match highest(lines) {
        high if lowest.is_finite() && high / lowest > 12.0 => {
            Axis::log(lowest, high, show::ms_short)
        }
        high => Axis::linear(high, show::ms_short),
    }
}

fn highest(lines: &[Line]) -> f64 {
    lines.iter().flat_map(|line| &line.points).map(|point| point.1).fold(0.0, f64::max)
}

fn second(at: f64) -> String {
    format!("second {}", at.floor() + 1.0)
}

/// Text that cannot be taken for markup: some of it comes from the server.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

fn put(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = out.write_fmt(text);
}
