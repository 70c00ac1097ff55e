//! Asks upstreams for the usage of streams, in the caller's stead.
//!
//! # Why
//!
//! A stream of chat or completions tells how many tokens it used only where the request says
//! `"stream_options": {"include_usage": true}`, and few callers do. What is not told can only be
//! estimated, and estimates neither pay bills nor settle limits. So the member is written into
//! bodies that say nothing of it (`core::Payload`), and the event that answers it is taken out of
//! what the caller gets ([`crate::events`]).
//!
//! Servers that refuse the member, by status 400 or 422 and its name, get the request again with
//! less of it, and no longer the rest once that was answered:
//!
//! ```text
//! option "continuous" ── refused ──▶ as "ask" ── refused ──▶ as "off", for good
//! ```

use crate::options::StreamUsage;
use memchr::memmem;
use std::sync::atomic::{AtomicU8, Ordering};
use tidegate_core::{Call, Error};

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    /// The usage in an event of its own, the last one.
    Last = 1,
    /// The usage so far in every event, and in the last one.
    Each = 2,
}

/// What one upstream is asked for.
pub(crate) struct Asking {
    /// An [`Ask`], 0 for nothing; it only becomes less.
    most: AtomicU8,
}

impl Asking {
    pub(crate) const fn new(option: StreamUsage) -> Self {
        let most = match option {
            StreamUsage::Off => 0,
            StreamUsage::Ask => Ask::Last as u8,
            StreamUsage::Continuous => Ask::Each as u8,
        };
        Self { most: AtomicU8::new(most) }
    }

    /// What to ask for with `call`.
    pub(crate) fn of(&self, call: &Call) -> Option<Ask> {
        call.payload.opening()?;
        match self.most.load(Ordering::Relaxed) {
            0 => None,
            1 => Some(Ask::Last),
            _ => Some(Ask::Each),
        }
    }

    /// Never asks for more than `ask` again.
    pub(crate) fn settle_for(&self, ask: Option<Ask>) {
        self.most.fetch_min(ask.map_or(0, |ask| ask as u8), Ordering::Relaxed);
    }
}

impl Ask {
    /// What a body begins with that asks for it; at least one member follows.
    pub(crate) const fn opening(self) -> &'static [u8] {
        match self {
            Self::Last => br#"{"stream_options":{"include_usage":true},"#,
            Self::Each => {
                br#"{"stream_options":{"include_usage":true,"continuous_usage_stats":true},"#
            }
        }
    }

    /// What to ask for once this is refused.
    pub(crate) const fn less(self) -> Option<Self> {
        match self {
            Self::Last => None,
            Self::Each => Some(Self::Last),
        }
    }
}

/// Whether `error` is the upstream's word that it takes no such member.
pub(crate) fn is_refused(error: &Error) -> bool {
    let Some(answer) = error.answer() else { return false };
    matches!(answer.status, 400 | 422)
        && [&b"stream_options"[..], b"include_usage", b"continuous_usage_stats"]
            .into_iter()
            .any(|name| memmem::find(&answer.body, name).is_some())
}
