//! A server inside the process, under a clock that only moves when told.

use crate::support::{Connection, JSON, OK_BODY, Seen, answer, chat, text};
use std::{sync::Arc, time::Duration};
use tidegate_upstream::{Options, Upstream};
use tokio::time::{advance, sleep};

fn local(options: Options) -> (Arc<Upstream>, Arc<Seen>) {
    let seen = Arc::new(Seen::default());
    let counting = Arc::clone(&seen);
    let connect = move || {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let mut connection = Connection::new(far, &counting);
        tokio::spawn(async move {
            while connection.request().await.is_some() {
                sleep(Duration::from_secs(1)).await;
                connection.send(answer("200 OK", JSON, OK_BODY)).await;
            }
        });
        near
    };
    (Arc::new(Upstream::local("sim".into(), options, Arc::new(connect)).unwrap()), seen)
}

#[tokio::test(start_paused = true)]
async fn answers_come_in_virtual_time() {
    let (upstream, seen) = local(Options::default());
    let before = tokio::time::Instant::now();
    let replies = futures_util::future::join_all((0..100).map(|_| chat(&upstream))).await;
    assert_eq!(before.elapsed().as_secs(), 1);
    for reply in replies {
        assert_eq!(text(reply.unwrap()).await.unwrap(), OK_BODY);
    }
    assert_eq!(seen.connections(), 100);
}

#[tokio::test(start_paused = true)]
async fn unused_connections_are_closed_in_time() {
    let (upstream, seen) = local(Options::default());
    for expected in 1..=3 {
        for _ in 0..2 {
            chat(&upstream).await.unwrap();
            advance(Duration::from_secs(59)).await;
        }
        assert_eq!(seen.connections(), expected);
        sleep(Duration::from_secs(2)).await;
        assert_eq!(seen.open(), 0, "the server sees it closed without another call");
    }
}

#[tokio::test(start_paused = true)]
async fn connections_do_not_live_for_ever() {
    let lifetime = Duration::from_secs(100);
    let (upstream, seen) = local(Options { lifetime, ..Options::default() });
    for _ in 0..1000 {
        chat(&upstream).await.unwrap();
    }
    assert!((9..=12).contains(&seen.connections()), "{}", seen.connections());
}

#[tokio::test(start_paused = true)]
async fn times_that_never_come_are_allowed_and_zero_is_not() {
    let (upstream, seen) = local(Options {
        idle_timeout: Duration::MAX,
        lifetime: Duration::MAX,
        dns_ttl: Duration::MAX,
        ..Options::default()
    });
    chat(&upstream).await.unwrap();
    chat(&upstream).await.unwrap();
    assert_eq!(seen.connections(), 1);

    let none = Options { max_connections: 0, ..Options::default() };
    let pipe = Arc::new(|| tokio::io::duplex(1).0);
    let error = Upstream::local("sim".into(), none, pipe).unwrap_err();
    assert_eq!(error.param(), Some("max_connections"));
}
