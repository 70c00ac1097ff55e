//! `tidegate batch plan`: checks every row, counts tokens and tells the price, without a call.

use super::{
    args::{RowArgs, UpstreamArgs},
    job,
    telling::{Stop, Telling, show},
};
use crate::config::Environment;
use anyhow::Context;
use std::path::{Path, PathBuf};
use tidegate_batch::plan_input;

/// Exit code of an input with rows that cannot be sent.
const USAGE: u8 = 2;

#[derive(clap::Args, Debug)]
#[command(after_help = "Example:
  tidegate batch plan data.csv --prompt 'Summarise: {{ text }}' --model gpt-4o-mini

Exit code 2 when some rows cannot be sent.")]
pub(super) struct Args {
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

pub(super) fn run(mut args: Args) -> anyhow::Result<u8> {
    // Nobody is called: the configuration is needed, and no key.
    args.upstream.api_key_env = None;
    let assembled = match job::assemble(&args.upstream, None, &Environment::current()) {
        Ok(assembled) => assembled,
        Err(stop) => return stop.report(Telling::Plain),
    };
    let options = job::input(&args.rows, args.input.clone(), assembled.default_model);
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
    show(&plan, args.json)?;
    Ok(if plan.bad_lines > 0 { USAGE } else { 0 })
}
