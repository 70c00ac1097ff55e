//! What a run costs the tool itself.
//!
//! # Why
//!
//! A generator out of breath measures itself. An open loop shows it by sending late; a closed one
//! would report the tool's limit as the server's, with nothing to tell the two apart.

use crate::Generator;
use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;
use tokio::{runtime::Handle, time::Instant};

/// Windows shorter than this tell nothing.
const SHORTEST: Duration = Duration::from_millis(100);

/// Fewer requests than this have no cost of their own to tell from the tool's.
const FEWEST: u64 = 100;

/// Looks at the process's time from the start of a window to its end.
pub(crate) struct Effort {
    from: Instant,
    /// The server is in the same process.
    is_mixed: bool,
    looks: Option<[Look; 2]>,
}

#[derive(Clone, Copy)]
struct Look {
    at: Instant,
    cpu: Duration,
    ended: u64,
}

impl Effort {
    pub(crate) const fn new(from: Instant, is_mixed: bool) -> Self {
        Self { from, is_mixed, looks: None }
    }

    /// To be called now and then; `ended` requests have.
    pub(crate) fn look(&mut self, until: Instant, ended: u64) {
        let at = Instant::now();
        if self.is_mixed || !(self.from..until).contains(&at) {
            return;
        }
        let look = Look { at, cpu: process_time(), ended };
        let [first, _] = self.looks.unwrap_or([look; 2]);
        self.looks = Some([first, look]);
    }

    /// What it came to, at the end of a run.
    pub(crate) fn finish(mut self, ended: u64) -> Option<Generator> {
        if self.looks.is_some_and(|[first, last]| last.at - first.at < SHORTEST) {
            // Over before a second look.
            self.look(Instant::now() + SHORTEST, ended);
        }
        let [first, last] = self.looks?;
        let wall = last.at - first.at;
        if wall < SHORTEST {
            return None;
        }
        let threads = Handle::current().metrics().num_workers();
        let cpu = last.cpu.saturating_sub(first.cpu).as_secs_f64();
        let requests = last.ended - first.ended;
        Some(Generator {
            threads: threads as u64,
            cpu_s: cpu,
            cpu_us_per_request: (requests >= FEWEST).then(|| cpu * 1e6 / requests as f64),
            busy: cpu / (wall.as_secs_f64() * threads as f64),
        })
    }
}

/// User and system time of all threads of this process.
fn process_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default()
}
