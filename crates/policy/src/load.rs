//! Load: how loaded the gateway is, and what it gives up at each level.
//!
//! # Why
//!
//! Before everything fails, something can be left out: the batch that nobody waits for, the
//! patience with slow upstreams. Which, and when, is the operator's to say. A level is entered
//! at one threshold and left at a lower one, one step at a time and not before a minimum stay:
//! an action that works lowers the load that called for it, and without this the ladder would be
//! climbed up and down with every call.
//!
//! What the queue does by itself (shares, newest first, shedding) is finer than any refusal here
//! and wastes no capacity. So by default the ladder only refuses bulk, and only while callers of
//! the other classes feel a delay; more is for those who configure it.
//!
//! # States
//!
//! ```text
//! normal <--> elevated <--> high <--> critical
//!    up: a signal at the next level's threshold, `step_up` after the last step
//!  down: all signals under `leave` x this level's threshold, `min_stay` after the last step
//! ```

use crate::setting;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use std::time::{Duration, Instant};
use tidegate_core::Priority;

/// Settings of the degrade ladder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// The first level: full, but nobody feels it.
    #[serde(deserialize_with = "elevated")]
    pub elevated: Step,
    /// The second level: calls wait for longer than they should.
    #[serde(deserialize_with = "high")]
    pub high: Step,
    /// The last level: shedding does not keep up.
    #[serde(deserialize_with = "critical")]
    pub critical: Step,
    /// A level is left when every signal is under this share of its thresholds, 0 to 1.
    /// Default 0.7.
    pub leave: f64,
    /// Shortest time between two steps up. Default "200ms".
    #[serde(with = "setting::duration")]
    #[schemars(with = "String")]
    pub step_up: Duration,
    /// Shortest stay at a level before a step down. Default "2s".
    #[serde(with = "setting::duration")]
    #[schemars(with = "String")]
    pub min_stay: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            elevated: ELEVATED.written(),
            high: HIGH.written(),
            critical: CRITICAL.written(),
            leave: 0.7,
            step_up: Duration::from_millis(200),
            min_stay: Duration::from_secs(2),
        }
    }
}

/// One level: when it is entered and what is done there. What is not set has the level's default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Step {
    /// Entered at this queue delay, in multiples of the delay the queue allows. Default 0.5
    /// (elevated), 1 (high), 4 (critical).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pressure: Option<f64>,
    /// Entered at this share of the calls the gateway may have in flight. Default 0.8, 0.9, 0.97.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_flight_share: Option<f64>,
    /// Fixed first-token, idle and total timeouts are multiplied by this, 0.1 to 1. Default 1 at all levels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shorten_timeouts: Option<f64>,
    /// Which new calls are refused. Default nothing, bulk, bulk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refuse: Option<Refuse>,
}

/// Which new calls are refused. Patient ones (batch rows) wait instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Refuse {
    /// None.
    Nothing,
    /// Those of class bulk.
    Bulk,
    /// Those of classes bulk and default.
    AllButInteractive,
    /// All.
    All,
}

impl Refuse {
    /// Whether a new call of `class` is refused.
    pub const fn refuses(self, class: Priority) -> bool {
        match self {
            Self::Nothing => false,
            Self::Bulk => matches!(class, Priority::Bulk),
            Self::AllButInteractive => !matches!(class, Priority::Interactive),
            Self::All => true,
        }
    }
}

/// How loaded the gateway is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// As it should be.
    #[default]
    Normal,
    /// Nearly full.
    Elevated,
    /// Calls wait for longer than they should.
    High,
    /// Shedding does not keep up.
    Critical,
}

impl Level {
    /// The word used in configuration, logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Elevated => "elevated",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }

    const fn up(self) -> Self {
        match self {
            Self::Normal => Self::Elevated,
            Self::Elevated => Self::High,
            Self::High | Self::Critical => Self::Critical,
        }
    }

    const fn down(self) -> Self {
        match self {
            Self::Normal | Self::Elevated => Self::Normal,
            Self::High => Self::Elevated,
            Self::Critical => Self::High,
        }
    }
}

/// What the level is told from.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Signals {
    /// The highest `Queue::pressure` of the gates.
    pub pressure: f64,
    /// Calls in flight over how many the gateway may have; not an upstream's share, which a batch
    /// keeps at 1 and rightly so. Zero where there is no such bound.
    pub in_flight_share: f64,
}

/// What is done at a level.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Actions {
    /// Timeouts are multiplied by this.
    pub shorten_timeouts: f64,
    /// Which new calls are refused.
    pub refuse: Refuse,
}

/// Watches the signals and tells the level.
#[derive(Debug)]
pub struct Ladder {
    options: Options,
    level: Level,
    stepped_at: Option<Instant>,
}

impl Ladder {
    /// A ladder at `normal`.
    pub const fn new(options: Options) -> Self {
        Self { options, level: Level::Normal, stepped_at: None }
    }

    /// The level at `now`. Ask about every 100 ms, or with every call.
    pub fn level(&mut self, now: Instant, signals: Signals) -> Level {
        if self.above(self.level.up(), 1.0, signals) {
            if self.stayed(self.options.step_up, now) {
                self.level = self.level.up();
                self.stepped_at = Some(now);
            }
            return self.level;
        }
        // Nobody may have looked for long: what was lost in between is made up for.
        while self.level != Level::Normal
            && !self.above(self.level, self.options.leave, signals)
            && self.stayed(self.options.min_stay, now)
        {
            self.level = self.level.down();
            let made_up = self.stepped_at.map(|at| at + self.options.min_stay);
            self.stepped_at = made_up.filter(|at| now >= *at + self.options.min_stay).or(Some(now));
        }
        self.level
    }

    /// What is done at `level`.
    pub fn actions(&self, level: Level) -> Actions {
        let Some((step, default)) = self.step(level) else {
            return Actions { shorten_timeouts: 1.0, refuse: Refuse::Nothing };
        };
        Actions {
            shorten_timeouts: step.shorten_timeouts.unwrap_or(1.0).clamp(0.1, 1.0),
            refuse: step.refuse.unwrap_or(default.refuse),
        }
    }

    /// Whether a signal is at `share` of the thresholds of `level`.
    fn above(&self, level: Level, share: f64, signals: Signals) -> bool {
        let Some((step, default)) = self.step(level) else { return false };
        let pressure = step.pressure.unwrap_or(default.pressure);
        let in_flight_share = step.in_flight_share.unwrap_or(default.in_flight_share);
        signals.pressure >= pressure * share || signals.in_flight_share >= in_flight_share * share
    }

    fn stayed(&self, least: Duration, now: Instant) -> bool {
        self.stepped_at.is_none_or(|at| now.saturating_duration_since(at) >= least)
    }

    const fn step(&self, level: Level) -> Option<(&Step, Defaults)> {
        match level {
            Level::Normal => None,
            Level::Elevated => Some((&self.options.elevated, ELEVATED)),
            Level::High => Some((&self.options.high, HIGH)),
            Level::Critical => Some((&self.options.critical, CRITICAL)),
        }
    }
}

struct Defaults {
    pressure: f64,
    in_flight_share: f64,
    refuse: Refuse,
}

fn elevated<'de, D: Deserializer<'de>>(from: D) -> Result<Step, D::Error> {
    Step::deserialize(from).map(|step| ELEVATED.fill(step))
}

fn high<'de, D: Deserializer<'de>>(from: D) -> Result<Step, D::Error> {
    Step::deserialize(from).map(|step| HIGH.fill(step))
}

fn critical<'de, D: Deserializer<'de>>(from: D) -> Result<Step, D::Error> {
    Step::deserialize(from).map(|step| CRITICAL.fill(step))
}

impl Defaults {
    fn fill(&self, step: Step) -> Step {
        let own = self.written();
        Step {
            pressure: step.pressure.or(own.pressure),
            in_flight_share: step.in_flight_share.or(own.in_flight_share),
            shorten_timeouts: step.shorten_timeouts.or(own.shorten_timeouts),
            refuse: step.refuse.or(own.refuse),
        }
    }

    const fn written(&self) -> Step {
        Step {
            pressure: Some(self.pressure),
            in_flight_share: Some(self.in_flight_share),
            shorten_timeouts: Some(1.0),
            refuse: Some(self.refuse),
        }
    }
}

const ELEVATED: Defaults =
    Defaults { pressure: 0.5, in_flight_share: 0.8, refuse: Refuse::Nothing };
const HIGH: Defaults = Defaults { pressure: 1.0, in_flight_share: 0.9, refuse: Refuse::Bulk };
const CRITICAL: Defaults = Defaults { pressure: 4.0, in_flight_share: 0.97, refuse: Refuse::Bulk };

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays lines `<ms> <pressure> <in-flight share> <level>`.
    #[track_caller]
    fn check(options: Options, script: &str) {
        let (mut ladder, start) = (Ladder::new(options), Instant::now());
        for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let words: Vec<_> = line.split_whitespace().collect();
            let now = start + Duration::from_millis(words[0].parse().unwrap());
            let (pressure, in_flight_share) =
                (words[1].parse().unwrap(), words[2].parse().unwrap());
            let level = ladder.level(now, Signals { pressure, in_flight_share });
            assert_eq!(level.name(), words[3], "at: {line}");
        }
    }

    #[test]
    fn climbs_one_step_at_a_time() {
        check(
            Options::default(),
            "
            0    0.4  0.5  normal
            10   9.0  0.5  elevated
            20   9.0  0.5  elevated
            210  9.0  0.5  high
            409  9.0  0.5  high
            410  9.0  0.5  critical
            9999 9.0  0.5  critical
            ",
        );
    }

    #[test]
    fn a_spike_that_shedding_ends_is_not_critical() {
        check(Options::default(), "0 6 0 elevated\n100 6 0 elevated\n200 1 0 high\n400 1 0 high");
    }

    #[test]
    fn leaves_under_the_threshold_and_after_the_stay() {
        check(
            Options::default(),
            "
            0     1.0  0  elevated
            200   1.0  0  high
            1000  0.0  0  high
            2200  0.8  0  high
            2300  0.6  0  elevated
            4299  0.0  0  elevated
            4300  0.4  0  elevated
            4400  0.3  0  normal
            ",
        );
    }

    #[test]
    fn an_hour_of_silence_is_made_up_for() {
        check(
            Options::default(),
            "
            0        9.0  0  elevated
            200      9.0  0  high
            400      9.0  0  critical
            3600000  0.0  0  normal
            ",
        );
    }

    #[test]
    fn a_full_gateway_counts_without_a_delay() {
        check(
            Options::default(),
            "
            0     0  0.79  normal
            1     0  0.80  elevated
            300   0  0.90  high
            600   0  0.96  high
            900   0  0.97  critical
            3000  0  0.70  critical
            3001  0  0.60  high
            ",
        );
    }

    #[test]
    fn each_level_has_its_actions() {
        let text = r#"{"high": {"refuse": "all_but_interactive", "shorten_timeouts": 0.5},
                       "critical": {"refuse": "all", "pressure": 8}}"#;
        let ladder = Ladder::new(serde_json::from_str(text).unwrap());
        let refused = |level| {
            let refuse = ladder.actions(level).refuse;
            [Priority::Interactive, Priority::Default, Priority::Bulk].map(|c| refuse.refuses(c))
        };
        assert_eq!(refused(Level::Normal), [false, false, false]);
        assert_eq!(refused(Level::Elevated), [false, false, false]);
        assert_eq!(refused(Level::High), [false, true, true]);
        assert_eq!(refused(Level::Critical), [true, true, true]);
        assert_eq!(ladder.actions(Level::High).shorten_timeouts, 0.5);
        assert_eq!(ladder.actions(Level::Critical).shorten_timeouts, 1.0);
        let default = Ladder::new(Options::default());
        assert_eq!(default.actions(Level::Critical).refuse, Refuse::Bulk);
    }

    #[test]
    fn options_read_and_write() {
        let written = serde_json::to_string(&Options::default()).unwrap();
        assert_eq!(serde_json::from_str::<Options>(&written).unwrap(), Options::default());
        assert!(serde_json::from_str::<Options>(r#"{"high": {"refuze": "all"}}"#).is_err());
    }
}
