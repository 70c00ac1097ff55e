//! When answers come.

use crate::*;
use tidegate_sim::Outcome;

const MS: Duration = Duration::from_millis(1);

#[tokio::test(start_paused = true)]
async fn an_answer_takes_its_first_token_and_the_others() {
    let sim = Sim::new(options());
    let answer = ask(&sim, &chat("Hello there", 6)).await;
    assert_eq!(answer.took, 150 * MS);
    let usage = &answer.json()["usage"];
    assert_eq!((&usage["prompt_tokens"], &usage["completion_tokens"]), (&11.into(), &6.into()));
    let streamed = ask(&sim, &streamed(chat("Hello there", 6))).await;
    assert_eq!(streamed.took, 150 * MS);
    let entry = &sim.ledger()[0];
    assert_eq!((entry.end_us - entry.start_us) / 1000, 150);
    assert_eq!((entry.prompt_tokens, entry.completion_tokens), (11, 6));
}

#[tokio::test(start_paused = true)]
async fn latency_rises_when_slots_are_taken() {
    let sim = Sim::new(options());
    let calls = (0..8).map(|_| {
        let sim = Arc::clone(&sim);
        tokio::spawn(async move { ask(&sim, &chat("Hello", 1)).await.took })
    });
    let calls: Vec<_> = calls.collect();
    let mut took = Vec::new();
    for call in calls {
        took.push(call.await.unwrap());
    }
    took.sort();
    assert_eq!(took[..4], [100 * MS; 4]);
    assert_eq!(took[4..], [200 * MS; 4]);
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_refuses() {
    let sim = Sim::new(options());
    let calls = (0..20).map(|_| {
        let sim = Arc::clone(&sim);
        tokio::spawn(async move { ask(&sim, &chat("Hello", 1)).await.status })
    });
    let calls: Vec<_> = calls.collect();
    let mut statuses = Vec::new();
    for call in calls {
        statuses.push(call.await.unwrap());
    }
    assert_eq!(statuses.iter().filter(|status| **status == 503).count(), 12);
    let totals = sim.totals();
    assert_eq!((totals.ok, totals.refused), (8, 12));
    assert!(totals.peak_in_flight >= 8);
    assert_eq!((totals.in_flight, totals.queued, totals.busy_slots), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_full_house_writes_slower() {
    let sim = Sim::new(Options { batch_slowdown: 4.0, ..options() });
    let alone = ask(&sim, &chat("Hello there", 6)).await.took;
    assert_eq!(alone, 150 * MS);
    let calls = (0..4).map(|_| {
        let sim = Arc::clone(&sim);
        tokio::spawn(async move { ask(&sim, &chat("Hello there", 6)).await.took })
    });
    for call in calls.collect::<Vec<_>>() {
        assert_eq!(call.await.unwrap(), 300 * MS, "1 + 4 * 3/4 times the 50 ms");
    }
}

#[tokio::test(start_paused = true)]
async fn drawn_times_repeat() {
    let drawn = || Options {
        ttft: "lognormal:300ms,0.4".parse().unwrap(),
        itl: "gamma:20ms,2".parse().unwrap(),
        ..options()
    };
    let mut seen = Vec::new();
    for _ in 0..2 {
        let sim = Sim::new(drawn());
        let mut took = Vec::new();
        for text in ["a", "b", "a"] {
            took.push(ask(&sim, &streamed(chat(text, 5))).await.took);
        }
        assert_ne!(took[0], took[2], "a second attempt draws anew");
        seen.push(took);
    }
    assert_eq!(seen[0], seen[1]);
}

#[tokio::test(start_paused = true)]
async fn a_hidden_rate_refuses_at_once() {
    let sim = Sim::new(Options {
        slots: 1000,
        faults: Faults { rate: Some(40.0), ..Faults::default() },
        ..options()
    });
    let mut ok = 0;
    for _ in 0..100 {
        let answer = ask(&sim, &chat("Hello", 1)).await;
        match answer.status {
            200 => ok += 1,
            status => {
                assert_eq!((status, answer.took), (429, Duration::ZERO));
                assert_eq!(answer.header("retry-after"), "1");
                assert_eq!(answer.json()["error"]["code"], "rate_limit_exceeded");
                assert!(!answer.headers.contains_key("x-ratelimit-limit-requests"));
                assert!(answer.header("x-request-id").starts_with("sim-"));
                // 25 ms is one request's worth: the next one passes.
                tokio::time::sleep(25 * MS).await;
            }
        }
    }
    assert_eq!(ok, 100, "one after the other, at 10/s, never meets a limit of 40/s");

    let burst = (0..200).map(|_| {
        let sim = Arc::clone(&sim);
        tokio::spawn(async move { ask(&sim, &chat("Hello", 1)).await.status })
    });
    let mut passed = 0;
    for call in burst.collect::<Vec<_>>() {
        passed += u32::from(call.await.unwrap() == 200);
    }
    assert_eq!(passed, 40, "a burst of one second's worth");
    assert!(sim.ledger().iter().all(|entry| match entry.status {
        200 => entry.outcome == Outcome::Ok,
        _ => entry.outcome == Outcome::Refused && entry.why == "rate" && entry.status == 429,
    }));
}

#[tokio::test(start_paused = true)]
async fn announced_limits_are_in_the_headers() {
    let sim = faulty(Faults {
        rate: Some(1.0),
        tokens_per_minute: Some(600),
        announce_limits: true,
        ..Faults::default()
    });
    let answer = ask(&sim, &chat("Hello there", 6)).await;
    assert_eq!(answer.header("x-ratelimit-limit-requests"), "60");
    assert_eq!(answer.header("x-ratelimit-remaining-requests"), "59");
    assert_eq!(answer.header("x-ratelimit-limit-tokens"), "600");
    let refused = ask(&sim, &chat("Hello there", 6)).await;
    assert_eq!(refused.status, 429);
    assert_eq!(refused.header("x-ratelimit-remaining-requests"), "0");
}

#[tokio::test(start_paused = true)]
async fn hidden_token_and_concurrency_limits_refuse() {
    let sim = faulty(Faults { tokens_per_minute: Some(20), ..Faults::default() });
    assert_eq!(ask(&sim, &chat("Hello there", 6)).await.status, 200, "17 tokens");
    assert_eq!(ask(&sim, &chat("Hello there", 6)).await.status, 429);
    assert_eq!(sim.ledger()[1].why, "tokens");

    let sim = faulty(Faults { max_concurrency: Some(1), ..Faults::default() });
    let (one, other) = tokio::join!(async { ask(&sim, &chat("a", 1)).await.status }, async {
        ask(&sim, &chat("b", 1)).await.status
    },);
    assert_eq!(one + other, 200 + 429);
}
