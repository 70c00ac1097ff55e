//! A provider that panics fails its own call and nothing else.

use crate::house::{Home, House};
use bytes::Bytes;
use futures_util::stream;
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
};
use tidegate_core::{
    Answer as _, Attempt, Body, BoxFuture, Call, ContentType, Kind, Provider, RateLimits, Reply,
    Result, Served,
};
use tidegate_engine::{Mirror, Outcome};
use tidegate_testkit::{
    script::{call, streaming},
    trace::Trace,
};

/// Where it panics.
#[derive(Clone, Copy, Debug)]
enum At {
    /// Before the attempt is even a future.
    Once,
    Sending,
    FirstChunk,
    SecondChunk,
    Never,
}

struct Panicking {
    script: Vec<At>,
    sent: AtomicUsize,
}

impl Provider for Panicking {
    fn send<'a>(&'a self, _: Attempt<'a>) -> BoxFuture<'a, Result<Reply>> {
        let number = self.sent.fetch_add(1, Ordering::Relaxed);
        let at = self.script.get(number).copied().unwrap_or(At::Never);
        assert!(!matches!(at, At::Once), "scripted");
        Box::pin(async move {
            tokio::task::yield_now().await;
            assert!(!matches!(at, At::Sending), "scripted");
            let mut chunks = 0;
            let body = stream::poll_fn(move |_| {
                chunks += 1;
                assert!(!matches!((at, chunks), (At::FirstChunk, 1) | (At::SecondChunk, 2)));
                let chunk = Bytes::from_static(
                    b"data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n",
                );
                Poll::Ready((chunks < 4).then_some(Ok(chunk)))
            });
            Ok(Reply {
                status: 200,
                content_type: ContentType::EventStream,
                body: Body::stream(body),
                usage: None,
                meter: None,
                limits: RateLimits::default(),
                upstream_request_id: None,
                served: Served::default(),
            })
        })
    }
}

fn house(script: &[At]) -> House {
    let provider = Panicking { script: script.to_vec(), sent: AtomicUsize::new(0) };
    House::over(Trace::start(), vec![("a", Arc::new(provider))])
}

/// Calls and reads all, in a task of its own; whether it panicked.
async fn panics(home: &Home, call: Call) -> bool {
    let engine = Arc::clone(&home.engine);
    let task = tokio::spawn(async move {
        let reply = engine.call(call).await.unwrap();
        reply.body.collect(1 << 20).await.unwrap();
    });
    task.await.is_err_and(|ended| ended.is_panic())
}

#[tokio::test(start_paused = true)]
async fn a_panic_holds_nothing_and_is_recorded_as_ours() {
    let script = [At::Once, At::Sending, At::FirstChunk, At::SecondChunk];
    let home = house(&script).upstreams(|upstream| {
        upstream.concurrency = tidegate_policy::concurrency::Options::Fixed(1);
    });
    let home = home.open();
    for at in script {
        assert!(panics(&home, streaming("chat")).await, "{at:?}");
        home.is_empty();
    }
    assert_eq!(home.outcomes(), [Outcome::Failed(Kind::Internal); 4]);
    assert!(!panics(&home, streaming("chat")).await);
    home.is_empty();
}

#[tokio::test(start_paused = true)]
async fn calls_beside_a_panic_go_on() {
    let home = house(&[At::Never, At::Sending, At::Never, At::SecondChunk]).open();
    let home = Arc::new(home);
    let calls: Vec<_> = (0..8)
        .map(|_| {
            let home = Arc::clone(&home);
            tokio::spawn(async move { panics(&home, streaming("chat")).await })
        })
        .collect();
    let mut panicked = 0;
    for call in calls {
        panicked += usize::from(call.await.unwrap());
    }
    assert_eq!(panicked, 2);
    home.is_empty();
}

/// A copy that panicked was in flight forever.
#[tokio::test(start_paused = true)]
async fn a_mirror_that_panics_harms_no_call() {
    let panicking = Panicking { script: vec![At::Sending, At::SecondChunk], sent: 0.into() };
    let fine = Panicking { script: Vec::new(), sent: 0.into() };
    let providers: Vec<(&str, Arc<dyn Provider>)> =
        vec![("a", Arc::new(fine)), ("copy", Arc::new(panicking))];
    let home = House::over(Trace::start(), providers).parts(|parts| {
        let chat = parts.models.get_mut("chat").unwrap();
        chat.targets.truncate(1);
        let options = tidegate_policy::canary::Mirror { share: 1.0 };
        let (upstream, model) = ("copy".into(), "m".into());
        chat.mirror = Some(Mirror { upstream, model, price: None, options });
    });
    let home = home.open();
    for _ in 0..3 {
        assert!(!panics(&home, call("chat")).await);
    }
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    let [state] = &home.engine.mirrors()[..] else { panic!("one model is mirrored") };
    assert_eq!((state.sent, state.answered, state.failed), (3, 1, 2));
    home.is_empty();
}
