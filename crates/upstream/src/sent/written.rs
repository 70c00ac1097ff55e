//! Where a secret stands in a text, in the forms it can be written in.
//!
//! # Cost
//!
//! A look at every byte of the text. Of a good answer that is its id, of a bad one all it says.

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use memchr::memmem;
use std::ops::Range;

/// Backslashes before one character that are looked at: JSON within JSON, four deep. Errors quote
/// prompts, and one of backslashes alone would be counted through at each of them.
const MAX_SLASHES: usize = 16;
/// How many bytes of a secret must stand where a text breaks off to be taken for one.
const ENOUGH: usize = 4;

/// Where the secret stands as it is, or with any of its characters escaped: in JSON, in JSON within
/// JSON, in a URL, in HTML. Also where its beginning stands at the end of the text.
pub(super) fn plain(text: &[u8], secret: &[u8]) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let is_start = text[at] == secret[0] || matches!(text[at], b'\\' | b'%' | b'&');
        match is_start.then(|| end_of(&text[at..], secret)).flatten() {
            Some(length) => {
                found.push(at..at + length);
                at += length;
            }
            None => at += 1,
        }
    }
    found
}

/// The length of the secret at the beginning of `text`, if it stands there.
fn end_of(text: &[u8], secret: &[u8]) -> Option<usize> {
    let mut at = 0;
    for (matched, byte) in secret.iter().enumerate() {
        match character(&text[at..], *byte) {
            Some(length) => at += length,
            None => return (at == text.len() && matched >= ENOUGH).then_some(at),
        }
    }
    Some(at)
}

/// The length of `byte` at the beginning of `text`, however it is escaped.
fn character(text: &[u8], byte: u8) -> Option<usize> {
    // Each time JSON is put into JSON doubles the backslashes.
    let slashes = text.iter().take(MAX_SLASHES).take_while(|byte| **byte == b'\\').count();
    if slashes > 0 {
        let behind = &text[slashes..];
        if byte == b'\\' {
            return Some(slashes);
        }
        if behind.first() == Some(&byte) && !byte.is_ascii_alphanumeric() {
            return Some(slashes + 1);
        }
        let is_code = behind.len() >= 5 && behind[0] == b'u';
        return (is_code && number(&behind[1..5], 16) == Some(byte.into())).then(|| slashes + 5);
    }
    match text {
        [first, ..] if *first == byte => Some(1),
        [b'%', high, low, ..] => (number(&[*high, *low], 16) == Some(byte.into())).then_some(3),
        [b'&', rest @ ..] => {
            let end = rest.iter().take(8).position(|byte| *byte == b';')?;
            let is_it = match &rest[..end] {
                [b'#', b'x' | b'X', digits @ ..] => number(digits, 16) == Some(byte.into()),
                [b'#', digits @ ..] => number(digits, 10) == Some(byte.into()),
                b"amp" => byte == b'&',
                b"lt" => byte == b'<',
                b"gt" => byte == b'>',
                b"quot" => byte == b'"',
                b"apos" => byte == b'\'',
                _ => false,
            };
            is_it.then_some(end + 2)
        }
        _ => None,
    }
}

fn number(digits: &[u8], radix: u32) -> Option<u32> {
    u32::from_str_radix(std::str::from_utf8(digits).ok()?, radix).ok()
}

/// The words of base64 that hold the secret, with whatever is encoded around it.
pub(super) fn in_base64(text: &[u8], secret: &[u8]) -> Vec<Range<usize>> {
    let is_digit =
        |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'-' | b'_');
    let mut found: Vec<Range<usize>> = Vec::new();
    // The id of an answer is too short for most keys: then nothing has to be encoded.
    if text.len() < (secret.len() - 2) / 3 * 4 {
        return found;
    }
    // What stands before it shifts it by none, one or two bytes; whole groups of three stay.
    for skipped in 0..3 {
        let whole = &secret[skipped..];
        let whole = &whole[..whole.len() / 3 * 3];
        for digits in [STANDARD_NO_PAD.encode(whole), URL_SAFE_NO_PAD.encode(whole)] {
            for at in memmem::find_iter(text, digits.as_bytes()) {
                if found.last().is_some_and(|word| word.contains(&at)) {
                    continue;
                }
                let start =
                    text[..at].iter().rposition(|byte| !is_digit(byte)).map_or(0, |p| p + 1);
                let end = text[at..].iter().position(|byte| !is_digit(byte));
                let end = end.map_or(text.len(), |end| at + end);
                let padding = text[end..].iter().take_while(|byte| **byte == b'=').count();
                found.push(start..end + padding);
            }
        }
    }
    found.sort_by_key(|place| place.start);
    found.dedup_by(|later, earlier| later.start < earlier.end);
    found
}
