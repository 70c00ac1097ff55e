//! A crowd of callers before a server of known capacity, in virtual time: what overload, outages
//! and changing capacity come to in figures, on any machine the same.

use crate::house::{Home, House};
use futures_util::{StreamExt, stream::FuturesUnordered};
use parking_lot::Mutex;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::{sync::Arc, time::Duration};
use tidegate_core::{
    Attempt, Body, BoxFuture, Call, ContentType, Error, Kind, Origin, Priority, Provider, Reply,
    Result, Retry, Served, Tenant,
};
use tidegate_policy::concurrency;
use tidegate_testkit::{
    script::{call, within},
    trace::Trace,
};
use tokio::time::{Instant, sleep, sleep_until};

/// How long the way to the server and back takes.
const WAY: Duration = Duration::from_millis(1);

/// What a server can do at the moment.
#[derive(Clone, Debug)]
pub(crate) struct Can {
    /// Calls at once; one more is refused.
    pub(crate) slots: usize,
    /// Calls per second, a tenth of a second's worth at once; one more is refused.
    pub(crate) per_second: f64,
    /// How long an answer takes.
    pub(crate) takes: Duration,
    /// A share of the answers takes this long instead.
    pub(crate) long: Option<(f64, Duration)>,
    /// Answers nothing but this status, at once.
    pub(crate) fails: Option<u16>,
}

impl Default for Can {
    fn default() -> Self {
        let takes = Duration::from_millis(50);
        Self { slots: 20, per_second: f64::INFINITY, takes, long: None, fails: None }
    }
}

/// A server that refuses what is too much with a 429 that names no wait.
pub(crate) struct Server {
    can: Mutex<Can>,
    busy: Mutex<Busy>,
}

struct Busy {
    in_flight: usize,
    sent: u64,
    allowance: f64,
    since: Instant,
}

impl Server {
    pub(crate) fn new(can: Can) -> Arc<Self> {
        let busy = Busy { in_flight: 0, sent: 0, allowance: 1.0, since: Instant::now() };
        Arc::new(Self { can: Mutex::new(can), busy: Mutex::new(busy) })
    }

    pub(crate) fn now(&self, change: impl FnOnce(&mut Can)) {
        change(&mut self.can.lock());
    }

    /// Attempts that have come here.
    pub(crate) fn sent(&self) -> u64 {
        self.busy.lock().sent
    }

    async fn serve(&self) -> Result<Reply> {
        sleep(WAY).await;
        let takes = self.enter()?;
        let _left = Leave(self);
        sleep(takes).await;
        Ok(Reply {
            status: 200,
            content_type: ContentType::Json,
            body: Body::whole("{}".into()),
            usage: None,
            meter: None,
            limits: Default::default(),
            upstream_request_id: None,
            served: Served::default(),
        })
    }

    fn enter(&self) -> Result<Duration> {
        let Can { slots, per_second, takes, long, fails } = self.can.lock().clone();
        let mut busy = self.busy.lock();
        busy.sent += 1;
        if let Some(status) = fails {
            return Err(answered(status));
        }
        let now = Instant::now();
        let passed = now.duration_since(std::mem::replace(&mut busy.since, now));
        if per_second.is_finite() {
            let refilled = busy.allowance + passed.as_secs_f64() * per_second;
            busy.allowance = refilled.min((per_second / 10.0).max(1.0));
        } else {
            busy.allowance = f64::INFINITY;
        }
        if busy.in_flight >= slots || busy.allowance < 1.0 {
            return Err(answered(429));
        }
        busy.allowance -= 1.0;
        busy.in_flight += 1;
        let chance = (busy.sent as f64 * 0.618_034).fract();
        Ok(long.filter(|(share, _)| chance < *share).map_or(takes, |(_, long)| long))
    }
}

impl Provider for Server {
    fn send<'a>(&'a self, _: Attempt<'a>) -> BoxFuture<'a, Result<Reply>> {
        Box::pin(self.serve())
    }
}

struct Leave<'s>(&'s Server);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.busy.lock().in_flight -= 1;
    }
}

fn answered(status: u16) -> Error {
    let kind =
        if matches!(status, 429 | 503 | 529) { Kind::UpstreamCapacity } else { Kind::Upstream };
    Error::new(kind, Origin::Upstream, "not now")
        .with_retry(Retry::After(Duration::ZERO))
        .with_answer(status, "{}".into())
}

/// An engine before `server`.
pub(crate) fn house(server: &Arc<Server>, concurrency: concurrency::Options) -> House {
    House::over(Trace::start(), vec![("a", server.clone() as Arc<dyn Provider>)])
        .breakers()
        .upstreams(|upstream| {
            upstream.concurrency = concurrency;
            upstream.pacer.eager = concurrency != concurrency::Options::Auto;
        })
        .parts(|parts| parts.max_in_flight = 100_000)
}

/// Callers that come whether others have been answered or not (an open loop).
#[derive(Clone)]
pub(crate) struct Crowd {
    pub(crate) per_second: f64,
    pub(crate) priority: Priority,
    pub(crate) tenant: &'static str,
    pub(crate) timeout: Duration,
    pub(crate) seed: u64,
}

impl Crowd {
    pub(crate) fn of(per_second: f64) -> Self {
        Self {
            per_second,
            priority: Priority::Default,
            tenant: "local",
            timeout: Duration::from_secs(20),
            seed: 1,
        }
    }

    /// Calls for `seconds`, and how each of them ended.
    pub(crate) async fn calls(self, home: &Home, seconds: u64) -> Seen {
        let mut chance = StdRng::seed_from_u64(self.seed);
        let (start, end) = (Instant::now(), Duration::from_secs(seconds));
        let tenant = Arc::new(Tenant { id: self.tenant.into(), ..Tenant::local() });
        let seen = Arc::new(Mutex::new(Vec::new()));
        let mut running = FuturesUnordered::new();
        let mut at = Duration::ZERO;
        loop {
            // Poisson: callers know nothing of each other.
            let gap = -(1.0 - chance.random::<f64>()).ln() / self.per_second;
            at += Duration::from_secs_f64(gap);
            if at >= end {
                break;
            }
            let until = sleep_until(start + at);
            tokio::pin!(until);
            loop {
                tokio::select! {
                    biased;
                    () = &mut until => break,
                    Some(()) = running.next() => {}
                }
            }
            let call = Call {
                priority: self.priority,
                tenant: tenant.clone(),
                deadline: within(self.timeout),
                ..call("chat")
            };
            let (engine, seen) = (home.engine.clone(), seen.clone());
            running.push(async move {
                let sent = Instant::now();
                let result = engine.call(call).await.map(drop);
                let took = sent.elapsed();
                seen.lock().push(Ended { at, took, result });
            });
        }
        while running.next().await.is_some() {}
        Seen(std::mem::take(&mut *seen.lock()))
    }
}

struct Ended {
    /// When the call came, from the start of the crowd.
    at: Duration,
    took: Duration,
    result: Result<()>,
}

/// How the calls of a crowd ended.
pub(crate) struct Seen(Vec<Ended>);

impl Seen {
    /// Several crowds as one.
    pub(crate) fn all(crowds: Vec<Self>) -> Self {
        Self(crowds.into_iter().flat_map(|crowd| crowd.0).collect())
    }

    /// Good answers.
    pub(crate) fn good(&self) -> usize {
        self.0.iter().filter(|ended| ended.result.is_ok()).count()
    }

    pub(crate) fn errors(&self) -> impl Iterator<Item = &Error> {
        self.0.iter().filter_map(|ended| ended.result.as_ref().err())
    }

    /// Those that came in `from..to` seconds.
    fn between(&self, from: u64, to: u64) -> impl Iterator<Item = &Ended> {
        let (from, to) = (Duration::from_secs(from), Duration::from_secs(to));
        self.0.iter().filter(move |ended| (from..to).contains(&ended.at))
    }

    /// Good answers per second.
    pub(crate) fn goodput(&self, from: u64, to: u64) -> f64 {
        let good = self.between(from, to).filter(|ended| ended.result.is_ok()).count();
        good as f64 / (to - from) as f64
    }

    /// Share of good answers.
    pub(crate) fn success(&self, from: u64, to: u64) -> f64 {
        let all = self.between(from, to).count();
        let good = self.between(from, to).filter(|ended| ended.result.is_ok()).count();
        good as f64 / all.max(1) as f64
    }

    /// How long good answers took at most, but for `1 - share` of them.
    pub(crate) fn good_ms(&self, share: f64, from: u64, to: u64) -> f64 {
        quantile(self.between(from, to).filter(|ended| ended.result.is_ok()), share)
    }

    /// The same of refusals.
    pub(crate) fn refused_ms(&self, share: f64, from: u64, to: u64) -> f64 {
        quantile(self.between(from, to).filter(|ended| ended.result.is_err()), share)
    }
}

fn quantile<'e>(ended: impl Iterator<Item = &'e Ended>, share: f64) -> f64 {
    let mut took: Vec<_> = ended.map(|ended| ended.took).collect();
    took.sort();
    let at = ((took.len() as f64 * share) as usize).min(took.len().saturating_sub(1));
    took.get(at).map_or(0.0, |took| took.as_secs_f64() * 1e3)
}
