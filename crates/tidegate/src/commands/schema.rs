//! `tidegate schema`: the JSON Schema of the configuration, for editors.

use crate::{config, output};

/// Prints the JSON Schema of the configuration
///
/// Editors with a TOML language server complete and check the file with it: put
/// `#:schema ./tidegate.schema.json` on its first line.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  tidegate schema > tidegate.schema.json")]
pub(crate) struct Args {}

pub(crate) fn run(Args {}: Args) -> anyhow::Result<u8> {
    output::data(&(serde_json::to_string_pretty(&config::schema())? + "\n"))?;
    Ok(0)
}
