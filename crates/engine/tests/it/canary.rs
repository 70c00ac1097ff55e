use crate::house::{Home, House};
use tidegate_core::{Call, Kind};
use tidegate_policy::canary::{Header, Match};
use tidegate_testkit::script::call;

fn by_header() -> Match {
    let header = Header { name: "x-canary".into(), value: "1".into() };
    Match { header: Some(header), callers: Vec::new() }
}

fn house(scripts: &[(&str, &str)], canary: Match) -> Home {
    House::new(scripts)
        .parts(|parts| {
            parts.models.get_mut("chat").unwrap().targets[0].matches = Some(canary);
        })
        .open()
}

fn asking() -> Call {
    Call { headers: vec![("X-Canary".into(), "1".into())], ..call("chat") }
}

#[tokio::test(start_paused = true)]
async fn who_asks_gets_the_canary_and_nobody_else_does() {
    let home = house(&[("new", "ok"), ("old", "ok"), ("older", "ok")], by_header());
    for _ in 0..30 {
        assert_eq!(&*home.engine.call(asking()).await.unwrap().served.upstream, "new");
        assert_ne!(&*home.engine.call(call("chat")).await.unwrap().served.upstream, "new");
    }
    home.is_empty();
}

#[tokio::test(start_paused = true)]
async fn callers_may_be_named() {
    let named = |caller: &str| Match { header: None, callers: vec![caller.into()] };
    let mine = house(&[("new", "ok"), ("old", "ok")], named(&call("chat").tenant.id));
    assert_eq!(&*mine.call(call("chat")).await.unwrap().served.upstream, "new");
    let theirs = house(&[("new", "ok"), ("old", "ok")], named("somebody-else"));
    assert_eq!(&*theirs.call(call("chat")).await.unwrap().served.upstream, "old");
}

#[tokio::test(start_paused = true)]
async fn a_retry_stays_where_the_call_may_go() {
    let home = house(&[("new", "fault"), ("old", "fault"), ("older", "fault")], by_header());
    home.call(asking()).await.unwrap_err();
    assert_eq!((home.trace.count("send new"), home.trace.count("send old")), (3, 0));
    home.call(call("chat")).await.unwrap_err();
    assert_eq!(home.trace.count("send new"), 3);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_fits_no_target_is_refused() {
    let home = house(&[("new", "ok")], by_header());
    let error = home.call(call("chat")).await.unwrap_err();
    assert_eq!((error.kind(), error.attempts()), (Kind::Unavailable, 0));
    home.call(asking()).await.unwrap();
}
