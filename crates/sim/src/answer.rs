//! A plausible text made of the prompt's own words.
//!
//! # Why
//!
//! An answer that depends on its prompt shows mixed-up rows at once: row 7's summary must speak
//! of row 7's text. Words are taken in short runs, so it reads almost like English.

use crate::{chance::Chance, tokens};

/// Words of the prompt that are looked at; the rest only counts as tokens.
pub(crate) const MAX_WORDS: usize = 160;

/// What is said when the prompt has no words.
const FALLBACK: [&str; 8] = ["the", "tide", "turns", "and", "the", "gate", "stays", "open"];

/// A text of about `target` tokens on `prompt`.
pub(crate) fn text(prompt: &str, target: u32, chance: &mut Chance) -> String {
    let (instruction, subject) = split(prompt);
    let mut buffer = [""; MAX_WORDS];
    let words = words(subject, &mut buffer);
    let mut text = String::with_capacity(target as usize * 5 + 64);
    text.push_str(opening(instruction, prompt, chance));
    let mut left = i64::from(target) - i64::from(tokens::count(&text)) - 1;
    let mut runs = 0;
    while left > 0 || runs == 0 {
        if runs > 0 {
            let joint = joint(runs, chance);
            text.push_str(joint);
            left -= i64::from(tokens::count(joint));
        }
        left -= push_run(&mut text, words, left, chance);
        runs += 1;
    }
    text.push('.');
    text
}

/// Appends a run of neighbouring words, and says how many tokens it took.
fn push_run(text: &mut String, words: &[&str], left: i64, chance: &mut Chance) -> i64 {
    let start = chance.below(words.len());
    let length = 3 + chance.below(4);
    let mut taken = 0;
    for word in words[start..].iter().take(length) {
        if taken > 0 && taken >= left {
            break;
        }
        if !text.ends_with(' ') {
            text.push(' ');
        }
        text.push_str(word);
        taken += word.len().div_ceil(4) as i64;
    }
    taken
}

/// The instruction (`Summarise`) and what it is about; without a colon near the start, all of
/// the prompt is what it is about.
fn split(prompt: &str) -> (&str, &str) {
    match prompt.split_once(':') {
        Some((instruction, subject)) if instruction.len() <= 80 && !subject.trim().is_empty() => {
            (instruction, subject)
        }
        _ => ("", prompt),
    }
}

/// The first words of `subject`, without the marks around them; never empty.
pub(crate) fn words<'a, 'b>(
    subject: &'a str,
    buffer: &'b mut [&'a str; MAX_WORDS],
) -> &'b [&'a str] {
    let mut count = 0;
    for word in subject.split_ascii_whitespace() {
        let word = word.trim_matches(|character: char| !character.is_alphanumeric());
        // A very long "word" is data, not language.
        if word.is_empty() || word.len() > 40 {
            continue;
        }
        buffer[count] = word;
        count += 1;
        if count == MAX_WORDS {
            break;
        }
    }
    if count == 0 { &FALLBACK } else { &buffer[..count] }
}

fn opening(instruction: &str, prompt: &str, chance: &mut Chance) -> &'static str {
    let says = |start: &str| {
        instruction.get(..start.len()).is_some_and(|head| head.eq_ignore_ascii_case(start))
    };
    if says("summar") {
        chance.pick(&["In short:", "In brief:", "The gist:"])
    } else if says("translat") {
        chance.pick(&["In other words:", "Rendered freely:"])
    } else if says("classif") || says("label") {
        chance.pick(&["Most likely:", "Best match:"])
    } else if prompt.trim_end().ends_with('?') {
        chance.pick(&["The answer is", "It comes down to", "Most would say"])
    } else {
        chance.pick(&["Put simply,", "As asked:", "Here is what matters:", "Briefly,"])
    }
}

fn joint(runs: usize, chance: &mut Chance) -> &'static str {
    if runs.is_multiple_of(3) {
        return chance.pick(&[". It adds that", ". Note", ". In addition,", ". Then"]);
    }
    chance.pick(&[",", " and", ", because", ", so", " with", ", while"])
}

/// Prose with broken JSON in it: what a model says that was asked for JSON and did not care.
pub(crate) fn garbage(chance: &mut Chance) -> String {
    let start = chance.pick(&["Sure! Here is the JSON:", "Of course.", "```json"]);
    let rest = chance.pick(&[
        " {\"answer\": \"the tide turns\", ",
        " {answer: tide,}",
        " [1, 2,, 3",
        " {\"answer\": 'tide'}",
    ]);
    format!("{start}{rest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(prompt: &str, target: u32, seed: u64) -> String {
        text(prompt, target, &mut Chance::new(&[seed]))
    }

    #[test]
    fn it_speaks_of_the_prompt() {
        let prompt = "Summarise: The quick brown fox, they say, jumps over the lazy dog.";
        let text = answer(prompt, 20, 1);
        assert!(text.ends_with('.'), "{text}");
        assert!(
            ["quick", "fox", "jumps", "lazy", "say", "over"].iter().any(|word| text.contains(word))
        );
        assert!(!text.contains("Summarise"));
        assert_eq!(text, answer(prompt, 20, 1));
        assert_ne!(text, answer(prompt, 20, 2));
    }

    #[test]
    fn lengths_come_near_the_target() {
        let prompt = "What do rivers carry down to the sea in spring, when the snow has melted?";
        for target in [1, 5, 20, 100, 1000] {
            let got = tokens::count(&answer(prompt, target, 3));
            assert!(got >= target / 2 && got <= target + target / 4 + 12, "{target}: {got}");
        }
    }

    #[test]
    fn any_prompt_will_do() {
        for prompt in ["", " ", ":", "a:", "::::", "漢字", "\u{0}", "!!!", &"x".repeat(10_000)] {
            assert!(answer(prompt, 10, 1).len() > 5, "{prompt}");
        }
    }

    #[test]
    fn garbage_is_not_json() {
        for seed in 0..50 {
            let text = garbage(&mut Chance::new(&[seed]));
            assert!(serde_json::from_str::<serde_json::Value>(&text).is_err(), "{text}");
        }
    }
}
