//! Limits by scope and algorithm: what is let in is what is promised (`bounds`), and what callers
//! are told, how money and tokens are counted, who waits and who goes elsewhere (`manners`).

mod bounds;
mod manners;

use crate::house::{Home, House};
use std::sync::Arc;
use tidegate_core::{Call, Limits, Tenant};
use tidegate_engine::limits::{Options, Rule};
use tidegate_policy::rate_limit::Algorithm;
use tidegate_testkit::script::call;

const ALGORITHMS: [Algorithm; 4] = [
    Algorithm::TokenBucket,
    Algorithm::LeakyBucket,
    Algorithm::FixedWindow,
    Algorithm::SlidingWindow,
];

/// Whose limit it is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Scope {
    Default,
    Caller,
    Team,
    Model,
    Upstream,
}

const SCOPES: [Scope; 5] =
    [Scope::Default, Scope::Caller, Scope::Team, Scope::Model, Scope::Upstream];

impl Scope {
    /// Limits of this scope alone.
    fn options(self, rule: Rule) -> Options {
        let mut options = Options::default();
        match self {
            Self::Default => options.default = rule,
            Self::Caller => drop(options.callers.insert("ann".into(), rule)),
            Self::Team => drop(options.teams.insert("crew".into(), rule)),
            Self::Model => drop(options.models.insert("chat".into(), rule)),
            Self::Upstream => drop(options.upstreams.insert("a".into(), rule)),
        }
        options
    }

    /// What a refusal says of whose limit it was.
    const fn name(self) -> &'static str {
        match self {
            Self::Default | Self::Caller => "of this caller",
            Self::Team => "of the team `crew`",
            Self::Model => "of the model `chat`",
            Self::Upstream => "of the upstream `a`",
        }
    }
}

fn every_algorithm_and_scope() -> impl Iterator<Item = (Algorithm, Scope)> {
    ALGORITHMS.into_iter().flat_map(|algorithm| SCOPES.map(move |scope| (algorithm, scope)))
}

fn rule(algorithm: Algorithm, limits: Limits) -> Rule {
    Rule { limits, algorithm, ..Rule::default() }
}

fn requests(limit: u32) -> Limits {
    Limits { requests_per_minute: Some(limit), ..Limits::default() }
}

fn tokens(limit: u64) -> Limits {
    Limits { tokens_per_minute: Some(limit), ..Limits::default() }
}

fn home(limits: Options) -> Home {
    scripted("ok after 100ms", limits)
}

fn scripted(script: &str, limits: Options) -> Home {
    House::new(&[("a", script)]).parts(|parts| parts.limits = limits).open()
}

/// A call of `id`, of the team `crew`.
fn by(id: &str) -> Call {
    let tenant =
        Tenant { id: id.into(), team: Some("crew".into()), limits: None, ..Tenant::local() };
    Call { tenant: Arc::new(tenant), ..call("chat") }
}
