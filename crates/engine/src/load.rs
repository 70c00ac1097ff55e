//! How loaded the gateway is, and what is done about it (SPEC §6.8).
//!
//! The ladder is `policy`'s. Its signals cost a lock per gate, so they are gathered every 100 ms
//! at most, by whichever call comes by then; all others read the last level.

use crate::attempt::now;
use parking_lot::Mutex;
use std::time::{Duration, Instant};
use tidegate_policy::load::{Actions, Ladder, Level, Options, Signals};

/// How often the signals are gathered.
const EVERY: Duration = Duration::from_millis(100);

/// The present level and what is done at it.
pub(crate) struct Load(Mutex<Watched>);

struct Watched {
    ladder: Ladder,
    actions: Actions,
    level: Level,
    looked_at: Option<Instant>,
}

impl Load {
    pub(crate) fn new(options: Options) -> Self {
        let ladder = Ladder::new(options);
        let (level, actions) = (Level::Normal, ladder.actions(Level::Normal));
        Self(Mutex::new(Watched { ladder, actions, level, looked_at: None }))
    }

    /// What is done now; `signals` are asked for when it is time to look again.
    pub(crate) fn actions(&self, signals: impl FnOnce(Instant) -> Signals) -> Actions {
        let now = now();
        let mut watched = self.0.lock();
        let due = watched.looked_at.is_none_or(|at| now.saturating_duration_since(at) >= EVERY);
        if due {
            watched.looked_at = Some(now);
            watched.level = watched.ladder.level(now, signals(now));
            watched.actions = watched.ladder.actions(watched.level);
        }
        watched.actions
    }

    /// The level the last call found.
    pub(crate) fn level(&self) -> Level {
        self.0.lock().level
    }
}
