//! One behaviour suite over the four algorithms.

use super::*;
use std::collections::VecDeque;

const ALL: [Algorithm; 4] = [
    Algorithm::TokenBucket,
    Algorithm::LeakyBucket,
    Algorithm::FixedWindow,
    Algorithm::SlidingWindow,
];

/// Ten per second, all of which may pass at once where the algorithm lets them.
fn ten_per_second() -> Rate {
    Rate { limit: 10, per: Duration::from_secs(1), burst: 10 }
}

/// Plays `<ms> take <n> -> ok|<wait ms>|never`, `<ms> settle <reserved> <used>`, `<ms> left <n>`
/// and `<ms> idle|busy` lines against one limiter of ten per second. Settled is the first of what
/// was taken that is not yet.
#[track_caller]
fn check(algorithm: Algorithm, script: &str) {
    let (mut limiter, start) = (Limiter::new(algorithm, ten_per_second()), Instant::now());
    let mut held = VecDeque::new();
    for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let words: Vec<_> = line.split_whitespace().collect();
        let now = start + Duration::from_millis(words[0].parse().unwrap());
        let number = |at: usize| words[at].parse::<u64>().unwrap();
        match words[1] {
            "take" => {
                let asked = limiter.ask(now, number(2));
                let got = limiter.take(now, number(2));
                assert_eq!(got.map(|_| ()), asked, "{algorithm:?} at: {line}");
                held.extend(got.ok());
                let got = match got {
                    Ok(_) => "ok".to_owned(),
                    Err(Refused { retry_after: None }) => "never".to_owned(),
                    Err(Refused { retry_after: Some(wait) }) => wait.as_millis().to_string(),
                };
                assert_eq!(got, words[4], "{algorithm:?} at: {line}");
            }
            "settle" => {
                let taken: Taken = held.pop_front().unwrap();
                assert_eq!(taken.units, number(2), "{algorithm:?} at: {line}");
                limiter.settle(now, taken, number(3));
            }
            "left" => {
                let left = limiter.allowance(now).remaining;
                assert_eq!(left, Some(number(2)), "{algorithm:?} at: {line}");
            }
            word => assert_eq!(limiter.is_idle(now), word == "idle", "{algorithm:?} at: {line}"),
        }
    }
}

#[test]
fn a_token_bucket_lets_a_burst_through_and_then_the_rate() {
    check(
        Algorithm::TokenBucket,
        "
        0    take 10 -> ok
        0    take 1 -> 100
        100  take 1 -> ok
        100  take 1 -> 100
        600  left 5
        ",
    );
}

#[test]
fn a_leaky_bucket_spaces() {
    check(
        Algorithm::LeakyBucket,
        "
        0    left 1
        0    take 1 -> ok
        0    left 0
        0    take 1 -> 100
        99   take 1 -> 1
        100  take 4 -> ok
        100  take 1 -> 400
        9000 take 1 -> ok
        9000 take 1 -> 100
        ",
    );
}

#[test]
fn a_fixed_window_starts_anew_each_period() {
    check(
        Algorithm::FixedWindow,
        "
        500   take 1 -> ok
        1400  take 9 -> ok
        1400  take 1 -> 100
        1500  take 10 -> ok
        1500  left 0
        2500  left 10
        ",
    );
}

#[test]
fn a_sliding_window_lets_the_limit_through_in_any_period() {
    check(
        Algorithm::SlidingWindow,
        "
        0     take 1 -> ok
        925   take 9 -> ok
        925   take 1 -> 125
        1050  take 1 -> ok
        1050  take 1 -> 900
        1949  left 0
        1951  left 9
        ",
    );
}

#[test]
fn no_more_than_the_limit_of_five_hundred_at_once() {
    for algorithm in ALL {
        let (mut limiter, now) = (Limiter::new(algorithm, Rate::per_minute(10)), Instant::now());
        let passed = (0..500).filter(|_| limiter.take(now, 1).is_ok()).count();
        assert_eq!(passed, if algorithm == Algorithm::LeakyBucket { 1 } else { 10 });
    }
}

#[test]
fn never_more_than_burst_plus_rate_times_time() {
    for (algorithm, seed) in ALL.into_iter().flat_map(|a| (0..20).map(move |seed| (a, seed))) {
        let (mut limiter, start) = (Limiter::new(algorithm, ten_per_second()), Instant::now());
        let (mut chance, mut micros, mut passed) = (Chance(seed), 0, 0);
        for _ in 0..5000 {
            micros += chance.below(if seed % 2 == 0 { 40_000 } else { 400_000 });
            let cost = 1 + chance.below(3);
            if limiter.take(start + Duration::from_micros(micros), cost).is_ok() {
                passed += cost;
            }
            let most = 10.0 + 10.0 * micros as f64 / 1e6;
            assert!(passed as f64 <= most * 1.01, "{algorithm:?}: {passed} > {most}");
        }
        if seed % 2 == 0 {
            let share = passed as f64 / (micros as f64 / 1e5);
            // A leaky bucket wastes the time between its spaces and the next arrival.
            let least = if algorithm == Algorithm::LeakyBucket { 0.8 } else { 0.9 };
            assert!(share > least, "{algorithm:?} lets only {share:.2} of its rate through");
        }
    }
}

#[test]
fn a_sliding_window_is_never_over_its_limit_in_any_period() {
    let (mut limiter, start) =
        (Limiter::new(Algorithm::SlidingWindow, ten_per_second()), Instant::now());
    let (mut chance, mut micros, mut log) = (Chance(9), 0, Vec::new());
    for _ in 0..20_000 {
        micros += chance.below(50_000);
        if limiter.take(start + Duration::from_micros(micros), 1).is_ok() {
            log.push(micros);
            let recent = log.iter().rev().take_while(|at| **at + 1_000_000 > micros).count();
            assert!(recent <= 10, "{recent} in the second before {micros}");
        }
    }
}

#[test]
fn what_callers_are_told_is_what_passes() {
    for algorithm in ALL {
        let (mut limiter, start) = (Limiter::new(algorithm, ten_per_second()), Instant::now());
        let (mut chance, mut micros) = (Chance(4), 0);
        for _ in 0..2000 {
            micros += chance.below(300_000);
            let now = start + Duration::from_micros(micros);
            let told = limiter.allowance(now).remaining.unwrap();
            let mut copy = limiter.clone();
            let passes = (0..30).take_while(|_| copy.take(now, 1).is_ok()).count() as u64;
            assert!(told.abs_diff(passes) <= 1, "{algorithm:?}: told {told}, {passes} pass");
            let reserved = 1 + chance.below(4);
            if let Ok(taken) = limiter.take(now, reserved) {
                limiter.settle(now, taken, chance.below(6));
            }
        }
    }
}

#[test]
fn the_wait_that_is_told_is_enough_and_not_too_long() {
    for algorithm in ALL {
        let (mut limiter, start) = (Limiter::new(algorithm, ten_per_second()), Instant::now());
        let (mut chance, mut micros) = (Chance(6), 0);
        for _ in 0..2000 {
            micros += chance.below(200_000);
            let now = start + Duration::from_micros(micros);
            let cost = 1 + chance.below(10);
            let refused = match limiter.take(now, cost) {
                Ok(taken) => {
                    limiter.settle(now, taken, chance.below(15));
                    continue;
                }
                Err(refused) => refused,
            };
            let wait = refused.retry_after.unwrap();
            assert!(limiter.clone().take(now + wait, cost).is_ok(), "{algorithm:?} {wait:?}");
            let early = wait.saturating_sub(Duration::from_millis(1));
            assert!(limiter.clone().take(now + early, cost).is_err(), "{algorithm:?} {wait:?}");
        }
    }
}

#[test]
fn unused_reservations_come_back_and_overuse_is_owed() {
    for algorithm in ALL {
        check(algorithm, "0 take 10 -> ok\n0 settle 10 0\n0 idle\n0 take 10 -> ok\n0 busy");
    }
    let overuse = "0 take 5 -> ok\n0 settle 5 25\n0 left 0\n";
    check(Algorithm::TokenBucket, &format!("{overuse}0 take 1 -> 1600\n1600 take 1 -> ok"));
    check(Algorithm::LeakyBucket, &format!("{overuse}0 take 1 -> 2500\n2500 take 1 -> ok"));
    check(Algorithm::FixedWindow, &format!("{overuse}0 take 1 -> 2000\n2000 take 5 -> ok"));
    check(Algorithm::SlidingWindow, &format!("{overuse}0 take 1 -> 1050\n1051 take 9 -> ok"));
}

#[test]
fn what_has_stopped_counting_does_not_come_back_again() {
    // Ten reserved at 0, of which nothing was needed, settled when others have taken all there is.
    for algorithm in [Algorithm::TokenBucket, Algorithm::FixedWindow] {
        check(algorithm, "0 take 10 -> ok\n1000 take 10 -> ok\n1000 settle 10 0\n1000 left 0");
        check(algorithm, "0 take 10 -> ok\n9000 take 10 -> ok\n9000 settle 10 0\n9000 left 0");
    }
    let sliding = "0 take 10 -> ok\n1051 take 10 -> ok\n1051 settle 10 0\n1051 left 0";
    check(Algorithm::SlidingWindow, sliding);
    let leaky = "0 take 10 -> ok\n1000 take 1 -> ok\n1000 settle 10 0\n1000 left 0";
    check(Algorithm::LeakyBucket, leaky);
    // Half of it has leaked out by then.
    let half = "0 take 10 -> ok\n500 settle 10 0\n500 take 10 -> ok\n500 take 1 -> 100";
    check(Algorithm::TokenBucket, half);
    let own_slot = "0 take 4 -> ok\n500 take 6 -> ok\n600 settle 4 4\n900 settle 6 0\n900 left 6
        1049 left 6\n1051 left 10";
    check(Algorithm::SlidingWindow, own_slot);
}

#[test]
fn no_more_than_the_limit_however_late_reservations_are_settled() {
    for (algorithm, seed) in ALL.into_iter().flat_map(|a| (0..20).map(move |seed| (a, seed))) {
        let (mut limiter, start) = (Limiter::new(algorithm, ten_per_second()), Instant::now());
        let (mut chance, mut micros, mut open) = (Chance(seed), 0, Vec::new());
        let mut used_at = Vec::new();
        for _ in 0..2_000 {
            micros += chance.below(60_000);
            let now = start + Duration::from_micros(micros);
            let reserved = 1 + chance.below(10);
            if let Ok(taken) = limiter.take(now, reserved) {
                // Really used when it was let in, as far as anybody outside can see.
                let used = chance.below(reserved + 1);
                open.push((taken, used));
                used_at.push((micros, used));
            }
            if chance.below(3) == 0 && !open.is_empty() {
                let (taken, used) = open.swap_remove(chance.below(open.len() as u64) as usize);
                limiter.settle(now, taken, used);
            }
            let recent = used_at.iter().rev().take_while(|(at, _)| at + 1_000_000 > micros);
            let recent: u64 = recent.map(|(_, used)| used).sum();
            let most = match algorithm {
                Algorithm::SlidingWindow => 10,
                // The largest at once is ten, of which the first second lets ten through after it.
                _ => 20,
            };
            assert!(recent <= most, "{algorithm:?} {seed}: {recent} in the second before {micros}");
        }
    }
}

#[test]
fn a_change_of_limits_is_no_fresh_start() {
    for algorithm in ALL {
        let (mut limiter, now) = (Limiter::new(algorithm, ten_per_second()), Instant::now());
        limiter.take(now, 10).unwrap();
        let wider = Rate { limit: 15, per: Duration::from_secs(1), burst: 15 };
        let changed = ALL.map(|other| limiter.changed(now, other, wider));
        for mut changed in changed {
            let passes = (0..30).take_while(|_| changed.take(now, 1).is_ok()).count();
            assert!(passes <= 5, "{algorithm:?}: {passes} pass");
        }
        let full = Limiter::new(algorithm, ten_per_second()).changed(now, algorithm, wider);
        assert!(full.is_idle(now));
    }
}

#[test]
fn a_refusal_takes_nothing_and_a_refund_never_overfills() {
    for algorithm in ALL {
        check(algorithm, "0 take 11 -> never\n0 idle\n0 take 1 -> ok");
        let most = if algorithm == Algorithm::LeakyBucket { 1 } else { 10 };
        check(algorithm, &format!("0 take 2 -> ok\n5000 settle 2 0\n5000 left {most}"));
    }
}

#[test]
fn is_idle_once_everything_has_passed() {
    for algorithm in ALL {
        check(algorithm, "0 idle\n0 take 10 -> ok\n0 busy\n1100 idle");
    }
}

#[test]
fn odd_rates_do_not_panic() {
    let start = Instant::now();
    for (algorithm, limit) in ALL.into_iter().flat_map(|a| [0, 1, u64::MAX].map(|l| (a, l))) {
        for per in [Duration::ZERO, Duration::from_nanos(1), Duration::from_secs(1 << 31)] {
            let mut limiter = Limiter::new(algorithm, Rate { limit, per, burst: limit });
            for n in 0..50u32 {
                let now = start + Duration::from_secs(3600) * n;
                let _ = limiter.ask(now, u64::MAX);
                let _ = limiter.ask(now, 0);
                let _ = limiter.take(now, u64::from(n));
                let _ = limiter.take(now, u64::MAX);
                for (units, used) in [(n.into(), u64::MAX), (u64::MAX, 0), (0, u64::MAX / 2)] {
                    for counts in [start, now, now + Duration::from_secs(5)] {
                        limiter.settle(now, Taken { units, counts }, used);
                    }
                }
                limiter = limiter.changed(now, algorithm, Rate::per_minute(7));
                limiter = limiter.changed(now, algorithm, Rate { limit, per, burst: limit });
                limiter.allowance(now);
                limiter.is_idle(now);
            }
        }
    }
}

#[test]
fn algorithms_read_as_written() {
    let written = ALL.map(|a| serde_json::to_value(a).unwrap().as_str().unwrap().to_owned());
    assert_eq!(written, ["token_bucket", "leaky_bucket", "fixed_window", "sliding_window"]);
    assert_eq!(Algorithm::default(), Algorithm::TokenBucket);
}

struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_041);
        (self.0 >> 33) % bound
    }
}

#[test]
fn a_limit_that_becomes_nothing_refuses_what_is_owed_and_divides_by_nothing() {
    for algorithm in [
        Algorithm::TokenBucket,
        Algorithm::LeakyBucket,
        Algorithm::FixedWindow,
        Algorithm::SlidingWindow,
    ] {
        let now = Instant::now();
        let mut limiter = Limiter::new(algorithm, Rate::per_minute(10));
        limiter.take(now, 10).unwrap();
        let changed = limiter.changed(now, algorithm, Rate::per_minute(0));
        assert!(changed.ask(now, 1).is_err(), "{algorithm:?}");
        // What is free may pass or wait, as the algorithm has it.
        let _ = changed.ask(now, 0);
    }
}
