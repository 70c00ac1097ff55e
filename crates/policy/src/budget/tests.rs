use super::*;

/// Plays `script` against budgets in whole dollars, and checks its answers.
///
/// One step per line: when (`2026-11-21T10`), then `reserve N`, `settle I COST` (the reservation
/// made in line I), `reserved N` or `spent DAY MONTH TOTAL`; behind `->` what came of it:
/// `no PERIOD` or the alerts, like `day 50`.
#[track_caller]
fn check(limits: Budgets, script: &str) {
    let (mut budget, options) = (Budget::default(), Options::default());
    let mut held = Vec::new();
    for line in script.trim().lines() {
        let (step, expected) = line.split_once("->").unwrap_or((line, ""));
        let words: Vec<&str> = step.split_whitespace().collect();
        let now = seconds(words[0]);
        let usd = |at: usize| Money::DOLLAR.times(words[at].parse().unwrap());
        let mut reservation = None;
        let said = match words[1] {
            "reserve" => match budget.reserve(usd(2), &limits, now) {
                Ok(taken) => {
                    reservation = Some(taken);
                    String::new()
                }
                Err(refused) => format!("no {}", refused.period.name()),
            },
            "settle" => {
                let taken: &mut Option<Reservation> =
                    &mut held[words[2].parse::<usize>().unwrap() - 1];
                let crossed = budget.settle(taken.take().unwrap(), usd(3), &limits, &options);
                let words = crossed.iter().map(|c| format!("{} {}", c.period.name(), c.percent));
                words.collect::<Vec<_>>().join(", ")
            }
            "reserved" => {
                assert_eq!(budget.reserved(), usd(2), "{line}");
                String::new()
            }
            "spent" => {
                let spent = Spent { day: usd(2), month: usd(3), total: usd(4) };
                assert_eq!(budget.spent(now), spent, "{line}");
                String::new()
            }
            other => panic!("no such step: {other}"),
        };
        held.push(reservation);
        assert_eq!(said, expected.trim(), "{line}");
    }
}

fn seconds(text: &str) -> u64 {
    let parts: Vec<u64> = text.split(['-', 'T']).map(|part| part.parse().unwrap()).collect();
    let [year, month, day, hour] = parts[..] else { panic!("{text}") };
    let leap =
        |year: u64| year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    let february = if leap(year) { 29 } else { 28 };
    let months = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let years: u64 = (1970..year).map(|year| if leap(year) { 366 } else { 365 }).sum();
    let days = years + months[..month as usize - 1].iter().sum::<u64>() + day - 1;
    days * DAY_SECS + hour * 3600
}

fn day(usd: u64, hard: bool) -> Budgets {
    Budgets { day: Some(Money::DOLLAR.times(usd)), hard, ..Budgets::default() }
}

#[test]
fn a_hard_budget_refuses_what_does_not_fit_beside_what_is_in_flight() {
    check(
        day(10, true),
        "2026-11-21T10 reserve 6
         2026-11-21T10 reserve 4
         2026-11-21T10 reserve 1 -> no day
         2026-11-21T10 settle 1 2
         2026-11-21T10 reserve 5 -> no day
         2026-11-21T10 reserve 4
         2026-11-21T11 settle 2 4 -> day 50
         2026-11-21T11 settle 6 4 -> day 80, day 100
         2026-11-21T11 reserved 0
         2026-11-21T11 reserve 1 -> no day
         2026-11-21T11 reserve 0
         2026-11-21T11 spent 10 10 10",
    );
}

#[test]
fn a_soft_budget_is_overspent_by_what_was_in_flight_and_no_more() {
    check(
        day(10, false),
        "2026-11-21T10 reserve 9
         2026-11-21T10 reserve 9
         2026-11-21T10 settle 1 9 -> day 50, day 80
         2026-11-21T10 reserve 9
         2026-11-21T10 settle 2 9 -> day 100
         2026-11-21T10 reserve 0 -> no day
         2026-11-21T10 settle 4 9
         2026-11-21T10 reserved 0
         2026-11-21T10 spent 27 27 27",
    );
}

#[test]
fn days_and_months_begin_anew_and_the_total_does_not() {
    let limits = Budgets { month: Some(Money::DOLLAR.times(20)), ..day(10, true) };
    check(
        Budgets { total: Some(Money::DOLLAR.times(25)), ..limits },
        "2026-11-29T23 reserve 10
         2026-11-29T23 settle 1 10 -> day 50, day 80, day 100, month 50
         2026-11-29T23 reserve 1 -> no day
         2026-11-30T00 reserve 10
         2026-11-30T00 settle 4 10 -> day 50, day 80, day 100, month 80, month 100, total 50, total 80
         2026-11-30T23 reserve 1 -> no day
         2026-12-01T00 reserve 6 -> no total
         2026-12-01T00 reserve 5
         2026-12-01T00 settle 8 5 -> day 50, total 100
         2026-12-01T00 spent 5 5 25",
    );
}

#[test]
fn what_was_reserved_yesterday_is_no_burden_of_today() {
    check(
        day(10, true),
        "2026-12-31T23 reserve 10
         2027-01-01T00 reserve 10
         2027-01-01T00 settle 1 10
         2027-01-01T00 spent 0 0 10
         2027-01-01T00 reserve 1 -> no day
         2027-01-01T00 settle 2 0
         2027-01-01T00 reserved 0",
    );
}

#[test]
fn a_clock_that_is_set_back_opens_no_day_again() {
    check(
        day(10, true),
        "2026-11-21T00 reserve 10
         2026-11-21T00 settle 1 10 -> day 50, day 80, day 100
         2026-11-20T23 reserve 1 -> no day
         2026-11-22T00 reserve 10",
    );
}

#[test]
fn alerts_told_before_a_restart_are_not_told_again() {
    let (limits, options, now) = (day(10, false), Options::default(), seconds("2026-11-21T10"));
    let mut budget = Budget::default();
    let spent = Money::DOLLAR.times(6);
    budget.resume(Spent { day: spent, month: spent, total: spent }, now);
    let reservation = budget.reserve(Money::DOLLAR, &limits, now).unwrap();
    assert_eq!(budget.settle(reservation, Money::DOLLAR, &limits, &options), []);
    let reservation = budget.reserve(Money::DOLLAR, &limits, now).unwrap();
    let crossed = budget.settle(reservation, Money::DOLLAR, &limits, &options);
    assert_eq!(crossed.iter().map(|crossed| crossed.percent).collect::<Vec<_>>(), [80]);
}

#[test]
fn periods_begin_at_midnight_utc() {
    for (now, day, month) in [
        ("2026-11-21T23", "2026-11-21T0", "2026-11-1T0"),
        ("2024-02-29T12", "2024-02-29T0", "2024-02-1T0"),
        ("2024-03-01T00", "2024-03-1T0", "2024-03-1T0"),
        ("2100-03-01T00", "2100-03-1T0", "2100-03-1T0"),
        ("1970-01-01T00", "1970-01-1T0", "1970-01-1T0"),
        ("2027-01-31T23", "2027-01-31T0", "2027-01-1T0"),
    ] {
        assert_eq!(begins(seconds(now)), (seconds(day), seconds(month)), "{now}");
    }
    // Every day of four centuries is in the month of the one before it, or begins the next.
    for day in 0..146_097 {
        let ((month, of_month), next) = (civil(day), civil(day + 1));
        assert!(next == (month, of_month + 1) || next == (month + 1, 0), "{day}");
    }
}

#[test]
fn a_refusal_says_why() {
    let (limits, now) = (day(1, true), seconds("2026-11-21T10"));
    let mut budget = Budget::default();
    let _held = budget.reserve(Money::from_pico(800_000_000_000), &limits, now).unwrap();
    let refused = budget.reserve(Money::DOLLAR, &limits, now).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "of $1.00 for the day, $0.00 are spent and $0.80 held by calls in flight"
    );
}

#[test]
fn amounts_are_written_in_dollars() {
    let amounts: Amounts = serde_json::from_str(r#"{"day": 12.5, "hard": true}"#).unwrap();
    let budgets = Budgets::from(amounts);
    assert_eq!((budgets.day, budgets.hard), (Money::from_usd(12.5), true));
    assert!(serde_json::from_str::<Amounts>(r#"{"day": -1}"#).is_err());
    assert!(!budgets.is_none() && Budgets::from(Amounts::default()).is_none());
}

#[test]
fn a_clock_that_was_a_year_ahead_for_a_while_blocks_no_day_after_it() {
    check(
        Budgets { month: Some(Money::DOLLAR.times(12)), ..day(10, true) },
        "2026-11-21T10 reserve 1
         2027-11-21T10 reserve 4
         2027-11-21T10 settle 1 1
         2026-11-21T11 reserve 6
         2026-11-21T11 reserve 1 -> no day
         2026-11-21T11 settle 2 4
         2026-11-21T11 settle 4 6 -> day 50, day 80, day 100, month 50, month 80
         2026-11-21T11 spent 10 10 11
         2026-11-22T01 reserve 2
         2026-11-22T01 settle 9 2 -> month 100
         2026-11-22T01 spent 2 12 13
         2026-12-01T01 reserve 10
         2026-12-01T01 reserve 1 -> no day",
    );
}

#[test]
fn a_clock_that_is_set_back_over_midnight_opens_no_day_again() {
    check(
        day(10, true),
        "2026-11-21T23 reserve 10
         2026-11-22T00 reserve 10
         2026-11-21T23 reserve 1 -> no day
         2026-11-22T00 reserve 1 -> no day",
    );
}
