//! `tidegate completions`: what a shell needs to complete our flags.

use crate::output;
use clap_complete::Shell;

/// Prints a completion script for a shell
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Example:\n  tidegate completions bash > ~/.local/share/bash-completion/completions/tidegate"
)]
pub(crate) struct Args {
    /// Which shell
    shell: Shell,
}

/// `command` is the whole command line that is to be completed.
pub(crate) fn run(args: Args, mut command: clap::Command) -> anyhow::Result<u8> {
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, name, &mut script);
    output::data(&String::from_utf8(script)?)?;
    Ok(0)
}
