//! What one seed means: a house with some of every policy turned on, and who calls.

use super::{
    dice::Dice,
    script::{self, NAMES},
};
use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};
use tidegate_core::{Call, Limits, Tenant};
use tidegate_engine::{
    Limiters, Mirror, Model, Target,
    limits::{self, Rule},
};
use tidegate_policy::{
    balance, breaker,
    canary::{self, Header, Match},
    concurrency, hedge,
    load::{self, Refuse},
    memory, pacer, queue,
    rate_limit::Algorithm,
    retry, retry_budget,
    timeout::{self, Estimator, FirstToken},
};

/// A house and its callers.
pub(super) struct Plan {
    pub(super) upstreams: Vec<Upstream>,
    pub(super) models: BTreeMap<Arc<str>, Model>,
    pub(super) any_model: Option<Arc<str>>,
    pub(super) limits: limits::Options,
    pub(super) max_in_flight: usize,
    pub(super) memory: memory::Options,
    pub(super) retry: retry::Options,
    pub(super) limiters: Limiters,
    pub(super) load: load::Options,
    pub(super) calls: Vec<Planned>,
    /// Whether the engine goes while copies may still be under way.
    pub(super) leaves_early: bool,
}

#[derive(Debug)]
pub(super) struct Upstream {
    pub(super) name: &'static str,
    pub(super) script: String,
    pub(super) concurrency: concurrency::Options,
    pub(super) pacer: pacer::Options,
}

/// A call, when it comes, and what its caller does to it.
pub(super) struct Planned {
    pub(super) call: Call,
    pub(super) starts: Duration,
    /// From the scenario's start.
    pub(super) deadline: Duration,
    /// From the call's own start.
    pub(super) hangs_up: Option<Duration>,
    /// Whether it hangs up before what comes at the same moment, which then nobody looks at.
    pub(super) hangs_up_first: bool,
    /// How long the caller thinks over each chunk before it takes the next.
    pub(super) pauses: Duration,
}

/// Draws the house of `seed`, and who calls there.
pub(super) fn plan(seed: u64) -> Plan {
    let dice = &mut Dice::new(seed);
    let names = &NAMES[..dice.number(1..5) as usize];
    let models = models(dice, names);
    // Where nothing is short, calls come as far as they can; elsewhere many end at the door.
    let is_roomy = dice.chance(if models["chat"].hedge.enabled { 0.7 } else { 0.3 });
    let limits = all_limits(dice, names);
    let calls = super::calls::calls(dice, models["chat"].hedge.enabled);
    let mut plan = Plan {
        upstreams: names.iter().map(|name| upstream(dice, name, is_roomy)).collect(),
        models,
        any_model: dice.chance(0.15).then(|| NAMES[0].into()),
        limits,
        max_in_flight: 1000,
        memory: memory::Options::default(),
        retry: retry(dice),
        limiters: limiters(dice),
        load: load::Options::default(),
        calls,
        leaves_early: dice.chance(0.2),
    };
    if is_roomy {
        return plan;
    }
    if dice.chance(0.2) {
        plan.max_in_flight = dice.number(2..10) as usize;
    }
    if dice.chance(0.2) {
        // Bodies have from 60 to 80 bytes.
        plan.memory.budget = dice.number(120..600) as usize;
    }
    if dice.chance(0.25) {
        plan.load = ladder(dice);
    }
    plan
}

/// `chat`, and the two models it may fall back to.
fn models(dice: &mut Dice, names: &[&'static str]) -> BTreeMap<Arc<str>, Model> {
    let mut chat = model(dice, names, 5);
    chat.fallback =
        dice.one(&[vec![], vec![], vec!["small".into()], vec!["small".into(), "tiny".into()]]);
    if dice.chance(0.3) {
        let named = dice.chance(0.3);
        let target = dice.number(0..chat.targets.len() as u32) as usize;
        chat.targets[target].matches = Some(canary(named));
    }
    if dice.chance(0.35) {
        let after = dice.millis(5..100);
        let after = dice.either(0.9, Some(after), None);
        chat.hedge = hedge::Options { enabled: true, share: 0.05, after };
    }
    let mut small = model(dice, names, 3);
    if dice.chance(0.1) {
        small.targets.iter_mut().for_each(|target| target.matches = Some(canary(false)));
    }
    let mut all = BTreeMap::from([
        ("chat".into(), chat),
        ("small".into(), small),
        ("tiny".into(), model(dice, names, 2)),
    ]);
    for model in all.values_mut() {
        model.mirror = dice.chance(0.2).then(|| Mirror {
            upstream: dice.one(names).into(),
            model: dice.one(&["copy", "m"]).into(),
            price: None,
            options: canary::Mirror { share: dice.one(&[0.3, 1.0]) },
        });
    }
    all
}

/// Up to `targets` targets, each a pair of its own, and at least one that takes calls.
fn model(dice: &mut Dice, names: &[&'static str], targets: u32) -> Model {
    let mut pairs: Vec<_> = names.iter().flat_map(|name| [(*name, "m"), (*name, "n")]).collect();
    let count = dice.number(1..targets).min(pairs.len() as u32);
    let mut targets = Vec::new();
    for _ in 0..count {
        let (upstream, model) = pairs.swap_remove(dice.number(0..pairs.len() as u32) as usize);
        let weight = dice.one(&[0, 1, 1, 1, 1, 2, 5]);
        let (upstream, model) = (upstream.into(), model.into());
        targets.push(Target { upstream, model, price: None, weight, matches: None });
    }
    if targets.iter().all(|target| target.weight == 0) {
        targets[0].weight = 1;
    }
    Model { targets, timeouts: timeouts(dice), balance: balance(dice), ..Model::default() }
}

fn canary(named: bool) -> Match {
    let header = Header { name: "x-canary".into(), value: "1".into() };
    if named {
        Match { header: None, callers: vec!["named".into()] }
    } else {
        Match { header: Some(header), callers: Vec::new() }
    }
}

fn balance(dice: &mut Dice) -> balance::Options {
    use balance::Options::{LeastInflight, P2cEwma, PrefixHash, RoundRobin, Weighted};
    dice.one(&[P2cEwma, P2cEwma, LeastInflight, RoundRobin, Weighted, PrefixHash])
}

fn timeouts(dice: &mut Dice) -> timeout::Options {
    let fixed = FirstToken::Fixed(dice.millis(20..2_000));
    timeout::Options {
        first_token: dice.either(0.4, fixed, FirstToken::Adaptive),
        estimator: dice.one(&[Estimator::Quantile, Estimator::MeanStddev]),
        idle: dice.one(&[30_000, 1_000, 100]).pipe(Duration::from_millis),
        total: dice.one(&[600_000, 600_000, 3_000, 400]).pipe(Duration::from_millis),
        ..timeout::Options::default()
    }
}

fn upstream(dice: &mut Dice, name: &'static str, is_roomy: bool) -> Upstream {
    use concurrency::Options::{Auto, Fixed, Gradient};
    let script = script::draw(dice);
    if is_roomy {
        let pacer = pacer::Options { eager: true, ..pacer::Options::default() };
        return Upstream { name, script, concurrency: Fixed(100), pacer };
    }
    let few = Fixed(dice.number(1..6));
    Upstream {
        name,
        script,
        concurrency: dice.one(&[few, few, Fixed(100), Auto, Auto, Gradient]),
        pacer: pacer::Options {
            requests_per_second: dice.one(&[None, None, None, Some(5.0), Some(50.0)]),
            tokens_per_minute: dice.one(&[None, None, None, None, Some(3_000)]),
            eager: dice.chance(0.7),
        },
    }
}

fn retry(dice: &mut Dice) -> retry::Options {
    retry::Options {
        max_attempts: dice.number(1..6),
        base: dice.millis(0..60),
        base_refused: dice.one(&[50, 1_000]).pipe(Duration::from_millis),
        ..retry::Options::default()
    }
}

fn limiters(dice: &mut Dice) -> Limiters {
    let mut breaker = breaker::Options { failures: 0, ..breaker::Options::default() };
    if dice.chance(0.5) {
        breaker.failures = dice.number(1..6);
        breaker.min_attempts = dice.number(4..21);
        breaker.open_for = dice.millis(50..1_000);
        breaker.probes = dice.number(1..4);
        breaker.slow_start = dice.millis(100..10_000);
    }
    let mut queue = queue::Options::default();
    if dice.chance(0.4) {
        queue.max_waiting = dice.number(1..6);
        queue.max_patient = dice.number(1..6);
        queue.interval = dice.millis(10..100);
        queue.target = dice.millis(1..20);
        queue.target_max = dice.millis(20..250);
    }
    let retry_budget = retry_budget::Options {
        ratio: dice.one(&[0.1, 0.1, 0.5, 0.0]),
        floor_per_second: dice.one(&[0.0, 0.1, 1.0]),
    };
    Limiters { retry_budget, breaker, queue }
}

/// A ladder that is climbed at a few calls in flight.
fn ladder(dice: &mut Dice) -> load::Options {
    let mut options = load::Options {
        step_up: dice.millis(0..200),
        min_stay: dice.millis(50..2_000),
        ..load::Options::default()
    };
    let refusals = [Refuse::Nothing, Refuse::Bulk, Refuse::AllButInteractive, Refuse::All];
    for step in [&mut options.elevated, &mut options.high, &mut options.critical] {
        step.pressure = Some(dice.one(&[0.1, 1.0, 4.0]));
        step.in_flight_share = Some(dice.one(&[0.002, 0.3, 0.9]));
        step.shorten_timeouts = Some(dice.one(&[1.0, 0.5, 0.1]));
        step.refuse = Some(dice.one(&refusals));
    }
    options
}

/// Limits of callers without their own, of a team, of models and upstreams.
fn all_limits(dice: &mut Dice, names: &[&'static str]) -> limits::Options {
    let none = Limits::default();
    let default = if dice.chance(0.2) { limits(dice) } else { none };
    let mut all = limits::Options { default: rule(dice, default), ..Default::default() };
    if dice.chance(0.15) {
        let few = limits(dice);
        all.teams.insert("crew".into(), rule(dice, few));
    }
    if dice.chance(0.1) {
        let many = roomy(dice);
        all.models.insert("chat".into(), rule(dice, many));
    }
    if dice.chance(0.2) {
        let (name, many) = (dice.one(names), roomy(dice));
        all.upstreams.insert(name.into(), rule(dice, many));
    }
    all
}

fn rule(dice: &mut Dice, limits: Limits) -> Rule {
    use Algorithm::{FixedWindow, LeakyBucket, SlidingWindow, TokenBucket};
    Rule {
        limits,
        algorithm: dice.one(&[TokenBucket, TokenBucket, LeakyBucket, FixedWindow, SlidingWindow]),
        burst: dice.one(&[60, 60, 10]).pipe(Duration::from_secs),
    }
}

/// Limits that many calls reach, and none alone.
fn roomy(dice: &mut Dice) -> Limits {
    Limits {
        requests_per_minute: dice.chance(0.5).then(|| dice.number(6..30)),
        tokens_per_minute: dice.chance(0.4).then(|| u64::from(dice.number(900..3_000))),
        concurrency: dice.chance(0.6).then(|| dice.number(1..6)),
        ..Limits::default()
    }
}

/// Limits that a few calls reach.
pub(super) fn limits(dice: &mut Dice) -> Limits {
    Limits {
        requests_per_minute: dice.chance(0.5).then(|| dice.number(2..20)),
        tokens_per_minute: dice.chance(0.5).then(|| u64::from(dice.number(20..400))),
        concurrency: dice.chance(0.5).then(|| dice.number(1..4)),
        ..Limits::default()
    }
}

impl Plan {
    /// The targets `call` may go to: those of its model and of that model's fallbacks which take
    /// calls and whose match lets it, by upstream and that upstream's name of the model.
    pub(super) fn may_go_to<'a>(&'a self, call: &'a Call) -> Vec<(&'a str, &'a str)> {
        let Some(model) = self.models.get(&call.model) else {
            let any = self.any_model.as_deref().map(|upstream| (upstream, &*call.model));
            return any.into_iter().collect();
        };
        let fallbacks = model.fallback.iter().map(|name| &self.models[name]);
        std::iter::once(model).chain(fallbacks).flat_map(|model| open_to(model, call)).collect()
    }

    /// The upstream called `name`.
    pub(super) fn upstream(&self, name: &str) -> &Upstream {
        self.upstreams.iter().find(|upstream| upstream.name == name).unwrap()
    }

    /// Whether the model of `call` has a target for it, its fallbacks aside.
    pub(super) fn has_target(&self, call: &Call) -> bool {
        self.models.get(&call.model).is_none_or(|model| !open_to(model, call).is_empty())
    }

    /// The rules that hold for `call` where it is let in.
    pub(super) fn rules(&self, call: &Call) -> Vec<Rule> {
        let own = Rule { limits: self.limits(&call.tenant), ..self.limits.default };
        let team = call.tenant.team.as_ref().and_then(|team| self.limits.teams.get(team));
        let model = self.limits.models.get(&call.model);
        [Some(&own), team, model].into_iter().flatten().copied().collect()
    }

    /// The most tokens that ever pass there at once.
    pub(super) fn most_tokens(&self, call: &Call) -> u64 {
        let most = self.rules(call).into_iter().filter_map(|rule| {
            let limit = rule.limits.tokens_per_minute?;
            let is_bucket = rule.algorithm == Algorithm::TokenBucket;
            Some(if is_bucket { limit * rule.burst.as_secs() / 60 } else { limit })
        });
        most.min().unwrap_or(u64::MAX)
    }

    /// The limits that hold for `tenant`.
    pub(super) fn limits(&self, tenant: &Tenant) -> Limits {
        tenant.limits.unwrap_or(self.limits.default.limits)
    }
}

/// The house, for whoever looks into a seed. Calls are told as they come.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for upstream in &self.upstreams {
            writeln!(f, "{upstream:?}")?;
        }
        for (name, model) in &self.models {
            let Model { targets, timeouts, balance, hedge, fallback, mirror } = model;
            writeln!(f, "{name}: {balance:?}, falls back to {fallback:?}")?;
            for Target { upstream, model, weight, matches, .. } in targets {
                writeln!(f, "    {weight} x {upstream}/{model} {matches:?}")?;
            }
            writeln!(f, "    {timeouts:?}\n    {hedge:?}\n    {mirror:?}")?;
        }
        let Self { any_model, limits, max_in_flight, memory, .. } = self;
        writeln!(f, "any other model: {any_model:?}; {limits:?}; {max_in_flight} calls")?;
        writeln!(f, "{memory:?}\n{:?}\n{:?}\n{:?}", self.retry, self.limiters, self.load)
    }
}

/// The call, what its caller will do, and when.
impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Call { model, stream, tenant, priority, patience, headers, client_retries, .. } =
            &self.call;
        let shape = if *stream { "streamed" } else { "unary" };
        write!(f, "{model} {shape} {priority:?} {patience:?} of {}", tenant.id)?;
        write!(f, ", {} tokens, until {:?}", self.call.tokens.total(), self.deadline)?;
        write!(f, ", {headers:?}, sent {client_retries} times before")?;
        write!(f, ", hangs up after {:?}, pauses {:?}", self.hangs_up, self.pauses)
    }
}

fn open_to<'a>(model: &'a Model, call: &Call) -> Vec<(&'a str, &'a str)> {
    let fits = |target: &Target| match &target.matches {
        None => None,
        Some(Match { header: Some(_), .. }) => Some(call.header("x-canary") == Some("1")),
        Some(Match { callers, .. }) => Some(callers.iter().any(|name| **name == *call.tenant.id)),
    };
    let chosen = model.targets.iter().any(|target| fits(target) == Some(true));
    let wanted = if chosen { Some(true) } else { None };
    let open = model.targets.iter().filter(|target| fits(target) == wanted && target.weight > 0);
    open.map(|target| (&*target.upstream, &*target.model)).collect()
}

/// Lets a drawn number be turned into what it stands for where it is drawn.
trait Pipe: Sized {
    fn pipe<T>(self, into: impl FnOnce(Self) -> T) -> T {
        into(self)
    }
}

impl Pipe for u64 {}
