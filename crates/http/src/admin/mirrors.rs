//! `GET /admin/mirrors`: a list with one object per mirrored model.
//!
//! Names end in their unit. Fields may be added; none is renamed or taken away.

use serde::{
    Serialize, Serializer,
    ser::{SerializeMap as _, SerializeSeq as _},
};
use tidegate_core::MirrorState;

/// The list, written as it is read.
pub(super) struct Mirrors<'a>(pub(super) &'a [MirrorState]);

impl Serialize for Mirrors<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut list = to.serialize_seq(Some(self.0.len()))?;
        for state in self.0 {
            list.serialize_element(&Mirror(state))?;
        }
        list.end()
    }
}

struct Mirror<'a>(&'a MirrorState);

impl Serialize for Mirror<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let Self(state) = self;
        let in_flight = state.sent.saturating_sub(state.answered + state.failed);
        let mut object = to.serialize_map(None)?;
        object.serialize_entry("model", &*state.model)?;
        object.serialize_entry("upstream", &*state.upstream)?;
        object.serialize_entry("upstream_model", &*state.upstream_model)?;
        object.serialize_entry("share", &state.share)?;
        object.serialize_entry("sent", &state.sent)?;
        object.serialize_entry("in_flight", &in_flight)?;
        object.serialize_entry("answered", &state.answered)?;
        object.serialize_entry("failed", &state.failed)?;
        object.serialize_entry("skipped", &state.skipped)?;
        object.end()
    }
}
