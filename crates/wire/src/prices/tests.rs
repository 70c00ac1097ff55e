use super::*;

/// What each model costs in a file of such entries: input, cached, written, output, in picodollars;
/// `?` is unknown.
#[track_caller]
fn check(entries: &str, expected: &[&str]) {
    let listed = read(format!("{{{entries}}}").as_bytes()).unwrap();
    let rates = |rates: Rates| {
        let Rates { input, cached_input, cache_write, output } = rates;
        let [a, b, c, d] = [input, cached_input, cache_write, output].map(Money::pico);
        format!("{a} {b} {c} {d}")
    };
    let shown: Vec<_> = listed
        .prices
        .iter()
        .map(|(name, price)| {
            let steps =
                price.steps().map(|step| format!(" | {} {}", step.above, rates(step.rates)));
            format!("{name}: {}{}", rates(price.base()), steps.collect::<String>())
        })
        .collect();
    assert_eq!(shown, expected, "{entries}");
}

/// Entries as the file has them, shortened.
const FILE: &str = r#"
    "sample_spec": {"input_cost_per_token": 0.0, "max_tokens": "LEGACY parameter"},
    "gpt-4o-mini": {
        "input_cost_per_token": 1.5e-07, "output_cost_per_token": 6e-07,
        "cache_read_input_token_cost": 7.5e-08, "max_tokens": 16384,
        "litellm_provider": "openai", "mode": "chat", "supports_vision": true,
        "search_context_cost_per_query": {"search_context_size_low": 0.03}
    },
    "claude-3-haiku-20240307": {
        "input_cost_per_token": "2.5e-07", "output_cost_per_token": 1.25e-06, "mode": "chat"
    },
    "text-embedding-3-small": {"input_cost_per_token": 2e-08, "mode": "embedding"},
    "free-model": {"input_cost_per_token": 0, "output_cost_per_token": 0, "mode": "chat"},
    "dall-e-3": {
        "input_cost_per_token": 0, "output_cost_per_token": 0, "output_cost_per_image": 0.04
    },
    "half-known": {"input_cost_per_token": 1e-06, "mode": "chat"},
    "whisper-1": {"input_cost_per_second": 0.0001, "mode": "audio_transcription"},
    "bad": {"input_cost_per_token": -1, "output_cost_per_token": 1},
    "null": {"input_cost_per_token": null, "output_cost_per_token": 1}"#;

#[test]
fn the_price_file_is_read_to_the_picodollar() {
    check(
        FILE,
        &[
            "claude-3-haiku-20240307: 250000 250000 250000 1250000",
            "free-model: 0 0 0 0",
            "gpt-4o-mini: 150000 75000 150000 600000",
            "text-embedding-3-small: 20000 20000 20000 0",
        ],
    );
    let unpriced = read(format!("{{{FILE}}}").as_bytes()).unwrap().unpriced;
    assert_eq!(unpriced, 5, "a picture model, half a price, seconds, a negative one, none");
}

#[test]
fn long_prompts_are_dearer() {
    check(
        r#""gemini-2.5-pro": {
            "cache_read_input_token_cost": 1.25e-07,
            "cache_read_input_token_cost_above_200k_tokens": 2.5e-07,
            "cache_creation_input_token_cost_above_200k_tokens": 2.6e-07,
            "input_cost_per_token": 1.25e-06, "input_cost_per_token_above_200k_tokens": 2.5e-06,
            "input_cost_per_token_above_200k_tokens_priority": 4.5e-06,
            "input_cost_per_token_priority": 2.25e-06, "input_cost_per_token_batches": 6.25e-07,
            "output_cost_per_token": 1e-05, "output_cost_per_token_above_200k_tokens": 1.5e-05,
            "litellm_provider": "vertex_ai-language-models", "mode": "chat"
        },
        "kyma/qwen3.7-flash": {
            "input_cost_per_token": 5e-08, "input_cost_per_token_above_256k_tokens": 2.7e-07,
            "input_cost_per_token_above_32k_tokens": 1.35e-07, "mode": "chat",
            "cache_read_input_token_cost": 1e-08, "output_cost_per_token": 2e-07,
            "output_cost_per_token_above_32k_tokens": 5.4e-07
        },
        "xai/grok-4": {
            "input_cost_per_token": 2e-06, "input_cost_per_token_above_200000_tokens": 4e-06,
            "output_cost_per_token": 6e-06, "litellm_provider": "xai", "mode": "chat"
        }"#,
        &[
            "gemini-2.5-pro: 1250000 125000 1250000 10000000 | 200000 2500000 250000 2500000 15000000",
            // What a step does not say of a cache is as its input; of answers, as in short calls.
            "kyma/qwen3.7-flash: 50000 10000 50000 200000 | 32000 135000 135000 135000 540000 \
             | 256000 270000 270000 270000 200000",
            "xai/grok-4: 2000000 2000000 2000000 6000000 | 199999 4000000 4000000 4000000 6000000",
        ],
    );
}

#[test]
fn writing_a_cache_may_be_dearer() {
    check(
        r#""gpt-5.6": {
            "cache_creation_input_token_cost": 5e-06, "cache_read_input_token_cost": 4e-07,
            "cache_creation_input_token_cost_above_12hr": 1e-05,
            "cache_creation_input_token_cost_above_12hr_above_272k_tokens": 2e-05,
            "cache_creation_input_token_cost_above_272k_tokens": 1e-05,
            "cache_read_input_token_cost_above_272k_tokens": 8e-07,
            "input_cost_per_token": 4e-06, "input_cost_per_token_above_272k_tokens": 8e-06,
            "output_cost_per_token": 2e-05, "output_cost_per_token_above_272k_tokens": 3e-05,
            "mode": "responses"
        }"#,
        &["gpt-5.6: 4000000 400000 5000000 20000000 | 272000 8000000 800000 10000000 30000000"],
    );
}

#[test]
fn steps_may_be_a_list() {
    let tiers = |tiers: &str| format!(r#""m": {{"mode": "chat", "tiered_pricing": [{tiers}]}}"#);
    let (short, long) = (
        r#"{"range": [0, 256000.0], "input_cost_per_token": 4e-07, "output_cost_per_token": 1.6e-06,
            "cache_read_input_token_cost": 1e-07}"#,
        r#"{"range": [256000.0, 1000000.0], "input_cost_per_token": "1.2e-06",
            "output_cost_per_token": 4.8e-06}"#,
    );
    let both = "m: 400000 100000 400000 1600000 | 256000 1200000 1200000 1200000 4800000";
    check(&tiers(&format!("{short}, {long}")), &[both]);
    check(&tiers(&format!("{long}, {short}")), &[both]);
    // Nothing for short prompts, nothing at all, nothing that is read, twice the same.
    for bad in [long.to_owned(), String::new(), "7".to_owned(), format!("{short}, {short}")] {
        check(&tiers(&bad), &[]);
    }
    let thinking = short.replace("}", r#", "output_cost_per_reasoning_token": 4e-06}"#);
    check(&tiers(&thinking), &[]);
}

#[test]
fn a_price_by_more_than_tokens_is_unknown() {
    let tokens = r#""input_cost_per_token": 1e-06, "output_cost_per_token": 2e-06"#;
    for (name, beside) in [
        ("qwen-turbo", r#""mode": "chat", "output_cost_per_reasoning_token": 4e-06"#),
        ("deepseek-v4-pro", r#""off_peak_pricing": {"hours_utc": "16:30-00:30"}"#),
        ("sonar-small-online", r#""input_cost_per_request": 0.005"#),
        ("rerank", r#""mode": "rerank", "input_cost_per_query": 0.002"#),
        (
            "perplexity/sonar",
            r#""search_context_cost_per_query": {"search_context_size_low": 5e-3}"#,
        ),
        ("gpt-5-search-api", r#""search_context_cost_per_query": {}"#),
        ("deep-research", r#""citation_cost_per_token": 2e-06"#),
        ("gemini-image", r#""mode": "chat", "output_cost_per_image_token": 3e-05"#),
        ("gpt-realtime", r#""mode": "realtime", "input_cost_per_audio_token": 3e-05"#),
        (
            "five",
            r#""input_cost_per_token_above_1_tokens": 1, "input_cost_per_token_above_2_tokens": 1,
            "input_cost_per_token_above_3_tokens": 1, "input_cost_per_token_above_4_tokens": 1"#,
        ),
        ("odd", r#""input_cost_per_token_above_200k_tokens": true"#),
    ] {
        check(&format!(r#""{name}": {{{tokens}, {beside}}}"#), &[]);
    }
    // What costs more only when it is asked for, or the same.
    for (name, beside) in [
        ("gpt-5", r#""search_context_cost_per_query": {"search_context_size_low": 0.01}"#),
        ("gpt-audio", r#""mode": "chat", "output_cost_per_audio_token": 8e-05"#),
        (
            "gemini-2.5-flash",
            r#""input_cost_per_audio_token": 1e-06, "output_cost_per_reasoning_token": 2e-06"#,
        ),
        ("free", r#""input_cost_per_request": 0.0, "off_peak_pricing": null"#),
    ] {
        let known = format!("{name}: 1000000 1000000 1000000 2000000");
        check(&format!(r#""{name}": {{{tokens}, {beside}}}"#), &[&known]);
    }
}

#[test]
fn what_is_no_price_file_is_refused() {
    assert!(read(b"[]").unwrap_err().contains("one JSON object"));
    let cut = read(b"{\"a\": {\"mode\": ").unwrap_err();
    assert!(cut.contains("not JSON") && cut.contains("line 1"), "{cut}");
    assert_eq!(read(br#"{"a": 7}"#).unwrap().unpriced, 1);
}
