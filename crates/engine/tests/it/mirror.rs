use crate::house::{Home, House};
use std::time::Duration;
use tidegate_core::{Answer, MirrorState};
use tidegate_engine::Mirror;
use tidegate_policy::canary;
use tidegate_testkit::script::{call, streaming};
use tokio::time::sleep;

/// The model `chat` at `a`, and its mirror at `b`.
fn mirrored(mirror: &str, share: f64) -> Home {
    House::new(&[("a", "ok"), ("b", mirror)])
        .parts(|parts| {
            let chat = parts.models.get_mut("chat").unwrap();
            chat.targets.truncate(1);
            let options = canary::Mirror { share };
            let (upstream, model) = ("b".into(), "m".into());
            chat.mirror = Some(Mirror { upstream, model, price: None, options });
        })
        .open()
}

/// What the engine says of the mirror, which must be named and add up.
#[track_caller]
fn said(home: &Home, share: f64) -> [u64; 4] {
    let all = home.engine.mirrors();
    let [
        MirrorState {
            model,
            upstream,
            upstream_model,
            share: told,
            sent,
            answered,
            failed,
            skipped,
        },
    ] = &*all
    else {
        panic!("one model is mirrored: {all:?}");
    };
    assert_eq!((&**model, &**upstream, &**upstream_model, *told), ("chat", "b", "m", share));
    assert!(answered + failed <= *sent, "{all:?}");
    [*sent, *answered, *failed, *skipped]
}

#[tokio::test(start_paused = true)]
async fn a_copy_never_delays_nor_fails_its_call() {
    for (mirror, failed) in
        [("slow", 0), ("fault", 1), ("stream 2 chunks then reset", 1), ("ok after 80ms", 0)]
    {
        let home = mirrored(mirror, 1.0);
        let reply = home.engine.call(streaming("chat")).await.unwrap();
        assert_eq!((&*reply.served.upstream, home.trace.elapsed()), ("a", Duration::ZERO));
        drop(reply);
        sleep(Duration::from_secs(20)).await;
        assert_eq!(home.trace.count("send b"), 1, "{mirror}: never sent again");
        if mirror == "slow" {
            assert_eq!(said(&home, 1.0), [1, 0, 0, 0], "still in flight");
        } else {
            assert_eq!(said(&home, 1.0), [1, 1 - failed, failed, 0], "{mirror}");
            home.is_empty();
        }
        assert_eq!(home.records().len(), 1, "{mirror}: a copy is no call");
    }
}

#[tokio::test(start_paused = true)]
async fn a_share_is_copied_and_no_more_than_there_is_room_for() {
    let home = mirrored("slow", 1.0);
    for _ in 0..100 {
        home.engine.call(call("chat")).await.unwrap();
    }
    assert_eq!(said(&home, 1.0), [64, 0, 0, 36]);

    let home = mirrored("ok", 0.25);
    for _ in 0..400 {
        home.engine.call(call("chat")).await.unwrap();
        tokio::task::yield_now().await;
    }
    sleep(Duration::from_millis(1)).await;
    let [sent, answered, failed, skipped] = said(&home, 0.25);
    assert!((60..140).contains(&sent), "{sent}");
    assert_eq!([answered, failed, skipped], [sent, 0, 0]);

    let unmirrored = House::new(&[("a", "ok")]).open();
    assert!(unmirrored.engine.mirrors().is_empty());
}

#[tokio::test(start_paused = true)]
async fn copies_end_with_the_engine() {
    let home = mirrored("slow", 1.0);
    home.engine.call(call("chat")).await.unwrap();
    sleep(Duration::from_millis(1)).await;
    let trace = home.trace.clone();
    drop(home);
    sleep(Duration::from_millis(1)).await;
    assert_eq!(trace.count("drop b"), 1);
}
