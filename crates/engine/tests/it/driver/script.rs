//! What the upstreams of one scenario do: stretches of good and of bad temper.

use super::dice::Dice;

/// Upstreams there may be.
pub(super) const NAMES: [&str; 4] = ["a", "b", "c", "d"];

const WELL: &[&str] = &[
    "ok",
    "ok after 20ms usage=9+4",
    "ok after 80ms",
    "stream 3 chunks every 10ms",
    "stream 5 chunks every 30ms usage=9+4",
];

const SLOW: &[&str] = &[
    "ok after 300ms",
    "ok after 2s",
    "slow",
    "stream 4 chunks every 150ms",
    "stream 2 chunks every 600ms",
    "stream stall after 0",
];

const REFUSING: &[&str] = &[
    "refused",
    "refused after 15ms",
    "refused retry-after=1s",
    "refused retry-after=30s",
    "refused status=503",
    "refused status=503 retry-after=300ms",
    "refused status=529",
    "ok limit-requests=600 remaining-requests=0 reset-requests=500ms",
    "ok limit-tokens=6000 remaining-tokens=10 reset-tokens=1s",
];

const FAILING: &[&str] = &[
    "fault",
    "fault after 30ms",
    "fault retry-after=200ms",
    "reset after 10ms",
    "unreachable",
    "timeout connect after 300ms",
    "dialing",
    "timeout first_token after 100ms",
    "timeout total after 200ms",
    "no-connection after 50ms",
    "credential",
    "quota",
    "rejected 400",
    "rejected 422 after 20ms",
];

const BREAKING: &[&str] = &[
    "stream 1 chunk then fault",
    "stream 2 chunks every 20ms then reset",
    "stream 3 chunks then timeout",
    "stream stall after 1",
    "stream stall after 2",
    "stream 0 chunks then fault",
    "stream 6 chunks every 50ms",
];

/// A few stretches of one temper each; the last is a good one, and stays.
pub(super) fn draw(dice: &mut Dice) -> String {
    let mut steps = Vec::new();
    for _ in 0..dice.number(1..4) {
        let temper = dice.one(&[WELL, WELL, WELL, SLOW, REFUSING, FAILING, FAILING, BREAKING]);
        for _ in 0..dice.number(1..7) {
            let now = dice.either(0.8, temper, WELL);
            steps.push(dice.one(now));
        }
    }
    steps.push(dice.one(WELL));
    steps.join("; ")
}
