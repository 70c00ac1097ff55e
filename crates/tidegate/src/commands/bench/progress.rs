//! Tells how far a run is.

use std::{
    io::{self, IsTerminal, Write},
    time::Duration,
};
use tidegate_bench::{Phase, Snapshot};

/// A line that tells how far a run is, on a terminal; every ten seconds a line elsewhere.
pub(super) struct Progress {
    is_live: bool,
    is_quiet: bool,
    ended: u64,
    at: Duration,
    per_second: f64,
}

/// How often a line is written where it cannot be overwritten.
const LINE_EVERY: Duration = Duration::from_secs(10);

impl Progress {
    pub(super) fn new(is_quiet: bool) -> Self {
        let is_live = io::stderr().is_terminal();
        Self { is_live, is_quiet, ended: 0, at: Duration::ZERO, per_second: 0.0 }
    }

    pub(super) fn show(&mut self, at: &Snapshot) {
        let since = at.elapsed.saturating_sub(self.at);
        let every = if self.is_live { Duration::from_millis(990) } else { LINE_EVERY };
        if self.is_quiet || !self.is_live && since < every {
            return;
        }
        if since >= every {
            self.per_second = (at.ended - self.ended) as f64 / since.as_secs_f64();
            (self.ended, self.at) = (at.ended, at.elapsed);
        }
        let line = line(at, self.per_second);
        // Nobody is left to tell when standard error is gone.
        drop(if self.is_live {
            write!(io::stderr().lock(), "\r\x1b[2K{line}")
        } else {
            writeln!(io::stderr().lock(), "{line}")
        });
    }

    /// Takes the live line away: the report follows.
    pub(super) fn end(&self) {
        if self.is_live && !self.is_quiet {
            drop(write!(io::stderr().lock(), "\r\x1b[2K"));
        }
    }
}

fn line(at: &Snapshot, per_second: f64) -> String {
    let phase = match at.phase {
        Phase::Warmup => "warm-up",
        Phase::Window => "measuring",
        Phase::Drain => "waiting for the last answers",
    };
    // A run by number has no length to tell.
    let planned = match at.planned.as_secs() {
        planned if planned < 80_000 => format!("/{planned}"),
        _ => String::new(),
    };
    let mut text = format!(
        "{:.0}{planned} s {phase} · {per_second:.1} req/s · {} ok · {} failed · {} in flight",
        at.elapsed.as_secs_f64(),
        at.ok,
        at.failed,
        at.in_flight
    );
    if at.dropped > 0 {
        text += &format!(" · {} DROPPED", at.dropped);
    }
    if let Some((p50, p99)) = at.last_second {
        text += &format!(" · p50 {p50:.1} ms, p99 {p99:.1} ms");
    }
    text
}
