//! Shapes of the answers, whole and streamed.

use crate::*;

fn parsed(answer: &Answer) -> Vec<Value> {
    let events = answer.events();
    let data = events.iter().filter(|data| **data != "[DONE]");
    data.map(|data| serde_json::from_str(data).unwrap()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_chat_streams_what_it_answers() {
    let sim = Sim::new(options());
    let asked = chat("Summarise: the tide turns at noon", 50);
    let whole = ask(&sim, &asked).await.json();
    assert_eq!(whole["object"], "chat.completion");
    assert_eq!(whole["choices"][0]["message"]["role"], "assistant");
    assert_eq!(whole["choices"][0]["finish_reason"], "stop");

    let answer = ask(&sim, &streamed(asked)).await;
    assert_eq!(answer.header("content-type"), "text/event-stream; charset=utf-8");
    assert_eq!(answer.events().last(), Some(&"[DONE]"));
    let chunks = parsed(&answer);
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    let said = |chunk: &Value| chunk["choices"][0]["delta"]["content"].as_str().map(str::to_owned);
    let text: String = chunks.iter().filter_map(said).collect();
    assert_eq!(text, whole["choices"][0]["message"]["content"]);
    let tokens = whole["usage"]["completion_tokens"].as_u64().unwrap();
    assert_eq!(chunks.len() as u64, tokens + 2, "the role, the tokens, the finish reason");
    assert!(chunks.iter().all(|chunk| chunk["object"] == "chat.completion.chunk"));
    assert!(chunks.iter().all(|chunk| chunk["id"] == whole["id"] && chunk.get("usage").is_none()));
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "stop");
    assert_eq!(u64::from(sim.ledger()[1].chunks), tokens);
}

#[tokio::test(start_paused = true)]
async fn usage_comes_last_where_asked_for() {
    let sim = Sim::new(options());
    let mut asked = streamed(chat("Hello there", 3));
    asked["stream_options"] = json!({"include_usage": true});
    asked["n"] = 2.into();
    let chunks = parsed(&ask(&sim, &asked).await);
    let last = chunks.last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["completion_tokens"], 6);
    assert!(chunks[..chunks.len() - 1].iter().all(|chunk| chunk["usage"].is_null()));
    let of = |index: u64| chunks.iter().filter(move |c| c["choices"][0]["index"] == index).count();
    assert_eq!((of(0), of(1)), (5, 5));
    assert_eq!(chunks[chunks.len() - 2]["choices"][0]["finish_reason"], "length");
}

#[tokio::test(start_paused = true)]
async fn usage_so_far_comes_with_every_event_where_asked_for() {
    let sim = Sim::new(options());
    let body = json!({"model": "m", "prompt": "the tide", "max_tokens": 3});
    for (path, body) in
        [("/v1/chat/completions", chat("Hello there", 3)), ("/v1/completions", body)]
    {
        let mut asked = streamed(body);
        asked["stream_options"] = json!({"include_usage": true, "continuous_usage_stats": true});
        let chunks = parsed(&post(&sim, path, &asked).await);
        let role: &[u64] = if path.contains("chat") { &[0] } else { &[] };
        let expected = [role, &[1, 2, 3, 3, 3]].concat();
        let told = |chunk: &Value| chunk["usage"]["completion_tokens"].as_u64().unwrap();
        assert_eq!(chunks.iter().map(told).collect::<Vec<_>>(), expected);
        let prompt = u64::from(sim.ledger().last().unwrap().prompt_tokens);
        assert!(chunks.iter().all(|chunk| chunk["usage"]["prompt_tokens"] == prompt));

        asked["stream_options"] = json!({"continuous_usage_stats": true});
        let chunks = parsed(&post(&sim, path, &asked).await);
        assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none()));
    }
}

#[tokio::test(start_paused = true)]
async fn completions_take_many_prompts() {
    let sim = Sim::new(options());
    let body = json!({"model": "m", "prompt": ["the tide", "the gate"], "n": 2, "max_tokens": 4});
    let whole = post(&sim, "/v1/completions", &body).await.json();
    assert_eq!(whole["object"], "text_completion");
    assert_eq!(whole["choices"].as_array().unwrap().len(), 4);
    let answer = post(&sim, "/v1/completions", &streamed(body)).await;
    let mut texts = vec![String::new(); 4];
    for chunk in parsed(&answer) {
        let choice = &chunk["choices"][0];
        texts[choice["index"].as_u64().unwrap() as usize] += choice["text"].as_str().unwrap();
    }
    for (index, text) in texts.iter().enumerate() {
        assert_eq!(*text, whole["choices"][index]["text"]);
    }
}

#[tokio::test(start_paused = true)]
async fn responses_are_numbered_events() {
    let sim = Sim::new(options());
    let body = json!({"model": "m", "input": "Tell me of the tide"});
    let whole = post(&sim, "/v1/responses", &body).await.json();
    assert_eq!(whole["status"], "completed");
    let text = &whole["output"][0]["content"][0]["text"];
    let answer = post(&sim, "/v1/responses", &streamed(body.clone())).await;
    let events = parsed(&answer);
    for (number, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], number);
    }
    assert_eq!(events[0]["type"], "response.created");
    let delta = |event: &Value| event["delta"].as_str().map(str::to_owned);
    assert_eq!(events.iter().filter_map(delta).collect::<String>(), text.as_str().unwrap());
    let last = events.last().unwrap();
    assert_eq!((&last["type"], &last["response"]), (&"response.completed".into(), &whole));
    assert!(!answer.events().contains(&"[DONE]"));
    let named = String::from_utf8(answer.body.to_vec()).unwrap();
    assert!(named.starts_with("event: response.created\ndata: "));

    let mut cut = body;
    cut["max_output_tokens"] = 3.into();
    let cut = post(&sim, "/v1/responses", &cut).await.json();
    assert_eq!(cut["status"], "incomplete");
    assert_eq!(cut["incomplete_details"]["reason"], "max_output_tokens");
}

#[tokio::test(start_paused = true)]
async fn the_same_prompt_has_the_same_answer_whatever_else_goes_on() {
    let sim = Sim::new(Options { slots: 64, queue: 1000, ..options() });
    let alone = ask(&sim, &chat("the tide", 50)).await.body;
    let calls = (0..100).map(|index| {
        let sim = Arc::clone(&sim);
        let text = if index % 2 == 0 { "the tide".to_owned() } else { format!("row {index}") };
        tokio::spawn(async move { ask(&sim, &chat(&text, 50)).await.body })
    });
    for (index, call) in calls.collect::<Vec<_>>().into_iter().enumerate() {
        assert_eq!(call.await.unwrap() == alone, index % 2 == 0);
    }
    let other = Sim::new(Options { seed: 1, ..options() });
    assert_ne!(ask(&other, &chat("the tide", 50)).await.body, alone);
}
