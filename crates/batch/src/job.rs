//! What a job is: its options, and what it runs in.

use crate::{Progress, input::InputOptions};
use std::{path::PathBuf, str::FromStr, sync::Arc, time::Duration};
use tidegate_core::{Answer, Price};
use tokio_util::sync::CancellationToken;

/// A file of calls to be answered, and how.
#[derive(Clone, Debug)]
pub struct Job {
    /// Which calls, built from what.
    pub input: InputOptions,
    /// Output file; `-` is standard output. Default: beside the input, `data.out.jsonl`.
    pub output: Option<PathBuf>,
    /// How rows are written. Default: as the output's extension says.
    pub format: Format,
    /// In which order rows are written.
    pub order: Order,
    /// Whether an output this job did not write may be replaced.
    pub overwrite: bool,
    /// Whether bad lines become error rows instead of stopping the job before any call.
    pub skip_invalid: bool,
    /// Whether equal rows are called once even when their answers may differ.
    pub dedup: bool,
    /// Rows in flight at once; `None` hands out as many as the engine's own limits can use.
    pub concurrency: Option<u32>,
    /// Attempts of one row, for faults, timeouts and bad output only. At least 1, default 5.
    pub max_attempts: u32,
    /// Longest time of one row, waiting for its turn included. Default 10 minutes.
    pub timeout: Duration,
    /// Longest time of the job; `None` is no limit.
    pub deadline: Option<Duration>,
    /// US dollars the job may cost, earlier runs of it included; `None` is no limit.
    pub max_cost: Option<f64>,
    /// Failed rows at which the job stops; `None` is no limit.
    pub max_errors: Option<MaxErrors>,
    /// Failed rows of an earlier run to run again.
    pub retry: Option<Only>,
    /// The arguments of this command, for the resume hint and `batch retry`. Never a secret.
    pub arguments: Vec<String>,
}

impl Job {
    /// The job `tidegate batch PATH` runs.
    pub fn new(input: InputOptions) -> Self {
        Self {
            input,
            output: None,
            format: Format::Auto,
            order: Order::Input,
            overwrite: false,
            skip_invalid: false,
            dedup: false,
            concurrency: None,
            max_attempts: 5,
            timeout: Duration::from_secs(600),
            deadline: None,
            max_cost: None,
            max_errors: None,
            retry: None,
            arguments: Vec::new(),
        }
    }
}

/// How rows are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// As the output's extension says: `.csv` is CSV, anything else JSON lines.
    #[default]
    Auto,
    /// One JSON object a line.
    Jsonl,
    /// A table.
    Csv,
    /// OpenAI's batch output and error lines, successes and failures in two files.
    OpenAiBatch,
}

/// In which order rows are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// As in the input, when the job ends.
    #[default]
    Input,
    /// As they are answered, at once.
    Completion,
}

/// Failed rows at which a job stops.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MaxErrors {
    /// So many.
    Rows(u64),
    /// This share of the rows that ended, in percent, once 20 have.
    Percent(f64),
}

impl MaxErrors {
    /// Rows that must have ended before a share means anything.
    const ENOUGH: u64 = 20;

    /// Whether `failed` of `ended` rows are too many.
    pub(crate) fn reached(self, failed: u64, ended: u64) -> bool {
        match self {
            Self::Rows(most) => failed >= most,
            Self::Percent(share) => {
                ended >= Self::ENOUGH && failed as f64 * 100.0 >= share * ended as f64
            }
        }
    }
}

impl FromStr for MaxErrors {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = match text.strip_suffix('%') {
            Some(share) => share.trim().parse().ok().filter(|share| (0.0..=100.0).contains(share)),
            None => return text.parse().map(Self::Rows).map_err(|_| Self::expected(text)),
        };
        parsed.map(Self::Percent).ok_or_else(|| Self::expected(text))
    }
}

impl MaxErrors {
    fn expected(text: &str) -> String {
        format!("'{text}' is neither a number of rows (100) nor a share of them (5%)")
    }
}

/// Which failed rows run again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Only {
    /// Every one.
    All,
    /// Those of this class, such as `timeout`.
    Class(String),
    /// Those with this error code, such as `deadline_exceeded`.
    Code(String),
}

impl FromStr for Only {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            None if text == "all" => Ok(Self::All),
            Some(("class", class)) if !class.is_empty() => Ok(Self::Class(class.into())),
            Some(("code", code)) if !code.is_empty() => Ok(Self::Code(code.into())),
            _ => Err(format!("'{text}' is none of: all, class=timeout, code=upstream_error")),
        }
    }
}

/// What a job runs in: everything that is not about the job itself.
pub struct Surroundings {
    /// Answers the calls.
    pub answer: Arc<dyn Answer>,
    /// What models cost.
    pub prices: Prices,
    /// Cancelled by the first Ctrl-C: no new row is started, those in flight are finished.
    pub stop: CancellationToken,
    /// How progress is shown.
    pub progress: Progress,
    /// Asked before rows answered and paid for earlier are called again.
    pub confirm: Option<Confirm>,
}

/// Asks a yes-or-no question.
pub type Confirm = Box<dyn Fn(&str) -> bool + Send + Sync>;

/// The price of a model by the name callers use; `None` when it is not known.
pub type Prices = Arc<dyn Fn(&str) -> Option<Price> + Send + Sync>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn max_errors_are_rows_or_a_share() {
        assert_eq!("7".parse(), Ok(MaxErrors::Rows(7)));
        assert_eq!("2.5%".parse(), Ok(MaxErrors::Percent(2.5)));
        for bad in ["", "%", "-1", "101%", "many"] {
            assert!(bad.parse::<MaxErrors>().is_err(), "{bad}");
        }
        assert!(!MaxErrors::Percent(50.0).reached(19, 19));
        assert!(MaxErrors::Percent(50.0).reached(10, 20));
        assert!(MaxErrors::Rows(3).reached(3, 3));
    }

    #[test]
    fn only_names_a_class_or_a_code() {
        assert_eq!("all".parse(), Ok(Only::All));
        assert_eq!("class=timeout".parse(), Ok(Only::Class("timeout".into())));
        assert!("timeout".parse::<Only>().is_err());
        assert!("class=".parse::<Only>().is_err());
    }
}
