//! The flags of a job, in the groups its help shows them in.

use super::{
    telling::TellingArgs,
    values::{Concurrency, assignment, concurrency, dollars, operation, positive},
};
use crate::config::Sources;
use std::{path::PathBuf, time::Duration};
use tidegate_batch::{Format, GroupBy, MaxErrors, Order};
use tidegate_core::Operation;
use tidegate_policy::setting::{parse_duration, parse_size};

/// What a job is started with, and what `retry` finds in its manifest.
#[derive(clap::Args, Debug)]
pub(super) struct RunArgs {
    /// File, folder or glob of rows; - is standard input
    // Optional for the verbs, which have their own.
    #[arg(value_name = "INPUT", required = true)]
    pub(super) input: Option<PathBuf>,
    #[command(flatten)]
    pub(super) rows: RowArgs,
    #[command(flatten)]
    pub(super) upstream: UpstreamArgs,
    #[command(flatten)]
    pub(super) limits: LimitArgs,
    #[command(flatten)]
    pub(super) output: OutputArgs,
    #[command(flatten)]
    pub(super) telling: TellingArgs,
    /// Calls rows again without asking when they changed after they had been answered
    #[arg(long, short = 'y')]
    pub(super) yes: bool,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Rows")]
pub(super) struct RowArgs {
    /// Model to call, in place of the one a body names
    #[arg(long, short, value_name = "NAME")]
    pub(super) model: Option<String>,
    /// Operation of rows that do not say: chat, completions, embeddings or responses
    #[arg(long, default_value = "chat", value_parser = operation, value_name = "NAME")]
    pub(super) endpoint: Operation,
    /// Prompt made from a row's columns, a minijinja template: 'Summarise: {{ text }}'
    #[arg(long, value_name = "TEMPLATE", conflicts_with = "prompt_file")]
    pub(super) prompt: Option<String>,
    /// File with that template
    #[arg(long, value_name = "FILE")]
    pub(super) prompt_file: Option<PathBuf>,
    /// System message, a template too
    #[arg(long, value_name = "TEMPLATE")]
    pub(super) system: Option<String>,
    /// Sets a field of every body, repeatable: --set body.temperature=0
    #[arg(long, value_parser = assignment, value_name = "PATH=VALUE")]
    pub(super) set: Vec<(String, String)>,
    /// JSON Schema answers must follow; one that does not costs an attempt and is asked for again
    #[arg(long, value_name = "FILE")]
    pub(super) schema: Option<PathBuf>,
    /// Column with a picture's path or URL
    #[arg(long, value_name = "COLUMN")]
    pub(super) image_column: Option<String>,
    /// Takes only the first N rows
    #[arg(long, value_name = "N")]
    pub(super) limit: Option<u64>,
    /// Takes only N rows, picked by chance
    #[arg(long, value_name = "N")]
    pub(super) sample: Option<u64>,
    /// What that chance starts from
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub(super) seed: u64,
    /// Column with a number: rows with a higher one go first
    #[arg(long, value_name = "COLUMN")]
    pub(super) priority_column: Option<String>,
    /// Sends rows together that are alike: in size, or in how their prompts begin
    #[arg(long, value_enum, value_name = "HOW")]
    pub(super) group_by: Option<Group>,
    /// Calls equal rows once, even when their answers may differ [default: only with temperature 0
    /// or a seed]
    #[arg(long)]
    pub(super) dedup: bool,
    /// Runs the other rows when some cannot be sent; those become error rows
    #[arg(long)]
    pub(super) skip_invalid: bool,
    /// Longest row, its picture included
    #[arg(long, default_value = "16MiB", value_parser = parse_size, value_name = "SIZE")]
    pub(super) max_row: usize,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Upstream")]
pub(super) struct UpstreamArgs {
    /// OpenAI-compatible server, up to and with /v1
    #[arg(long, value_name = "URL")]
    pub(super) base_url: Option<String>,
    /// Environment variable that holds the key [default: OPENAI_API_KEY]
    #[arg(long, value_name = "NAME")]
    pub(super) api_key_env: Option<String>,
    /// US dollars per million prompt tokens
    #[arg(long, value_parser = dollars, value_name = "USD", requires = "price_output")]
    pub(super) price_input: Option<f64>,
    /// US dollars per million answer tokens
    #[arg(long, value_parser = dollars, value_name = "USD", requires = "price_input")]
    pub(super) price_output: Option<f64>,
    #[command(flatten)]
    pub(super) sources: Sources,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Limits")]
pub(super) struct LimitArgs {
    /// Rows in flight at once, or auto: as many as the upstream turns out to take
    #[arg(long, short, default_value = "auto", value_parser = concurrency, value_name = "N")]
    pub(super) concurrency: Concurrency,
    /// Requests per minute, if they are known
    #[arg(long, value_parser = positive, value_name = "N")]
    pub(super) rpm: Option<f64>,
    /// Tokens per minute, if they are known
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..), value_name = "N")]
    pub(super) tpm: Option<u64>,
    /// Requests per second, if they are known
    #[arg(long, value_parser = positive, value_name = "N")]
    pub(super) max_qps: Option<f64>,
    /// Attempts of a row: for faults, timeouts and bad output, never for a 429
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..), value_name = "N")]
    pub(super) max_attempts: u32,
    /// Longest time of a row, waiting for its turn at the upstream included
    #[arg(long, default_value = "10m", value_parser = parse_duration, value_name = "TIME")]
    pub(super) timeout: Duration,
    /// Longest time of the job; it stops in order and can be gone on with
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    pub(super) deadline: Option<Duration>,
    /// US dollars the job may cost, earlier runs of it included
    #[arg(long, value_parser = dollars, value_name = "USD")]
    pub(super) max_cost: Option<f64>,
    /// Stops when so many rows have failed: a number, or a share such as 5%
    #[arg(long, value_name = "N|P%")]
    pub(super) max_errors: Option<MaxErrors>,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Output")]
pub(super) struct OutputArgs {
    /// Output file, .jsonl or .csv; - is standard output [default: INPUT's name with .out.jsonl]
    #[arg(long, short, value_name = "FILE")]
    pub(super) output: Option<PathBuf>,
    /// How rows are written
    #[arg(long, value_enum, default_value_t = OutputFormat::Auto, value_name = "FORMAT")]
    pub(super) format: OutputFormat,
    /// In input order when the job ends, or in completion order at once
    #[arg(long, value_enum, default_value_t = OutputOrder::Input, value_name = "ORDER")]
    pub(super) order: OutputOrder,
    /// Replaces an output file that this job did not write
    #[arg(long)]
    pub(super) overwrite: bool,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(super) enum Group {
    Tokens,
    Prefix,
}

impl From<Group> for GroupBy {
    fn from(group: Group) -> Self {
        match group {
            Group::Tokens => Self::Tokens,
            Group::Prefix => Self::Prefix,
        }
    }
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(super) enum OutputFormat {
    /// As the output's name says
    Auto,
    /// JSON lines
    Jsonl,
    /// A table
    Csv,
    /// OpenAI's output and error lines, in two files
    OpenaiBatch,
}

impl From<OutputFormat> for Format {
    fn from(format: OutputFormat) -> Self {
        match format {
            OutputFormat::Auto => Self::Auto,
            OutputFormat::Jsonl => Self::Jsonl,
            OutputFormat::Csv => Self::Csv,
            OutputFormat::OpenaiBatch => Self::OpenAiBatch,
        }
    }
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(super) enum OutputOrder {
    Input,
    Completion,
}

impl From<OutputOrder> for Order {
    fn from(order: OutputOrder) -> Self {
        match order {
            OutputOrder::Input => Self::Input,
            OutputOrder::Completion => Self::Completion,
        }
    }
}
