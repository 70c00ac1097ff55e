//! Limits: those that would let nothing through, and those of nobody.

use super::{Config, Findings, hint};
use std::collections::BTreeMap;
use tidegate_sdk::LimitSettings;

/// Whether limits can be kept as they are written, and are of models and upstreams there are.
pub(super) fn check(config: &Config, findings: &mut Findings<'_>) {
    let limits = &config.limits;
    check_one(&limits.default, &["limits", "default"], findings);
    for (scope, all) in [
        ("callers", &limits.callers),
        ("teams", &limits.teams),
        ("models", &limits.models),
        ("upstreams", &limits.upstreams),
    ] {
        for (name, limits) in all {
            check_one(limits, &["limits", scope, name], findings);
        }
    }
    let known = |names: &[&str], written: &BTreeMap<String, LimitSettings>| {
        let unknown = written.keys().filter(|name| !names.contains(&name.as_str()));
        unknown.cloned().collect::<Vec<_>>()
    };
    let models: Vec<_> = config.models.keys().map(String::as_str).collect();
    for name in known(&models, &limits.models) {
        let hint = hint(&name, models.iter().copied(), "models");
        let path = ["limits", "models", &name];
        findings.problem(&path, format!("there is no model `{name}`{hint}"));
    }
    let upstreams: Vec<_> = config.upstreams.keys().map(String::as_str).collect();
    for name in known(&upstreams, &limits.upstreams) {
        if !findings.is_lost(&name) {
            let hint = hint(&name, upstreams.iter().copied(), "upstreams");
            let path = ["limits", "upstreams", &name];
            findings.problem(&path, format!("there is no upstream `{name}`{hint}"));
        }
    }
}

fn check_one(limits: &LimitSettings, path: &[&str], findings: &mut Findings<'_>) {
    for (field, why) in limits.problems() {
        let path: Vec<&str> = path.iter().copied().chain([field]).collect();
        findings.problem(&path, why);
    }
}
