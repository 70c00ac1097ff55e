//! A run: warm-up, window, and the wait for the last answers.

use crate::{
    Error, Load, Options, Report, Setup,
    arrivals::Schedule,
    client::Client,
    exchange::Kept,
    generator::Effort,
    line::{Handed, Line},
    pacer::Pacer,
    recorder::Recorder,
    verdict,
    worker::{Shared, Turns, Worker},
};
use parking_lot::Mutex;
use std::{
    io,
    pin::pin,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};
use tokio::{
    task::{JoinError, JoinSet},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tokio_util::sync::CancellationToken;

/// How often progress is told.
const TICK: Duration = Duration::from_millis(250);
/// How long requests in flight may go on after a run was stopped, and how long after a run's end
/// those that are due may wait for a worker.
const GRACE: Duration = Duration::from_secs(2);

/// Where a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Requests are sent and not measured.
    Warmup,
    /// Requests are measured.
    Window,
    /// The last answers are waited for.
    Drain,
}

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Snapshot {
    /// Where it is.
    pub phase: Phase,
    /// Since the start, warm-up included.
    pub elapsed: Duration,
    /// Until sending ends.
    pub planned: Duration,
    /// Requests in flight.
    pub in_flight: u64,
    /// Ended since the start, warm-up included.
    pub ended: u64,
    /// Measured and answered in full.
    pub ok: u64,
    /// Measured and failed.
    pub failed: u64,
    /// Due and not sent.
    pub dropped: u64,
    /// Half and 99 % of the last second's latencies, in milliseconds.
    pub last_second: Option<(f64, f64)>,
}

/// When requests are sent.
struct Plan {
    load: Load,
    start: Instant,
    from: Instant,
    until: Instant,
    /// Most requests from `from` on.
    requests: u64,
    seed: u64,
    /// Paced by the runtime's timer.
    is_virtual: bool,
}

/// Puts the load on the server. `stop` ends it early, with a report of what was seen; `on_tick`
/// is told four times a second how far it is.
///
/// # Errors
///
/// When the options cannot be, or nobody listens at the target.
pub async fn run(
    mut options: Options,
    stop: CancellationToken,
    on_tick: impl FnMut(&Snapshot),
) -> Result<Report, Error> {
    options.check().map_err(Error::Invalid)?;
    options.target.resolve().await?;
    let setup = Setup::of(&options);
    let is_virtual = options.target.is_local();
    let Options { target, operation, headers, bodies, stream, .. } = options;
    let client = Client::new(target, operation, &headers, bodies, stream);
    let first = client
        .probe()
        .await
        .map_err(|why| Error::Unreachable(format!("nobody answers at {}: {why}", setup.url)))?;
    let kept = Kept::of(first);

    let started_at = jiff::Timestamp::now().to_string();
    let start = Instant::now();
    let from = start + options.warmup;
    let until = from + options.duration;
    let requests = options.requests.unwrap_or(u64::MAX);
    let plan =
        Plan { load: options.load, start, from, until, requests, seed: options.seed, is_virtual };
    let shared = Arc::new(Shared {
        client,
        recorder: Mutex::new(Recorder::new(from, until, options.slo.unwrap_or_default())),
        number: AtomicU64::new(0),
        timeout: options.timeout,
        stopping: stop,
    });
    let mut effort = Effort::new(from, is_virtual);
    let is_whole = conduct(&shared, &plan, kept, &mut effort, on_tick).await?;
    let mut recorder = shared.recorder.lock();
    let ended = recorder.ended;
    Ok(verdict::report(setup, started_at, &mut recorder, effort.finish(ended), !is_whole))
}

/// Sends, waits and tells; whether it went on to its end.
async fn conduct(
    shared: &Arc<Shared>,
    plan: &Plan,
    kept: Kept,
    effort: &mut Effort,
    mut on_tick: impl FnMut(&Snapshot),
) -> Result<bool, Error> {
    let mut work = pin!(send_all(shared, plan, kept));
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut give_up = None;
    let ended = loop {
        tokio::select! {
            ended = &mut work => break ended,
            _ = ticks.tick() => {
                let at = {
                    let mut recorder = shared.recorder.lock();
                    recorder.flush();
                    effort.look(recorder.until, recorder.ended);
                    plan.snapshot(&recorder)
                };
                on_tick(&at);
            }
            () = shared.stopping.cancelled(), if give_up.is_none() => {
                let now = Instant::now();
                shared.recorder.lock().close(now);
                give_up = Some(now + GRACE);
            }
            () = sleep_until(give_up.unwrap_or(plan.until)), if give_up.is_some() => break Ok(()),
        }
    };
    let mut recorder = shared.recorder.lock();
    recorder.requests.unfinished = recorder.in_flight;
    if plan.requests < u64::MAX {
        // All requests asked for were answered before the time was over.
        recorder.close(Instant::now());
    }
    let failed = |error| Error::Invalid(format!("no timer for the schedule: {error}"));
    ended.map(|()| give_up.is_none()).map_err(failed)
}

/// Sends all requests and waits for their answers. Dropping it ends what is in flight.
async fn send_all(shared: &Arc<Shared>, plan: &Plan, kept: Kept) -> io::Result<()> {
    let mut flights = JoinSet::new();
    match plan.load {
        Load::Closed { workers } => send_closed(shared, plan, workers, kept, &mut flights),
        Load::Open { per_second, arrivals, max_in_flight } => {
            let line = Arc::new(Line::new(max_in_flight, false));
            let pacer = plan.pacer(arrivals, per_second)?;
            flights.spawn(send_scheduled(Arc::clone(shared), plan.until, pacer, line, kept));
        }
        Load::Paced { per_second, arrivals, workers } => {
            let line = Arc::new(Line::new(workers, true));
            let pacer = plan.pacer(arrivals, per_second)?;
            flights.spawn(send_scheduled(Arc::clone(shared), plan.until, pacer, line, kept));
        }
    }
    while let Some(ended) = flights.join_next().await {
        joined(ended)?;
    }
    Ok(())
}

/// Workers that send their next request when the last has ended.
fn send_closed(
    shared: &Arc<Shared>,
    plan: &Plan,
    workers: usize,
    kept: Kept,
    flights: &mut JoinSet<io::Result<()>>,
) {
    let turns =
        Arc::new(Turns { from: plan.from, until: plan.until, left: AtomicU64::new(plan.requests) });
    let mut kept = Some(kept);
    for _ in 0..workers {
        let worker = Worker::new(Arc::clone(shared), kept.take().unwrap_or_default());
        let turns = Arc::clone(&turns);
        flights.spawn(async move {
            worker.loop_over(turns).await;
            Ok(())
        });
    }
}

/// Hands what is due to workers, as many as it takes and the line allows.
///
/// A task of its own: it is woken for every request, and nobody else should be.
async fn send_scheduled(
    shared: Arc<Shared>,
    until: Instant,
    mut pacer: Pacer,
    line: Arc<Line>,
    kept: Kept,
) -> io::Result<()> {
    let mut workers = JoinSet::new();
    let mut kept = Some(kept);
    let mut stopped = pin!(shared.stopping.cancelled());
    let drop_all = |dues: &mut dyn Iterator<Item = Instant>, were_offered: bool| {
        let mut recorder = shared.recorder.lock();
        for due in dues {
            if !were_offered {
                recorder.offered(due);
            }
            recorder.dropped(due);
        }
    };
    let mut is_stopped = false;
    loop {
        let due = tokio::select! {
            biased;
            () = &mut stopped => {
                is_stopped = true;
                break;
            }
            due = pacer.next() => due?,
        };
        let Some((due, now)) = due else { break };
        // The generator is so late that what is left of the schedule would be another run.
        if now > until + GRACE {
            drop_all(&mut std::iter::once(due), false);
            drop_all(&mut std::iter::from_fn(|| pacer.next_due()), false);
            break;
        }
        shared.recorder.lock().offered(due);
        match line.hand(due) {
            Handed::Taken => {}
            Handed::Dropped => shared.recorder.lock().dropped(due),
            Handed::Unmanned => {
                let worker = Worker::new(Arc::clone(&shared), kept.take().unwrap_or_default());
                workers.spawn(worker.serve(Arc::clone(&line)));
            }
        }
    }
    line.close();
    if is_stopped {
        drop_all(&mut line.clear().into_iter(), true);
    }
    loop {
        tokio::select! {
            ended = workers.join_next() => match ended {
                Some(ended) => joined(ended),
                None => return Ok(()),
            },
            // What still waits is never sent, once the run is stopped or long over.
            () = &mut stopped, if !is_stopped => is_stopped = true,
            () = sleep_until(until + GRACE), if !is_stopped => is_stopped = true,
        }
        if is_stopped {
            drop_all(&mut line.clear().into_iter(), true);
        }
    }
}

/// What a task came to. Nothing aborts one but the end of all; a panic goes on here.
fn joined<T>(ended: Result<T, JoinError>) -> T {
    ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

impl Plan {
    fn pacer(&self, arrivals: crate::Arrivals, per_second: f64) -> io::Result<Pacer> {
        let (from, until) = (self.from - self.start, self.until - self.start);
        let schedule = Schedule::new(arrivals, per_second, self.seed, until, from, self.requests);
        if self.is_virtual {
            return Ok(Pacer::on_runtime(schedule, self.start));
        }
        Pacer::on_clock(schedule, self.start)
    }

    fn snapshot(&self, recorder: &Recorder) -> Snapshot {
        let now = Instant::now();
        Snapshot {
            phase: match now {
                now if now < self.from => Phase::Warmup,
                now if now < recorder.until => Phase::Window,
                _ => Phase::Drain,
            },
            elapsed: now.duration_since(self.start),
            planned: recorder.until.saturating_duration_since(self.start),
            in_flight: recorder.in_flight,
            ended: recorder.ended,
            ok: recorder.requests.ok,
            failed: recorder.requests.failed,
            dropped: recorder.requests.dropped,
            last_second: recorder.last_second().and_then(|last| Some((last.p50_ms?, last.p99_ms?))),
        }
    }
}
