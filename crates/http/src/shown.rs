//! What of a caller's words errors and logs repeat.
//!
//! *Why not all:* callers put keys into paths, into names of fields, into anything, and whatever is
//! repeated is logged by somebody.

use hyper::http::request::Parts;
use tidegate_core::redact;

/// A name as errors may repeat it: one that could be a misspelt one of ours. Somebody may have sent a
/// key as a name, or a whole body, and errors are logged.
pub(crate) fn name(name: &str) -> String {
    const LONGEST: usize = 32;
    let is_letter = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_';
    if (1..=LONGEST).contains(&name.len()) && name.bytes().all(is_letter) {
        format!("`{name}`")
    } else {
        "a name that is not repeated here".to_owned()
    }
}

/// Longest method or path told, in bytes: a caller may write a whole head of them.
const MAX_WORD_BYTES: usize = 256;
/// Ids have twelve letters and digits; longer mixtures of both are secrets, or nobody's words.
const LONGEST_WORD: usize = 12;

/// The method of a request, as logs may have it: callers can write anything there.
pub(crate) fn method(parts: &Parts) -> String {
    text(parts.method.as_str())
}

/// The path of a request, as logs may have it: without the query, and without keys.
pub(crate) fn path(parts: &Parts) -> String {
    text(parts.uri.path())
}

/// `text` without what looks like a key, and without long words that mix letters and digits: the
/// secret of a key pasted alone has no other mark.
pub(crate) fn text(text: &str) -> String {
    let text = redact(&text[..text.floor_char_boundary(MAX_WORD_BYTES)]);
    let mut shown = String::with_capacity(text.len());
    let mut rest = &*text;
    while !rest.is_empty() {
        let is_word = |c: char| c.is_ascii_alphanumeric();
        let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        let word = &rest[..end];
        let digits = word.bytes().filter(u8::is_ascii_digit).count();
        let is_mixed = digits > 0 && digits < word.len();
        shown.push_str(if is_mixed && word.len() > LONGEST_WORD { "…" } else { word });
        let next = rest[end..].find(is_word).map_or(rest.len(), |next| end + next);
        shown.push_str(&rest[end..next]);
        rest = &rest[next..];
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_told_without_keys() {
        let secret = "a1B2".repeat(11);
        for (path, told) in [
            ("/v1/chat/completions", "/v1/chat/completions"),
            ("/.well-known/oauth-authorization-server", "/.well-known/oauth-authorization-server"),
            (
                "/v1/models/Qwen/Qwen3-235B-A22B-Instruct-2507",
                "/v1/models/Qwen/Qwen3-235B-A22B-Instruct-2507",
            ),
            ("/admin/keys/4kQ0abcdEFGH", "/admin/keys/4kQ0abcdEFGH"),
            (
                "/v1beta/models/gemini-2.5-pro:streamGenerateContent",
                "/v1beta/models/gemini-2.5-pro:streamGenerateContent",
            ),
            (&format!("/admin/keys/{secret}/rotate"), "/admin/keys/…/rotate"),
            (&format!("/{secret}"), "/…"),
            (&format!("/tg-4kQ0abcdEFGH-{secret}"), "/tg-4kQ0abcdEFGH-[redacted]"),
            ("/é/%C3%A9/", "/é/%C3%A9/"),
            ("", ""),
        ] {
            assert_eq!(text(path), told);
        }
        assert_eq!(text(&"é".repeat(200)).len(), 256);
    }
}
