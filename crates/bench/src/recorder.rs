//! Counts what happens while it happens.
//!
//! Two clocks are kept apart: a request belongs to the window it was *due* in, for latencies and
//! outcomes; rates count what *ended* in the window, so that long answers to the warm-up make up
//! for those that end after it.
//!
//! # Cost
//!
//! A request's end is written down at once and counted later, with others: it touches some twenty
//! places in a dozen histograms, and between two requests the processor has forgotten them all.

use crate::{
    Refusals, Requests, Sample, Second, Slo, Tokens,
    exchange::{Class, Ended},
    times::Times,
};
use std::time::Duration;
use tokio::time::Instant;

/// Different things errors say that are told apart; further ones are counted by class only.
const MAX_SAMPLES: usize = 20;
/// Longest time series, whatever the timeout.
const MAX_SECONDS: usize = 2 * 86_400;

/// Ends that wait to be counted.
const MAX_PENDING: usize = 128;

/// Counters and histograms of a run.
pub(crate) struct Recorder {
    /// The measured window.
    pub(crate) from: Instant,
    pub(crate) until: Instant,
    slo: Slo,
    pub(crate) requests: Requests,
    pub(crate) classes: [u64; Class::ALL.len()],
    pub(crate) samples: Vec<Sample>,
    pub(crate) refusals: Refusals,
    pub(crate) in_flight: u64,
    pub(crate) times: AllTimes,
    pub(crate) passed: Passed,
    pending: Vec<Pending>,
    series: Vec<Second>,
    /// Seconds whose beginning was seen.
    carried: usize,
    now: LiveSecond,
    /// Ended since the start of the run, warm-up included.
    pub(crate) ended: u64,
}

/// Histograms of requests due in the window.
pub(crate) struct AllTimes {
    pub(crate) total: Times,
    pub(crate) service: Times,
    pub(crate) first_token: Times,
    pub(crate) first_token_service: Times,
    pub(crate) inter_token: Times,
    pub(crate) per_output_token: Times,
    pub(crate) connect: Times,
    pub(crate) refusal: Times,
    pub(crate) failure: Times,
    pub(crate) lag: Times,
}

/// What ended in the window.
#[derive(Debug, Default)]
pub(crate) struct Passed {
    pub(crate) offered: u64,
    pub(crate) ended: u64,
    pub(crate) ok: u64,
    pub(crate) good: u64,
    pub(crate) tokens: Tokens,
    pub(crate) sent_bytes: u64,
    pub(crate) received_bytes: u64,
}

/// A request that has ended and is not counted yet.
struct Pending {
    due: Instant,
    began: Instant,
    ended: Ended,
}

/// The second being filled.
struct LiveSecond {
    at: usize,
    total: Times,
    first_token: Times,
}

impl Recorder {
    pub(crate) fn new(from: Instant, until: Instant, slo: Slo) -> Self {
        Self {
            from,
            until,
            slo,
            requests: Requests::default(),
            classes: [0; Class::ALL.len()],
            samples: Vec::new(),
            refusals: Refusals::default(),
            in_flight: 0,
            times: AllTimes::new(),
            passed: Passed::default(),
            pending: Vec::with_capacity(MAX_PENDING),
            series: Vec::new(),
            carried: 0,
            now: LiveSecond { at: 0, total: Times::coarse(), first_token: Times::coarse() },
            ended: 0,
        }
    }

    /// A request is due by schedule.
    pub(crate) fn offered(&mut self, due: Instant) {
        if self.is_measured(due) {
            self.passed.offered += 1;
            self.second(due).offered += 1;
        }
    }

    /// It was not sent.
    pub(crate) fn dropped(&mut self, due: Instant) {
        if self.is_measured(due) {
            self.requests.dropped += 1;
            self.second(due).dropped += 1;
        }
    }

    /// A request is being sent.
    pub(crate) fn began(&mut self, at: Instant) {
        self.carry(at);
        self.in_flight += 1;
        self.requests.peak_in_flight = self.requests.peak_in_flight.max(self.in_flight);
        if at >= self.from {
            let in_flight = self.in_flight;
            let second = self.second(at);
            second.in_flight = second.in_flight.max(in_flight);
        }
    }

    /// A request, due and begun then, has ended.
    pub(crate) fn ended(&mut self, due: Instant, began: Instant, ended: Ended) {
        self.carry(ended.at);
        self.ended += 1;
        self.in_flight -= 1;
        self.pending.push(Pending { due, began, ended });
        if self.pending.len() >= MAX_PENDING {
            self.flush();
        }
    }

    /// Those in flight stay so through seconds in which nothing begins or ends.
    fn carry(&mut self, at: Instant) {
        if at < self.from {
            return;
        }
        let last = self.index(at);
        while self.carried <= last {
            let in_flight = self.in_flight;
            let second = self.second(self.from + Duration::from_secs(self.carried as u64));
            second.in_flight = second.in_flight.max(in_flight);
            self.carried += 1;
        }
    }

    /// Counts what has ended so far.
    pub(crate) fn flush(&mut self) {
        let mut pending = std::mem::take(&mut self.pending);
        for Pending { due, began, ended } in pending.drain(..) {
            self.count(due, began, &ended);
        }
        self.pending = pending;
    }

    fn count(&mut self, due: Instant, began: Instant, ended: &Ended) {
        let is_good = self.is_good(due, ended);
        if (self.from..self.until).contains(&ended.at) {
            self.passed.add(ended, is_good);
        }
        if ended.at >= self.from {
            self.point(due, ended);
        }
        if !self.is_measured(due) {
            self.requests.warmup += 1;
            return;
        }
        self.requests.measured += 1;
        self.requests.within_slo += u64::from(is_good);
        self.requests.answered += u64::from(ended.is_answered);
        self.classes[ended.class as usize] += 1;
        match ended.class {
            Class::Ok => {
                self.requests.ok += 1;
                self.second(due).kept += 1;
            }
            class => {
                self.requests.failed += 1;
                self.sample(class, ended.message.as_deref().unwrap_or_default());
            }
        }
        if ended.class.is_refusal() {
            self.refusals.count += 1;
            self.refusals.with_retry_after += u64::from(ended.has_retry_after);
        }
        self.times.add(due, began, ended);
    }

    /// Sending ends here, before its time.
    pub(crate) fn close(&mut self, at: Instant) {
        self.flush();
        self.until = self.until.min(at.max(self.from));
    }

    /// Seconds measured so far, or in all.
    pub(crate) fn elapsed(&self, now: Instant) -> Duration {
        now.min(self.until).saturating_duration_since(self.from)
    }

    /// The last second that is complete.
    pub(crate) fn last_second(&self) -> Option<&Second> {
        self.series.get(self.now.at.checked_sub(1)?)
    }

    /// The time series, complete.
    pub(crate) fn take_series(&mut self) -> Vec<Second> {
        self.flush();
        self.finish_second();
        let mut series = std::mem::take(&mut self.series);
        for (at, second) in series.iter_mut().enumerate() {
            second.at_s = at as u64;
        }
        series
    }

    fn is_measured(&self, due: Instant) -> bool {
        due >= self.from
    }

    fn is_good(&self, due: Instant, ended: &Ended) -> bool {
        let within = |bound: Option<Duration>, time: Option<Duration>| {
            bound.is_none_or(|bound| time.is_some_and(|time| time <= bound))
        };
        ended.class == Class::Ok
            && within(self.slo.total, Some(ended.at.duration_since(due)))
            && within(
                self.slo.first_token,
                ended.first_token.map(|first| first.duration_since(due)),
            )
            // An answer of one token has no second to wait for.
            && (ended.output_tokens() < 2 || within(self.slo.per_token, ended.per_token()))
    }

    fn sample(&mut self, class: Class, message: &str) {
        let same = |sample: &&mut Sample| sample.class == class.name() && sample.message == message;
        if let Some(sample) = self.samples.iter_mut().find(same) {
            sample.count += 1;
        } else if self.samples.len() < MAX_SAMPLES {
            let (class, message) = (class.name().to_owned(), message.to_owned());
            self.samples.push(Sample { class, message, count: 1 });
        }
    }

    /// Adds to the time series.
    fn point(&mut self, due: Instant, ended: &Ended) {
        let at = self.index(ended.at);
        if at > self.now.at {
            self.finish_second();
            self.now.at = at;
        }
        let second = self.second(ended.at);
        match ended.class {
            Class::Ok => second.ok += 1,
            class if class.is_refusal() => second.refused += 1,
            _ => second.failed += 1,
        }
        second.tokens_out += ended.output_tokens();
        if ended.class == Class::Ok {
            self.now.total.record(ended.at.duration_since(due));
            if let Some(first) = ended.first_token {
                self.now.first_token.record(first.duration_since(due));
            }
        }
    }

    fn index(&self, at: Instant) -> usize {
        (at.saturating_duration_since(self.from).as_secs() as usize).min(MAX_SECONDS - 1)
    }

    fn second(&mut self, at: Instant) -> &mut Second {
        let at = self.index(at);
        if self.series.len() <= at {
            self.series.resize_with(at + 1, Second::default);
        }
        &mut self.series[at]
    }

    fn finish_second(&mut self) {
        let LiveSecond { at, total, first_token } = &mut self.now;
        let share = |times: &Times, share| (!times.is_empty()).then(|| times.at(share));
        if let Some(second) = self.series.get_mut(*at) {
            (second.p50_ms, second.p99_ms) = (share(total, 0.5), share(total, 0.99));
            second.first_token_p50_ms = share(first_token, 0.5);
            second.first_token_p99_ms = share(first_token, 0.99);
        }
        total.clear();
        first_token.clear();
    }
}

impl AllTimes {
    fn new() -> Self {
        Self {
            total: Times::new(),
            service: Times::new(),
            first_token: Times::new(),
            first_token_service: Times::new(),
            inter_token: Times::new(),
            per_output_token: Times::new(),
            connect: Times::new(),
            refusal: Times::new(),
            failure: Times::new(),
            lag: Times::new(),
        }
    }

    fn add(&mut self, due: Instant, began: Instant, ended: &Ended) {
        let service = ended.at.duration_since(began);
        self.lag.record(began.duration_since(due));
        if let Some(connect) = ended.connect {
            self.connect.record(connect);
        }
        for gap in &ended.gaps {
            self.inter_token.record_micros(u64::from(*gap));
        }
        match ended.class {
            Class::Ok => {
                self.total.record(ended.at.duration_since(due));
                self.service.record(service);
                if let Some(first) = ended.first_token {
                    self.first_token.record(first.duration_since(due));
                    self.first_token_service.record(first.duration_since(began));
                }
                if let Some(time) = ended.per_token() {
                    self.per_output_token.record(time);
                }
            }
            class if class.is_refusal() => self.refusal.record(service),
            _ => self.failure.record(service),
        }
    }
}

impl Passed {
    fn add(&mut self, ended: &Ended, is_good: bool) {
        let is_ok = ended.class == Class::Ok;
        self.ended += 1;
        self.ok += u64::from(is_ok);
        self.good += u64::from(is_good);
        self.tokens.input += ended.usage.map_or(0, |usage| usage.input);
        self.tokens.output += ended.output_tokens();
        self.tokens.answers_without_usage += u64::from(is_ok && ended.usage.is_none());
        self.sent_bytes += ended.sent_bytes;
        self.received_bytes += ended.received_bytes;
    }
}

impl Ended {
    /// As the server counted them, else the events with text.
    fn output_tokens(&self) -> u64 {
        self.usage.map_or(self.token_events, |usage| usage.output)
    }

    /// From the first to the last token, per token after the first.
    fn per_token(&self) -> Option<Duration> {
        let gaps = u32::try_from(self.output_tokens().checked_sub(1)?).ok().filter(|n| *n > 0)?;
        Some(self.last_token?.duration_since(self.first_token?) / gaps)
    }
}
