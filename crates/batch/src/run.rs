//! The life of a job: [`run`] is its table of contents.

mod attempt;
mod budget;
mod changes;
mod dispatch;
mod echo;
mod equal;
mod prepare;
mod room;
mod rows;
mod settle;
mod silence;

use crate::{
    End, Failure, Finished, Job, Order, Surroundings,
    journal::{Sink, Writer},
    output::{Assembled, Stream},
    progress::{Reporter, Snapshot, limited_by},
    summary::{Quantiles, Summary, grouped},
};
use budget::Budget;
use dispatch::{Dispatch, Next, State};
use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use prepare::{Desk, Prepared};
use rows::Rows;
use std::{
    io,
    path::Path,
    sync::{Arc, atomic::AtomicU32},
    time::Duration,
};
use tidegate_core::Tenant;
use tokio::time::{Instant, Interval};
use tokio_util::sync::CancellationToken;

/// Runs a job to its end, or to a stop it can be resumed from.
///
/// Dropping the future is a stop like any other: what was answered is in the journal.
///
/// # Errors
///
/// When the job cannot be run, or its results cannot be kept; rows that fail are no error.
pub async fn run(job: Job, around: Surroundings) -> Result<Finished, Failure> {
    let started = Instant::now();
    let mut reporter = Reporter::new(around.progress);

    let Prepared { mut desk, rows, file, end } =
        prepare::prepare(&job, &mut reporter, around.confirm.as_ref())?;
    if rows.tally.done() == desk.order.len() as u64 {
        return already_complete(&job, desk, &rows, &mut reporter);
    }
    desk.begin()?;

    let writer = Writer::start(file, end, stream(&job, &desk, &rows)?)
        .map_err(|error| Failure::io("write the journal", &desk.journal, error))?;
    let shared = Arc::new(attempt::Shared {
        answer: around.answer,
        tenant: Arc::new(Tenant::local()),
        schema: desk.input.schema().cloned(),
        max_attempts: job.max_attempts.max(1),
        retrying: AtomicU32::new(0),
    });
    let mut dispatch = Dispatch {
        job: &job,
        input: &desk.input,
        prices: &around.prices,
        shared,
        budget: Budget::new(job.max_cost, rows.paid.cost.unwrap_or(0.0)),
        equals: desk.equals(),
        rows,
        order: &desk.order,
        writer,
        journal: &desk.journal,
        word: &desk.manifest.job,
        deadline: job.deadline.map(|limit| started + limit),
        state: State::new(),
    };
    let driven = drive(&mut dispatch, &around.stop, &mut reporter, started).await;
    let Dispatch { rows, writer, mut state, .. } = dispatch;
    let written = writer.finish();
    reporter.end();
    driven?;
    written.map_err(|error| journal_failed(&desk.journal, error))?;
    if let Some(failure) = state.failure.take() {
        return Err(failure);
    }

    let end = state.stopping.take().unwrap_or(End::Complete);
    let mut summary = summary(&desk, &rows, &state, started.elapsed());
    let written = match job.order {
        Order::Completion => Some(desk.streamed(&rows)),
        Order::Input if end == End::Complete || end.writes_partial_output() => {
            Some(desk.write_output(&rows)?)
        }
        Order::Input => None,
    };
    conclude(&job, desk, end, &mut summary, written)
}

/// The sink of a job in completion order.
fn stream(job: &Job, desk: &Desk, rows: &Rows) -> Result<Option<Sink>, Failure> {
    if job.order == Order::Input {
        return Ok(None);
    }
    let places = desk.order.iter().filter_map(|row| rows.place(*row));
    Ok(Some(Stream::start(&desk.files, &desk.journal, places)?.into_sink()))
}

/// Keeps calls in flight until every row has ended or the job stops.
async fn drive(
    dispatch: &mut Dispatch<'_>,
    stop: &CancellationToken,
    reporter: &mut Reporter,
    started: Instant,
) -> Result<(), Failure> {
    let mut flight = FuturesUnordered::new();
    let mut ticks = reporter.interval().map(tokio::time::interval);
    let mut looks = tokio::time::interval(silence::LOOK);
    let deadline = dispatch.deadline;
    loop {
        if let Some(error) = dispatch.writer.failure() {
            return Err(journal_failed(dispatch.journal, error));
        }
        if dispatch.state.is_hopeless {
            return Ok(());
        }
        if stop.is_cancelled() {
            dispatch.stop(End::Interrupted);
        }
        let writing = dispatch.is_writing();
        let echoing = dispatch.echo();
        while dispatch.has_room(flight.len()) {
            match dispatch.next() {
                Next::Call(sent) => flight.push(attempt::call(dispatch.shared.clone(), *sent)),
                Next::Wait | Next::Nothing => break,
            }
        }
        if flight.is_empty() && (echoing || !dispatch.is_writing()) {
            if !echoing && dispatch.is_through() && dispatch.settle_held() {
                return Ok(());
            }
            // Nothing is awaited: there is more to do at once.
            tokio::task::yield_now().await;
            continue;
        }
        tokio::select! {
            // What is rare comes first, or a busy upstream would never let it have its turn.
            biased;
            () = stop.cancelled(), if dispatch.state.stopping.is_none() => {
                dispatch.stop(End::Interrupted);
            }
            () = at(deadline), if dispatch.state.stopping.is_none() && deadline.is_some() => {
                dispatch.stop(End::Deadline);
            }
            () = tick(&mut ticks), if ticks.is_some() => {
                reporter.show(&snapshot(dispatch, flight.len(), started));
            }
            _ = looks.tick(), if !flight.is_empty() => dispatch.stop_if_silent(),
            Some(ended) = flight.next(), if !flight.is_empty() => {
                dispatch.settle(ended);
                while let Some(Some(ended)) = flight.next().now_or_never() {
                    dispatch.settle(ended);
                }
            }
            () = dispatch.writer.moved(), if writing || dispatch.is_writing() => {}
            () = tokio::time::sleep(room::LOOK), if dispatch.is_cold() => {}
        }
    }
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

async fn tick(ticks: &mut Option<Interval>) {
    match ticks {
        Some(ticks) => {
            ticks.tick().await;
        }
        None => std::future::pending().await,
    }
}

fn journal_failed(journal: &Path, error: io::Error) -> Failure {
    Failure::io(
        "go on (what was answered before is safe: run the same command again once this is mended); \
         writing",
        journal,
        error,
    )
}

fn snapshot(dispatch: &mut Dispatch<'_>, in_flight: usize, started: Instant) -> Snapshot {
    let target = dispatch.target();
    let upstreams = dispatch.shared.answer.upstreams();
    let retrying = dispatch.retrying(in_flight, &upstreams);
    let Dispatch { rows, state, order, .. } = dispatch;
    let total = order.len() as u64;
    let (tally, paid) = (&rows.tally, &rows.paid);
    let done = tally.done();
    let called = done.saturating_sub(tally.cached);
    Snapshot {
        total,
        ok: tally.ok,
        failed: tally.failed,
        cached: tally.cached,
        retrying,
        in_flight: in_flight as u64,
        ended: state.ended,
        tokens: paid.usage.total(),
        cost: paid.cost,
        projected: paid
            .cost
            .filter(|_| called > 0 && done > 0)
            .map(|cost| cost / done as f64 * total as f64),
        elapsed: started.elapsed(),
        limited_by: limited_by(&upstreams, in_flight >= target, dispatch.writer.is_behind()),
    }
}

/// What the run came to; why it ended is filled in at the end.
fn summary(desk: &Desk, rows: &Rows, state: &State, elapsed: Duration) -> Summary {
    let tally = &rows.tally;
    let seconds = elapsed.as_secs_f64();
    let ms = |share| state.latencies.quantile(share).map(|us| us as f64 / 1e3);
    Summary {
        rows: desk.order.len() as u64,
        ok: tally.ok,
        failed: tally.failed,
        left: desk.order.len() as u64 - tally.done(),
        cached: tally.cached,
        failed_by_class: tally.failed_by_class.clone(),
        attempts: rows.paid.attempts,
        usage: rows.paid.usage.into(),
        cost: rows.paid.cost,
        elapsed_s: seconds,
        rows_per_s: if seconds > 0.0 { state.ended as f64 / seconds } else { 0.0 },
        latency_ms: Quantiles { p50: ms(0.5), p95: ms(0.95), p99: ms(0.99) },
        ..Summary::default()
    }
}

/// Everything was done before: says so, and writes the output again only if it is not there.
fn already_complete(
    job: &Job,
    mut desk: Desk,
    rows: &Rows,
    reporter: &mut Reporter,
) -> Result<Finished, Failure> {
    let mut summary = summary(&desk, rows, &State::new(), Duration::ZERO);
    let hint = match summary.failed {
        0 => "",
        _ => "; `tidegate batch retry` runs the failed again",
    };
    reporter.note(&format!(
        "everything is done: {} ok, {} failed{hint}",
        grouped(summary.ok),
        grouped(summary.failed)
    ));
    let written = if desk.output_is_current() {
        summary.output = Some(desk.files.output_name());
        summary.errors = (summary.failed > 0).then(|| desk.files.errors.display().to_string());
        None
    } else {
        desk.begin()?;
        Some(desk.write_output(rows)?)
    };
    conclude(job, desk, End::AlreadyComplete, &mut summary, written)
}

/// Writes down how the run ended.
fn conclude(
    job: &Job,
    desk: Desk,
    end: End,
    summary: &mut Summary,
    written: Option<Assembled>,
) -> Result<Finished, Failure> {
    let Desk { files, mut manifest, .. } = desk;
    let ran = end != End::AlreadyComplete;
    summary.state = end.name().to_owned();
    if let Some(written) = written {
        manifest.wrote(&files, summary.rows, written.output_bytes);
        summary.output = Some(files.output_name());
        summary.errors = (written.error_rows > 0).then(|| files.errors.display().to_string());
    }
    let mut finished = Finished { summary: summary.clone(), end, resume: String::new() };
    finished.summary.exit_code = finished.exit_code();
    if ran {
        manifest.summary = Some(finished.summary.clone());
        manifest.elapsed_ms += (summary.elapsed_s * 1e3) as u64;
    }
    if ran || written.is_some() {
        manifest.state = finished.end.name().to_owned();
        manifest.write(&files)?;
    }
    if !job.arguments.is_empty() {
        finished.resume = manifest.command();
    }
    Ok(finished)
}
