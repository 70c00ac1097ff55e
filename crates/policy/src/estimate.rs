//! Token estimate: how many tokens a prompt has, before anybody has counted them.
//!
//! # Why
//!
//! Limits and budgets reserve tokens before a call and settle them after it. A reservation that
//! is too large refuses calls there was room for; one that is too small lets through what is owed
//! afterwards. Only the model's own tokenizer is exact; each is megabytes of vocabulary, and of
//! most hosted models there is none to be had (OpenAI's are, by the feature `tokens-exact`, and
//! count what is not too long). Four bytes of body per token is right for English
//! prose and wrong by half for code, for Chinese, for a body that is mostly JSON around three
//! words. But answers tell how many tokens the prompt had, so the ratio can be learned, for each
//! model of each upstream.
//!
//! # Rule
//!
//! ```text
//! sample = bytes / tokens told, within 1 ..= 8
//! weight = 0.1 × (tokens told / 200, within 0.1 ..= 1)
//! ratio += weight × (sample - ratio)                      from 4
//! tokens = bytes / ratio, rounded up
//! ```
//!
//! Short prompts are mostly the JSON around them and say little of the long ones, which are what
//! a limit on tokens is about: they weigh less. The bounds keep one prompt with a picture in it
//! (a megabyte, and a thousand tokens) from making all others look small.

/// Bytes of body per prompt token, as learned from the answers of one model.
///
/// Costs a division per question, and one multiplication more per answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BytesPerToken(f64);

/// What is assumed before anything was told, and what fronts estimate by.
const ASSUMED: f64 = 4.0;
/// No model's ratio is taken to be outside.
const LEAST: f64 = 1.0;
const MOST: f64 = 8.0;
/// Weight of one answer to a prompt of [`FULL_PROMPT_TOKENS`] or more.
const WEIGHT: f64 = 0.1;
const FULL_PROMPT_TOKENS: f64 = 200.0;
const LEAST_SHARE: f64 = 0.1;

impl BytesPerToken {
    /// Before anything was told.
    pub const fn assumed() -> Self {
        Self(ASSUMED)
    }

    /// Tokens of a prompt whose body has so many bytes.
    pub fn tokens(self, body_bytes: usize) -> u64 {
        (body_bytes as f64 / self.0).ceil() as u64
    }

    /// Learns from an answer that told how many tokens the prompt of so many bytes had.
    pub fn told(&mut self, body_bytes: usize, tokens: u64) {
        if tokens == 0 {
            // An upstream that does not count.
            return;
        }
        let sample = (body_bytes as f64 / tokens as f64).clamp(LEAST, MOST);
        let weight = WEIGHT * (tokens as f64 / FULL_PROMPT_TOKENS).clamp(LEAST_SHARE, 1.0);
        self.0 += weight * (sample - self.0);
    }

    /// The ratio as bits, for an atomic.
    pub const fn to_bits(self) -> u64 {
        self.0.to_bits()
    }

    /// The ratio of such bits.
    pub const fn from_bits(bits: u64) -> Self {
        Self(f64::from_bits(bits))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shows `count` prompts of `bytes` bytes and `tokens` tokens; what it then takes prompts of
    /// a thousand bytes for.
    fn after(count: u32, bytes: usize, tokens: u64) -> u64 {
        let mut ratio = BytesPerToken::assumed();
        (0..count).for_each(|_| ratio.told(bytes, tokens));
        ratio.tokens(1_000)
    }

    #[test]
    fn four_bytes_are_a_token_until_something_is_told() {
        assert_eq!(after(0, 1, 1), 250);
        let rounded = [0, 1, 4, 5].map(|bytes| BytesPerToken::assumed().tokens(bytes));
        assert_eq!(rounded, [0, 1, 1, 2]);
    }

    #[test]
    fn finds_the_ratio_of_a_model() {
        // Code, Chinese, prose.
        for (bytes, tokens, expected) in [(900, 300, 334), (600, 300, 500), (4_500, 1_000, 223)] {
            let learned = after(50, bytes, tokens);
            assert!(learned.abs_diff(expected) <= 2, "{learned} for {expected}");
        }
    }

    #[test]
    fn is_as_sure_as_it_has_seen_much() {
        let (once, often) = (after(1, 600, 300), after(10, 600, 300));
        assert!(250 < once && once < 270, "{once}");
        assert!(340 < often && often < 500, "{often}");
        let short = after(10, 60, 30);
        assert!(250 < short && short < 300, "short prompts say little of long ones: {short}");
    }

    #[test]
    fn one_odd_prompt_changes_little_and_many_stay_within_bounds() {
        let picture = after(1, 1_000_000, 1_000);
        assert!((225..250).contains(&picture), "{picture}");
        let bounds = [(1_000_000, 999, 125), (0, 1_000_000, 1_000), (usize::MAX, u64::MAX, 1_000)];
        for (bytes, tokens, bound) in bounds {
            let learned = after(1_000, bytes, tokens);
            assert!(learned.abs_diff(bound) <= 1, "{learned} for {bytes} / {tokens}");
        }
        assert_eq!(after(1_000, 1_000, 0), 250, "one that does not count says nothing");
    }

    #[test]
    fn survives_being_kept_as_bits() {
        let mut ratio = BytesPerToken::assumed();
        ratio.told(1_000, 300);
        assert_eq!(BytesPerToken::from_bits(ratio.to_bits()), ratio);
    }
}
