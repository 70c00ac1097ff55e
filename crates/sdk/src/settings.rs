//! What an assembly is made from: upstreams, models, limits. The gateway's configuration file
//! is these types with a `[server]` beside them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, time::Duration};
use tidegate_core::{Limits, Money};
use tidegate_engine::limits;
use tidegate_policy::{
    balance, breaker, budget, canary, concurrency, hedge, load, memory, price, queue,
    rate_limit::Algorithm,
    retry, retry_budget,
    setting::{self, SecretRef},
    timeout,
};
use tidegate_upstream::ClientAuth;

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
    /// Teams of callers, by name.
    pub teams: BTreeMap<String, TeamSettings>,
    /// How budgets of callers and teams are kept.
    pub budgets: budget::Options,
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
    /// Our account at its token endpoint, where it takes tokens instead of a key. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oauth: Option<OauthSettings>,
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
            oauth: None,
            max_concurrency: concurrency::Options::Auto,
            requests_per_minute: None,
            requests_per_second: None,
            tokens_per_minute: None,
            connection: tidegate_upstream::Options::default(),
        }
    }
}

/// Our account at a token endpoint: OAuth 2.0 client credentials (RFC 6749 §4.4).
///
/// One token serves all calls. It is renewed early, and once when the upstream refuses it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OauthSettings {
    /// The token endpoint.
    pub token_url: String,
    /// Our id there.
    pub client_id: String,
    /// Our secret there.
    pub client_secret: SecretRef,
    /// What to ask for, words parted by spaces. Default: what the server gives.
    #[serde(default)]
    pub scope: Option<String>,
    /// For whom the token is to be, where the server wants it said. Default: not said.
    #[serde(default)]
    pub audience: Option<String>,
    /// How we say who we are: "basic" (HTTP Basic) or "body" (in the form). Default "basic".
    #[serde(default)]
    pub auth: ClientAuth,
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
    /// What it costs, wherever its targets have no price of their own. Without one the cost is unknown, not zero.
    pub price: Option<price::Options>,
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
    /// What it costs there. Default: the model's price, or else the one listed for it in `prices`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price: Option<price::Options>,
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
    /// What it costs there. Default: the price listed for it in `prices`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price: Option<price::Options>,
    /// Share of the calls that is copied, from 0 to 1.
    #[serde(with = "setting::share")]
    #[schemars(with = "f64")]
    pub share: f64,
}

const fn one() -> u32 {
    1
}

/// A team of callers; keys name theirs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TeamSettings {
    /// What its callers may spend together, beside what each of them may.
    pub budget: budget::Amounts,
}

/// What callers, teams, models and upstreams may use. A call is let in where all of its caller,
/// its team and its model have room; an attempt is sent where its upstream has.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsSettings {
    /// Applied to every caller without its own.
    pub default: LimitSettings,
    /// Of single callers, by the id of their key or client. They come before what the key itself says.
    pub callers: BTreeMap<String, LimitSettings>,
    /// Of all callers of a team together, by its name.
    pub teams: BTreeMap<String, LimitSettings>,
    /// Of all calls that ask for a model, whoever asks, by the name callers use.
    pub models: BTreeMap<String, LimitSettings>,
    /// Of all attempts at an upstream, whatever the model. What an upstream itself allows is told in `[upstreams.NAME]`: calls wait for that, and are refused here.
    pub upstreams: BTreeMap<String, LimitSettings>,
}

/// Limits of one party; what is absent is not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LimitSettings {
    /// Requests per minute.
    pub requests_per_minute: Option<u32>,
    /// Tokens per minute, input and output together: reserved by estimate, corrected by real usage.
    pub tokens_per_minute: Option<u64>,
    /// US dollars per minute: reserved by estimate, corrected by real usage. Calls whose price is not known cost nothing here.
    pub cost_per_minute: Option<f64>,
    /// Calls in flight at once, streams included until their last chunk.
    pub concurrency: Option<u32>,
    /// How requests, tokens and dollars are counted.
    pub algorithm: Algorithm,
    /// How much of a limit may pass at once after a pause: what passes in this time. Token buckets only. Default "60s". A call that takes more at once is never let through.
    #[serde(with = "setting::opt_duration", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub burst: Option<Duration>,
}

impl LimitsSettings {
    /// What the engine makes of it.
    pub(crate) fn options(&self) -> Result<limits::Options, String> {
        let rule = |path: String, settings: &LimitSettings| {
            settings.rule().map_err(|(field, why)| format!("limits.{path}.{field}: {why}"))
        };
        let rules = |scope: &str, all: &BTreeMap<String, LimitSettings>| {
            let rules = all.iter().map(|(name, settings)| {
                Ok((name.as_str().into(), rule(format!("{scope}.{name}"), settings)?))
            });
            rules.collect::<Result<_, String>>()
        };
        Ok(limits::Options {
            default: rule("default".into(), &self.default)?,
            callers: rules("callers", &self.callers)?,
            teams: rules("teams", &self.teams)?,
            models: rules("models", &self.models)?,
            upstreams: rules("upstreams", &self.upstreams)?,
        })
    }
}

impl LimitSettings {
    /// What is wrong with it: the fields at fault, and why.
    pub fn problems(&self) -> Vec<(&'static str, &'static str)> {
        const NOTHING: &str = "0 would refuse every call; leave it out for no limit";
        let is_bucket = self.algorithm == Algorithm::TokenBucket;
        let too_much = |usd: f64| Money::from_usd(usd).is_none_or(|money| money == Money::ZERO);
        let checks = [
            ("requests_per_minute", self.requests_per_minute == Some(0), NOTHING),
            ("tokens_per_minute", self.tokens_per_minute == Some(0), NOTHING),
            ("cost_per_minute", self.cost_per_minute == Some(0.0), NOTHING),
            (
                "cost_per_minute",
                self.cost_per_minute.is_some_and(|usd| usd != 0.0 && too_much(usd)),
                "must be more than 0 and at most 18000000 US dollars",
            ),
            ("concurrency", self.concurrency == Some(0), NOTHING),
            (
                "burst",
                self.burst.is_some() && !is_bucket,
                "only a token bucket has one: leave it out, or write algorithm = \"token_bucket\"",
            ),
            (
                "burst",
                self.burst.is_some_and(|burst| burst.is_zero()) && is_bucket,
                "0s lets nothing through at once: write a second or more",
            ),
        ];
        checks.into_iter().filter(|check| check.1).map(|(field, _, why)| (field, why)).collect()
    }

    /// What the engine makes of it, or the first problem.
    fn rule(&self) -> Result<limits::Rule, (&'static str, &'static str)> {
        if let Some(problem) = self.problems().first() {
            return Err(*problem);
        }
        let rule = limits::Rule::default();
        Ok(limits::Rule {
            limits: Limits {
                requests_per_minute: self.requests_per_minute,
                tokens_per_minute: self.tokens_per_minute,
                cost_per_minute: self.cost_per_minute.and_then(Money::from_usd),
                concurrency: self.concurrency,
            },
            algorithm: self.algorithm,
            burst: self.burst.unwrap_or(rule.burst),
        })
    }
}
