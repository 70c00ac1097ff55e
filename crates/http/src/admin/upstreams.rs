//! `GET /admin/upstreams`: a list with one object per (upstream, credential, upstream model).
//!
//! Names end in their unit. Fields may be added; none is renamed or taken away.

use serde::{
    Serialize, Serializer,
    ser::{SerializeMap as _, SerializeSeq as _},
};
use std::time::Duration;
use tidegate_core::{BoundBy, UpstreamState};

/// The list, written as it is read.
pub(super) struct Upstreams<'a>(pub(super) &'a [UpstreamState]);

impl Serialize for Upstreams<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut list = to.serialize_seq(Some(self.0.len()))?;
        for state in self.0 {
            list.serialize_element(&Upstream(state))?;
        }
        list.end()
    }
}

struct Upstream<'a>(&'a UpstreamState);

impl Serialize for Upstream<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let Self(state) = self;
        let mut object = to.serialize_map(None)?;
        object.serialize_entry("upstream", &*state.upstream)?;
        object.serialize_entry("model", &*state.model)?;
        object.serialize_entry("concurrency", &state.concurrency)?;
        object.serialize_entry("in_flight", &state.in_flight)?;
        object.serialize_entry("waiting", &state.waiting)?;
        object.serialize_entry("requests_per_second", &state.requests_per_second)?;
        object.serialize_entry("shut_for_ms", &millis(state.shut_for))?;
        object.serialize_entry("bound_by", bound_by(state.bound_by))?;
        object.serialize_entry("breaker", state.breaker.name())?;
        object.serialize_entry("share", &state.share)?;
        let latency = state.latency.map(|latency| latency.as_micros() as f64 / 1000.0);
        object.serialize_entry("latency_ms", &latency)?;
        object.serialize_entry("attempts", &state.attempts)?;
        object.serialize_entry("refusals", &state.refusals)?;
        object.end()
    }
}

/// Whole milliseconds, rounded up: what is not over yet is not 0.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

const fn bound_by(bound_by: BoundBy) -> &'static str {
    match bound_by {
        BoundBy::Nothing => "nothing",
        BoundBy::Concurrency => "concurrency",
        BoundBy::Breaker => "breaker",
        BoundBy::Requests => "requests",
        BoundBy::Tokens => "tokens",
        BoundBy::Refusals => "refusals",
    }
}
