//! `tidegate batch`: a file of calls in, a file of answers out.

mod args;
mod job;
mod plan;
mod retry;
mod status;
mod telling;
mod values;

use crate::{config::Environment, signals};
use anyhow::Context;
use args::RunArgs;
use std::{io::IsTerminal, path::Path};
use telling::{Stop, Telling, progress, stopping, tell, write_summary};
use tidegate_batch::{Only, Surroundings};

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
    Plan(Box<plan::Args>),
    /// Tells how far a job is, also while it runs
    Status(status::Args),
    /// Runs failed rows of a job again, with the options it was started with
    Retry(retry::Args),
}

/// Does what the verb says; without one, runs a job.
pub(crate) fn run(args: Args) -> anyhow::Result<u8> {
    match args.verb {
        Some(Verb::Plan(args)) => plan::run(*args),
        Some(Verb::Status(args)) => status::run(&args),
        Some(Verb::Retry(args)) => retry::run(args),
        None => start(args.run, std::env::args().skip(1).collect(), None),
    }
}

/// Runs a job; `arguments` are what runs it again.
fn start(args: RunArgs, arguments: Vec<String>, only: Option<Only>) -> anyhow::Result<u8> {
    let telling = args.telling.progress;
    let environment = Environment::current();
    let assembled = match job::assemble(&args.upstream, Some(&args.limits), &environment) {
        Ok(assembled) => assembled,
        Err(stop) => return stop.report(telling),
    };
    let path = args.input.clone().expect("clap requires it of a job");
    let mut job = job::of(&args, path, arguments, assembled.default_model.clone());
    job.retry = only;
    let summary_file = args.telling.summary_json.clone();
    let confirm = asks(&args).then(|| Box::new(telling::ask) as _);

    let runtime = tokio::runtime::Runtime::new().context("starting the runtime")?;
    let ran = runtime.block_on(async {
        let around = Surroundings {
            answer: assembled.answer,
            prices: assembled.prices,
            stop: signals::drain_on_signal(stopping(telling)).context("listening for signals")?,
            progress: progress(telling),
            confirm,
        };
        anyhow::Ok(tidegate_batch::run(job, around).await)
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

/// Whether there is somebody to ask.
fn asks(args: &RunArgs) -> bool {
    !args.yes
        && args.telling.progress != Telling::Json
        && args.input.as_deref() != Some(Path::new("-"))
        && std::io::stdin().is_terminal()
        && std::io::stderr().is_terminal()
}
