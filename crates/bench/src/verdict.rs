//! Makes a report of what was recorded.

use crate::{
    Latencies, Load, Options, Rates, Report, Requests, Setup,
    exchange::Class,
    recorder::Recorder,
    report::{SCHEMA, VERSION},
    show,
};

/// A generator that sends so late at the 99th percentile says so, unless answers take so much
/// longer that it does not matter.
const LATE_MS: f64 = 5.0;
const LATE_SHARE: f64 = 0.05;

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
    ended_early: bool,
) -> Report {
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
    Report {
        schema: SCHEMA.into(),
        version: VERSION,
        tool: concat!("tidegate ", env!("CARGO_PKG_VERSION")).into(),
        started_at,
        elapsed_s: elapsed,
        ended_early,
        warnings: warnings(&setup, &seen.requests, &latency, ended_early),
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
    }
}

/// What makes figures mean less than they seem to.
fn warnings(
    setup: &Setup,
    requests: &Requests,
    latency: &Latencies,
    ended_early: bool,
) -> Vec<String> {
    let mut warnings = Vec::new();
    if requests.dropped > 0 {
        let why = if setup.load == "paced" {
            "the workers were busy until the end of the run; give more --concurrency"
        } else {
            "too many were in flight, or the generator fell behind; raise --max-in-flight or lower \
             --rate"
        };
        let due = requests.dropped + requests.measured + requests.unfinished;
        warnings.push(format!(
            "{} of {} requests were DROPPED, never sent: {why}. The percentiles leave them out.",
            show::count(requests.dropped),
            show::count(due)
        ));
    }
    if let Some(lag) = &latency.lag
        && setup.load == "open"
        && lag.p99_ms > LATE_MS
        && lag.p99_ms > LATE_SHARE * latency.total.as_ref().map_or(0.0, |total| total.p50_ms)
    {
        warnings.push(format!(
            "The generator sent late (p99 {}): this machine is short of CPU, and the latencies \
             hold its own delay. Compare total with service time.",
            show::ms(lag.p99_ms)
        ));
    }
    if requests.unfinished > 0 {
        warnings.push(format!(
            "{} requests were still in flight when the run was stopped; they are in no figure.",
            show::count(requests.unfinished)
        ));
    }
    if ended_early {
        warnings.push("The run was stopped before its time.".into());
    }
    if requests.measured == 0 {
        warnings.push("No request was measured.".into());
    }
    warnings
}
