//! The command line of `tidegate bench`.

use std::{path::PathBuf, time::Duration};
use tidegate_bench::{Arrivals, Slo};
use tidegate_core::{Operation, Priority};
use tidegate_policy::setting::parse_duration;

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
    pub(super) verb: Option<Verb>,
    #[command(flatten)]
    pub(super) run: RunArgs,
}

const EXAMPLES: &str = "Examples:
  tidegate bench http://127.0.0.1:8090/v1 --rate 200 --duration 30s --stream
  tidegate bench http://127.0.0.1:8080/v1 --concurrency 64 --api-key-env TIDEGATE_KEY
  tidegate bench https://api.example.com/v1 --api-key-env API_KEY --model m --rate 2 \\
      --prompts prompts.jsonl --max-tokens 200 --stream --slo ttft=500ms,total=5s \\
      --json run.json --html run.html
  tidegate bench compare before.json after.json --fail-above 10%

Exit codes: 0 done; 1 internal error; 2 usage or invalid input; 3 more errors than
--max-error-share, or worse than --fail-above; 4 the key is refused; 6 nobody answered; 130
interrupted, with a report.";

#[derive(clap::Subcommand, Debug)]
pub(super) enum Verb {
    /// Shows two JSON reports side by side, and what got worse
    Compare(CompareArgs),
}

#[derive(clap::Args, Debug)]
pub(super) struct CompareArgs {
    /// Report to measure against
    pub(super) before: PathBuf,
    /// Report to judge
    pub(super) after: PathBuf,
    /// Ends with 3 when a rate, a share, or a percentile up to p99 with five times beyond it, is
    /// worse by more
    #[arg(long, value_parser = percent, value_name = "P%")]
    pub(super) fail_above: Option<f64>,
}

#[derive(clap::Args, Debug)]
pub(super) struct RunArgs {
    /// OpenAI-compatible server, up to and with /v1
    // Optional for the verb, which has files of its own.
    #[arg(value_name = "URL", required = true)]
    pub(super) url: Option<String>,
    #[command(flatten)]
    pub(super) load: LoadArgs,
    #[command(flatten)]
    pub(super) request: RequestArgs,
    #[command(flatten)]
    pub(super) verdict: VerdictArgs,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Load")]
pub(super) struct LoadArgs {
    /// Requests per second, whatever the server does
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(super) rate: Option<f64>,
    /// Requests at once [default: 16 without --rate]
    #[arg(long, short, value_name = "N")]
    pub(super) concurrency: Option<usize>,
    /// How requests are spaced with --rate: as independent users come, or evenly
    #[arg(
        long,
        value_enum,
        default_value_t = Spacing::Poisson,
        value_name = "HOW",
        requires = "rate"
    )]
    pub(super) arrivals: Spacing,
    /// With --rate: requests in flight; one more is dropped, and counted
    #[arg(
        long,
        default_value_t = 20_000,
        value_name = "N",
        conflicts_with = "concurrency",
        requires = "rate"
    )]
    pub(super) max_in_flight: usize,
    /// How long to measure [default: 30s, with --requests until they are answered]
    #[arg(long, short, value_parser = parse_duration, value_name = "TIME")]
    pub(super) duration: Option<Duration>,
    /// How long to send before that without measuring [default: 2s, with --requests 0s]
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    pub(super) warmup: Option<Duration>,
    /// Ends after so many measured requests
    #[arg(long, short = 'n', value_name = "N")]
    pub(super) requests: Option<u64>,
    /// Longest time of a request
    #[arg(long, default_value = "60s", value_parser = parse_duration, value_name = "TIME")]
    pub(super) timeout: Duration,
    /// Makes the schedule: the same seed, the same arrivals
    #[arg(long, default_value_t = 0, value_name = "N", requires = "rate")]
    pub(super) seed: u64,
    /// Threads that send and read; the server may need the other cores
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64), value_name = "N")]
    pub(super) threads: u16,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Requests")]
pub(super) struct RequestArgs {
    /// Model to ask for [default: the first that the server lists]
    #[arg(long, short, value_name = "NAME")]
    pub(super) model: Option<String>,
    /// Endpoint: chat, completions, embeddings or responses
    #[arg(long, default_value = "chat", value_parser = operation, value_name = "NAME")]
    pub(super) endpoint: Operation,
    /// Asks for streams, and measures first tokens and the gaps between tokens
    #[arg(long)]
    pub(super) stream: bool,
    /// Speaks HTTP/2, many requests on a connection: agreed on in the TLS handshake, or known
    /// beforehand for http://
    #[arg(long)]
    pub(super) http2: bool,
    /// Prompt of every request; {{number}} in it becomes the request's number, so that no cache answers
    #[arg(
        long,
        default_value = "Tell me about the tide.",
        value_name = "TEXT",
        conflicts_with = "prompts"
    )]
    pub(super) prompt: String,
    /// File of prompts, sent in turn: lines with a JSON string, {"prompt": …}, a request's body
    /// or a batch line
    #[arg(long, value_name = "FILE.jsonl")]
    pub(super) prompts: Option<PathBuf>,
    /// Most tokens of an answer
    #[arg(long, value_name = "N")]
    pub(super) max_tokens: Option<u32>,
    /// Environment variable that holds the key [default: OPENAI_API_KEY]
    #[arg(long, value_name = "NAME")]
    pub(super) api_key_env: Option<String>,
    /// Further header, repeatable
    #[arg(long, value_name = "'NAME: VALUE'")]
    pub(super) header: Vec<String>,
    /// Sends x-tidegate-priority: interactive, default or bulk
    #[arg(long, value_parser = priority, value_name = "CLASS")]
    pub(super) priority: Option<Priority>,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Report")]
pub(super) struct VerdictArgs {
    /// Times within which an answer is good, for goodput: ttft=500ms,tpot=50ms,total=5s
    #[arg(long, value_name = "BOUNDS")]
    pub(super) slo: Option<Slo>,
    /// Writes the report as JSON; - is standard output, and the table goes to standard error
    #[arg(long, value_name = "FILE|-")]
    pub(super) json: Option<PathBuf>,
    /// Writes the report as a page with plots
    #[arg(long, value_name = "FILE")]
    pub(super) html: Option<PathBuf>,
    /// Ends with 3 when more of the requests failed
    #[arg(long, value_parser = share, value_name = "P%")]
    pub(super) max_error_share: Option<f64>,
    /// Shows no progress
    #[arg(long, short)]
    pub(super) quiet: bool,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(super) enum Spacing {
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

/// A [`percent`] of something.
fn share(text: &str) -> Result<f64, String> {
    percent(text).and_then(|share| match share {
        0.0..=1.0 => Ok(share),
        _ => Err("it is a share of all requests, at most 100%".into()),
    })
}
