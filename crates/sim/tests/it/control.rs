//! The ledger and the faults, over HTTP.

use crate::*;

#[tokio::test(start_paused = true)]
async fn the_ledger_is_told_in_pages() {
    let sim = Sim::new(Options { slots: 64, queue: 10_000, ..options() });
    let calls = (0..1200).map(|index| {
        let sim = Arc::clone(&sim);
        tokio::spawn(async move { ask(&sim, &chat(&format!("row {index}"), 1)).await.status })
    });
    for call in calls.collect::<Vec<_>>() {
        assert_eq!(call.await.unwrap(), 200);
    }
    let all = get(&sim, "/sim/ledger").await.json();
    let all = all.as_array().unwrap();
    assert_eq!(all.len(), 1200);
    assert!(all.iter().enumerate().all(|(index, entry)| entry["seq"] == index));
    assert_eq!(all[0]["outcome"], "ok");
    let some = get(&sim, "/sim/ledger?since=1100&limit=10&format=ndjson").await;
    let lines: Vec<Value> = std::str::from_utf8(&some.body)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!((lines.len(), &lines[0]), (10, &all[1100]));
    assert_eq!(get(&sim, "/sim/ledger?since=5000").await.json(), json!([]));
    assert_eq!(get(&sim, "/sim/ledger?since=5000&format=ndjson").await.body, "");
    let bad = get(&sim, "/sim/ledger?sinse=1").await;
    assert!(
        bad.status == 400 && bad.json()["error"]["message"].as_str().unwrap().contains("sinse")
    );
    let totals = get(&sim, "/sim/ledger/totals").await.json();
    assert_eq!((&totals["ok"], &totals["by_status"]["200"]), (&1200.into(), &1200.into()));

    let clear = Request::delete("/sim/ledger").header("host", "sim").body(Full::default()).unwrap();
    assert_eq!(send(&sim, clear).await.unwrap().status(), 200);
    assert_eq!(get(&sim, "/sim/ledger").await.json(), json!([]));
}

#[tokio::test(start_paused = true)]
async fn faults_change_while_it_runs() {
    let sim = Sim::new(options());
    assert_eq!(ask(&sim, &chat("x", 1)).await.status, 200);
    let change = json!({"error_rate": 1.0, "error_status": 503, "retry_after": "7s"});
    let told = post(&sim, "/sim/faults", &change).await.json();
    assert_eq!((&told["error_status"], &told["retry_after"]), (&503.into(), &"7s".into()));
    assert_eq!(get(&sim, "/sim/faults").await.json(), told);
    let refused = ask(&sim, &chat("x", 1)).await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, "7"));
    let bad = post(&sim, "/sim/faults", &json!({"error_rat": 1.0})).await;
    assert!(
        bad.status == 400 && bad.json()["error"]["message"].as_str().unwrap().contains("error_rat")
    );
    post(&sim, "/sim/faults", &json!({"error_rate": null})).await;
    assert_eq!(ask(&sim, &chat("x", 1)).await.status, 200);
}
