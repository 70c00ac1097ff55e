//! `tidegate sim`: the simulated model server on a socket.

use crate::{output, signals};
use anyhow::Context;
use std::{net::SocketAddr, path::PathBuf, time::Duration};
use tidegate_core::Secret;
use tidegate_policy::setting::{parse_duration, parse_size};
use tidegate_sim::{Distribution, Faults, Options, RetryAfterForm, Sim};

/// Exit code of settings that cannot be.
const USAGE: u8 = 2;

/// Serves a simulated model: OpenAI's endpoints, deterministic, with faults on demand
///
/// Answers are made from the prompt and a seed, so the same request always gets the same answer.
/// Times come from distributions: "50ms", "uniform:10ms,90ms", "lognormal:300ms,0.4" (median,
/// sigma) or "gamma:50ms,2" (mean, shape). Shares of faults are from 0 to 1 and exclusive.
///
/// While it runs: GET /sim/ledger tells what it saw, GET /sim/ledger/totals the counts,
/// POST /sim/faults changes the faults, DELETE of either forgets them.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Address to listen on; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:8090", value_name = "ADDR")]
    listen: SocketAddr,
    /// Writes the port here once it listens
    #[arg(long, value_name = "PATH")]
    port_file: Option<PathBuf>,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    faults: FaultArgs,
}

const EXAMPLES: &str = "Examples:
  tidegate sim --ttft lognormal:300ms,0.4 --itl 20ms --slots 20
  tidegate sim --listen 127.0.0.1:0 --port-file port --rate 40 --retry-after 1s
  tidegate sim --error-rate 0.01 --truncate-rate 0.01
  curl -X POST http://127.0.0.1:8090/sim/faults -d '{\"error_rate\": 0.1}'
  curl 'http://127.0.0.1:8090/sim/ledger?format=ndjson&since=0'";

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Model")]
struct ModelArgs {
    /// Answers, times and faults are functions of this and of the request
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// Model names to list, comma-separated
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    models: Vec<String>,
    /// Refuses model names that are not listed, with 404
    #[arg(long)]
    strict_models: bool,
    /// Time to the first token
    #[arg(long, default_value = "50ms", value_name = "TIME")]
    ttft: Distribution,
    /// Time between tokens
    #[arg(long, default_value = "2ms", value_name = "TIME")]
    itl: Distribution,
    /// Mean tokens of an answer
    #[arg(long, default_value_t = 24, value_name = "N")]
    answer_tokens: u32,
    /// Requests worked on at once; more wait their turn
    #[arg(long, default_value_t = 64, value_name = "N")]
    slots: usize,
    /// Requests that may wait; one more gets 503
    #[arg(long, default_value_t = 10_000, value_name = "N")]
    queue: usize,
    /// Slows tokens by 1 + X * (busy - 1) / slots
    #[arg(long, default_value_t = 0.0, value_name = "X")]
    batch_slowdown: f64,
    /// Length of embeddings
    #[arg(long, default_value_t = 256, value_name = "N")]
    dimensions: usize,
    /// Longest request body
    #[arg(long, default_value = "64MiB", value_parser = parse_size, value_name = "SIZE")]
    max_body: usize,
    /// Ledger entries kept
    #[arg(long, default_value_t = 2_000_000, value_name = "N")]
    ledger_entries: usize,
    /// TCP connections open at once
    #[arg(long, default_value_t = 20_000, value_name = "N")]
    max_connections: usize,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Hidden limits")]
struct LimitArgs {
    /// Requests per second, above it 429
    #[arg(long, value_name = "RPS")]
    rate: Option<f64>,
    /// Requests at once under --rate [default: one second's worth]
    #[arg(long, value_name = "N")]
    burst: Option<u32>,
    /// Tokens per minute, above it 429
    #[arg(long, value_name = "TPM")]
    tokens_per_minute: Option<u64>,
    /// Tokens at once under --tokens-per-minute [default: one minute's worth]
    #[arg(long, value_name = "N")]
    token_burst: Option<u64>,
    /// Requests in flight, above it 429
    #[arg(long, value_name = "N")]
    max_concurrency: Option<u32>,
    /// When refusals say to come back
    #[arg(long, default_value = "1s", value_parser = parse_duration, value_name = "TIME")]
    retry_after: Duration,
    /// How they say it
    #[arg(long, value_enum, default_value_t = Form::Seconds, value_name = "FORM")]
    retry_after_form: Form,
    /// Tells the limits in x-ratelimit-* headers
    #[arg(long)]
    announce_limits: bool,
    /// The only key accepted; others get 401
    #[arg(long, env = "TIDEGATE_SIM_KEY", hide_env_values = true, value_name = "KEY", value_parser = secret)]
    api_key: Option<Secret<String>>,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Faults (shares from 0 to 1)")]
struct FaultArgs {
    /// Answers with --error-status
    #[arg(long, default_value_t = 0.0, value_name = "SHARE")]
    error_rate: f64,
    /// Status of those answers
    #[arg(long, default_value_t = 500, value_name = "STATUS")]
    error_status: u16,
    /// 429 insufficient_quota
    #[arg(long, default_value_t = 0.0, value_name = "SHARE")]
    quota_rate: f64,
    /// Connection reset before any answer
    #[arg(long, default_value_t = 0.0, value_name = "SHARE")]
    reset_rate: f64,
    /// Accepted and never answered
    #[arg(long, default_value_t = 0.0, value_name = "SHARE")]
    stall_rate: f64,
    /// Stops for ever in the middle of the answer
    #[arg(long, default_value_t = 0.0, value_name = "SHARE")]
    stall_mid_rate: f64,
    /// Connection breaks in the middle of the answer
    #[arg(long, default_value_t = 0.0, value_name = "SHARE")]
    truncate_rate: f64,
    /// Streams that end cleanly in the middle, without [DONE]
    #[arg(long, default_value_t = 0.0, value_name = "SHARE")]
    unterminated_rate: f64,
    /// One event, or the body, is not JSON
    #[arg(long, default_value_t = 0.0, value_name = "SHARE")]
    malformed_rate: f64,
    /// Streams that break off with an error event
    #[arg(long, default_value_t = 0.0, value_name = "SHARE")]
    error_event_rate: f64,
    /// Text that is broken JSON, whatever was asked for
    #[arg(long, default_value_t = 0.0, value_name = "SHARE")]
    garbage_rate: f64,
    /// Waits before the answer's head
    #[arg(long, default_value = "0s", value_name = "TIME")]
    slow_headers: Distribution,
    /// Share of requests that do
    #[arg(long, default_value_t = 1.0, value_name = "SHARE")]
    slow_headers_rate: f64,
    /// Waits before each piece of the body
    #[arg(long, default_value = "0s", value_name = "TIME")]
    slow_body: Distribution,
    /// Share of requests that do
    #[arg(long, default_value_t = 1.0, value_name = "SHARE")]
    slow_body_rate: f64,
    /// Multiplies all token times
    #[arg(long, default_value_t = 1.0, value_name = "X")]
    slowdown: f64,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Form {
    Seconds,
    Fraction,
    Date,
    Ms,
    Garbage,
    Negative,
    None,
}

impl From<Form> for RetryAfterForm {
    fn from(form: Form) -> Self {
        match form {
            Form::Seconds => Self::Seconds,
            Form::Fraction => Self::Fraction,
            Form::Date => Self::Date,
            Form::Ms => Self::Ms,
            Form::Garbage => Self::Garbage,
            Form::Negative => Self::Negative,
            Form::None => Self::None,
        }
    }
}

fn secret(text: &str) -> Result<Secret<String>, std::convert::Infallible> {
    Ok(Secret::new(text.to_owned()))
}

/// Serves until SIGINT or SIGTERM, and ends with 0.
pub(crate) fn run(args: Args) -> anyhow::Result<u8> {
    let listen = args.listen;
    let port_file = args.port_file.clone();
    let options = options(args);
    if let Err(why) = options.check() {
        output::note(&format!("error: {why}"));
        return Ok(USAGE);
    }
    let runtime = tokio::runtime::Runtime::new().context("starting the runtime")?;
    runtime.block_on(serve(listen, port_file, options))?;
    Ok(0)
}

fn options(Args { model, limits, faults, .. }: Args) -> Options {
    let defaults = Options::default();
    Options {
        seed: model.seed,
        models: if model.models.is_empty() { defaults.models } else { model.models },
        strict_models: model.strict_models,
        ttft: model.ttft,
        itl: model.itl,
        answer_tokens: model.answer_tokens,
        slots: model.slots,
        queue: model.queue,
        batch_slowdown: model.batch_slowdown,
        dimensions: model.dimensions,
        max_body_bytes: model.max_body,
        ledger_entries: model.ledger_entries,
        max_connections: model.max_connections,
        faults: Faults {
            rate: limits.rate,
            burst: limits.burst,
            tokens_per_minute: limits.tokens_per_minute,
            token_burst: limits.token_burst,
            max_concurrency: limits.max_concurrency,
            retry_after: limits.retry_after,
            retry_after_form: limits.retry_after_form.into(),
            announce_limits: limits.announce_limits,
            error_rate: faults.error_rate,
            error_status: faults.error_status,
            quota_rate: faults.quota_rate,
            reset_rate: faults.reset_rate,
            stall_rate: faults.stall_rate,
            stall_mid_rate: faults.stall_mid_rate,
            truncate_rate: faults.truncate_rate,
            unterminated_rate: faults.unterminated_rate,
            malformed_rate: faults.malformed_rate,
            error_event_rate: faults.error_event_rate,
            garbage_rate: faults.garbage_rate,
            slow_headers: faults.slow_headers,
            slow_headers_rate: faults.slow_headers_rate,
            slow_body: faults.slow_body,
            slow_body_rate: faults.slow_body_rate,
            slowdown: faults.slowdown,
            api_key: limits.api_key,
        },
    }
}

async fn serve(
    listen: SocketAddr,
    port_file: Option<PathBuf>,
    options: Options,
) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind(listen)
        .await
        .with_context(|| format!("listening on {listen}; --listen takes another address"))?;
    let address = listener.local_addr()?;
    let stop = signals::drain_on_signal("stopping")?;
    let model = options.models[0].clone();
    let sim = Sim::new(options);
    if let Some(path) = port_file {
        std::fs::write(&path, format!("{}\n", address.port()))
            .with_context(|| format!("writing --port-file {}", path.display()))?;
    }
    output::note(&format!(
        "simulated model `{model}` on http://{address}/v1, until Ctrl-C; try\n  \
         curl http://{address}/v1/chat/completions -H 'content-type: application/json' \
         -d '{{\"model\": \"{model}\", \"messages\": [{{\"role\": \"user\", \"content\": \
         \"Summarise: the tide turns at noon\"}}]}}'"
    ));
    sim.serve(listener, stop.cancelled_owned()).await;
    Ok(())
}
