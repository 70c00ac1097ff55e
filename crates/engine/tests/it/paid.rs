//! Answers that are no streams were made whole before they were sent: however they end, they are
//! paid for.

use crate::{house::House, priced::Written};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use std::sync::Arc;
use tidegate_core::{
    Attempt, Body, BoxFuture, ContentType, Error, Kind, Limits, Meter, Money, Origin, Price,
    Provider, RateLimits, Rates, Reply, Result, Served, Usage,
};
use tidegate_engine::limits::Rule;
use tidegate_policy::rate_limit::Algorithm;
use tidegate_testkit::{script::call, trace::Trace};

/// How an answer ends.
#[derive(Clone, Copy, Debug)]
enum Ending {
    Told,
    Untold,
    Broken,
    BrokenAtOnce,
    Refused,
}

/// Answers at length, as a provider that does not keep it whole.
struct Lengthy(Ending);

impl Provider for Lengthy {
    fn send<'a>(&'a self, _: Attempt<'a>) -> BoxFuture<'a, Result<Reply>> {
        let fault = || Error::new(Kind::Upstream, Origin::Upstream, "it broke");
        let meter = Arc::new(Meter::default());
        let end = match self.0 {
            Ending::Told => {
                meter.set(Usage { input: 7, output: 3, ..Usage::default() });
                None
            }
            Ending::Untold => None,
            Ending::Broken => Some(Err(fault())),
            Ending::BrokenAtOnce => {
                return Box::pin(async move { Err(fault().after_the_answer()) });
            }
            Ending::Refused => return Box::pin(async move { Err(fault()) }),
        };
        let pieces = [Ok(Bytes::from_static(b"{")), Ok(Bytes::from_static(b"}"))];
        let reply = Reply {
            status: 200,
            content_type: ContentType::Json,
            body: Body::stream(stream::iter(pieces.into_iter().chain(end))),
            usage: None,
            meter: Some(meter),
            limits: RateLimits::default(),
            upstream_request_id: None,
            served: Served::default(),
        };
        Box::pin(async move { Ok(reply) })
    }
}

/// Tokens in and out, and the cost in picodollars, of one call whose caller reads so many pieces.
async fn paid(ending: Ending, pieces: usize) -> (u64, u64, u64) {
    let written = Arc::new(Written::default());
    let ledger = written.clone();
    let home = House::over(Trace::start(), vec![("a", Arc::new(Lengthy(ending)))])
        .parts(|parts| {
            parts.ledger = Some(ledger);
            parts.retry.max_attempts = 1;
            let price = Price::flat(Rates::new(Money::from_pico(1), Money::from_pico(100)));
            parts.prices.insert("m".into(), price);
        })
        .open();
    if let Ok(mut reply) = home.engine.call(call("chat")).await {
        for _ in 0..pieces {
            drop(reply.body.next().await);
        }
    }
    assert_eq!(home.engine.held().reserved, Money::ZERO);
    let entry = written.take().pop().unwrap();
    (entry.usage.input, entry.usage.output, entry.cost.unwrap().pico())
}

#[tokio::test(start_paused = true)]
async fn a_long_answer_that_does_not_tell_its_usage_is_not_free() {
    assert_eq!(paid(Ending::Told, 3).await, (7, 3, 307));
    assert_eq!(paid(Ending::Untold, 3).await, (10, 16, 1_610), "as estimated");
}

#[tokio::test(start_paused = true)]
async fn a_long_answer_that_breaks_off_or_is_left_is_not_free() {
    assert_eq!(paid(Ending::Broken, 3).await, (10, 16, 1_610));
    assert_eq!(paid(Ending::Broken, 1).await, (10, 16, 1_610));
    assert_eq!(paid(Ending::Told, 1).await, (7, 3, 307));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_breaks_off_before_it_is_passed_on_is_not_free() {
    assert_eq!(paid(Ending::BrokenAtOnce, 0).await, (10, 16, 1_610));
    assert_eq!(paid(Ending::Refused, 0).await, (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_long_answer_that_does_not_tell_its_usage_gave_its_tokens_back_to_the_upstreams_limit() {
    let limits = Limits { tokens_per_minute: Some(60), ..Limits::default() };
    let rule = Rule { limits, algorithm: Algorithm::FixedWindow, ..Rule::default() };
    let home = House::over(Trace::start(), vec![("a", Arc::new(Lengthy(Ending::Untold)))])
        .parts(|parts| parts.limits.upstreams = [("a".into(), rule)].into())
        .open();
    // 26 tokens each by estimate, 10 of them the prompt's.
    for _ in 0..2 {
        let mut reply = home.engine.call(call("chat")).await.unwrap();
        while reply.body.next().await.is_some() {}
    }
    let refused = home.engine.call(call("chat")).await.err().unwrap();
    assert_eq!(refused.kind(), Kind::Overloaded);
}
