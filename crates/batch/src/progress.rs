//! How far a job is, for a person, a log or a program: never on standard output.

mod limit;
mod speed;

pub(crate) use limit::{LimitedBy, limited_by};

use crate::summary::{grouped, money, short};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use speed::Speed;
use std::{io::Write, time::Duration};

/// How progress is shown.
pub enum Progress {
    /// Not at all; warnings are dropped too.
    None,
    /// One line every 10 seconds.
    Plain(Box<dyn Write + Send>),
    /// One JSON object a second, and one for each message.
    Json(Box<dyn Write + Send>),
    /// A live bar on standard error, which must be a terminal.
    Bar,
}

/// Where a job stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Snapshot {
    pub(crate) total: u64,
    pub(crate) ok: u64,
    pub(crate) failed: u64,
    pub(crate) cached: u64,
    pub(crate) retrying: u64,
    pub(crate) in_flight: u64,
    /// Rows that ended in this run.
    pub(crate) ended: u64,
    /// Tokens used so far.
    pub(crate) tokens: u64,
    pub(crate) cost: Option<f64>,
    /// What the whole job will cost if it goes on like this.
    pub(crate) projected: Option<f64>,
    pub(crate) elapsed: Duration,
    pub(crate) limited_by: LimitedBy,
}

/// Shows progress and messages.
pub(crate) struct Reporter {
    to: To,
    speed: Speed,
}

enum To {
    Nowhere,
    Plain(Box<dyn Write + Send>),
    Json(Box<dyn Write + Send>),
    Bar(ProgressBar),
}

/// One line of `--progress json`.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Event<'a> {
    Message {
        message: &'a str,
    },
    Progress {
        done: u64,
        total: u64,
        ok: u64,
        failed: u64,
        retrying: u64,
        in_flight: u64,
        cached: u64,
        rows_per_s: f64,
        tokens_per_s: f64,
        cost: Option<f64>,
        projected_cost: Option<f64>,
        elapsed_s: f64,
        eta_s: Option<f64>,
        limited_by: &'static str,
    },
}

impl Reporter {
    pub(crate) fn new(progress: Progress) -> Self {
        let to = match progress {
            Progress::None => To::Nowhere,
            Progress::Plain(out) => To::Plain(out),
            Progress::Json(out) => To::Json(out),
            Progress::Bar => To::Bar(bar()),
        };
        Self { to, speed: Speed::default() }
    }

    /// How often it wants to be shown where the job stands.
    pub(crate) const fn interval(&self) -> Option<Duration> {
        match self.to {
            To::Nowhere => None,
            To::Plain(_) => Some(Duration::from_secs(10)),
            To::Json(_) => Some(Duration::from_secs(1)),
            To::Bar(_) => Some(Duration::from_millis(250)),
        }
    }

    /// Tells something once.
    pub(crate) fn note(&mut self, message: &str) {
        // Nobody is left to tell when standard error is gone.
        let _ = match &mut self.to {
            To::Nowhere => Ok(()),
            To::Plain(out) => writeln!(out, "{message}"),
            To::Json(out) => write_event(out, &Event::Message { message }),
            To::Bar(bar) => bar.suspend(|| writeln!(std::io::stderr(), "{message}")),
        };
    }

    /// Shows where the job stands.
    pub(crate) fn show(&mut self, at: &Snapshot) {
        self.speed.see(at.elapsed, at.ended, at.tokens);
        let (rows_per_s, tokens_per_s) = self.speed.per_second();
        let done = at.ok + at.failed;
        let eta = (rows_per_s > 0.0 && at.total > done)
            .then(|| Duration::from_secs_f64(((at.total - done) as f64 / rows_per_s).min(1e9)));
        let _ = match &mut self.to {
            To::Nowhere => Ok(()),
            // The first tick comes at once, when there is nothing to tell.
            To::Plain(_) | To::Json(_) if at.elapsed < Duration::from_millis(500) => Ok(()),
            To::Plain(out) => {
                let percent =
                    if at.total == 0 { 100.0 } else { done as f64 * 100.0 / at.total as f64 };
                writeln!(
                    out,
                    "{}/{} rows ({percent:.1} %) · {}",
                    grouped(done),
                    grouped(at.total),
                    line(at, rows_per_s, tokens_per_s, eta)
                )
            }
            To::Json(out) => write_event(
                out,
                &Event::Progress {
                    done,
                    total: at.total,
                    ok: at.ok,
                    failed: at.failed,
                    retrying: at.retrying,
                    in_flight: at.in_flight,
                    cached: at.cached,
                    rows_per_s,
                    tokens_per_s,
                    cost: at.cost,
                    projected_cost: at.projected,
                    elapsed_s: at.elapsed.as_secs_f64(),
                    eta_s: eta.map(|eta| eta.as_secs_f64()),
                    limited_by: at.limited_by.name(),
                },
            ),
            To::Bar(bar) => {
                bar.set_length(at.total);
                bar.set_position(done);
                bar.set_message(line(at, rows_per_s, tokens_per_s, eta));
                bar.tick();
                Ok(())
            }
        };
    }

    /// Takes the bar away: the summary follows.
    pub(crate) fn end(&mut self) {
        if let To::Bar(bar) = &self.to {
            bar.finish_and_clear();
        }
    }
}

fn write_event(out: &mut Box<dyn Write + Send>, event: &Event<'_>) -> std::io::Result<()> {
    let mut text = serde_json::to_vec(event)?;
    text.push(b'\n');
    out.write_all(&text)?;
    out.flush()
}

fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template(
        "{bar:30} {human_pos}/{human_len} ({percent} %) · {elapsed}\n{wide_msg}",
    )
    .expect("the template is valid")
    .progress_chars("━╸ ");
    ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(5)).with_style(style)
}

fn line(at: &Snapshot, rows_per_s: f64, tokens_per_s: f64, eta: Option<Duration>) -> String {
    let mut text = format!("{} ok, {} failed", grouped(at.ok), grouped(at.failed));
    for (count, word) in
        [(at.retrying, "retrying"), (at.in_flight, "in flight"), (at.cached, "cached")]
    {
        if count > 0 {
            text += &format!(", {} {word}", grouped(count));
        }
    }
    text += &format!(" · {rows_per_s:.1} req/s, {tokens_per_s:.0} tok/s · {}", money(at.cost));
    if let Some(projected) = at.projected {
        text += &format!(" → {}", money(Some(projected)));
    }
    if let Some(eta) = eta {
        text += &format!(" · ETA {}", short(eta));
    }
    text + &format!(" · limited by: {}", at.limited_by.name())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn snapshot() -> Snapshot {
        Snapshot {
            total: 2000,
            ok: 990,
            failed: 10,
            cached: 0,
            retrying: 2,
            in_flight: 64,
            ended: 1000,
            tokens: 50_000,
            cost: Some(0.5),
            projected: Some(1.0),
            elapsed: Duration::from_secs(10),
            limited_by: LimitedBy::Refusals,
        }
    }

    #[test]
    fn a_line_tells_it_all() {
        let out = Shared::default();
        let mut reporter = Reporter::new(Progress::Plain(Box::new(out.clone())));
        reporter.show(&snapshot());
        assert_eq!(
            String::from_utf8(out.0.lock().unwrap().clone()).unwrap(),
            "1,000/2,000 rows (50.0 %) · 990 ok, 10 failed, 2 retrying, 64 in flight · 100.0 req/s, \
             5000 tok/s · $0.5000 → $1.00 · ETA 10.0s · limited by: 429s\n"
        );
    }

    #[test]
    fn json_is_one_object_a_line() {
        let out = Shared::default();
        let mut reporter = Reporter::new(Progress::Json(Box::new(out.clone())));
        reporter.note("resuming");
        reporter.show(&snapshot());
        let text = String::from_utf8(out.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines[0]["message"], "resuming");
        assert_eq!(lines[1]["event"], "progress");
        assert_eq!(lines[1]["eta_s"], 10.0);
    }
}
