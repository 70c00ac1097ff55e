//! What a run found: the JSON others read, so its fields only ever grow.
//!
//! All times are milliseconds, all rates are per second of the measured window.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What `schema` says.
pub(crate) const SCHEMA: &str = "tidegate.bench";
/// Version of the schema: raised when a field changes its meaning, not when one is added.
pub(crate) const VERSION: u32 = 1;

/// A finished run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Always `tidegate.bench`.
    pub schema: String,
    /// 1.
    pub version: u32,
    /// Version of the tool.
    pub tool: String,
    /// RFC 3339, UTC.
    pub started_at: String,
    /// What was asked for.
    pub setup: Setup,
    /// Length of the measured window.
    pub elapsed_s: f64,
    /// Whether it was stopped before its time.
    pub ended_early: bool,
    /// What the reader must know before the figures, worst first.
    pub warnings: Vec<String>,
    /// Requests of the measured window.
    pub requests: Requests,
    /// Per second.
    pub rates: Rates,
    /// Tokens of the answers that ended in the window.
    pub tokens: Tokens,
    /// Requests by how they ended: `ok`, `429`, `503`, `4xx`, `5xx`, `connect`, `reset`,
    /// `timeout`, `stream_error`, `truncated`, `invalid`.
    pub classes: BTreeMap<String, u64>,
    /// What errors said, the most frequent first, at most 20.
    pub samples: Vec<Sample>,
    /// Answers 429 and 503.
    pub refusals: Refusals,
    /// Times.
    pub latency: Latencies,
    /// One point a second, from the window's start to the last answer.
    pub series: Vec<Second>,
    /// What the load cost this tool; none when the window was too short to tell, or the server
    /// is in the same process.
    #[serde(default)]
    pub generator: Option<Generator>,
}

/// What the load cost the tool itself, over the window.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Generator {
    /// Threads that sent and read.
    pub threads: u64,
    /// Processor time, user and system.
    pub cpu_s: f64,
    /// The same per request that ended, in microseconds; none for fewer than a hundred.
    pub cpu_us_per_request: Option<f64>,
    /// Share of the threads' time: from 0.9 on the tool, not the server, is likely the limit.
    pub busy: f64,
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Setup {
    /// Base URL.
    pub url: String,
    /// `chat`, `text_completion`, `embeddings` or `responses`.
    pub operation: String,
    /// Model name.
    pub model: String,
    /// Whether answers were streams.
    pub stream: bool,
    /// `http/1.1` or `h2`.
    #[serde(default = "http1")]
    pub protocol: String,
    /// `open`, `paced` (a schedule with bounded concurrency) or `closed`.
    pub load: String,
    /// Requests per second of the schedule.
    pub rate_per_s: Option<f64>,
    /// `poisson` or `uniform`.
    pub arrivals: Option<String>,
    /// Workers, or for an open loop the bound of requests in flight.
    pub concurrency: u64,
    /// Window asked for.
    pub duration_s: f64,
    /// Time before it.
    pub warmup_s: f64,
    /// Requests asked for.
    pub requests: Option<u64>,
    /// Longest time of a request.
    pub timeout_s: f64,
    /// Different bodies sent in turn.
    pub bodies: u64,
    /// What makes the schedule.
    pub seed: u64,
    /// `ttft=500ms,total=5s`.
    pub slo: Option<String>,
}

fn http1() -> String {
    "http/1.1".into()
}

/// Requests due in the measured window.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Requests {
    /// Sent, and ended one way or another.
    pub measured: u64,
    /// Answered in full.
    pub ok: u64,
    /// Ended otherwise.
    pub failed: u64,
    /// Answered at all, if only with an error or in part.
    #[serde(default)]
    pub answered: u64,
    /// Answered in full and within the SLO; all that are ok without one.
    pub within_slo: u64,
    /// Due and never sent: the bound of requests in flight was met, or the run ended first.
    pub dropped: u64,
    /// Sent and given up at the end of a run that was stopped.
    pub unfinished: u64,
    /// Sent before the window, and measured nowhere.
    pub warmup: u64,
    /// Most in flight at once.
    pub peak_in_flight: u64,
}

/// Per second of the window. What ended in it counts, whenever it began.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// Requests due, dropped ones included; none in a closed loop.
    pub offered: Option<f64>,
    /// Requests that ended, errors included.
    pub achieved: f64,
    /// Those answered in full.
    pub ok: f64,
    /// Those answered within the SLO; none without one.
    pub goodput: Option<f64>,
    /// Prompt tokens.
    pub tokens_in: f64,
    /// Answer tokens.
    pub tokens_out: f64,
    /// Body bytes sent.
    pub bytes_sent: f64,
    /// Body bytes received.
    pub bytes_received: f64,
}

/// Tokens as the server counted them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tokens {
    /// Of prompts.
    pub input: u64,
    /// Of answers.
    pub output: u64,
    /// Good answers without a count; of streams the events with text are counted then.
    pub answers_without_usage: u64,
}

/// One thing errors said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// As in `classes`.
    pub class: String,
    /// What it said.
    pub message: String,
    /// How often.
    pub count: u64,
}

/// Answers 429 and 503.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusals {
    /// How many.
    pub count: u64,
    /// Those that said when to come back.
    pub with_retry_after: u64,
}

/// Times of requests due in the window. `None` where nothing was recorded.
///
/// Corrected ones run from the moment a request was due, so a request that had to wait for the
/// generator or for a free worker is as slow as its user would have found it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latencies {
    /// Good answers, corrected.
    pub total: Option<Summary>,
    /// Good answers, from when they were sent, connecting included.
    pub service: Option<Summary>,
    /// To the first token of streams, corrected.
    pub first_token: Option<Summary>,
    /// To the first token of streams, from when they were sent.
    pub first_token_service: Option<Summary>,
    /// Between two events with tokens.
    pub inter_token: Option<Summary>,
    /// Per answer: from first to last token, divided by the tokens after the first.
    pub per_output_token: Option<Summary>,
    /// Opening a connection.
    pub connect: Option<Summary>,
    /// 429 and 503, from when they were sent.
    pub refusal: Option<Summary>,
    /// Other failures, from when they were sent.
    pub failure: Option<Summary>,
    /// From when a request was due to when it was sent.
    pub lag: Option<Summary>,
}

/// Percentiles of one kind of time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Times recorded.
    pub count: u64,
    /// Mean.
    pub mean_ms: f64,
    /// Shortest.
    pub min_ms: f64,
    /// Half are not longer.
    pub p50_ms: f64,
    /// 90 %.
    pub p90_ms: f64,
    /// 99 %.
    pub p99_ms: f64,
    /// 99.9 %.
    pub p999_ms: f64,
    /// Longest.
    pub max_ms: f64,
    /// Share and time, for a curve.
    pub curve: Vec<(f64, f64)>,
}

/// One second of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Second {
    /// Seconds from the window's start.
    pub at_s: u64,
    /// Requests due.
    pub offered: u64,
    /// Due and not sent.
    pub dropped: u64,
    /// Due, and ended well, whenever that was.
    #[serde(default)]
    pub kept: u64,
    /// Ended well.
    pub ok: u64,
    /// 429 and 503.
    pub refused: u64,
    /// Ended otherwise.
    pub failed: u64,
    /// Most in flight.
    pub in_flight: u64,
    /// Answer tokens of what ended.
    pub tokens_out: u64,
    /// Corrected latency of what ended well.
    pub p50_ms: Option<f64>,
    /// 99 % of the same.
    pub p99_ms: Option<f64>,
    /// Corrected first-token time of what ended well.
    pub first_token_p50_ms: Option<f64>,
    /// 99 % of the same.
    pub first_token_p99_ms: Option<f64>,
}

impl Report {
    /// Reads a report's JSON.
    ///
    /// # Errors
    ///
    /// When it is not one, or of a version that is not known here.
    pub fn from_json(text: &str) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Head {
            schema: String,
            version: u32,
        }
        match serde_json::from_str::<Head>(text) {
            Ok(head) if head.schema == SCHEMA && head.version == VERSION => {}
            Ok(head) if head.schema == SCHEMA => {
                return Err(format!(
                    "it is of version {}, and this tool reads {VERSION}: use the same release \
                     for both",
                    head.version
                ));
            }
            _ => return Err("it is not a report of `tidegate bench --json`".into()),
        }
        serde_json::from_str(text).map_err(|error| format!("it is damaged: {error}"))
    }

    /// Indented JSON.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("a report can be written");
        text.push('\n');
        text
    }

    /// Share of the measured requests that failed, 0 to 1; 0 when there was none.
    pub fn error_share(&self) -> f64 {
        self.requests.failed as f64 / self.requests.measured.max(1) as f64
    }

    /// Whether the server answered anything, if only with an error.
    pub fn has_answers(&self) -> bool {
        self.requests.answered > 0
    }
}
