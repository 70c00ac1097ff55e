//! Takes out of a text what looks like a key.
//!
//! *Why by its look:* our own secrets are wrapped ([`crate::Secret`]), but callers write keys where
//! none belongs: into a path, the name of a field, of a model, of a request. Whatever repeats such
//! a text in an error or a log would keep the key.

use std::borrow::Cow;

/// How long the beginnings of keys are: see [`next`].
const BEGINNING: usize = 3;
/// What stands in the place of a key.
const INSTEAD: &str = "[redacted]";
/// How many letters and digits the id in a key of ours has. It is public.
const ID: usize = 12;
/// What follows `tg-` is taken for a key from this length on; what is shorter is a word.
const SHORTEST: usize = 8;
/// The same for what follows `sk-`, and for a whole token.
const SHORTEST_FOREIGN: usize = 16;

/// `text` without what looks like a key or token: `tg-ID-SECRET` (of which the id stays, for
/// whoever has to revoke it), `sk-…`, `eyJ….….…`.
pub fn redact(text: &str) -> Cow<'_, str> {
    let mut cleaned = String::new();
    let (mut copied, mut at) = (0, 0);
    while let Some(found) = next(&text[at..]) {
        let begin = at + found;
        match secret(text, begin) {
            Some((from, to)) => {
                cleaned.push_str(&text[copied..from]);
                cleaned.push_str(INSTEAD);
                (copied, at) = (to, to);
            }
            // All beginnings are ASCII, so this is no cut inside a character.
            None => at = begin + 1,
        }
    }
    if copied == 0 {
        return Cow::Borrowed(text);
    }
    cleaned.push_str(&text[copied..]);
    Cow::Owned(cleaned)
}

/// Where the next key seems to begin: one of ours, of OpenAI's and its kin's, or a token (a JSON
/// object in base64). Looks no further than there: a text can be all beginnings.
fn next(text: &str) -> Option<usize> {
    let begins = |three: &[u8]| matches!(three, b"tg-" | b"sk-" | b"eyJ");
    text.as_bytes().windows(BEGINNING).position(begins)
}

/// Where the secret of the key that seems to begin at `begin` stands.
fn secret(text: &str, begin: usize) -> Option<(usize, usize)> {
    let bytes = text.as_bytes();
    let is_word = |byte: &u8| byte.is_ascii_alphanumeric();
    let is_part = |byte: &u8| is_word(byte) || matches!(byte, b'-' | b'_');
    let run = |from: usize, is_in: &dyn Fn(&u8) -> bool| {
        bytes[from..].iter().position(|byte| !is_in(byte)).map_or(bytes.len(), |end| from + end)
    };
    let (from, rest) = (begin + BEGINNING, &text[begin..]);
    if rest.starts_with("eyJ") {
        let to = run(begin, &|byte| is_part(byte) || *byte == b'.');
        return (to - begin >= SHORTEST_FOREIGN).then_some((begin, to));
    }
    if rest.starts_with("sk-") {
        // `task-…` is a word.
        if begin > 0 && is_word(&bytes[begin - 1]) {
            return None;
        }
        let to = run(from, &is_part);
        return (to - from >= SHORTEST_FOREIGN).then_some((from, to));
    }
    let (id_ends, to) = (run(from, &is_word), run(from, &is_part));
    let is_ours = id_ends == from + ID;
    match bytes.get(id_ends) {
        _ if is_ours && to == id_ends => None,
        Some(b'-') if is_ours => (to > id_ends + 1).then_some((id_ends + 1, to)),
        _ => (to - from >= SHORTEST).then_some((from, to)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_looks_like_a_key_is_taken_out() {
        let secret = "a1B2".repeat(11);
        for (text, cleaned) in [
            (format!("tg-abcdefghijkl-{secret}"), "tg-abcdefghijkl-[redacted]"),
            (
                format!("/admin/keys/tg-abcdefghijkl-{secret}/rotate"),
                "/admin/keys/tg-abcdefghijkl-[redacted]/rotate",
            ),
            // Cut off, glued to something, or of another make.
            ("no `xtg-abcdefghijkl-a`".into(), "no `xtg-abcdefghijkl-[redacted]`"),
            ("tg-abcdefgh12345".into(), "tg-[redacted]"),
            ("a tg-short_but_8 b".into(), "a tg-[redacted] b"),
            (format!("é sk-proj-{secret} é"), "é sk-[redacted] é"),
            ("eyJhbGciOiJub25lIn0.eyJh.".into(), "[redacted]"),
            (format!("tg-{secret},tg-{secret}"), "tg-[redacted],tg-[redacted]"),
        ] {
            assert_eq!(redact(&text), cleaned);
        }
    }

    #[test]
    fn words_and_ids_stay() {
        for text in [
            "",
            "the model is full",
            "tg-abcdefghijkl",
            "key tg-abcdefghijkl of search",
            "tg-abcdefghijkl-",
            "task-force-of-the-ministry",
            "a risk-averse-investment-company",
            "sk-1",
            "tg-",
            "eyJ",
            "tg-é",
            "étg-étg-",
        ] {
            assert!(matches!(redact(text), Cow::Borrowed(_)), "{text}");
        }
    }

    #[test]
    fn a_text_of_beginnings_was_searched_to_its_end_at_each() {
        // A mebibyte of them took minutes: whoever writes an error's words could stop a thread.
        for word in ["task-", "sk-.", "eyJ,", "tg-abcdefghijkl "] {
            let text = word.repeat((1 << 20) / word.len());
            assert!(matches!(redact(&text), Cow::Borrowed(_)), "{word}");
        }
    }
}
