//! The pacer against a server with a hidden limit, and rule by rule.

use super::*;
use crate::concurrency::{self, Concurrency};
use std::{cmp::Reverse, collections::BinaryHeap};
use tidegate_core::Allowance;

/// A server with a hidden token bucket, called by as many as the limits let through.
struct World {
    rate: f64,
    burst: u64,
    latency_ms: u64,
    refusal_latency_ms: u64,
    retry_after: Option<Duration>,
}

struct Run {
    sent: u64,
    seconds: f64,
}

impl World {
    /// Calls `rows` rows, each until it is accepted.
    fn run(&self, rows: u64, options: Options, concurrency: concurrency::Options) -> Run {
        let start = Instant::now();
        let (mut pacer, mut limit) = (Pacer::new(options, start), Concurrency::new(concurrency));
        let nanos = (1e9 / self.rate) as u64;
        let mut server =
            Bucket::new(Rate { limit: 1, per: Duration::from_nanos(nanos), burst: self.burst });
        // (when, order, when sent, accepted)
        let mut answers = BinaryHeap::new();
        let (mut now, mut done, mut sent, mut in_flight, mut rolls) = (start, 0, 0u64, 0u64, 0.37);
        while done < rows {
            let mut wake = None;
            while in_flight < u64::from(limit.limit()) && done + in_flight < rows {
                match pacer.admit(now, 0) {
                    Go::At(at, _) => {
                        wake = Some(at);
                        break;
                    }
                    Go::Now => {
                        let accepted = server.take(now, 1).is_ok();
                        let latency =
                            if accepted { self.latency_ms } else { self.refusal_latency_ms };
                        answers.push(Reverse((
                            now + Duration::from_millis(latency),
                            sent,
                            now,
                            accepted,
                        )));
                        sent += 1;
                        in_flight += 1;
                    }
                }
            }
            let answer = answers.peek().map(|Reverse((at, ..))| *at);
            now = wake.into_iter().chain(answer).min().expect("something happens next").max(now);
            while let Some(&Reverse((at, _, left, accepted))) = answers.peek()
                && at <= now
            {
                answers.pop();
                rolls = (rolls * 7.13) % 1.0;
                if accepted {
                    done += 1;
                    pacer.accepted(now);
                    limit.succeeded(now, now, in_flight as u32, None);
                } else {
                    pacer.refused(left, now, self.retry_after, rolls);
                    limit.refused(left, now);
                }
                in_flight -= 1;
            }
        }
        Run { sent, seconds: (now - start).as_secs_f64() }
    }
}

fn hidden(rate: f64) -> World {
    World {
        rate,
        burst: rate as u64,
        latency_ms: 50,
        refusal_latency_ms: 1,
        retry_after: Some(Duration::from_secs(1)),
    }
}

/// Calls per row and time against the ideal, for 2,000 rows.
#[track_caller]
fn check(world: &World, options: Options, limit: concurrency::Options, calls: f64, time: f64) {
    let run = world.run(2000, options, limit);
    let ideal = (2000.0 - world.burst as f64) / world.rate;
    let (got_calls, got_time) = (run.sent as f64 / 2000.0, run.seconds / ideal);
    assert!(
        got_calls <= calls && got_time <= time,
        "{got_calls:.3} x calls, {got_time:.3} x ideal time ({:.1} s)",
        run.seconds
    );
}

#[test]
fn finds_a_hidden_limit_with_few_refusals_and_little_waste() {
    for rate in [40.0, 100.0, 250.0] {
        check(&hidden(rate), Options::default(), concurrency::Options::Auto, 1.05, 1.1);
    }
}

#[test]
fn finds_it_when_refusals_are_slow_or_the_bucket_shallow() {
    let slow = World { refusal_latency_ms: 50, ..hidden(100.0) };
    check(&slow, Options::default(), concurrency::Options::Auto, 1.05, 1.15);
    let shallow = World { burst: 50, ..hidden(100.0) };
    check(&shallow, Options::default(), concurrency::Options::Auto, 1.05, 1.35);
}

#[test]
fn finds_it_from_a_wild_start() {
    let eager = Options { eager: true, ..Options::default() };
    for rate in [40.0, 100.0] {
        // The first hundred leave before anything is known: that is what was asked for.
        check(&hidden(rate), eager, concurrency::Options::Fixed(100), 1.06, 1.2);
    }
}

#[test]
fn keeps_to_a_told_rate() {
    for rate in [40.0, 100.0] {
        let told = Options { requests_per_second: Some(rate), ..Options::default() };
        check(&hidden(rate), told, concurrency::Options::Auto, 1.01, 1.1);
    }
}

#[test]
fn an_unlimited_upstream_is_not_held_back_for_long() {
    let world = World { rate: 1e6, burst: 1_000_000, ..hidden(1.0) };
    let run = world.run(20_000, Options::default(), concurrency::Options::Auto);
    assert!(run.seconds < 4.0, "{} s", run.seconds);
    let eager = Options { eager: true, ..Options::default() };
    let run = world.run(20_000, eager, concurrency::Options::Fixed(400));
    assert!(run.seconds < 2.6, "{} s for 20,000 rows of 50 ms, 400 at once", run.seconds);
}

#[test]
fn a_refusal_shuts_the_gate_for_all_and_late_ones_only_lengthen_it() {
    let start = Instant::now();
    let ms = |ms| start + Duration::from_millis(ms);
    let mut pacer = Pacer::new(Options { eager: true, ..Options::default() }, start);
    assert_eq!(pacer.admit(ms(0), 0), Go::Now);
    assert_eq!(pacer.admit(ms(0), 0), Go::Now);
    pacer.refused(ms(0), ms(10), Some(Duration::from_secs(1)), 0.0);
    assert_eq!(pacer.admit(ms(10), 0), Go::At(ms(1010), BoundBy::Refusals));
    pacer.refused(ms(0), ms(20), Some(Duration::from_secs(3)), 0.0);
    assert_eq!(pacer.shut_for(ms(20)), Duration::from_secs(3));
    assert_eq!(pacer.admit(ms(3020), 0), Go::Now);
}

#[test]
fn a_late_refusal_that_asks_for_more_shuts_an_open_gate() {
    let start = Instant::now();
    let ms = |ms| start + Duration::from_millis(ms);
    let mut pacer = Pacer::new(Options { eager: true, ..Options::default() }, start);
    pacer.refused(ms(0), ms(10), Some(Duration::from_secs(1)), 0.0);
    assert_eq!(pacer.admit(ms(1010), 0), Go::Now);
    pacer.refused(ms(0), ms(1020), Some(Duration::from_secs(3)), 0.0);
    assert_eq!(pacer.admit(ms(2000), 0), Go::At(ms(4020), BoundBy::Refusals));
}

#[test]
fn refusals_of_one_instant_are_one_event() {
    let start = Instant::now();
    let mut pacer = Pacer::new(Options { eager: true, ..Options::default() }, start);
    (0..100).for_each(|_| pacer.accepted(start));
    pacer.refused(start, start, None, 0.0);
    let (pace, shut) = (pacer.rate(start), pacer.shut_for(start));
    (0..16).for_each(|_| pacer.refused(start, start, None, 0.0));
    assert_eq!((pacer.rate(start), pacer.shut_for(start)), (pace, shut));
}

#[test]
fn a_told_rate_that_is_none_paces_without_panic() {
    for rate in [0.0, -5.0, f64::NAN, f64::INFINITY, f64::MIN_POSITIVE, f64::MAX] {
        let start = Instant::now();
        let options = Options {
            requests_per_second: Some(rate),
            tokens_per_minute: Some(if rate > 1.0 { u64::MAX } else { 0 }),
            ..Options::default()
        };
        let mut pacer = Pacer::new(options, start);
        for hours in 0..3000 {
            let now = start + Duration::from_secs(hours * 3600);
            pacer.admit(now, u64::MAX);
            pacer.refused(now, now, Some(Duration::MAX), 0.999);
            pacer.settle_tokens(now, u64::MAX, u64::MAX);
        }
    }
}

#[test]
fn what_binds_is_the_lowest_rate() {
    let start = Instant::now();
    let options = Options { requests_per_second: Some(20.0), ..Options::default() };
    let mut pacer = Pacer::new(options, start);
    pacer.refused(start, start, Some(Duration::from_secs(1)), 0.0);
    let s = |s| start + Duration::from_secs(s);
    assert!(matches!(pacer.admit(s(1), 0), Go::Now));
    assert!(matches!(pacer.admit(s(1), 0), Go::At(_, BoundBy::Refusals)));
    // Grown far beyond what was told.
    while pacer.admit(s(60), 0) == Go::Now {}
    assert!(matches!(pacer.admit(s(60), 0), Go::At(_, BoundBy::Requests)));
}

#[test]
fn one_call_reserves_a_minutes_tokens_at_most() {
    let start = Instant::now();
    let s = |s| start + Duration::from_secs(s);
    let options = Options { tokens_per_minute: Some(6_000), eager: true, ..Options::default() };
    let mut pacer = Pacer::new(options, start);
    assert_eq!(pacer.admit(s(2), u64::MAX), Go::Now);
    assert_eq!(pacer.admit(s(62), 100), Go::Now, "the greedy one was abandoned");
    assert_eq!(pacer.admit(s(70), u64::MAX), Go::Now);
    pacer.settle_tokens(s(70), u64::MAX, 10);
    assert_eq!(pacer.admit(s(70), 100), Go::Now);
}

#[test]
fn a_refusal_that_names_no_wait_backs_off_and_doubles() {
    let start = Instant::now();
    let mut pacer = Pacer::new(Options::default(), start);
    let mut now = start;
    for expected in [1000, 2000, 4000, 8000, 16_000, 20_000, 20_000] {
        pacer.refused(now, now, None, 0.999_999);
        let shut = pacer.shut_for(now);
        assert!(shut.as_millis().abs_diff(expected * 105 / 100) < 50, "{shut:?} for {expected}");
        now += shut;
    }
}

#[test]
fn a_full_upstream_is_slowed_down_to_and_not_shut() {
    // No Retry-After: the server is full, and says so to every call too many.
    let silent = World { retry_after: None, ..hidden(200.0) };
    check(&silent, Options::default(), concurrency::Options::Auto, 1.06, 1.15);
    let mut pacer = Pacer::new(Options { eager: true, ..Options::default() }, Instant::now());
    let now = pacer.epoch.start + Duration::from_secs(1);
    pacer.accepted(now);
    pacer.refused(now, now, None, 0.5);
    assert_eq!(pacer.shut_for(now), Duration::ZERO);
}

#[test]
fn a_refusal_after_a_quiet_hour_does_not_starve_the_busy_minute() {
    let start = Instant::now();
    let mut pacer = Pacer::new(Options { eager: true, ..Options::default() }, start);
    pacer.refused(start, start, Some(Duration::from_secs(1)), 0.0);
    let busy = start + Duration::from_secs(3600);
    for n in 0..300 {
        let now = busy + Duration::from_millis(n * 5);
        assert_eq!(pacer.admit(now, 0), Go::Now);
        pacer.accepted(now);
    }
    let now = busy + Duration::from_millis(1500);
    pacer.refused(now, now, Some(Duration::from_secs(1)), 0.0);
    let rate = pacer.rate(now + Duration::from_secs(1)).unwrap();
    assert!(rate > 100.0, "{rate} after 200 a second went well");
}

#[test]
fn tokens_are_paced_and_settled() {
    let start = Instant::now();
    let options = Options { tokens_per_minute: Some(60_000), eager: true, ..Options::default() };
    let mut pacer = Pacer::new(options, start);
    let s = |s| start + Duration::from_secs(s);
    assert!(matches!(pacer.admit(s(0), 1000), Go::At(_, BoundBy::Tokens)));
    assert_eq!(pacer.admit(s(2), 2000), Go::Now);
    assert_eq!(pacer.admit(s(2), 500), Go::At(s(2) + Duration::from_millis(500), BoundBy::Tokens));
    pacer.settle_tokens(s(2), 2000, 1000);
    assert_eq!(pacer.admit(s(2), 500), Go::Now);
    // More than the bucket ever holds still goes, alone.
    assert_eq!(pacer.admit(s(10), 50_000), Go::Now);
    assert!(matches!(pacer.admit(s(11), 1), Go::At(at, BoundBy::Tokens) if at > s(50)));
}

#[test]
fn answer_headers_seed_the_pace_when_little_is_left() {
    let start = Instant::now();
    let mut pacer = Pacer::new(Options { eager: true, ..Options::default() }, start);
    let mut tell = |remaining| {
        let requests = Allowance {
            limit: Some(600),
            remaining: Some(remaining),
            reset: Some(Duration::from_secs_f64((600 - remaining) as f64 / 10.0)),
        };
        pacer.told(RateLimits { requests, ..RateLimits::default() });
        pacer.rate(start)
    };
    assert_eq!(tell(500), None);
    assert!((tell(100).unwrap() - 10.0).abs() < 1e-9);
    assert_eq!(tell(300), None);
}
