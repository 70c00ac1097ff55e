//! What holds a job back: the one thing a user can change to make it faster.

use tidegate_core::{BoundBy, UpstreamState};

/// What holds a job back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LimitedBy {
    Concurrency,
    Requests,
    Tokens,
    Refusals,
    Failures,
    Latency,
    Disk,
}

impl LimitedBy {
    /// The word shown.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Concurrency => "concurrency",
            Self::Requests => "rpm",
            Self::Tokens => "tpm",
            Self::Refusals => "429s",
            Self::Failures => "upstream failures",
            Self::Latency => "upstream latency",
            Self::Disk => "disk",
        }
    }
}

/// What holds a job back, from the limiters of its upstreams and its own state.
///
/// The busiest upstream speaks for all. When none of its limits binds, either we hand out no more
/// rows (`is_full`: the job's own concurrency) or it simply takes its time.
pub(crate) fn limited_by(
    upstreams: &[UpstreamState],
    is_full: bool,
    disk_is_behind: bool,
) -> LimitedBy {
    if disk_is_behind {
        return LimitedBy::Disk;
    }
    let busiest = upstreams.iter().max_by_key(|one| (one.waiting, one.in_flight, one.attempts));
    match busiest.map(|one| one.bound_by) {
        Some(BoundBy::Requests) => LimitedBy::Requests,
        Some(BoundBy::Tokens) => LimitedBy::Tokens,
        Some(BoundBy::Refusals) => LimitedBy::Refusals,
        Some(BoundBy::Breaker) => LimitedBy::Failures,
        Some(BoundBy::Concurrency) => LimitedBy::Concurrency,
        Some(BoundBy::Nothing) | None if is_full => LimitedBy::Concurrency,
        Some(BoundBy::Nothing) | None => LimitedBy::Latency,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tidegate_core::BreakerState;

    fn upstream(bound_by: BoundBy, waiting: u32) -> UpstreamState {
        UpstreamState {
            upstream: "u".into(),
            model: "m".into(),
            concurrency: 10,
            in_flight: 10,
            waiting,
            requests_per_second: None,
            shut_for: Duration::ZERO,
            bound_by,
            breaker: BreakerState::Closed,
            share: 1.0,
            latency: None,
            attempts: 0,
            refusals: 0,
        }
    }

    #[test]
    fn the_busiest_upstream_speaks_for_all() {
        let two = [upstream(BoundBy::Nothing, 1), upstream(BoundBy::Refusals, 9)];
        assert_eq!(limited_by(&two, true, false), LimitedBy::Refusals);
        assert_eq!(limited_by(&two[..1], true, false), LimitedBy::Concurrency);
        assert_eq!(limited_by(&two[..1], false, false), LimitedBy::Latency);
        assert_eq!(limited_by(&[], false, true), LimitedBy::Disk);
    }
}
