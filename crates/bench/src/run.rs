//! A run: warm-up, window, and the wait for the last answers.

use crate::{
    Error, Load, Options, Report, Setup,
    arrivals::Schedule,
    bodies::Bodies,
    client::Client,
    exchange::{Class, exchange},
    pacer::Pacer,
    recorder::Recorder,
    verdict,
};
use parking_lot::Mutex;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

/// How often progress is told.
const TICK: Duration = Duration::from_millis(250);
/// How long requests in flight may go on after a run was stopped, and how long after a run's end
/// those that are due may wait for a worker.
const GRACE: Duration = Duration::from_secs(2);
/// A worker of a closed loop that could not connect waits so long: it would spin otherwise.
const PAUSE: Duration = Duration::from_millis(20);

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

/// What sending needs; shared by all that send.
struct Shared {
    client: Client,
    bodies: Bodies,
    recorder: Mutex<Recorder>,
    number: AtomicU64,
    timeout: Duration,
    stopping: CancellationToken,
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
    let client = Client::new(options.target, options.operation, &options.headers, options.stream);
    let first = client
        .open()
        .await
        .map_err(|why| Error::Unreachable(format!("nobody answers at {}: {why}", setup.url)))?;
    client.give_back(first);

    let started_at = jiff::Timestamp::now().to_string();
    let start = Instant::now();
    let from = start + options.warmup;
    let until = from + options.duration;
    let requests = options.requests.unwrap_or(u64::MAX);
    let plan =
        Plan { load: options.load, start, from, until, requests, seed: options.seed, is_virtual };
    let shared = Arc::new(Shared {
        client,
        bodies: options.bodies,
        recorder: Mutex::new(Recorder::new(from, until, options.slo.unwrap_or_default())),
        number: AtomicU64::new(0),
        timeout: options.timeout,
        stopping: stop,
    });
    let is_whole = conduct(&shared, &plan, on_tick).await?;
    let mut recorder = shared.recorder.lock();
    Ok(verdict::report(setup, started_at, &mut recorder, !is_whole))
}

/// Sends, waits and tells; whether it went on to its end.
async fn conduct(
    shared: &Arc<Shared>,
    plan: &Plan,
    mut on_tick: impl FnMut(&Snapshot),
) -> Result<bool, Error> {
    // Aborts what is in flight when it is dropped.
    let mut flights = JoinSet::new();
    let mut work = Box::pin(async {
        match plan.load {
            Load::Closed { workers } => send_closed(shared, plan, workers, &mut flights),
            _ => send_scheduled(shared, plan, &mut flights).await?,
        }
        while flights.join_next().await.is_some() {}
        Ok::<(), Error>(())
    });
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut give_up = None;
    let ended = loop {
        tokio::select! {
            ended = &mut work => break ended,
            _ = ticks.tick() => on_tick(&shared.snapshot(plan)),
            () = shared.stopping.cancelled(), if give_up.is_none() => {
                let now = Instant::now();
                shared.recorder.lock().close(now);
                give_up = Some(now + GRACE);
            }
            () = sleep_until(give_up.unwrap_or(plan.until)), if give_up.is_some() => break Ok(()),
        }
    };
    drop(work);
    drop(flights);
    let mut recorder = shared.recorder.lock();
    recorder.requests.unfinished = recorder.in_flight;
    if plan.requests < u64::MAX {
        // All requests asked for were answered before the time was over.
        recorder.close(Instant::now());
    }
    ended.map(|()| give_up.is_none())
}

/// Workers that send their next request when the last has ended.
fn send_closed(shared: &Arc<Shared>, plan: &Plan, workers: usize, flights: &mut JoinSet<()>) {
    let taken = Arc::new(AtomicU64::new(0));
    let (from, until, requests) = (plan.from, plan.until, plan.requests);
    for _ in 0..workers {
        let (shared, taken) = (Arc::clone(shared), Arc::clone(&taken));
        flights.spawn(async move {
            loop {
                let now = Instant::now();
                if now >= until || shared.stopping.is_cancelled() {
                    break;
                }
                if now >= from && taken.fetch_add(1, Relaxed) >= requests {
                    break;
                }
                if shared.send(now).await == Class::Connect {
                    sleep(PAUSE).await;
                }
            }
        });
    }
}

/// Sends what is due, at once or when a worker is free.
async fn send_scheduled(
    shared: &Arc<Shared>,
    plan: &Plan,
    flights: &mut JoinSet<()>,
) -> Result<(), Error> {
    let (per_second, arrivals, most, waits) = match plan.load {
        Load::Open { per_second, arrivals, max_in_flight } => {
            (per_second, arrivals, max_in_flight, false)
        }
        Load::Paced { per_second, arrivals, workers } => (per_second, arrivals, workers, true),
        Load::Closed { .. } => return Ok(()),
    };
    let (from, until) = (plan.from - plan.start, plan.until - plan.start);
    let schedule = Schedule::new(arrivals, per_second, plan.seed, until, from, plan.requests);
    let mut pacer = if plan.is_virtual {
        Pacer::on_timer(schedule, plan.start)
    } else {
        Pacer::on_thread(schedule, plan.start)
            .map_err(|error| Error::Invalid(format!("no thread for the schedule: {error}")))?
    };
    let room = Arc::new(Semaphore::new(most));
    while let Some(due) = until_stop(shared, pacer.next()).await.flatten() {
        shared.recorder.lock().offered(due);
        let permit = if waits {
            let free = Arc::clone(&room).acquire_owned();
            // What still waits so long after the end is never sent.
            tokio::select! {
                biased;
                () = sleep_until(plan.until + GRACE) => None,
                permit = until_stop(shared, free) => permit.and_then(Result::ok),
            }
        } else {
            Arc::clone(&room).try_acquire_owned().ok()
        };
        let Some(permit) = permit else {
            if shared.stopping.is_cancelled() {
                break;
            }
            shared.recorder.lock().dropped(due);
            continue;
        };
        let shared = Arc::clone(shared);
        flights.spawn(async move {
            shared.send(due).await;
            drop(permit);
        });
        while flights.try_join_next().is_some() {}
    }
    let mut recorder = shared.recorder.lock();
    if !shared.stopping.is_cancelled() {
        for due in pacer.left() {
            recorder.offered(due);
            recorder.dropped(due);
        }
    }
    recorder.lost(pacer.lost());
    Ok(())
}

/// `None` when the run is stopped first.
async fn until_stop<T>(shared: &Shared, wanted: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        () = shared.stopping.cancelled() => None,
        got = wanted => Some(got),
    }
}

impl Shared {
    /// Sends one request that was due then, and counts it.
    async fn send(&self, due: Instant) -> Class {
        let began = Instant::now();
        self.recorder.lock().began(began);
        let body = self.bodies.get(self.number.fetch_add(1, Relaxed));
        let ended = exchange(&self.client, body, self.timeout).await;
        self.recorder.lock().ended(due, began, &ended);
        ended.class
    }

    fn snapshot(&self, plan: &Plan) -> Snapshot {
        let recorder = self.recorder.lock();
        let now = Instant::now();
        Snapshot {
            phase: match now {
                now if now < plan.from => Phase::Warmup,
                now if now < recorder.until => Phase::Window,
                _ => Phase::Drain,
            },
            elapsed: now.duration_since(plan.start),
            planned: recorder.until.saturating_duration_since(plan.start),
            in_flight: recorder.in_flight,
            ended: recorder.ended,
            ok: recorder.requests.ok,
            failed: recorder.requests.failed,
            dropped: recorder.requests.dropped,
            last_second: recorder.last_second().and_then(|last| Some((last.p50_ms?, last.p99_ms?))),
        }
    }
}
