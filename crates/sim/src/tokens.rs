//! The simulator's tokenizer: small, its own, and used for everything that counts tokens.
//!
//! A token is one optional space and then up to four bytes of letters or digits (a character
//! outside ASCII counts as a letter and is never split), or one other character, or a run of
//! white space. English comes out near the four bytes per token of the real ones.

/// Length in bytes of the first token of `text`; 0 only when `text` is empty.
pub(crate) fn first(text: &str) -> usize {
    let bytes = text.as_bytes();
    let start = usize::from(bytes.len() > 1 && bytes[0] == b' ' && !is_space(bytes[1]));
    match bytes.get(start) {
        None => 0,
        Some(&byte) if is_space(byte) => {
            bytes.iter().position(|byte| !is_space(*byte)).unwrap_or(bytes.len())
        }
        Some(&byte) if is_letter(byte) => start + word(&text[start..]),
        Some(_) => start + 1,
    }
}

/// How many tokens `text` is.
pub(crate) fn count(text: &str) -> u32 {
    let mut rest = text;
    let mut tokens = 0;
    while !rest.is_empty() {
        rest = &rest[first(rest)..];
        tokens += 1;
    }
    tokens
}

/// Length in bytes of the first `tokens` tokens of `text`.
pub(crate) fn prefix(text: &str, tokens: u32) -> usize {
    let mut at = 0;
    for _ in 0..tokens {
        if at == text.len() {
            break;
        }
        at += first(&text[at..]);
    }
    at
}

/// Bytes of the letters `text` starts with: at most four, or one longer character.
fn word(text: &str) -> usize {
    let mut length = 0;
    for (at, character) in text.char_indices() {
        let end = at + character.len_utf8();
        let letter = character.is_ascii_alphanumeric() || !character.is_ascii();
        if !letter || (end > 4 && at > 0) {
            break;
        }
        length = end;
    }
    length
}

const fn is_space(byte: u8) -> bool {
    byte.is_ascii_whitespace()
}

const fn is_letter(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || !byte.is_ascii()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[&str]) {
        let (mut rest, mut found) = (text, Vec::new());
        while !rest.is_empty() {
            let (token, after) = rest.split_at(first(rest));
            found.push(token);
            rest = after;
        }
        assert_eq!(found, expected);
        assert_eq!(count(text) as usize, expected.len());
        for tokens in 0..expected.len() {
            assert_eq!(&text[..prefix(text, tokens as u32)], expected[..tokens].concat());
        }
    }

    #[test]
    fn texts_fall_into_pieces() {
        check("", &[]);
        check("Hello, world!", &["Hell", "o", ",", " worl", "d", "!"]);
        check("a  b\n\nc", &["a", "  ", "b", "\n\n", "c"]);
        check(" ", &[" "]);
        check("x ", &["x", " "]);
        check("café 漢字 🙂!", &["caf", "é", " 漢", "字", " 🙂", "!"]);
        check("{\"a\":1}", &["{", "\"", "a", "\"", ":", "1", "}"]);
    }
}
