//! What a run writes: JSON that reads back, a page that stands alone, a comparison.

use super::*;
use tidegate_bench::compare;

async fn streamed(millis: u64, faults: Faults) -> Report {
    let sim = Sim::new(SimOptions { ttft: fixed(millis), itl: fixed(1), faults, ..sim_options() });
    let duration = Duration::from_secs(20);
    let slo = Some("ttft=50ms,total=1s".parse().unwrap());
    ran(Options { duration, slo, ..options(local(&sim), open(20.0), true) }).await
}

#[tokio::test(start_paused = true)]
async fn json_reads_back() {
    let report = streamed(20, Faults::default()).await;
    let json = report.to_json();
    // Times are fractions: what is read is what was written.
    assert_eq!(Report::from_json(&json).unwrap().to_json(), json);
    let mut value: serde_json::Value = serde_json::from_str(&json).unwrap();
    // Fields are added over time: a report of an older release reads.
    value["requests"].as_object_mut().unwrap().remove("answered");
    value["setup"].as_object_mut().unwrap().remove("protocol");
    value.as_object_mut().unwrap().remove("generator");
    assert_eq!(Report::from_json(&value.to_string()).unwrap().setup.protocol, "http/1.1");
    assert_eq!((&value["schema"], &value["version"]), (&"tidegate.bench".into(), &1.into()));
    assert_eq!(value["setup"]["slo"], "ttft=50ms,total=1s");
    assert!(value["latency"]["total"]["p99_ms"].as_f64().unwrap() > 20.0);
    assert_eq!(value["series"].as_array().unwrap().len(), 20);
    for (text, says) in [
        ("{", "not a report"),
        (r#"{"schema":"other","version":1}"#, "not a report"),
        (r#"{"schema":"tidegate.bench","version":2}"#, "version 2"),
        (r#"{"schema":"tidegate.bench","version":1}"#, "damaged"),
    ] {
        assert!(Report::from_json(text).unwrap_err().contains(says), "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_page_stands_alone() {
    let faults = Faults { error_rate: 0.1, error_status: 429, ..Faults::default() };
    let mut report = streamed(20, faults).await;
    report.warnings.push("<script>alert(1)</script>".into());
    let page = report.to_html();
    for title in [
        "Latency by percentile",
        "Requests per second",
        "Latency over time",
        "Requests in flight",
        "Tokens per second",
    ] {
        assert!(page.contains(&format!("<h2>{title}</h2>")), "{title}");
    }
    assert_eq!(page.matches("<svg").count(), 5);
    assert!(page.matches("<path class=\"line").count() >= 9);
    assert!(page.contains("refused (429, 503)") && page.contains("prefers-color-scheme:dark"));
    for outside in ["http://www", "https://", "src=", "href=", "@import", "url(", "<script"] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert!(!page.contains("NaN") && !page.contains(">inf"));
}

#[tokio::test(start_paused = true)]
async fn a_page_without_answers_is_a_page() {
    let faults = Faults { error_rate: 1.0, error_status: 500, ..Faults::default() };
    let page = streamed(20, faults).await.to_html();
    assert!(page.contains("</html>") && !page.contains("NaN"));
}

#[tokio::test(start_paused = true)]
async fn a_slower_server_is_worse() {
    let (fast, slow) =
        (streamed(20, Faults::default()).await, streamed(40, Faults::default()).await);
    let worse = compare(&fast, &slow);
    assert!(worse.worse_than(0.5).contains(&"first token p50"), "{:?}", worse.worse_than(0.5));
    assert!(worse.worse_than(2.0).is_empty());
    assert!(compare(&slow, &fast).worse_than(0.05).is_empty());
    assert!(compare(&fast, &fast).worse_than(0.0).is_empty());
    let text = worse.to_text(["a.json", "b.json"], Some(0.5));
    assert!(text.contains("WORSE") && !text.contains("not the same"), "{text}");

    let few = |mut report: Report| {
        for times in [&mut report.latency.total, &mut report.latency.first_token] {
            times.as_mut().unwrap().count = 40;
        }
        report
    };
    let worse = compare(&few(fast.clone()), &few(slow.clone()));
    let judged = worse.worse_than(0.3);
    assert!(judged.contains(&"first token p50"), "{judged:?}");
    assert!(!judged.contains(&"first token p90"), "four of forty are chance: {judged:?}");

    let mut longer = slow.clone();
    longer.setup.duration_s = 60.0;
    longer.warnings.push("The run was stopped before its time.".into());
    let text = compare(&fast, &longer).to_text(["a.json", "b.json"], None);
    assert!(text.contains("not the same load: duration 20 s and 60 s"), "{text}");
    assert!(text.contains("WARNING of b.json: The run was stopped"), "{text}");

    let faults = Faults { error_rate: 0.3, error_status: 503, ..Faults::default() };
    let failing = streamed(20, faults).await;
    let worse = compare(&fast, &failing);
    assert!(worse.worse_than(0.1).contains(&"ok share"));
    assert!(worse.worse_than(0.1).contains(&"goodput/s"));
}
