//! The lines that are read: rows of the output and error files, entries of the ledger.

use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;

/// A line of the output or error file, as far as the invariants go.
#[derive(Deserialize)]
pub(super) struct Row<'a> {
    pub(super) index: Option<u64>,
    #[serde(borrow)]
    pub(super) custom_id: Option<Cow<'a, str>>,
    /// Tidegate's format only: `ok`, `error` or `skipped`.
    #[serde(borrow)]
    pub(super) status: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub(super) response: Option<Response<'a>>,
    #[serde(borrow)]
    pub(super) error: Option<&'a RawValue>,
}

#[derive(Deserialize)]
pub(super) struct Response<'a> {
    pub(super) status_code: Option<u16>,
    /// The upstream's id of the request, by which its ledger entry is found.
    #[serde(borrow)]
    pub(super) request_id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub(super) body: Option<&'a RawValue>,
}

/// A response body, as far as it says what it cost.
#[derive(Deserialize)]
pub(super) struct Answer {
    pub(super) usage: Option<Usage>,
}

#[derive(Clone, Copy, Default, Deserialize)]
pub(super) struct Usage {
    #[serde(default, alias = "input_tokens", alias = "input")]
    pub(super) prompt_tokens: u64,
    #[serde(default, alias = "output_tokens", alias = "output")]
    pub(super) completion_tokens: u64,
}

/// A line of the simulator's ledger.
#[derive(Deserialize)]
pub(super) struct Entry<'a> {
    /// `x-request-id` as the simulator got it, and gave it back with its answer.
    #[serde(borrow)]
    pub(super) id: Option<Cow<'a, str>>,
    pub(super) outcome: Outcome,
    pub(super) prompt_tokens: u64,
    pub(super) completion_tokens: u64,
}

#[derive(Clone, Copy, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(super) enum Outcome {
    Ok,
    Cancelled,
    Refused,
    Fault,
}

/// An error row of either format.
pub(super) fn is_error(row: &Row<'_>) -> bool {
    match &row.status {
        Some(status) => status != "ok",
        None => {
            let status = row.response.as_ref().and_then(|response| response.status_code);
            row.error.is_some() || status.is_none_or(|status| status / 100 != 2)
        }
    }
}
