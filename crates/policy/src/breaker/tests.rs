//! A breaker's life as scripts.

use super::*;
use std::collections::HashMap;

/// Plays a script against one breaker, all rolls 0.5. Lines are
/// `<ms> admit [good|bad|unknown|<name to end later>] [x <times>]`, `<ms> refuse <until ms>`,
/// `<ms> end <name> <outcome>`, `<ms> broke`, `<ms> share <x>` and `<ms> state closed|open|half-open`.
#[track_caller]
fn check(options: Options, script: &str) {
    let start = Instant::now();
    let (mut breaker, mut out) = (Breaker::new(options, start), HashMap::new());
    for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let words: Vec<_> = line.split_whitespace().collect();
        let ms = |word: usize| start + Duration::from_millis(words[word].parse().unwrap());
        let now = ms(0);
        match words[1] {
            "admit" => {
                let times = words.get(4).map_or(1, |times| times.parse().unwrap());
                for _ in 0..times {
                    let Admit::Go(permit) = breaker.admit(now, 0.5) else {
                        panic!("refused at: {line}");
                    };
                    match outcome(words[2]) {
                        Some(outcome) => breaker.ended(permit, outcome, now),
                        None => assert!(out.insert(words[2], permit).is_none()),
                    }
                }
            }
            "broke" => breaker.broke(now, 0.5),
            "refuse" => {
                let expected = Admit::Refused { retry_at: ms(2) };
                assert_eq!(breaker.admit(now, 0.5), expected, "at: {line}");
            }
            "end" => {
                let permit = out.remove(words[2]).unwrap();
                breaker.ended(permit, outcome(words[3]).unwrap(), now);
            }
            "share" => {
                let (got, wanted) = (breaker.share(now), words[2].parse::<f64>().unwrap());
                assert!((got - wanted).abs() < 1e-9, "{got} at: {line}");
            }
            "state" => {
                let state = match breaker.state(now) {
                    State::Closed => "closed",
                    State::Open { .. } => "open",
                    State::HalfOpen => "half-open",
                };
                assert_eq!(state, words[2], "at: {line}");
            }
            other => panic!("unknown word {other}"),
        }
    }
}

fn outcome(word: &str) -> Option<Outcome> {
    match word {
        "good" => Some(Outcome::Good),
        "bad" => Some(Outcome::Bad),
        "unknown" => Some(Outcome::Unknown),
        _ => None,
    }
}

#[test]
fn opens_after_failures_in_a_row_and_comes_back_slowly() {
    check(
        Options::default(),
        "
        0      admit bad x 4
        0      admit good
        0      admit bad x 5
        0      state open
        999    refuse 1000
        1000   state half-open
        1000   share 0.1
        1000   admit good x 3
        1000   state closed
        1000   share 0.1
        3500   share 0.3
        6000   share 0.5
        8500   share 0.75
        11000  share 1
        ",
    );
}

#[test]
fn the_failed_few_of_a_burst_came_back_first_and_opened_it() {
    let all = |from, to, line: &str| -> String {
        (from..to).map(|n| format!("{}\n", line.replace("slow", &format!("slow{n}")))).collect()
    };
    let burst = all(0, 60, "0 admit slow");
    let script = format!(
        "{burst}
        1    admit bad x 19
        1    state closed
        {}
        800  state closed
        800  admit bad x 5
        800  state open",
        all(0, 60, "800 end slow good"),
    );
    check(Options::default(), &script);
    // A server that died: what is out does not come back either.
    let script = format!(
        "{burst}
        1    admit bad x 10
        1    state closed
        {}
        2    state closed
        2    end slow59 bad
        2    state open",
        all(52, 59, "2 end slow bad"),
    );
    check(Options::default(), &script);
}

#[test]
fn opens_when_half_of_many_fail() {
    check(
        Options::default(),
        "
        0     admit good x 10
        0     admit bad x 3
        100   admit good
        9000  admit bad x 4
        9000  admit good
        9000  admit bad x 4
        9000  state closed
        9000  admit bad
        9000  state open
        ",
    );
}

#[test]
fn what_is_older_than_the_window_does_not_count() {
    check(
        Options { failures: 100, ..Options::default() },
        "
        0      admit bad x 19
        10000  admit bad x 19
        10000  state closed
        19999  admit bad
        19999  state open
        ",
    );
}

#[test]
fn each_failed_probe_doubles_the_time_up_to_the_cap() {
    check(
        Options { max_open_for: Duration::from_secs(3), ..Options::default() },
        "
        0      admit bad x 5
        1000   admit bad
        1000   refuse 3000
        3000   admit bad
        3000   refuse 6000
        6000   admit bad
        6000   refuse 9000
        9000   admit good x 3
        9100   admit bad x 5
        9100   refuse 12100
        12100  admit good x 3
        22100  share 1
        22100  admit bad x 5
        22100  refuse 23100
        ",
    );
}

#[test]
fn one_probe_is_out_at_a_time() {
    check(
        Options::default(),
        "
        0      admit bad x 5
        1000   admit probe
        1000   share 0
        1500   refuse 1600
        2000   end probe unknown
        2000   admit good x 2
        2000   admit probe
        2000   refuse 2100
        2100   end probe good
        2100   state closed
        ",
    );
}

#[test]
fn late_news_does_not_count() {
    check(
        Options::default(),
        "
        0      admit early
        0      admit late
        0      admit bad x 5
        500    end early good
        500    refuse 1000
        1000   admit probe
        1100   end late bad
        1100   state half-open
        1100   end probe good
        1100   admit good x 2
        1100   state closed
        ",
    );
}

#[test]
fn a_caller_who_hangs_up_is_no_failure_and_no_success() {
    check(
        Options::default(),
        "0 admit bad x 4\n0 admit unknown x 50\n0 state closed\n0 admit bad\n0 state open",
    );
}

#[test]
fn zero_failures_turns_it_off() {
    check(
        Options { failures: 0, ..Options::default() },
        "0 admit bad x 500\n0 state closed\n0 share 1",
    );
}

#[test]
fn open_time_is_spread_by_a_fifth() {
    for (roll, expected) in [(0.0, 800), (0.5, 1000), (0.999_999, 1200)] {
        let start = Instant::now();
        let mut breaker = Breaker::new(Options::default(), start);
        for _ in 0..5 {
            let permit = breaker.admit_anyway(start, roll);
            breaker.ended(permit, Outcome::Bad, start);
        }
        let State::Open { until } = breaker.state(start) else { panic!("not open") };
        assert_eq!((until - start + Duration::from_micros(50)).as_millis(), expected);
    }
}

#[test]
fn what_is_forced_through_an_open_breaker_does_not_count() {
    let start = Instant::now();
    let mut breaker = Breaker::new(Options::default(), start);
    for outcome in [Outcome::Bad; 5].into_iter().chain([Outcome::Good; 9]) {
        let permit = breaker.admit_anyway(start, 0.5);
        breaker.ended(permit, outcome, start);
    }
    assert!(matches!(breaker.state(start), State::Open { .. }));
}

#[test]
fn no_more_than_half_of_the_targets_are_ejected() {
    for (open, all, expected) in
        [(0, 3, false), (1, 3, false), (2, 3, true), (1, 2, false), (2, 2, true), (1, 1, false)]
    {
        assert_eq!(panicking(open, all, 0.5), expected, "{open} of {all}");
    }
}

#[test]
fn options_read_from_config() {
    let read = |text| serde_json::from_str::<Options>(text);
    let options = read(r#"{"open_for": "3s", "failure_share": 0.25}"#).unwrap();
    let open_for = Duration::from_secs(3);
    assert_eq!(options, Options { open_for, failure_share: 0.25, ..Options::default() });
    assert!(read(r#"{"open_secs": 3}"#).is_err());
    assert!(read(r#"{"failure_share": 50}"#).unwrap_err().to_string().contains("0 to 1"));
}

#[test]
fn streams_that_all_break_off_are_failures() {
    let broken: String = (0..9).map(|n| format!("{n} admit good x 2\n{n} broke\n")).collect();
    check(
        Options::default(),
        &(broken + "10 state closed\n10 admit good x 2\n10 broke\n10 state open"),
    );
    check(Options::default(), &"0 admit good\n0 broke\n0 state closed\n".repeat(19));
}

#[test]
fn a_stream_that_breaks_off_while_probing_is_old_news() {
    check(
        Options::default(),
        "
        0    admit bad x 5
        1    broke
        999  refuse 1000
        1000 admit good
        1001 broke
        1001 state half-open
        1001 admit good x 2
        1001 state closed
        ",
    );
}
