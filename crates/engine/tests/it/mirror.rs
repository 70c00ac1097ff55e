use crate::house::{Home, House};
use std::time::Duration;
use tidegate_engine::{Mirror, Mirrored};
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
            chat.mirror = Some(Mirror { upstream: "b".into(), model: "m".into(), options });
        })
        .open()
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
        let counted = Mirrored { copied: 1, skipped: 0, failed };
        if mirror != "slow" {
            assert_eq!(home.engine.mirrored(), counted, "{mirror}");
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
    assert_eq!(home.engine.mirrored(), Mirrored { copied: 64, skipped: 36, failed: 0 });

    let home = mirrored("ok", 0.25);
    for _ in 0..400 {
        home.engine.call(call("chat")).await.unwrap();
        tokio::task::yield_now().await;
    }
    let counted = home.engine.mirrored();
    assert!((60..140).contains(&counted.copied) && counted.skipped == 0, "{counted:?}");
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
