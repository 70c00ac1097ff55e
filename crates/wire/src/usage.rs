//! The tokens an answer says it used.

use serde::Deserialize;
use tidegate_core::Usage;

/// Most tokens an answer is believed to have used: sums over millions of calls still fit.
const MOST: u64 = 1 << 40;

/// Reads the usage of a unary answer, or of the data of one event of a stream.
///
/// Knows chat's words (`prompt_tokens` …) and those of responses (`input_tokens` …), on top or
/// nested (`response.usage`). `None` when there is none, or it is `null`.
///
/// # Cost
///
/// One search for the key; only the object behind it is parsed. A string of the answer cannot be
/// taken for the key: its quotes would be escaped. An object that counts no tokens (a tool's
/// parameter named `usage`) is passed over; the last that does count wins.
pub fn read(body: &[u8]) -> Option<Usage> {
    const KEY: &[u8] = b"\"usage\"";
    let (mut found, mut from) = (None, 0);
    while let Some(at) = memchr::memmem::find(&body[from..], KEY) {
        from += at + KEY.len();
        let Some(object) = object_after_colon(&body[from..]) else { continue };
        let mut values = serde_json::Deserializer::from_slice(object).into_iter::<Counts>();
        if let Some(Ok(counts)) = values.next() {
            found = counts.usage().or(found);
        }
        // On past the object: what nests in it is not looked at twice.
        from = body.len() - object.len() + values.byte_offset();
    }
    found
}

fn object_after_colon(rest: &[u8]) -> Option<&[u8]> {
    let value = rest.trim_ascii_start().strip_prefix(b":")?.trim_ascii_start();
    value.starts_with(b"{").then_some(value)
}

/// Both spellings of each count: some gateways (new-api) write both, one of them at 0.
#[derive(Deserialize)]
struct Counts {
    prompt_tokens: Option<u64>,
    input_tokens: Option<u64>,
    completion_tokens: Option<u64>,
    output_tokens: Option<u64>,
    prompt_tokens_details: Option<InputDetails>,
    input_tokens_details: Option<InputDetails>,
    completion_tokens_details: Option<OutputDetails>,
    output_tokens_details: Option<OutputDetails>,
    /// DeepSeek's word for cached prompt tokens.
    prompt_cache_hit_tokens: Option<u64>,
}

#[derive(Deserialize)]
struct InputDetails {
    cached_tokens: Option<u64>,
    /// OpenAI's word, from GPT-5.6 on, and OpenRouter's.
    cache_write_tokens: Option<u64>,
    /// LiteLLM's, which may pass on the other beside it.
    cache_creation_tokens: Option<u64>,
}

#[derive(Deserialize)]
struct OutputDetails {
    reasoning_tokens: Option<u64>,
}

impl Counts {
    fn usage(&self) -> Option<Usage> {
        let (input, output) = (
            self.prompt_tokens.max(self.input_tokens),
            self.completion_tokens.max(self.output_tokens),
        );
        input.or(output)?;
        let of_input = |count: fn(&InputDetails) -> Option<u64>| {
            let both = [&self.prompt_tokens_details, &self.input_tokens_details];
            both.into_iter().flatten().filter_map(count).max()
        };
        let of_output = [&self.completion_tokens_details, &self.output_tokens_details];
        let reasoning =
            of_output.into_iter().flatten().filter_map(|details| details.reasoning_tokens).max();
        let cached = of_input(|details| details.cached_tokens);
        let written =
            of_input(|details| details.cache_write_tokens.max(details.cache_creation_tokens));
        let tokens = |count: Option<u64>| count.unwrap_or(0).min(MOST);
        Some(Usage {
            input: tokens(input),
            cached_input: tokens(cached.max(self.prompt_cache_hit_tokens)),
            cache_write: tokens(written),
            output: tokens(output),
            reasoning: tokens(reasoning),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(body: &str, expected: Option<[u64; 4]>) {
        let usage = read(body.as_bytes());
        let numbers = usage.map(|u| [u.input, u.cached_input, u.output, u.reasoning]);
        assert_eq!(numbers, expected, "{body}");
    }

    #[test]
    fn both_spellings() {
        check(
            r#"{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":12,"total_tokens":21,
               "prompt_tokens_details":{"cached_tokens":4},"completion_tokens_details":{"reasoning_tokens":5}}}"#,
            Some([9, 4, 12, 5]),
        );
        check(
            r#"{"type":"response.completed","response":{"usage" : {"input_tokens":3,"input_tokens_details":{"cached_tokens":1},
               "output_tokens":2,"output_tokens_details":{"reasoning_tokens":0}}}}"#,
            Some([3, 1, 2, 0]),
        );
        check(r#"{"data":[],"usage":{"prompt_tokens":8,"total_tokens":8}}"#, Some([8, 0, 0, 0]));
        check(
            r#"{"usage":{"prompt_tokens":8,"prompt_cache_hit_tokens":2,"prompt_tokens_details":null}}"#,
            Some([8, 2, 0, 0]),
        );
    }

    #[test]
    fn what_was_written_to_a_cache() {
        let written = |body: &str| read(body.as_bytes()).map(|usage| usage.cache_write);
        let openai = r#"{"usage":{"input_tokens":2600,"input_tokens_details":{"cached_tokens":2000,
            "cache_write_tokens":400},"output_tokens":1}}"#;
        assert_eq!(written(openai), Some(400));
        let litellm =
            r#"{"usage":{"prompt_tokens":9,"prompt_tokens_details":{"cache_creation_tokens":7}}}"#;
        assert_eq!(written(litellm), Some(7));
        let both = r#"{"usage":{"prompt_tokens":9,
            "prompt_tokens_details":{"cache_creation_tokens":7,"cache_write_tokens":7}}}"#;
        assert_eq!(written(both), Some(7));
        assert_eq!(written(r#"{"usage":{"prompt_tokens":9}}"#), Some(0));
    }

    #[test]
    fn a_count_in_both_spellings_was_no_usage_at_all() {
        check(
            r#"{"usage":{"prompt_tokens":9,"completion_tokens":12,"total_tokens":21,
               "prompt_tokens_details":{"cached_tokens":4},
               "completion_tokens_details":{"reasoning_tokens":5},
               "input_tokens":0,"output_tokens":0,"input_tokens_details":null}}"#,
            Some([9, 4, 12, 5]),
        );
        check(
            r#"{"usage":{"input_tokens":3,"prompt_tokens":3,"input_tokens_details":{"cached_tokens":1},
               "prompt_tokens_details":{"cached_tokens":0},"output_tokens":2,"completion_tokens":2}}"#,
            Some([3, 1, 2, 0]),
        );
    }

    #[test]
    fn nothing_told() {
        check(r#"{"choices":[{"delta":{"content":"hi"}}],"usage":null}"#, None);
        check("[DONE]", None);
        check("", None);
        check(r#"{"choices":[{"delta":{"content":"\"usage\":{\"prompt_tokens\":1}"}}]}"#, None);
        check(r#"{"usage":"#, None);
        check(r#"{"usage":{"prompt_tokens":"#, None);
        check(r#"{"usage":{"prompt_tokens":-1}}"#, None);
    }

    #[test]
    fn other_objects_of_that_name_are_passed_over() {
        check(
            r#"{"usage":{"input_tokens":1,"output_tokens":2},"tools":[{"usage":{"type":"object"}}]}"#,
            Some([1, 0, 2, 0]),
        );
        check(
            r#"{"tools":[{"usage":{"usage":{"x":1}}}],"usage":{"input_tokens":1,"output_tokens":2}}"#,
            Some([1, 0, 2, 0]),
        );
    }
}
