//! `tidegate bench`: a load generator for model APIs, and the comparison of two of its reports.

use crate::{config::Environment, output, signals};
use anyhow::Context;
use std::{
    fs::File,
    io::{self, BufReader, IsTerminal, Write},
    path::{Path, PathBuf},
    time::Duration,
};
use tidegate_bench::{
    Arrivals, Bodies, Error, Headers, Load, Options, Phase, Report, Shape, Slo, Snapshot, Target,
    compare, discover_model,
};
use tidegate_core::{Operation, Priority};
use tidegate_policy::setting::parse_duration;

/// Exit code of an option or a file that cannot be used.
const USAGE: u8 = 2;
/// Exit code of a run with too many errors, or of a comparison that got worse.
const FAILED: u8 = 3;
/// Exit code when nobody answers.
const UNREACHABLE: u8 = 6;
/// Exit code of a run that a signal ended.
const INTERRUPTED: u8 = 130;

/// Puts a load on a model API and measures how it bears it
///
/// URL is the server up to and with /v1. With --rate requests come by a schedule that does not
/// wait for answers (an open loop, as users do), and latencies run from the moment a request was
/// due: a server that stalls cannot hide it by slowing the load down. With --concurrency each
/// worker sends its next request when the last has ended (a closed loop): it finds how much a
/// server can do, not how it feels. With both, the schedule is kept by so many workers, and
/// waiting for one counts.
///
/// The table goes to standard output; --json and --html write reports.
#[derive(clap::Args, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    arg_required_else_help = true,
    after_help = EXAMPLES
)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    run: RunArgs,
}

const EXAMPLES: &str = "Examples:
  tidegate bench http://127.0.0.1:8090/v1 --rate 200 --duration 30s --stream
  tidegate bench http://127.0.0.1:8080/v1 --concurrency 64 --api-key-env TIDEGATE_KEY
  tidegate bench https://api.example.com/v1 --api-key-env API_KEY --model m --rate 2 \\
      --prompts prompts.jsonl --max-tokens 200 --stream --slo ttft=500ms,total=5s \\
      --json run.json --html run.html
  tidegate bench compare before.json after.json --fail-above 10%

Exit codes: 0 done; 1 internal error; 2 usage or invalid input; 3 more errors than
--max-error-share, or worse than --fail-above; 6 nobody answered; 130 interrupted, with a report.";

#[derive(clap::Subcommand, Debug)]
enum Verb {
    /// Shows two JSON reports side by side, and what got worse
    Compare(CompareArgs),
}

#[derive(clap::Args, Debug)]
struct CompareArgs {
    /// Report to measure against
    before: PathBuf,
    /// Report to judge
    after: PathBuf,
    /// Ends with 3 when a rate, a share or a percentile up to p99 is worse by more
    #[arg(long, value_parser = percent, value_name = "P%")]
    fail_above: Option<f64>,
}

#[derive(clap::Args, Debug)]
struct RunArgs {
    /// OpenAI-compatible server, up to and with /v1
    // Optional for the verb, which has files of its own.
    #[arg(value_name = "URL", required = true)]
    url: Option<String>,
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    request: RequestArgs,
    #[command(flatten)]
    verdict: VerdictArgs,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Load")]
struct LoadArgs {
    /// Requests per second, whatever the server does
    #[arg(long, value_name = "N")]
    rate: Option<f64>,
    /// Requests at once [default: 16 without --rate]
    #[arg(long, short, value_name = "N")]
    concurrency: Option<usize>,
    /// How requests are spaced with --rate: as independent users come, or evenly
    #[arg(long, value_enum, default_value_t = Spacing::Poisson, value_name = "HOW")]
    arrivals: Spacing,
    /// With --rate: requests in flight; one more is dropped, and counted
    #[arg(long, default_value_t = 20_000, value_name = "N", conflicts_with = "concurrency")]
    max_in_flight: usize,
    /// How long to measure [default: 30s, with --requests until they are answered]
    #[arg(long, short, value_parser = parse_duration, value_name = "TIME")]
    duration: Option<Duration>,
    /// How long to send before that without measuring
    #[arg(long, default_value = "2s", value_parser = parse_duration, value_name = "TIME")]
    warmup: Duration,
    /// Ends after so many measured requests
    #[arg(long, short = 'n', value_name = "N")]
    requests: Option<u64>,
    /// Longest time of a request
    #[arg(long, default_value = "60s", value_parser = parse_duration, value_name = "TIME")]
    timeout: Duration,
    /// Makes the schedule: the same seed, the same arrivals
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// Threads that send and read; the server may need the other cores
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64), value_name = "N")]
    threads: u16,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Requests")]
struct RequestArgs {
    /// Model to ask for [default: the first that the server lists]
    #[arg(long, short, value_name = "NAME")]
    model: Option<String>,
    /// Endpoint: chat, completions, embeddings or responses
    #[arg(long, default_value = "chat", value_parser = operation, value_name = "NAME")]
    endpoint: Operation,
    /// Asks for streams, and measures first tokens and the gaps between tokens
    #[arg(long)]
    stream: bool,
    /// Prompt of every request; {{number}} in it becomes the request's number, so that no cache answers
    #[arg(
        long,
        default_value = "Tell me about the tide.",
        value_name = "TEXT",
        conflicts_with = "prompts"
    )]
    prompt: String,
    /// File of prompts, sent in turn: lines with a JSON string, {"prompt": …}, a request's body
    /// or a batch line
    #[arg(long, value_name = "FILE.jsonl")]
    prompts: Option<PathBuf>,
    /// Most tokens of an answer
    #[arg(long, value_name = "N")]
    max_tokens: Option<u32>,
    /// Environment variable that holds the key [default: OPENAI_API_KEY]
    #[arg(long, value_name = "NAME")]
    api_key_env: Option<String>,
    /// Further header, repeatable
    #[arg(long, value_name = "'NAME: VALUE'")]
    header: Vec<String>,
    /// Sends x-tidegate-priority: interactive, default or bulk
    #[arg(long, value_parser = priority, value_name = "CLASS")]
    priority: Option<Priority>,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Report")]
struct VerdictArgs {
    /// Times within which an answer is good, for goodput: ttft=500ms,tpot=50ms,total=5s
    #[arg(long, value_name = "BOUNDS")]
    slo: Option<Slo>,
    /// Writes the report as JSON; - is standard output, and the table goes to standard error
    #[arg(long, value_name = "FILE|-")]
    json: Option<PathBuf>,
    /// Writes the report as a page with plots
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Ends with 3 when more of the requests failed
    #[arg(long, value_parser = percent, value_name = "P%")]
    max_error_share: Option<f64>,
    /// Shows no progress
    #[arg(long, short)]
    quiet: bool,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Spacing {
    Poisson,
    Uniform,
}

impl From<Spacing> for Arrivals {
    fn from(spacing: Spacing) -> Self {
        match spacing {
            Spacing::Poisson => Self::Poisson,
            Spacing::Uniform => Self::Uniform,
        }
    }
}

fn operation(text: &str) -> Result<Operation, String> {
    match text {
        "chat" => Ok(Operation::ChatCompletions),
        "completions" => Ok(Operation::Completions),
        "embeddings" => Ok(Operation::Embeddings),
        "responses" => Ok(Operation::Responses),
        _ => Err("give chat, completions, embeddings or responses".into()),
    }
}

fn priority(text: &str) -> Result<Priority, String> {
    [Priority::Interactive, Priority::Default, Priority::Bulk]
        .into_iter()
        .find(|priority| priority.name() == text)
        .ok_or_else(|| "give interactive, default or bulk".into())
}

/// `10%` is 0.1.
fn percent(text: &str) -> Result<f64, String> {
    text.strip_suffix('%')
        .and_then(|number| number.trim().parse::<f64>().ok())
        .filter(|percent| (0.0..=100_000.0).contains(percent))
        .map(|percent| percent / 100.0)
        .ok_or_else(|| "write it like 10%".into())
}

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
    for file in [&json, &html].into_iter().flatten().filter(|file| !is_stdout(file)) {
        // Found out now, not after the run.
        if let Err(error) = File::options().append(true).create(true).open(file) {
            return Ok(usage(&format!("{} cannot be written: {error}", file.display())));
        }
    }
    let options = match options(args.url, args.load, args.request, slo).await {
        Ok(options) => options,
        Err(error) => return Ok(refused(&error)),
    };
    let stop = signals::drain_on_signal("stopping; the report follows")?;
    let mut progress = Progress::new(quiet);
    let ran = tidegate_bench::run(options, stop.clone(), |at| progress.show(at)).await;
    progress.end();
    let report = match ran {
        Ok(report) => report,
        Err(error) => return Ok(refused(&error)),
    };
    match &json {
        Some(file) if is_stdout(file) => {
            output::note(&report.to_text());
            output::data(&report.to_json())?;
        }
        _ => output::data(&report.to_text())?,
    }
    for (file, text) in [
        (json.filter(|file| !is_stdout(file)), Report::to_json as fn(&Report) -> String),
        (html, Report::to_html),
    ] {
        if let Some(file) = file {
            std::fs::write(&file, text(&report))
                .with_context(|| format!("writing {}", file.display()))?;
        }
    }
    Ok(verdict(&report, max_error_share, stop.is_cancelled()))
}

fn verdict(report: &Report, max_error_share: Option<f64>, is_interrupted: bool) -> u8 {
    if is_interrupted {
        return INTERRUPTED;
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
            Some(_) => Options::LONGEST.saturating_sub(load.warmup),
            None => Duration::from_secs(30),
        }),
        warmup: load.warmup,
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

fn is_stdout(file: &Path) -> bool {
    file.as_os_str() == "-"
}

fn usage(why: &str) -> u8 {
    output::note(&format!("error: {why}"));
    USAGE
}

fn refused(error: &Error) -> u8 {
    match error {
        Error::Invalid(why) => usage(why),
        Error::Unreachable(why) => {
            output::note(&format!("error: {why}"));
            UNREACHABLE
        }
    }
}

fn compared(args: &CompareArgs) -> anyhow::Result<u8> {
    let read = |path: &Path| -> Result<Report, String> {
        let named = |why: String| format!("{}: {why}", path.display());
        let text = std::fs::read_to_string(path).map_err(|error| named(error.to_string()))?;
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

/// A line that tells how far a run is, on a terminal; every ten seconds a line elsewhere.
struct Progress {
    is_live: bool,
    is_quiet: bool,
    ended: u64,
    at: Duration,
    per_second: f64,
}

/// How often a line is written where it cannot be overwritten.
const LINE_EVERY: Duration = Duration::from_secs(10);

impl Progress {
    fn new(is_quiet: bool) -> Self {
        let is_live = io::stderr().is_terminal();
        Self { is_live, is_quiet, ended: 0, at: Duration::ZERO, per_second: 0.0 }
    }

    fn show(&mut self, at: &Snapshot) {
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
    fn end(&self) {
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
