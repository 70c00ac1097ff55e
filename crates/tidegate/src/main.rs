//! The command line: one binary for the gateway, the batch runner and the simulated model server.
//!
//! Environment, files and signals are read here and nowhere else; everything below takes values.

mod access_log;
mod assembly;
mod books;
mod commands;
mod config;
mod money;
mod output;
mod panics;
mod process_log;
mod rotation;
mod signals;

use clap::{CommandFactory, Parser, Subcommand};
use commands::{batch, bench, check, completions, keys, prices, schema, serve, sim, usage};
use std::process::ExitCode;

// Freed memory goes back to the system after a burst, which glibc's allocator does not promise.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Calls model APIs at high concurrency: a gateway, a batch runner and a simulated model server
/// in one binary.
#[derive(Parser)]
#[command(name = "tidegate", version, max_term_width = 100, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

const EXAMPLES: &str = "Examples:
  tidegate batch prompts.jsonl                  answers every row with the built-in model
  tidegate batch data.csv --prompt 'Summarise: {{ text }}' \\
      --base-url http://10.0.0.5:8000/v1 --model qwen3-8b
  tidegate serve                                a gateway on 127.0.0.1:8080
  tidegate sim --ttft lognormal:300ms,0.4       a model server that costs nothing
  tidegate bench http://127.0.0.1:8090/v1 --rate 200 --stream

Exit codes: 0 all well; 1 internal error; 2 usage or invalid input; 3 finished but some rows
failed; 4 authentication or quota stop; 5 budget or deadline reached, resumable; 6 upstream
unreachable; 130 interrupted, resumable.";

#[derive(Subcommand)]
enum Verb {
    Serve(serve::Args),
    Batch(Box<batch::Args>),
    Sim(Box<sim::Args>),
    Bench(Box<bench::Args>),
    Check(check::Args),
    Keys(keys::Args),
    Prices(prices::Args),
    Usage(usage::Args),
    Schema(schema::Args),
    Completions(completions::Args),
}

fn main() -> ExitCode {
    panics::tell();
    let done = match Cli::parse().verb {
        Verb::Serve(args) => serve::run(args),
        Verb::Batch(args) => batch::run(*args),
        Verb::Sim(args) => sim::run(*args),
        Verb::Bench(args) => bench::run(*args),
        Verb::Check(args) => check::run(args),
        Verb::Keys(args) => keys::run(args),
        Verb::Prices(args) => prices::run(args),
        Verb::Usage(args) => usage::run(args),
        Verb::Schema(args) => schema::run(args),
        Verb::Completions(args) => completions::run(args, Cli::command()),
    };
    match done {
        Ok(code) => code.into(),
        Err(error) => {
            output::note(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
