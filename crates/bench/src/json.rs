//! Whether a text is JSON, and what a generator wants to know of it, in one pass.
//!
//! # Why
//!
//! Every answer and every event of a stream is looked at: does it carry a token, is it an error,
//! what did it use? A parser that builds values, or a search for each key, costs more than all
//! else a request does here; and a search cannot tell half an object from a whole one. Nothing is
//! copied and nothing is decoded: a key is compared as it is written.
//!
//! Source: RFC 8259.

/// Deepest nesting that is followed; a text that goes deeper counts as none.
const MAX_DEPTH: usize = 128;

/// What a text says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts<'a> {
    /// A key that was asked for has a string that is not empty.
    pub(crate) has_token: bool,
    /// The object is an error: it has an `error`, or is of the type `error`.
    pub(crate) is_error: bool,
    /// The string at `type`.
    pub(crate) kind: &'a [u8],
    /// The last `usage` that counts tokens, wherever it is.
    pub(crate) usage: Option<Counts>,
}

/// Tokens as a server counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) input: u64,
    pub(crate) output: u64,
}

/// Reads `text`; `token_keys` are those whose strings are part of an answer. `None` when it is no
/// JSON.
pub(crate) fn read<'a>(text: &'a [u8], token_keys: &[&[u8]]) -> Option<Facts<'a>> {
    let mut reader =
        Reader { text, at: 0, depth: 0, token_keys, counting: None, facts: Facts::default() };
    reader.skip_space();
    reader.value(b"")?;
    reader.skip_space();
    (reader.at == text.len()).then_some(reader.facts)
}

struct Reader<'a, 'k> {
    text: &'a [u8],
    at: usize,
    depth: usize,
    token_keys: &'k [&'k [u8]],
    /// Inside a `usage`: its depth, and what was found.
    counting: Option<(usize, Option<Counts>)>,
    facts: Facts<'a>,
}

impl<'a> Reader<'a, '_> {
    fn value(&mut self, key: &[u8]) -> Option<()> {
        match self.peek()? {
            b'"' => {
                let string = self.string()?;
                if !string.is_empty() && self.token_keys.contains(&key) {
                    self.facts.has_token = true;
                }
                if self.depth == 1 && key == b"type" {
                    self.facts.kind = string;
                    self.facts.is_error |= string == b"error";
                }
                Some(())
            }
            b'{' if key == b"usage" => self.usage(),
            b'{' => self.object(),
            b'[' => self.array(),
            b't' => self.word(b"true"),
            b'f' => self.word(b"false"),
            b'n' => self.word(b"null"),
            _ => self.number(key),
        }
    }

    fn object(&mut self) -> Option<()> {
        self.enter()?;
        if self.peek()? == b'}' {
            return self.leave();
        }
        loop {
            if self.peek()? != b'"' {
                return None;
            }
            let key = self.string()?;
            self.skip_space();
            if self.next()? != b':' {
                return None;
            }
            self.skip_space();
            self.facts.is_error |= self.depth == 1 && key == b"error" && self.peek()? != b'n';
            self.value(key)?;
            self.skip_space();
            match self.peek()? {
                b',' => self.at += 1,
                b'}' => return self.leave(),
                _ => return None,
            }
            self.skip_space();
        }
    }

    fn array(&mut self) -> Option<()> {
        self.enter()?;
        if self.peek()? == b']' {
            return self.leave();
        }
        loop {
            self.value(b"")?;
            self.skip_space();
            match self.peek()? {
                b',' => self.at += 1,
                b']' => return self.leave(),
                _ => return None,
            }
            self.skip_space();
        }
    }

    /// An object that may count tokens; a tool's parameter of that name does not.
    fn usage(&mut self) -> Option<()> {
        let outer = self.counting.replace((self.depth + 1, None));
        self.object()?;
        let found = std::mem::replace(&mut self.counting, outer);
        self.facts.usage = found.and_then(|(_, counts)| counts).or(self.facts.usage);
        Some(())
    }

    fn enter(&mut self) -> Option<()> {
        self.at += 1;
        self.depth += 1;
        self.skip_space();
        (self.depth <= MAX_DEPTH).then_some(())
    }

    fn leave(&mut self) -> Option<()> {
        self.at += 1;
        self.depth -= 1;
        Some(())
    }

    /// What is between two quotes, as written.
    fn string(&mut self) -> Option<&'a [u8]> {
        let rest = self.text.get(self.at + 1..)?;
        let mut at = 0;
        loop {
            at += plain(&rest[at..]);
            match rest.get(at)? {
                b'"' => {
                    self.at += at + 2;
                    return Some(&rest[..at]);
                }
                b'\\' => at += escape(&rest[at..])?,
                // A control character, which must be escaped.
                _ => return None,
            }
        }
    }

    fn number(&mut self, key: &[u8]) -> Option<()> {
        let start = self.at;
        self.at += usize::from(self.peek()? == b'-');
        match self.next()? {
            b'0' => {}
            b'1'..=b'9' => self.digits(),
            _ => return None,
        }
        let whole = self.at;
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.some_digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            self.at += usize::from(matches!(self.peek(), Some(b'+' | b'-')));
            self.some_digits()?;
        }
        match &mut self.counting {
            Some((depth, counts)) if *depth == self.depth && whole == self.at => {
                let number = || str::from_utf8(&self.text[start..whole]).ok()?.parse().ok();
                match key {
                    b"prompt_tokens" | b"input_tokens" => {
                        counts.get_or_insert_default().input = number().unwrap_or(0);
                    }
                    b"completion_tokens" | b"output_tokens" => {
                        counts.get_or_insert_default().output = number().unwrap_or(0);
                    }
                    _ => {}
                }
            }
            _ => {}
        }
        Some(())
    }

    fn digits(&mut self) {
        while let Some(b'0'..=b'9') = self.peek() {
            self.at += 1;
        }
    }

    fn some_digits(&mut self) -> Option<()> {
        let start = self.at;
        self.digits();
        (self.at > start).then_some(())
    }

    fn word(&mut self, word: &[u8]) -> Option<()> {
        self.text.get(self.at..)?.starts_with(word).then(|| self.at += word.len())
    }

    fn skip_space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.at += 1;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }
}

/// How many bytes at the start are neither quote, backslash nor control character; eight at once
/// (Mycroft's test for a byte in a word).
fn plain(bytes: &[u8]) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let zero = |word: u64| word.wrapping_sub(ONES) & !word;
    let mut at = 0;
    while let Some(word) = bytes[at..].first_chunk::<8>() {
        let word = u64::from_le_bytes(*word);
        let control = word.wrapping_sub(ONES * 0x20) & !word;
        let quote = zero(word ^ (ONES * b'"' as u64));
        let slash = zero(word ^ (ONES * b'\\' as u64));
        // The lowest mark is right; those above it may be borrowed.
        match (control | quote | slash) & (ONES * 0x80) {
            0 => at += 8,
            marks => return at + marks.trailing_zeros() as usize / 8,
        }
    }
    let is_plain = |byte: &&u8| !matches!(byte, b'"' | b'\\' | 0..=0x1f);
    at + bytes[at..].iter().take_while(is_plain).count()
}

/// Length of the escape at the start, backslash included.
fn escape(bytes: &[u8]) -> Option<usize> {
    match bytes.get(1)? {
        b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => Some(2),
        b'u' => bytes.get(2..6)?.iter().all(u8::is_ascii_hexdigit).then_some(6),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXTS: [&str; 6] = [
        r#"{"a": [1, -2.5e+3, 0, true,false,null , {}], "b\u00e9\n": "é\"\\", "":[[ ]]}"#,
        r#" [{"x":"y"},"",0.1E-7,-0] "#,
        r#""just a string""#,
        "{\n\t\"usage\" : {\"prompt_tokens\":12,\"completion_tokens\":7}\r\n}",
        "-12",
        "[]",
    ];

    /// The same verdict as a parser that is known to be right, on good texts and on thousands
    /// that are spoilt in one place.
    #[test]
    fn what_is_json_is_what_others_take_for_it() {
        let agrees = |text: &[u8]| {
            let right = serde_json::from_slice::<serde::de::IgnoredAny>(text).is_ok();
            assert_eq!(read(text, &[]).is_some(), right, "{}", String::from_utf8_lossy(text));
        };
        for text in TEXTS {
            assert!(read(text.as_bytes(), &[]).is_some(), "{text}");
            for at in 0..text.len() {
                agrees(&text.as_bytes()[..at]);
                let mut spoilt = text.as_bytes().to_vec();
                spoilt.remove(at);
                agrees(&spoilt);
                for byte in *b"\"\\{}[]:,0123456789eE.+-tfnu \n\x01\x7f" {
                    spoilt = text.as_bytes().to_vec();
                    spoilt[at] = byte;
                    agrees(&spoilt);
                    spoilt.insert(at, text.as_bytes()[at]);
                    agrees(&spoilt);
                }
            }
        }
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        for (depth, is_read) in [(MAX_DEPTH, true), (MAX_DEPTH + 1, false), (1_000_000, false)] {
            assert_eq!(read(nested(depth).as_bytes(), &[]).is_some(), is_read);
        }
    }

    #[test]
    fn strings_end_at_the_right_quote() {
        for len in 0..40 {
            for at in 0..len {
                for (byte, is_read) in [(b'"', true), (0x1f, false), (b'\\', true), (0x80, true)] {
                    let mut text = vec![b'a'; len];
                    text[at] = byte;
                    if byte == b'\\' {
                        text.insert(at + 1, b'"');
                    }
                    let text = [&b"\""[..], &text, b"\""].concat();
                    let ends_early = byte == b'"';
                    let found = read(&text, &[]).is_some();
                    assert_eq!(found, is_read && !ends_early, "{}", text.escape_ascii());
                }
            }
        }
    }

    #[test]
    fn facts() {
        let none = Facts::default();
        let usage = |input, output| Facts { usage: Some(Counts { input, output }), ..none };
        let error = Facts { is_error: true, ..none };
        let token = Facts { has_token: true, ..none };
        for (text, facts) in [
            (r#"{"usage":null,"error":null}"#, none),
            (r#"{"usage":{"prompt_tokens":12,"completion_tokens":7}}"#, usage(12, 7)),
            (r#"{"response":{"usage":{"input_tokens":3,"output_tokens":4}}}"#, usage(3, 4)),
            (r#"{"usage":{"input_tokens":3,"d":{"input_tokens":9}}}"#, usage(3, 0)),
            (r#"{"usage":{"prompt_tokens":1},"x":{"usage":{"of":"disk"}}}"#, usage(1, 0)),
            (r#"{"prompt_tokens":1}"#, none),
            (r#"{"text":"\"usage\":{\"prompt_tokens\":1}"}"#, none),
            (r#"{"error":{"message":"no"}}"#, error),
            (r#"{"error":"no"}"#, error),
            (r#"{"type":"error"}"#, Facts { kind: b"error", ..error }),
            (r#"{"choices":[{"error":"no","type":"function"}]}"#, none),
            (r#"{"a":[{"content":"x"}]}"#, token),
            (r#"{"content":""}"#, none),
            (r#"{"content":null}"#, none),
            (r#"{"x":"content"}"#, none),
        ] {
            assert_eq!(read(text.as_bytes(), &[b"content"]), Some(facts), "{text}");
        }
    }
}
