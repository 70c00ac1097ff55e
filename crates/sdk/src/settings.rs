//! What an assembly is made from: upstreams, models, limits. The gateway's configuration file
//! is these types with a `[server]` beside them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tidegate_core::Limits;
use tidegate_policy::{
    balance, breaker, canary, concurrency, hedge, load, memory, queue, retry, retry_budget,
    setting::{self, SecretRef},
    timeout,
};

/// Upstreams, models and limits.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Model servers and provider accounts, by name.
    pub upstreams: BTreeMap<String, UpstreamSettings>,
    /// Models callers may ask for, by the name they use.
    pub models: BTreeMap<String, ModelSettings>,
    /// Limits of callers.
    pub limits: LimitsSettings,
    /// When and how often a failed attempt is tried again.
    pub retry: retry::Options,
    /// How many attempts beyond the first an upstream may get.
    pub retry_budget: retry_budget::Options,
    /// When an upstream that keeps failing is left alone.
    pub breaker: breaker::Options,
    /// In which order calls wait for an upstream, and which do not.
    pub queue: queue::Options,
    /// What is done as the load grows.
    pub load: load::Options,
    /// How much memory calls may hold.
    pub memory: memory::Options,
}

/// A model server or provider account.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct UpstreamSettings {
    /// Where it is, up to and including `/v1`. Required unless the protocol is "sim".
    pub base_url: String,
    /// The dialect it speaks. Default "openai".
    pub protocol: Protocol,
    /// Our key there, sent as `Authorization: Bearer`.
    pub api_key: Option<SecretRef>,
    /// Attempts in flight at once, per model: a number; "auto" (the default), found from its answers; or "gradient", found from first-token times, for servers of one's own.
    pub max_concurrency: concurrency::Options,
    /// Requests per minute it allows, per model. Default: found from its answers.
    pub requests_per_minute: Option<f64>,
    /// Requests per second it allows, per model. Default: found from its answers.
    pub requests_per_second: Option<f64>,
    /// Tokens per minute it allows, input and output together, per model. Default: no limit.
    pub tokens_per_minute: Option<u64>,
    /// How connections to it are made and kept.
    pub connection: tidegate_upstream::Options,
}

impl Default for UpstreamSettings {
    fn default() -> Self {
        Self {
            base_url: String::new(),
            protocol: Protocol::Openai,
            api_key: None,
            max_concurrency: concurrency::Options::Auto,
            requests_per_minute: None,
            requests_per_second: None,
            tokens_per_minute: None,
            connection: tidegate_upstream::Options::default(),
        }
    }
}

/// The dialect an upstream speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// OpenAI's HTTP API: vLLM, SGLang, TGI, most providers.
    #[default]
    Openai,
    /// The built-in simulated model server, in this process.
    Sim,
}

/// A model as callers know it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ModelSettings {
    /// Where its calls go. At least one.
    pub targets: Vec<TargetSettings>,
    /// Its clocks.
    pub timeouts: timeout::Options,
    /// How its attempts are spread over its targets. Default "p2c-ewma".
    pub balance: balance::Options,
    /// When a second attempt starts while the first still thinks. Default: never.
    pub hedge: hedge::Options,
    /// Models that answer when all its targets are spent, in order. Default: none.
    pub fallback: Vec<String>,
    /// Where a share of its calls is copied; the answers are thrown away. Default: nowhere.
    pub mirror: Option<MirrorSettings>,
    /// What it costs. Without one the cost is unknown, not zero.
    pub price: Option<Price>,
}

/// An upstream, that upstream's own model name, and a weight.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TargetSettings {
    /// Name of an upstream.
    pub upstream: String,
    /// The upstream's own name of the model. Default: the name callers use.
    #[serde(default)]
    pub model: Option<String>,
    /// Share of the calls it gets; zero parks it. Default 1.
    #[serde(default = "one")]
    pub weight: u32,
    /// The calls it is for: those that fit go to such targets only, all others to the targets
    /// without a match. Weights count among the targets a call may go to. Default: none.
    #[serde(default, rename = "match", skip_serializing_if = "Option::is_none")]
    pub matches: Option<canary::Match>,
}

/// A target that gets copies of calls and whose answers nobody sees.
///
/// A copy never delays its call and is never sent twice; at most 64 of a model are in flight.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MirrorSettings {
    /// Name of an upstream.
    pub upstream: String,
    /// The upstream's own name of the model. Default: the name callers use.
    #[serde(default)]
    pub model: Option<String>,
    /// Share of the calls that is copied, from 0 to 1.
    #[serde(with = "setting::share")]
    #[schemars(with = "f64")]
    pub share: f64,
}

const fn one() -> u32 {
    1
}

/// US dollars per million tokens.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// Prompt tokens, USD per million.
    pub input: f64,
    /// Answer tokens, USD per million.
    pub output: f64,
}

/// Limits of callers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsSettings {
    /// Applied to every caller without its own.
    pub default: LimitSettings,
}

/// Limits of one caller; what is absent is not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LimitSettings {
    /// Requests per minute.
    pub requests_per_minute: Option<u32>,
    /// Tokens per minute, input and output together.
    pub tokens_per_minute: Option<u64>,
    /// Calls in flight at once, streams included until their last chunk.
    pub concurrency: Option<u32>,
}

impl From<LimitSettings> for Limits {
    fn from(written: LimitSettings) -> Self {
        Self {
            requests_per_minute: written.requests_per_minute,
            tokens_per_minute: written.tokens_per_minute,
            concurrency: written.concurrency,
            ..Self::default()
        }
    }
}
