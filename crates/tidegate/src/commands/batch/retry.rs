//! `tidegate batch retry`: failed rows of a job again, with the options it was started with.

use super::{
    args::RunArgs,
    start,
    telling::{Stop, TellingArgs},
};
use clap::Parser;
use std::path::PathBuf;
use tidegate_batch::{Files, Format, Manifest, Only};

#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  tidegate batch retry data.jsonl
  tidegate batch retry data.jsonl --only class=timeout
  tidegate batch retry data.jsonl --only code=upstream_error

Classes: caller, capacity, fault, timeout, bad_output, invalid, refused.")]
pub(super) struct Args {
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
pub(super) struct Again {
    #[command(flatten)]
    pub(super) run: RunArgs,
}

pub(super) fn run(args: Args) -> anyhow::Result<u8> {
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
