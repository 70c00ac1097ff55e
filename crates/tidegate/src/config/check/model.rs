//! Models: targets there are, and clocks that let something through.

use super::{Config, Findings, hint, is_header_name, money};
use tidegate_policy::timeout::FirstToken;
use tidegate_sdk::ModelSettings;

/// Whether calls for the model can go somewhere.
pub(super) fn check(
    name: &str,
    model: &ModelSettings,
    config: &Config,
    findings: &mut Findings<'_>,
) {
    let path = ["models", name];
    let bad = |c: char| c.is_control() || c.is_whitespace();
    findings.refuse_if(
        name.is_empty() || name.len() > 256 || name.contains(bad),
        &path,
        "a name of a model is 1 to 256 bytes without blanks",
    );
    let targets = ["models", name, "targets"];
    findings.refuse_if(
        model.targets.is_empty(),
        &targets,
        "at least one is needed, like [{ upstream = \"NAME\" }]",
    );
    for (index, target) in model.targets.iter().enumerate() {
        let index = index.to_string();
        let path = ["models", name, "targets", &index, "upstream"];
        check_upstream_is_there(&target.upstream, &path, config, findings);
        if let Some(header) = target.matches.as_ref().and_then(|found| found.header.as_ref()) {
            let path = ["models", name, "targets", &index, "match", "header", "name"];
            let wrong = !is_header_name(&header.name);
            findings.refuse_if(wrong, &path, "is no name of a header");
        }
        let empty = target.model.as_ref().is_some_and(String::is_empty);
        let path = ["models", name, "targets", &index, "model"];
        findings.refuse_if(empty, &path, "is empty: leave it out for the callers' own name");
    }
    let parked = !model.targets.is_empty() && model.targets.iter().all(|target| target.weight == 0);
    findings.refuse_if(parked, &targets, "every weight is 0, so no call could go anywhere");
    if !model.targets.is_empty() && model.targets.iter().all(|target| target.matches.is_some()) {
        findings.warning(&targets, "every target has a match: calls that fit none are refused");
    }
    if let Some(mirror) = &model.mirror {
        let path = ["models", name, "mirror", "upstream"];
        check_upstream_is_there(&mirror.upstream, &path, config, findings);
    }
    check_timeouts(name, model, findings);
    money::check_prices(name, model, findings);
}

fn check_upstream_is_there(
    written: &str,
    path: &[&str],
    config: &Config,
    findings: &mut Findings<'_>,
) {
    if !config.upstreams.contains_key(written) && !findings.is_lost(written) {
        let hint = hint(written, config.upstreams.keys().map(String::as_str), "upstreams");
        findings.problem(path, format!("there is no upstream `{written}`{hint}"));
    }
}

fn check_timeouts(name: &str, model: &ModelSettings, findings: &mut Findings<'_>) {
    let timeouts = &model.timeouts;
    let first_token = match timeouts.first_token {
        FirstToken::Adaptive => None,
        FirstToken::Fixed(clock) => Some(clock),
    };
    for (key, clock) in [
        ("connect", Some(timeouts.connect)),
        ("first_token", first_token),
        ("idle", Some(timeouts.idle)),
        ("total", Some(timeouts.total)),
    ] {
        let zero = clock.is_some_and(|clock| clock.is_zero());
        findings.refuse_if(zero, &["models", name, "timeouts", key], "must be more than 0");
    }
}
