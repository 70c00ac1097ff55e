//! Makes a report of what was recorded.

use crate::{
    Generator, Latencies, Load, Options, Rates, Report, Setup,
    exchange::Class,
    recorder::Recorder,
    report::{SCHEMA, VERSION},
    show,
};

/// A generator that sends so late at the 99th percentile says so, unless answers take so much
/// longer that it does not matter.
const LATE_MS: f64 = 5.0;
const LATE_SHARE: f64 = 0.05;
/// Share of its threads' time from which on a generator may be what holds the load back.
const BUSY: f64 = 0.9;
/// Answers that take so much of the window distort the rates, unless the warm-up was as long.
const SLOW_SHARE: f64 = 0.05;

impl Setup {
    pub(crate) fn of(options: &Options) -> Self {
        let (load, rate, arrivals, concurrency) = match options.load {
            Load::Open { per_second, arrivals, max_in_flight } => {
                ("open", Some(per_second), Some(arrivals), max_in_flight)
            }
            Load::Paced { per_second, arrivals, workers } => {
                ("paced", Some(per_second), Some(arrivals), workers)
            }
            Load::Closed { workers } => ("closed", None, None, workers),
        };
        Self {
            url: options.target.url.clone(),
            operation: options.operation.name().into(),
            model: options.model.clone(),
            stream: options.stream,
            protocol: if options.target.is_http2() { "h2" } else { "http/1.1" }.into(),
            load: load.into(),
            rate_per_s: rate,
            arrivals: arrivals.map(|arrivals| arrivals.name().into()),
            concurrency: concurrency as u64,
            duration_s: options.duration.as_secs_f64(),
            warmup_s: options.warmup.as_secs_f64(),
            requests: options.requests,
            timeout_s: options.timeout.as_secs_f64(),
            bodies: options.bodies.len() as u64,
            seed: options.seed,
            slo: options.slo.map(|slo| slo.to_string()),
        }
    }
}

/// The report of a run that is over.
pub(crate) fn report(
    setup: Setup,
    started_at: String,
    seen: &mut Recorder,
    generator: Option<Generator>,
    ended_early: bool,
) -> Report {
    seen.flush();
    let elapsed = seen.elapsed(seen.until).as_secs_f64();
    let per_second = |count: u64| if elapsed > 0.0 { count as f64 / elapsed } else { 0.0 };
    let passed = &seen.passed;
    let rates = Rates {
        offered: setup.rate_per_s.is_some().then(|| per_second(passed.offered)),
        achieved: per_second(passed.ended),
        ok: per_second(passed.ok),
        goodput: setup.slo.is_some().then(|| per_second(passed.good)),
        tokens_in: per_second(passed.tokens.input),
        tokens_out: per_second(passed.tokens.output),
        bytes_sent: per_second(passed.sent_bytes),
        bytes_received: per_second(passed.received_bytes),
    };
    let times = &seen.times;
    let latency = Latencies {
        total: times.total.summary(),
        service: times.service.summary(),
        first_token: times.first_token.summary(),
        first_token_service: times.first_token_service.summary(),
        inter_token: times.inter_token.summary(),
        per_output_token: times.per_output_token.summary(),
        connect: times.connect.summary(),
        refusal: times.refusal.summary(),
        failure: times.failure.summary(),
        lag: setup.rate_per_s.and_then(|_| times.lag.summary()),
    };
    let mut samples = std::mem::take(&mut seen.samples);
    samples.sort_by_key(|sample| std::cmp::Reverse(sample.count));
    let mut report = Report {
        schema: SCHEMA.into(),
        version: VERSION,
        tool: concat!("tidegate ", env!("CARGO_PKG_VERSION")).into(),
        started_at,
        elapsed_s: elapsed,
        ended_early,
        warnings: Vec::new(),
        classes: Class::ALL
            .into_iter()
            .map(|class| (class.name().to_owned(), seen.classes[class as usize]))
            .collect(),
        samples,
        refusals: seen.refusals.clone(),
        tokens: seen.passed.tokens.clone(),
        requests: seen.requests.clone(),
        series: seen.take_series(),
        setup,
        rates,
        latency,
        generator,
    };
    report.warnings = warnings(&report);
    report
}

/// What makes figures mean less than they seem to, worst first.
fn warnings(report: &Report) -> Vec<String> {
    let Report { requests, .. } = report;
    [
        (requests.measured == 0)
            .then(|| "No request was measured: none was due in the window, or none ended.".into()),
        dropped(report),
        busy(report),
        late(report),
        timed_out(report),
        slow(report),
        (requests.unfinished > 0).then(|| {
            format!(
                "{} were still in flight when the run was stopped; they are in no figure.",
                show::plural(requests.unfinished, "request")
            )
        }),
        report.ended_early.then(|| "The run was stopped before its time.".into()),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn dropped(Report { setup, requests, .. }: &Report) -> Option<String> {
    let why = match &*setup.load {
        _ if requests.dropped == 0 => return None,
        "paced" => {
            "the workers were busy until the end of the run; give more --concurrency, or a lower \
             --rate"
        }
        _ if requests.peak_in_flight >= setup.concurrency => {
            "answers took too long for --rate to go on with so few in flight as --max-in-flight \
             allows"
        }
        _ => "this tool fell too far behind --rate",
    };
    let due = requests.dropped + requests.measured + requests.unfinished;
    Some(format!(
        "{} of {} requests were DROPPED, never sent: {why}. The percentiles leave them out.",
        show::count(requests.dropped),
        show::count(due)
    ))
}

fn busy(report: &Report) -> Option<String> {
    let generator = report.generator.as_ref().filter(|generator| generator.busy >= BUSY)?;
    Some(format!(
        "This tool was the bottleneck: {} busy {:.0} % of the time, so the server may be able to \
         do more. Give more --threads, or run it on more machines.",
        match generator.threads {
            1 => "its thread was".to_owned(),
            threads => format!("its {threads} threads were"),
        },
        generator.busy.min(1.0) * 100.0
    ))
}

fn late(Report { setup, latency, .. }: &Report) -> Option<String> {
    let lag = latency.lag.as_ref().filter(|_| setup.load == "open")?;
    let total = latency.total.as_ref().map_or(0.0, |total| total.p50_ms);
    (lag.p99_ms > LATE_MS && lag.p99_ms > LATE_SHARE * total).then(|| {
        format!(
            "This tool sent late (p99 {}): the machine is short of processor time, and the \
             latencies hold the tool's own delay. Compare total with service time.",
            show::ms(lag.p99_ms)
        )
    })
}

fn timed_out(Report { setup, requests, classes, .. }: &Report) -> Option<String> {
    let late = *classes.get(Class::Timeout.name()).filter(|late| **late > 0)?;
    Some(format!(
        "{} ({}) had not ended within --timeout {} s; the percentiles of latencies leave them out.",
        show::plural(late, "request"),
        show::share(late, requests.measured),
        setup.timeout_s
    ))
}

/// Answers that began in the window and ended after it are made up for by those that began in the
/// warm-up, if it was long enough.
fn slow(Report { setup, latency, elapsed_s, .. }: &Report) -> Option<String> {
    let answer_s = latency.service.as_ref()?.p50_ms / 1000.0;
    let is_slow = answer_s > setup.warmup_s && answer_s > SLOW_SHARE * elapsed_s;
    (is_slow && setup.requests.is_none()).then(|| {
        format!(
            "The rates are too low: answers took {}, and only those that ended in the window \
             count. Give --warmup {:.0}s, or a longer --duration.",
            show::ms(answer_s * 1000.0),
            (answer_s * 1.5).ceil()
        )
    })
}
