//! `tidegate bench`: a load generator for model APIs, and the comparison of two of its reports.

mod args;
mod files;
mod progress;

pub(crate) use args::Args;

use crate::{config::Environment, output, signals};
use anyhow::Context;
use args::{CompareArgs, LoadArgs, RequestArgs, RunArgs, Verb, VerdictArgs};
use files::{Files, is_stdout};
use progress::Progress;
use std::{
    fs::{self, File},
    io::BufReader,
    path::Path,
    time::Duration,
};
use tidegate_bench::{
    Bodies, Error, Headers, Load, Options, Report, Shape, Slo, Target, compare, discover_model,
};

/// Exit code of an option or a file that cannot be used.
const USAGE: u8 = 2;
/// Exit code of a run with too many errors, or of a comparison that got worse.
const FAILED: u8 = 3;
/// Exit code when the server does not let us in.
const NO_ENTRY: u8 = 4;
/// Exit code when nobody answers.
const UNREACHABLE: u8 = 6;
/// Exit code of a run that a signal ended.
const INTERRUPTED: u8 = 130;

/// Puts the load on, or compares.
pub(crate) fn run(args: Args) -> anyhow::Result<u8> {
    if let Some(Verb::Compare(args)) = args.verb {
        return compared(&args);
    }
    let runtime = match args.run.load.threads {
        1 => tokio::runtime::Builder::new_current_thread().enable_all().build(),
        threads => tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads.into())
            .enable_all()
            .build(),
    }
    .context("starting the runtime")?;
    runtime.block_on(measured(args.run))
}

async fn measured(args: RunArgs) -> anyhow::Result<u8> {
    let VerdictArgs { slo, json, html, max_error_share, quiet } = args.verdict;
    if html.as_deref().is_some_and(is_stdout) {
        return Ok(usage("--html writes a page into a file: name one"));
    }
    let options = match options(args.url, args.load, args.request, slo).await {
        Ok(options) => options,
        Err(error) => return Ok(refused(&error)),
    };
    let files = match Files::claim(json, html) {
        Ok(files) => files,
        Err(why) => return Ok(usage(&why)),
    };
    // Each in flight is a socket.
    tidegate_bench::raise_file_limit();
    let stop = signals::drain_on_signal("stopping; the report follows")?;
    let mut progress = Progress::new(quiet);
    let ran = tidegate_bench::run(options, stop.clone(), |at| progress.show(at)).await;
    progress.end();
    let report = match ran {
        Ok(report) => report,
        Err(error) => {
            files.give_up();
            return Ok(refused(&error));
        }
    };
    files.write(&report)?;
    Ok(verdict(&report, max_error_share, stop.is_cancelled()))
}

fn verdict(report: &Report, max_error_share: Option<f64>, is_interrupted: bool) -> u8 {
    if is_interrupted {
        return INTERRUPTED;
    }
    if report.requests.measured == 0 {
        return usage("no request was measured; give a longer --duration or a higher --rate");
    }
    if !report.has_answers() {
        output::note("error: nothing was answered");
        return UNREACHABLE;
    }
    match max_error_share {
        Some(most) if report.error_share() > most => {
            output::note(&format!(
                "error: {:.2} % of the requests failed, more than --max-error-share {:.2} %",
                report.error_share() * 100.0,
                most * 100.0
            ));
            FAILED
        }
        _ => 0,
    }
}

async fn options(
    url: Option<String>,
    load: LoadArgs,
    request: RequestArgs,
    slo: Option<Slo>,
) -> Result<Options, Error> {
    let invalid = |what: &str, why: String| Error::Invalid(format!("{what}: {why}"));
    let mut target =
        Target::parse(&url.unwrap_or_default()).map_err(|why| invalid("the URL", why))?;
    if request.http2 {
        target = target.with_http2();
    }
    let headers = headers(&request)?;
    let model = match &request.model {
        Some(model) => model.clone(),
        None => discover_model(&mut target, &headers).await?,
    };
    let shape = Shape {
        operation: request.endpoint,
        model: model.clone(),
        overrides_model: request.model.is_some(),
        max_tokens: request.max_tokens,
        stream: request.stream,
    };
    let bodies = match &request.prompts {
        None => Bodies::prompt(&request.prompt, &shape),
        Some(path) => {
            let named = |why: String| invalid(&path.display().to_string(), why);
            let file = File::open(path).map_err(|error| named(error.to_string()))?;
            Bodies::read(BufReader::new(file), &shape).map_err(named)?
        }
    };
    let arrivals = load.arrivals.into();
    let warmup = load.warmup.unwrap_or(match load.requests {
        Some(_) => Duration::ZERO,
        None => Duration::from_secs(2),
    });
    let options = Options {
        target,
        operation: request.endpoint,
        model,
        bodies,
        headers,
        stream: request.stream,
        load: match (load.rate, load.concurrency) {
            (Some(per_second), Some(workers)) => Load::Paced { per_second, arrivals, workers },
            (Some(per_second), None) => {
                Load::Open { per_second, arrivals, max_in_flight: load.max_in_flight }
            }
            (None, workers) => Load::Closed { workers: workers.unwrap_or(16) },
        },
        duration: load.duration.unwrap_or(match load.requests {
            Some(_) => Options::LONGEST.saturating_sub(warmup),
            None => Duration::from_secs(30),
        }),
        warmup,
        requests: load.requests,
        timeout: load.timeout,
        slo,
        seed: load.seed,
    };
    options.check().map_err(Error::Invalid)?;
    Ok(options)
}

fn headers(request: &RequestArgs) -> Result<Headers, Error> {
    let mut headers = Headers::new();
    for line in &request.header {
        headers =
            headers.with_line(line).map_err(|why| Error::Invalid(format!("--header: {why}")))?;
    }
    if let Some(priority) = request.priority {
        headers = headers.with_priority(priority);
    }
    let named = request.api_key_env.as_deref();
    match Environment::current().api_key(named).map_err(Error::Invalid)? {
        None => Ok(headers),
        Some(key) => {
            headers.with_key(key).map_err(|why| Error::Invalid(format!("--api-key-env: {why}")))
        }
    }
}

fn usage(why: &str) -> u8 {
    output::note(&format!("error: {why}"));
    USAGE
}

fn refused(error: &Error) -> u8 {
    match error {
        Error::Invalid(why) => usage(why),
        Error::Refused(why) => {
            output::note(&format!("error: {why}"));
            NO_ENTRY
        }
        Error::Unreachable(why) => {
            output::note(&format!("error: {why}"));
            UNREACHABLE
        }
    }
}

fn compared(args: &CompareArgs) -> anyhow::Result<u8> {
    let read = |path: &Path| -> Result<Report, String> {
        let named = |why: String| format!("{}: {why}", path.display());
        let text = fs::read_to_string(path).map_err(|error| named(error.to_string()))?;
        Report::from_json(&text).map_err(named)
    };
    let (before, after) = match (read(&args.before), read(&args.after)) {
        (Ok(before), Ok(after)) => (before, after),
        (Err(why), _) | (_, Err(why)) => return Ok(usage(&why)),
    };
    let comparison = compare(&before, &after);
    let names = [&args.before, &args.after].map(|path| path.display().to_string());
    output::data(&comparison.to_text([&names[0], &names[1]], args.fail_above))?;
    let Some(bound) = args.fail_above else { return Ok(0) };
    let worse = comparison.worse_than(bound);
    if worse.is_empty() {
        return Ok(0);
    }
    output::note(&format!("error: worse by more than {} %: {}", bound * 100.0, worse.join(", ")));
    Ok(FAILED)
}
