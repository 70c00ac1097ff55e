//! What a job says to whom it works for: progress and messages on standard error, what was asked
//! for on standard output.

use crate::{config::Problems, output};
use anyhow::Context;
use serde::Serialize;
use std::{
    fmt::Display,
    io::{BufRead, IsTerminal, Write},
    path::{Path, PathBuf},
};
use tidegate_batch::{End, Failure, Finished, Progress};

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Progress")]
pub(super) struct TellingArgs {
    /// How progress is told, on standard error
    #[arg(long, value_enum, default_value_t = Telling::Auto, value_name = "HOW")]
    pub(super) progress: Telling,
    /// Writes the summary as JSON here
    #[arg(long, value_name = "FILE")]
    pub(super) summary_json: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Telling {
    /// A bar on a terminal, lines elsewhere
    Auto,
    /// A line every 10 seconds
    Plain,
    /// One JSON object a line
    Json,
    /// Only the summary
    None,
}

/// What keeps a command from starting.
pub(super) enum Stop {
    Configuration(Problems),
    Failure(Failure),
}

impl Stop {
    pub(super) fn usage(message: String) -> Self {
        Self::Failure(Failure::Usage(message))
    }

    /// Says what is wrong; the exit code.
    pub(super) fn report(self, telling: Telling) -> anyhow::Result<u8> {
        match self {
            Self::Configuration(problems) => Ok(problems.report()),
            Self::Failure(failure) => {
                error(&failure.to_string(), telling);
                Ok(failure.exit_code())
            }
        }
    }
}

pub(super) fn progress(telling: Telling) -> Progress {
    match telling {
        Telling::Auto if std::io::stderr().is_terminal() => Progress::Bar,
        Telling::Auto | Telling::Plain => Progress::Plain(Box::new(std::io::stderr())),
        Telling::Json => Progress::Json(Box::new(std::io::stderr())),
        Telling::None => Progress::None,
    }
}

/// What is said at the first signal.
pub(super) const fn stopping(telling: Telling) -> &'static str {
    match telling {
        Telling::Json => {
            r#"{"event":"message","message":"stopping: rows in flight are finished first"}"#
        }
        Telling::Auto | Telling::Plain | Telling::None => {
            "stopping: rows in flight are finished first; once more aborts them"
        }
    }
}

/// Asks at the terminal; only a yes is one.
pub(super) fn ask(question: &str) -> bool {
    let mut err = std::io::stderr().lock();
    let asked = write!(err, "{question} [y/N] ").and_then(|()| err.flush());
    let mut answer = String::new();
    let heard = asked.and_then(|()| std::io::stdin().lock().read_line(&mut answer));
    heard.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes")
}

/// The summary, why the job ended, and how to go on.
pub(super) fn tell(finished: &Finished, destination: &str, telling: Telling) -> anyhow::Result<()> {
    let why = match &finished.end {
        End::Complete | End::AlreadyComplete | End::Interrupted => None,
        End::Refused(why) => Some(why.clone()),
        End::Unreachable(why) => Some(format!(
            "nobody answers at {destination} ({why}); start the server, or mend --base-url"
        )),
        End::Budget => Some("--max-cost is reached; go on with a higher one".to_owned()),
        End::Deadline => Some("--deadline is reached".to_owned()),
        End::Errors => Some("--max-errors is reached".to_owned()),
    };
    if telling == Telling::Json {
        let mut event = serde_json::to_value(&finished.summary)?;
        event["event"] = "summary".into();
        event["why"] = why.into();
        event["resume"] = finished.resume.clone().into();
        output::note(&event.to_string());
        return Ok(());
    }
    output::note(&finished.summary.to_string());
    if let Some(why) = why {
        output::note(&format!("stopped: {why}"));
    }
    if finished.summary.left > 0 && !finished.resume.is_empty() {
        output::note(&format!("go on with: {}", finished.resume));
    }
    Ok(())
}

fn error(message: &str, telling: Telling) {
    if telling == Telling::Json {
        let event = serde_json::json!({ "event": "error", "message": message });
        output::note(&event.to_string());
    } else {
        output::note(&format!("error: {message}"));
    }
}

pub(super) fn write_summary(path: &Path, finished: &Finished) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(&finished.summary)? + "\n";
    std::fs::write(path, text).with_context(|| format!("writing --summary-json {}", path.display()))
}

/// What was asked for, as JSON or as text for people.
pub(super) fn show(what: &(impl Serialize + Display), json: bool) -> anyhow::Result<()> {
    let mut text = if json { serde_json::to_string_pretty(what)? } else { what.to_string() };
    if !text.ends_with('\n') {
        text.push('\n');
    }
    output::data(&text)?;
    Ok(())
}
