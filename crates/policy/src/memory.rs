//! Memory: refuse new calls before the bytes of those in flight are more than there is room for.
//!
//! # Why
//!
//! A process that runs out of memory is killed with everything it holds; one that refuses at the
//! door loses only what it refuses. The engine counts what it holds for callers (request bodies,
//! buffered answers); this says who may still come in. The lowest class goes first, so that a
//! batch of large bodies leaves room for people.
//!
//! ```text
//! held:  0 ........ 80 % ......... 90 % ........... 100 % of the budget
//!        all come in | bulk refused | default refused | all refused
//! ```

use crate::setting;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tidegate_core::Priority;

/// Settings of the memory budget.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Bytes that the request bodies of calls in flight may take together. Default "512MiB": two thousand calls of 256 KiB, or thirty of
    /// the largest bodies that are taken, and little beside what any machine has today.
    #[serde(with = "setting::size")]
    #[schemars(with = "String")]
    pub budget: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { budget: 512 << 20 }
    }
}

/// There is no room for this call now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full {
    /// Bytes that calls of this class may fill.
    pub limit_bytes: usize,
}

impl Options {
    /// Asks to take in `more_bytes` for a call of `class` while `held_bytes` are held.
    ///
    /// # Errors
    ///
    /// [`Full`] when the class's part of the budget would be exceeded.
    pub fn admit(&self, class: Priority, held_bytes: usize, more_bytes: usize) -> Result<(), Full> {
        let limit_bytes = self.limit(class);
        if held_bytes.saturating_add(more_bytes) <= limit_bytes {
            Ok(())
        } else {
            Err(Full { limit_bytes })
        }
    }

    fn limit(&self, class: Priority) -> usize {
        let percent = match class {
            Priority::Interactive => 100,
            Priority::Default => 90,
            Priority::Bulk => 80,
        };
        // In u128: a budget near usize::MAX is how one turns this off.
        (self.budget as u128 * percent / 100) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who comes in with `more` bytes while `held` are held, of a budget of 1000: `i`, `d`, `b`.
    #[track_caller]
    fn check(held: usize, more: usize, expected: &str) {
        let options = Options { budget: 1000 };
        let classes = [Priority::Interactive, Priority::Default, Priority::Bulk];
        let admitted = classes.into_iter().filter(|c| options.admit(*c, held, more).is_ok());
        let admitted: String = admitted.map(|class| &class.name()[..1]).collect();
        assert_eq!(admitted, expected);
    }

    #[test]
    fn the_lowest_class_goes_first() {
        check(0, 1, "idb");
        check(700, 100, "idb");
        check(700, 101, "id");
        check(890, 10, "id");
        check(890, 11, "i");
        check(999, 1, "i");
        check(999, 2, "");
        check(usize::MAX, 1, "");
    }

    #[test]
    fn a_budget_of_everything_turns_it_off() {
        let options = Options { budget: usize::MAX };
        assert_eq!(options.admit(Priority::Interactive, usize::MAX - 1, 1), Ok(()));
        assert!(options.admit(Priority::Bulk, usize::MAX / 2, 1 << 30).is_ok());
    }

    #[test]
    fn the_budget_is_written_as_a_size() {
        let options: Options = serde_json::from_str(r#"{"budget": "64MiB"}"#).unwrap();
        assert_eq!(options.budget, 64 << 20);
    }
}
