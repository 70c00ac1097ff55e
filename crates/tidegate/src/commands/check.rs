//! `tidegate check`: is the configuration right, and what does it come to?

use crate::{
    config::{self, Environment, Loaded, Sources},
    output,
};
use anyhow::Context;

/// Validates a configuration and prints the effective one, secrets redacted
///
/// Defaults, profile and environment are included, so what is printed is what `serve` would use.
/// Warnings go to standard error. Exit code 2 and file:line:column of everything that is wrong.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  tidegate check --config tidegate.toml --profile prod")]
pub(crate) struct Args {
    #[command(flatten)]
    sources: Sources,
    /// How to print it
    #[arg(long, value_enum, default_value_t = Format::Toml)]
    format: Format,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Format {
    Toml,
    Json,
}

pub(crate) fn run(args: Args) -> anyhow::Result<u8> {
    let loaded = match config::load(&args.sources, &Environment::current()) {
        Ok(loaded) => loaded,
        Err(problems) => return Ok(problems.report()),
    };
    for warning in &loaded.warnings {
        output::note(&format!("warning: {warning}"));
    }
    output::data(&show(&loaded, args.format)?)?;
    let files: Vec<String> = loaded.files.iter().map(|file| file.display().to_string()).collect();
    output::note(&match &files[..] {
        [] => "ok: no configuration file, so these are the defaults".to_owned(),
        files => format!("ok: {}", files.join(", ")),
    });
    Ok(0)
}

fn show(loaded: &Loaded, format: Format) -> anyhow::Result<String> {
    let config = loaded.config.redacted();
    let shown = match format {
        Format::Toml => toml::to_string(&config).context("writing TOML")?,
        Format::Json => serde_json::to_string_pretty(&config).context("writing JSON")? + "\n",
    };
    Ok(shown)
}
