//! `tidegate batch`: a file of calls in, a file of answers out.

use crate::{
    assembly::{self, Assembled, BatchUpstream},
    config::{Environment, Problems, Sources},
    output, signals,
};
use anyhow::Context;
use clap::Parser;
use std::{
    io::{BufRead, IsTerminal, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tidegate_batch::{
    End, Failure, Files, Finished, Format, GroupBy, InputOptions, Job, Manifest, MaxErrors, Only,
    Order, Prices, Progress, Surroundings, plan_input, run as run_job, status,
};
use tidegate_core::Operation;
use tidegate_policy::{
    price,
    setting::{parse_duration, parse_size},
};

/// Exit code of an option or an input that cannot be used.
const USAGE: u8 = 2;

/// Answers a file of calls: nothing lost, nothing paid twice
///
/// INPUT is JSON lines (OpenAI batch lines, bodies, or plain rows with --prompt), a CSV file, a
/// folder or glob of pictures, or - for standard input. Answers go to a file beside it, one line
/// for each row and in the same order. Run the same command again after anything, kill -9
/// included, and it goes on where it was.
///
/// Where rows go: --base-url, else the configuration, else OPENAI_BASE_URL, else the built-in
/// simulated model, which costs nothing. How fast is found out: a 429 slows the job down and
/// never costs a row an attempt.
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
  tidegate batch prompts.jsonl
  tidegate batch data.csv --prompt 'Summarise: {{ text }}' --model qwen3-8b \\
      --base-url http://10.0.0.5:8000/v1 -o summaries.csv
  tidegate batch photos/ --prompt 'What is this?' --model gpt-4o-mini --limit 10
  tidegate batch rows.jsonl --schema person.json --max-cost 5.00 --deadline 30m
  tidegate batch plan data.csv --prompt 'Summarise: {{ text }}' --model gpt-4o-mini
  tidegate batch status rows.jsonl
  tidegate batch retry rows.jsonl --only class=timeout

Files: data.jsonl -> data.out.jsonl, data.errors.jsonl (failed rows, when there are any) and
data.run/ (journal, manifest). Delete all three to start over.

Exit codes: 0 every row was answered; 1 internal error; 2 usage or invalid input; 3 finished, but
some rows failed; 4 credential refused or quota used up; 5 --max-cost or --deadline reached;
6 nobody answers; 130 interrupted. After 3 to 130 nothing is lost: run the command again.";

#[derive(clap::Subcommand, Debug)]
enum Verb {
    /// Checks every row, counts tokens and tells the price, without a call
    Plan(Box<PlanArgs>),
    /// Tells how far a job is, also while it runs
    Status(StatusArgs),
    /// Runs failed rows of a job again, with the options it was started with
    Retry(RetryArgs),
}

/// What a job is started with, and what `retry` finds in its manifest.
#[derive(clap::Args, Debug)]
struct RunArgs {
    /// File, folder or glob of rows; - is standard input
    // Optional for the verbs, which have their own.
    #[arg(value_name = "INPUT", required = true)]
    input: Option<PathBuf>,
    #[command(flatten)]
    rows: RowArgs,
    #[command(flatten)]
    upstream: UpstreamArgs,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    telling: TellingArgs,
    /// Calls rows again without asking when they changed after they had been answered
    #[arg(long, short = 'y')]
    yes: bool,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Rows")]
struct RowArgs {
    /// Model to call, in place of the one a body names
    #[arg(long, short, value_name = "NAME")]
    model: Option<String>,
    /// Operation of rows that do not say: chat, completions, embeddings or responses
    #[arg(long, default_value = "chat", value_parser = operation, value_name = "NAME")]
    endpoint: Operation,
    /// Prompt made from a row's columns, a minijinja template: 'Summarise: {{ text }}'
    #[arg(long, value_name = "TEMPLATE", conflicts_with = "prompt_file")]
    prompt: Option<String>,
    /// File with that template
    #[arg(long, value_name = "FILE")]
    prompt_file: Option<PathBuf>,
    /// System message, a template too
    #[arg(long, value_name = "TEMPLATE")]
    system: Option<String>,
    /// Sets a field of every body, repeatable: --set body.temperature=0
    #[arg(long, value_parser = assignment, value_name = "PATH=VALUE")]
    set: Vec<(String, String)>,
    /// JSON Schema answers must follow; one that does not costs an attempt and is asked for again
    #[arg(long, value_name = "FILE")]
    schema: Option<PathBuf>,
    /// Column with a picture's path or URL
    #[arg(long, value_name = "COLUMN")]
    image_column: Option<String>,
    /// Takes only the first N rows
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// Takes only N rows, picked by chance
    #[arg(long, value_name = "N")]
    sample: Option<u64>,
    /// What that chance starts from
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// Column with a number: rows with a higher one go first
    #[arg(long, value_name = "COLUMN")]
    priority_column: Option<String>,
    /// Sends rows together that are alike: in size, or in how their prompts begin
    #[arg(long, value_enum, value_name = "HOW")]
    group_by: Option<Group>,
    /// Calls equal rows once, even when their answers may differ [default: only with temperature 0
    /// or a seed]
    #[arg(long)]
    dedup: bool,
    /// Runs the other rows when some cannot be sent; those become error rows
    #[arg(long)]
    skip_invalid: bool,
    /// Longest row, its picture included
    #[arg(long, default_value = "16MiB", value_parser = parse_size, value_name = "SIZE")]
    max_row: usize,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Upstream")]
struct UpstreamArgs {
    /// OpenAI-compatible server, up to and with /v1
    #[arg(long, value_name = "URL")]
    base_url: Option<String>,
    /// Environment variable that holds the key [default: OPENAI_API_KEY]
    #[arg(long, value_name = "NAME")]
    api_key_env: Option<String>,
    /// US dollars per million prompt tokens
    #[arg(long, value_parser = dollars, value_name = "USD", requires = "price_output")]
    price_input: Option<f64>,
    /// US dollars per million answer tokens
    #[arg(long, value_parser = dollars, value_name = "USD", requires = "price_input")]
    price_output: Option<f64>,
    #[command(flatten)]
    sources: Sources,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Limits")]
struct LimitArgs {
    /// Rows in flight at once, or auto: as many as the upstream turns out to take
    #[arg(long, short, default_value = "auto", value_parser = concurrency, value_name = "N")]
    concurrency: Concurrency,
    /// Requests per minute, if they are known
    #[arg(long, value_parser = positive, value_name = "N")]
    rpm: Option<f64>,
    /// Tokens per minute, if they are known
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..), value_name = "N")]
    tpm: Option<u64>,
    /// Requests per second, if they are known
    #[arg(long, value_parser = positive, value_name = "N")]
    max_qps: Option<f64>,
    /// Attempts of a row: for faults, timeouts and bad output, never for a 429
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..), value_name = "N")]
    max_attempts: u32,
    /// Longest time of a row, waiting for its turn at the upstream included
    #[arg(long, default_value = "10m", value_parser = parse_duration, value_name = "TIME")]
    timeout: Duration,
    /// Longest time of the job; it stops in order and can be gone on with
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    deadline: Option<Duration>,
    /// US dollars the job may cost, earlier runs of it included
    #[arg(long, value_parser = dollars, value_name = "USD")]
    max_cost: Option<f64>,
    /// Stops when so many rows have failed: a number, or a share such as 5%
    #[arg(long, value_name = "N|P%")]
    max_errors: Option<MaxErrors>,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Output")]
struct OutputArgs {
    /// Output file, .jsonl or .csv; - is standard output [default: INPUT's name with .out.jsonl]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// How rows are written
    #[arg(long, value_enum, default_value_t = OutputFormat::Auto, value_name = "FORMAT")]
    format: OutputFormat,
    /// In input order when the job ends, or in completion order at once
    #[arg(long, value_enum, default_value_t = OutputOrder::Input, value_name = "ORDER")]
    order: OutputOrder,
    /// Replaces an output file that this job did not write
    #[arg(long)]
    overwrite: bool,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Progress")]
struct TellingArgs {
    /// How progress is told, on standard error
    #[arg(long, value_enum, default_value_t = Telling::Auto, value_name = "HOW")]
    progress: Telling,
    /// Writes the summary as JSON here
    #[arg(long, value_name = "FILE")]
    summary_json: Option<PathBuf>,
}

#[derive(clap::Args, Debug)]
#[command(after_help = "Example:
  tidegate batch plan data.csv --prompt 'Summarise: {{ text }}' --model gpt-4o-mini

Exit code 2 when some rows cannot be sent.")]
struct PlanArgs {
    /// File, folder or glob of rows; - is standard input
    #[arg(value_name = "INPUT")]
    input: PathBuf,
    /// Prints JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    rows: RowArgs,
    #[command(flatten)]
    upstream: UpstreamArgs,
}

#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  tidegate batch status data.jsonl")]
struct StatusArgs {
    /// The job's input, as it was given
    #[arg(value_name = "INPUT")]
    input: PathBuf,
    /// The job's output, when it was given
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Prints JSON
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  tidegate batch retry data.jsonl
  tidegate batch retry data.jsonl --only class=timeout
  tidegate batch retry data.jsonl --only code=upstream_error

Classes: caller, capacity, fault, timeout, bad_output, invalid, refused.")]
struct RetryArgs {
    /// The job's input, as it was given
    #[arg(value_name = "INPUT")]
    input: PathBuf,
    /// The job's output, when it was given
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Which failed rows: all, class=NAME or code=NAME
    #[arg(long, default_value = "all", value_name = "WHICH")]
    only: Only,
    #[command(flatten)]
    telling: TellingArgs,
}

/// The arguments in a manifest.
#[derive(Parser)]
struct Again {
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Clone, Copy, Debug)]
struct Concurrency(Option<u32>);

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Group {
    Tokens,
    Prefix,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum OutputFormat {
    /// As the output's name says
    Auto,
    /// JSON lines
    Jsonl,
    /// A table
    Csv,
    /// OpenAI's output and error lines, in two files
    OpenaiBatch,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum OutputOrder {
    Input,
    Completion,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Telling {
    /// A bar on a terminal, lines elsewhere
    Auto,
    /// A line every 10 seconds
    Plain,
    /// One JSON object a line
    Json,
    /// Only the summary
    None,
}

pub(crate) fn run(args: Args) -> anyhow::Result<u8> {
    match args.verb {
        Some(Verb::Plan(args)) => plan(*args),
        Some(Verb::Status(args)) => show_status(&args),
        Some(Verb::Retry(args)) => retry(args),
        None => start(args.run, std::env::args().skip(1).collect(), None),
    }
}

/// Runs a job; `arguments` are what runs it again.
fn start(args: RunArgs, arguments: Vec<String>, only: Option<Only>) -> anyhow::Result<u8> {
    let telling = args.telling.progress;
    let environment = Environment::current();
    let assembled = match assemble(&args.upstream, Some(&args.limits), &environment) {
        Ok(assembled) => assembled,
        Err(stop) => return stop.report(telling),
    };
    let path = args.input.clone().expect("clap requires it of a job");
    let mut job = job(&args, path, arguments, assembled.default_model.clone());
    job.retry = only;
    let summary_file = args.telling.summary_json.clone();
    let confirm = asks(&args).then(|| Box::new(ask) as _);

    let runtime = tokio::runtime::Runtime::new().context("starting the runtime")?;
    let ran = runtime.block_on(async {
        let around = Surroundings {
            answer: assembled.answer,
            prices: assembled.prices,
            stop: signals::drain_on_signal(stopping(telling)).context("listening for signals")?,
            progress: progress(telling),
            confirm,
        };
        anyhow::Ok(run_job(job, around).await)
    })?;
    match ran {
        Ok(finished) => {
            tell(&finished, &assembled.destination, telling)?;
            if let Some(path) = summary_file {
                write_summary(&path, &finished)?;
            }
            Ok(finished.exit_code())
        }
        Err(failure) => Stop::Failure(failure).report(telling),
    }
}

/// What keeps a command from starting.
enum Stop {
    Configuration(Problems),
    Failure(Failure),
}

impl Stop {
    fn usage(message: String) -> Self {
        Self::Failure(Failure::Usage(message))
    }

    /// Says what is wrong; the exit code.
    fn report(self, telling: Telling) -> anyhow::Result<u8> {
        match self {
            Self::Configuration(problems) => Ok(problems.report()),
            Self::Failure(failure) => {
                error(&failure.to_string(), telling);
                Ok(failure.exit_code())
            }
        }
    }
}

fn assemble(
    upstream: &UpstreamArgs,
    limits: Option<&LimitArgs>,
    environment: &Environment,
) -> Result<Assembled, Stop> {
    let flags = BatchUpstream {
        base_url: upstream.base_url.clone(),
        api_key: environment.api_key(upstream.api_key_env.as_deref()).map_err(Stop::usage)?,
        concurrency: limits.and_then(|limits| limits.concurrency.0),
        rpm: limits.and_then(|limits| limits.rpm),
        tpm: limits.and_then(|limits| limits.tpm),
        max_qps: limits.and_then(|limits| limits.max_qps),
        max_attempts: limits.map_or(1, |limits| limits.max_attempts),
        sources: upstream.sources.clone(),
    };
    let mut assembled = assembly::for_batch(&flags, environment).map_err(|error| match error
        .downcast::<Problems>(
    ) {
        Ok(problems) => Stop::Configuration(problems),
        // What is wrong with a URL, a model or a key: nothing has been opened yet.
        Err(other) => Stop::usage(format!("{other:#}")),
    })?;
    if let (Some(input), Some(output)) = (upstream.price_input, upstream.price_output) {
        let told = price::Options { input, output, cached_input: None }.price();
        let told = told.map_err(|field| {
            Stop::usage(format!(
                "--price-{field} is more than a dollar per token: it is per million"
            ))
        })?;
        let told: Prices = Arc::new(move |_| Some(told));
        assembled.prices = told;
    }
    Ok(assembled)
}

fn job(
    args: &RunArgs,
    path: PathBuf,
    arguments: Vec<String>,
    default_model: Option<String>,
) -> Job {
    let mut job = Job::new(input(&args.rows, path, default_model));
    job.output = args.output.output.clone();
    job.format = match args.output.format {
        OutputFormat::Auto => Format::Auto,
        OutputFormat::Jsonl => Format::Jsonl,
        OutputFormat::Csv => Format::Csv,
        OutputFormat::OpenaiBatch => Format::OpenAiBatch,
    };
    job.order = match args.output.order {
        OutputOrder::Input => Order::Input,
        OutputOrder::Completion => Order::Completion,
    };
    job.overwrite = args.output.overwrite;
    job.skip_invalid = args.rows.skip_invalid;
    job.dedup = args.rows.dedup;
    job.concurrency = args.limits.concurrency.0;
    job.max_attempts = args.limits.max_attempts;
    job.timeout = args.limits.timeout;
    job.deadline = args.limits.deadline;
    job.max_cost = args.limits.max_cost;
    job.max_errors = args.limits.max_errors;
    job.arguments = arguments;
    job
}

fn input(rows: &RowArgs, path: PathBuf, default_model: Option<String>) -> InputOptions {
    InputOptions {
        path,
        model: rows.model.clone(),
        default_model,
        endpoint: rows.endpoint,
        prompt: rows.prompt.clone(),
        prompt_file: rows.prompt_file.clone(),
        system: rows.system.clone(),
        set: rows.set.clone(),
        schema: rows.schema.clone(),
        image_column: rows.image_column.clone(),
        limit: rows.limit,
        sample: rows.sample,
        seed: rows.seed,
        priority_column: rows.priority_column.clone(),
        group_by: rows.group_by.map(|group| match group {
            Group::Tokens => GroupBy::Tokens,
            Group::Prefix => GroupBy::Prefix,
        }),
        max_row_bytes: rows.max_row,
        ..InputOptions::default()
    }
}

fn plan(args: PlanArgs) -> anyhow::Result<u8> {
    let environment = Environment::current();
    let assembled = match assemble_plan(&args.upstream, &environment) {
        Ok(assembled) => assembled,
        Err(stop) => return stop.report(Telling::Plain),
    };
    let options = input(&args.rows, args.input.clone(), assembled.default_model);
    // Only a pipe is copied, to be read twice; nothing of a plan is kept.
    let spool = std::env::temp_dir().join(format!("tidegate-plan-{}", std::process::id()));
    let is_pipe = args.input == Path::new("-");
    if is_pipe {
        std::fs::create_dir_all(&spool).with_context(|| format!("creating {}", spool.display()))?;
    }
    let planned = plan_input(&options, &spool, &assembled.prices);
    if is_pipe {
        // What is left in the system's own directory for temporary files is harmless.
        drop(std::fs::remove_dir_all(&spool));
    }
    let plan = match planned {
        Ok(plan) => plan,
        Err(failure) => return Stop::Failure(failure).report(Telling::Plain),
    };
    let text = match args.json {
        true => serde_json::to_string_pretty(&plan)? + "\n",
        false => with_line_end(plan.to_string()),
    };
    output::data(&text)?;
    Ok(if plan.bad_lines > 0 { USAGE } else { 0 })
}

/// A plan calls nobody: it needs the configuration, and no key.
fn assemble_plan(upstream: &UpstreamArgs, environment: &Environment) -> Result<Assembled, Stop> {
    let keyless = UpstreamArgs {
        base_url: upstream.base_url.clone(),
        api_key_env: None,
        price_input: upstream.price_input,
        price_output: upstream.price_output,
        sources: upstream.sources.clone(),
    };
    assemble(&keyless, None, environment)
}

fn show_status(args: &StatusArgs) -> anyhow::Result<u8> {
    let files = Files::of(&args.input, args.output.as_deref(), Format::Auto);
    match files.and_then(|files| status(&files)) {
        Ok(status) => {
            let text = match args.json {
                true => serde_json::to_string_pretty(&status)? + "\n",
                false => with_line_end(status.to_string()),
            };
            output::data(&text)?;
            Ok(0)
        }
        Err(failure) => Stop::Failure(failure).report(Telling::Plain),
    }
}

fn retry(args: RetryArgs) -> anyhow::Result<u8> {
    let telling = args.telling.progress;
    let manifest = Files::of(&args.input, args.output.as_deref(), Format::Auto)
        .and_then(|files| Ok((Manifest::read(&files)?, files)));
    let arguments = match manifest {
        Ok((Some(manifest), _)) => manifest.arguments,
        Ok((None, files)) => {
            let missing = format!(
                "there is no job in {}; start one with `tidegate batch` (for a job with -o, give \
                 that here too)",
                files.run_dir.display()
            );
            return Stop::usage(missing).report(telling);
        }
        Err(failure) => return Stop::Failure(failure).report(telling),
    };
    let Ok(Again { mut run }) = Again::try_parse_from(&arguments) else {
        let foreign = "the job's manifest does not hold a command of this version; run the failed \
                       rows with the version that made it";
        return Stop::usage(foreign.into()).report(telling);
    };
    run.telling = args.telling;
    start(run, arguments, Some(args.only))
}

fn progress(telling: Telling) -> Progress {
    match telling {
        Telling::Auto if std::io::stderr().is_terminal() => Progress::Bar,
        Telling::Auto | Telling::Plain => Progress::Plain(Box::new(std::io::stderr())),
        Telling::Json => Progress::Json(Box::new(std::io::stderr())),
        Telling::None => Progress::None,
    }
}

/// What is said at the first signal.
const fn stopping(telling: Telling) -> &'static str {
    match telling {
        Telling::Json => {
            r#"{"event":"message","message":"stopping: rows in flight are finished first"}"#
        }
        Telling::Auto | Telling::Plain | Telling::None => {
            "stopping: rows in flight are finished first; once more aborts them"
        }
    }
}

/// Whether there is somebody to ask.
fn asks(args: &RunArgs) -> bool {
    !args.yes
        && args.telling.progress != Telling::Json
        && args.input.as_deref() != Some(Path::new("-"))
        && std::io::stdin().is_terminal()
        && std::io::stderr().is_terminal()
}

fn ask(question: &str) -> bool {
    let mut err = std::io::stderr().lock();
    let asked = write!(err, "{question} [y/N] ").and_then(|()| err.flush());
    let mut answer = String::new();
    let heard = asked.and_then(|()| std::io::stdin().lock().read_line(&mut answer));
    heard.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes")
}

/// The summary, why the job ended, and how to go on.
fn tell(finished: &Finished, destination: &str, telling: Telling) -> anyhow::Result<()> {
    let why = match &finished.end {
        End::Complete | End::AlreadyComplete | End::Interrupted => None,
        End::Refused(why) => Some(why.clone()),
        End::Unreachable(why) => Some(format!(
            "nobody answers at {destination} ({why}); start the server, or mend --base-url"
        )),
        End::Budget => Some("--max-cost is reached; go on with a higher one".to_owned()),
        End::Deadline => Some("--deadline is reached".to_owned()),
        End::Errors => Some("--max-errors is reached".to_owned()),
    };
    if telling == Telling::Json {
        let mut event = serde_json::to_value(&finished.summary)?;
        event["event"] = "summary".into();
        event["why"] = why.into();
        event["resume"] = finished.resume.clone().into();
        output::note(&event.to_string());
        return Ok(());
    }
    output::note(&finished.summary.to_string());
    if let Some(why) = why {
        output::note(&format!("stopped: {why}"));
    }
    if finished.summary.left > 0 && !finished.resume.is_empty() {
        output::note(&format!("go on with: {}", finished.resume));
    }
    Ok(())
}

fn error(message: &str, telling: Telling) {
    if telling == Telling::Json {
        let event = serde_json::json!({ "event": "error", "message": message });
        output::note(&event.to_string());
    } else {
        output::note(&format!("error: {message}"));
    }
}

fn write_summary(path: &Path, finished: &Finished) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(&finished.summary)? + "\n";
    std::fs::write(path, text).with_context(|| format!("writing --summary-json {}", path.display()))
}

fn with_line_end(mut text: String) -> String {
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

fn operation(text: &str) -> Result<Operation, String> {
    let named = Operation::ALL.into_iter().find(|operation| {
        text == operation.name() || text.trim_start_matches('/') == &operation.path()[1..]
    });
    named
        .or_else(|| Operation::from_path(text))
        .or(match text {
            "completions" => Some(Operation::Completions),
            _ => None,
        })
        .ok_or_else(|| "it is one of chat, completions, embeddings, responses".into())
}

fn assignment(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((path, value)) if !path.is_empty() => Ok((path.to_owned(), value.to_owned())),
        _ => Err("write it as PATH=VALUE, such as body.temperature=0".into()),
    }
}

fn concurrency(text: &str) -> Result<Concurrency, String> {
    const MOST: u32 = 100_000;
    match text.parse() {
        _ if text == "auto" => Ok(Concurrency(None)),
        Ok(rows) if (1..=MOST).contains(&rows) => Ok(Concurrency(Some(rows))),
        _ => Err(format!("it is auto, or a number from 1 to {MOST}")),
    }
}

fn dollars(text: &str) -> Result<f64, String> {
    let number = text.strip_prefix('$').unwrap_or(text).parse::<f64>().ok();
    number
        .filter(|number| number.is_finite() && *number >= 0.0)
        .ok_or_else(|| "it is an amount of US dollars, such as 5.00".into())
}

fn positive(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok();
    number
        .filter(|number| number.is_finite() && *number > 0.0)
        .ok_or_else(|| "it is a number above 0".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<RunArgs, String> {
        let words = ["batch"].iter().chain(arguments);
        Again::try_parse_from(words).map(|again| again.run).map_err(|error| error.to_string())
    }

    #[test]
    fn an_input_is_enough() {
        let args = parse(&["data.jsonl"]).unwrap();
        let job = job(&args, "data.jsonl".into(), Vec::new(), Some("sim-small".into()));
        assert_eq!((job.concurrency, job.max_attempts), (None, 5));
        assert_eq!(job.timeout, Duration::from_secs(600));
        assert_eq!(job.input.endpoint, Operation::ChatCompletions);
        assert_eq!(job.input.default_model.as_deref(), Some("sim-small"));
    }

    #[test]
    fn flags_become_options() {
        let args = parse(&[
            "data.csv",
            "-c",
            "40",
            "--set",
            "body.a=b=c",
            "--endpoint",
            "/v1/embeddings",
            "--max-cost",
            "$5",
            "--max-errors",
            "2%",
            "-o",
            "x.csv",
            "--order",
            "completion",
        ])
        .unwrap();
        let job = job(&args, "data.csv".into(), Vec::new(), None);
        assert_eq!(job.concurrency, Some(40));
        assert_eq!(job.input.set, [("body.a".into(), "b=c".into())]);
        assert_eq!(job.input.endpoint, Operation::Embeddings);
        assert_eq!((job.max_cost, job.max_errors), (Some(5.0), Some(MaxErrors::Percent(2.0))));
        assert_eq!(job.order, Order::Completion);
    }

    #[test]
    fn bad_flags_say_what_is_meant() {
        for (arguments, said) in [
            (&["x", "-c", "0"][..], "auto, or a number"),
            (&["x", "--set", "temperature"], "PATH=VALUE"),
            (&["x", "--endpoint", "chats"], "one of chat, completions"),
            (&["x", "--rpm=-1"], "above 0"),
            (&["x", "--price-input", "1"], "--price-output"),
            (&["x", "--concurency", "1"], "--concurrency"),
        ] {
            let error = parse(arguments).unwrap_err();
            assert!(error.contains(said), "{error}");
        }
    }
}
