//! A JSON object on a line of its own, written member by member.
//!
//! *Why not derived:* a serializer looks at every byte of every name for something to escape, and
//! our own names have nothing. That was a third of what a line costs, on every call.

use serde::Serialize;

pub(super) struct Object<'o>(&'o mut Vec<u8>);

impl<'o> Object<'o> {
    pub(super) fn open(into: &'o mut Vec<u8>) -> Self {
        into.push(b'{');
        Self(into)
    }

    /// A text, where it is known.
    pub(super) fn text<'t>(&mut self, name: &'static str, text: impl Into<Option<&'t str>>) {
        let Some(text) = text.into() else { return };
        // All bytes, not the first that is not plain: so several are looked at at once.
        let is_plain = |byte: u8| byte >= b' ' && byte != b'"' && byte != b'\\';
        if !text.bytes().fold(true, |plain, byte| plain & is_plain(byte)) {
            return self.value(name, text);
        }
        self.name(name);
        self.0.push(b'"');
        self.0.extend_from_slice(text.as_bytes());
        self.0.push(b'"');
    }

    /// A number, where it is known.
    pub(super) fn known(&mut self, name: &'static str, value: Option<impl Serialize>) {
        if let Some(value) = value {
            self.value(name, value);
        }
    }

    /// A number, above all.
    pub(super) fn value(&mut self, name: &'static str, value: impl Serialize) {
        self.name(name);
        serde_json::to_writer(&mut *self.0, &value).expect("texts and numbers serialize");
    }

    fn name(&mut self, name: &'static str) {
        // No value ends like this.
        if self.0.last() != Some(&b'{') {
            self.0.push(b',');
        }
        self.0.push(b'"');
        self.0.extend_from_slice(name.as_bytes());
        self.0.extend_from_slice(b"\":");
    }

    pub(super) fn close(self) {
        self.0.extend_from_slice(b"}\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_a_text_holds_the_line_is_json_and_one_line() {
        let texts = ["", "plain", "é\u{7f}\u{2028}", "\"", "\\", "a\nb", "\0\u{1f}", "{", "}"];
        let mut lines = Vec::new();
        for text in texts {
            let mut line = Object::open(&mut lines);
            line.text("before", text);
            line.value("number", 7);
            line.text("after", text);
            line.close();
        }
        let lines = String::from_utf8(lines).unwrap();
        assert_eq!(lines.split_terminator('\n').count(), texts.len());
        for (line, text) in lines.split_terminator('\n').zip(texts) {
            let read: serde_json::Value = serde_json::from_str(line).unwrap();
            let expected = serde_json::json!({"before": text, "number": 7, "after": text});
            assert_eq!(read, expected);
        }
    }
}
