//! What the engine tells of itself: the records of calls and the states of upstreams.

use crate::house::House;
use std::time::Duration;
use tidegate_core::{Answer, Kind};
use tidegate_engine::Outcome;
use tidegate_testkit::script::call;

#[tokio::test(start_paused = true)]
async fn a_record_lost_the_status_an_upstream_rejected_with() {
    for (script, kind, status) in [
        ("rejected 404", Kind::Rejected, Some(404)),
        ("rejected 422", Kind::Rejected, Some(422)),
        ("unreachable", Kind::Unavailable, None),
    ] {
        let home = House::new(&[("a", script)]).open();
        home.call(call("chat")).await.unwrap_err();
        let [record] = &home.records()[..] else { panic!("one call, one record") };
        assert_eq!((record.outcome, record.upstream_status), (Outcome::Failed(kind), status));
    }
    let home = House::new(&[("a", "ok")]).open();
    home.call(call("chat")).await.unwrap();
    assert_eq!(home.records()[0].upstream_status, None);
}

#[tokio::test(start_paused = true)]
async fn a_latency_was_told_before_anything_was_measured() {
    let home = House::new(&[("a", "ok after 80ms")]).open();
    let latency = || home.engine.upstreams()[0].latency;
    assert_eq!(latency(), None);
    home.call(call("chat")).await.unwrap();
    assert_eq!(latency(), Some(Duration::from_millis(80)));
}
