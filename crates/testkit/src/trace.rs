//! What happened when, as lines of text: the assertion of every engine test.
//!
//! ```text
//! 0ms   send a #1 -> refused
//! 200ms send a #2 -> ok
//! ```

use parking_lot::Mutex;
use std::{fmt::Display, sync::Arc, time::Duration};
use tokio::time::Instant;

/// A list of lines, each stamped with the milliseconds since the trace began.
///
/// Clones share the list. Under tokio's paused clock the stamps are exact, so a trace compares
/// as text.
#[derive(Clone, Debug)]
pub struct Trace {
    start: Instant,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Trace {
    /// Lines kept; a test that traces more has run away.
    const MAX_LINES: usize = 100_000;

    /// An empty trace that begins now.
    #[must_use]
    pub fn start() -> Self {
        Self { start: Instant::now(), lines: Arc::default() }
    }

    /// Time since the trace began.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Adds what happened now.
    ///
    /// # Panics
    ///
    /// At 100,000 lines: the test loops.
    pub fn push(&self, what: impl Display) {
        let line = format!("{}ms {what}", self.elapsed().as_millis());
        let mut lines = self.lines.lock();
        assert!(lines.len() < Self::MAX_LINES, "the trace has {} lines: {line}", lines.len());
        lines.push(line);
    }

    /// The lines so far.
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().clone()
    }

    /// How many lines so far contain `what`.
    pub fn count(&self, what: &str) -> usize {
        self.lines.lock().iter().filter(|line| line.contains(what)).count()
    }

    /// Asserts that the trace is exactly `expected`, and empties it for the next part of a test.
    ///
    /// Spaces are squeezed and blank lines skipped on both sides, so `expected` may be indented
    /// and aligned as it reads best. A trailing `// …` is a comment.
    ///
    /// # Panics
    ///
    /// When they differ, with both printed side by side.
    #[track_caller]
    pub fn check(&self, expected: &str) {
        let actual = normal(&std::mem::take(&mut *self.lines.lock()).join("\n"));
        let expected = normal(expected);
        assert!(actual == expected, "the trace differs:\n{}", diff(&expected, &actual));
    }
}

fn normal(text: &str) -> Vec<String> {
    text.lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .filter(|line| !line.is_empty())
        .collect()
}

/// Both sides in one column: common lines plain, `-` expected only, `+` seen only.
fn diff(expected: &[String], actual: &[String]) -> String {
    let mut out = String::from("(- expected, + happened)\n");
    let mut line = |mark: char, text: &str| {
        out.push(mark);
        out.push(' ');
        out.push_str(text);
        out.push('\n');
    };
    let common = common_lengths(expected, actual);
    let (mut e, mut a) = (0, 0);
    while e < expected.len() || a < actual.len() {
        if e < expected.len() && a < actual.len() && expected[e] == actual[a] {
            line(' ', &expected[e]);
            e += 1;
            a += 1;
        } else if a == actual.len() || (e < expected.len() && common[e + 1][a] >= common[e][a + 1])
        {
            line('-', &expected[e]);
            e += 1;
        } else {
            line('+', &actual[a]);
            a += 1;
        }
    }
    out
}

/// `table[e][a]`: length of the longest common subsequence of `expected[e..]` and `actual[a..]`.
fn common_lengths(expected: &[String], actual: &[String]) -> Vec<Vec<usize>> {
    let mut table = vec![vec![0; actual.len() + 1]; expected.len() + 1];
    for e in (0..expected.len()).rev() {
        for a in (0..actual.len()).rev() {
            table[e][a] = if expected[e] == actual[a] {
                table[e + 1][a + 1] + 1
            } else {
                table[e + 1][a].max(table[e][a + 1])
            };
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn stamps_are_exact_and_layout_is_free() {
        let trace = Trace::start();
        trace.push("send a");
        tokio::time::advance(Duration::from_millis(200)).await;
        trace.push("send b");
        assert_eq!(trace.count("send"), 2);
        trace.check(
            "
              0ms send a
            200ms   send b   // after the refusal
            ",
        );
        trace.check("");
    }

    #[test]
    fn a_difference_is_shown_in_place() {
        let lines = |text: &str| normal(text);
        assert_eq!(
            diff(&lines("0ms a\n5ms b\n9ms c"), &lines("0ms a\n6ms b\n9ms c\n9ms d")),
            "(- expected, + happened)\n  0ms a\n- 5ms b\n+ 6ms b\n  9ms c\n+ 9ms d\n"
        );
    }

    #[tokio::test]
    #[should_panic(expected = "the trace differs")]
    async fn a_missing_line_fails() {
        Trace::start().check("0ms send a");
    }
}
