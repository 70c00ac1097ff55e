//! `tidegate batch status`: how far a job is, also while it runs.

use super::telling::{Stop, Telling, show};
use std::path::PathBuf;
use tidegate_batch::{Files, Format, status};

#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  tidegate batch status data.jsonl")]
pub(super) struct Args {
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

pub(super) fn run(args: &Args) -> anyhow::Result<u8> {
    let files = Files::of(&args.input, args.output.as_deref(), Format::Auto);
    match files.and_then(|files| status(&files)) {
        Ok(status) => {
            show(&status, args.json)?;
            Ok(0)
        }
        Err(failure) => Stop::Failure(failure).report(Telling::Plain),
    }
}
