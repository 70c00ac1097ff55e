//! Prices and budgets: what would cost nothing, or never be kept.

use super::{Config, Findings};
use tidegate_core::{Budgets, is_plain_line};
use tidegate_policy::{budget, price};
use tidegate_sdk::ModelSettings;

/// Whether every price of a model is one.
pub(super) fn check_prices(name: &str, model: &ModelSettings, findings: &mut Findings<'_>) {
    check_price(model.price.as_ref(), &["models", name, "price"], findings);
    for (index, target) in model.targets.iter().enumerate() {
        let index = index.to_string();
        let path = ["models", name, "targets", &index, "price"];
        check_price(target.price.as_ref(), &path, findings);
    }
    if let Some(mirror) = &model.mirror {
        check_price(mirror.price.as_ref(), &["models", name, "mirror", "price"], findings);
    }
}

fn check_price(price: Option<&price::Options>, path: &[&str], findings: &mut Findings<'_>) {
    if let Some(Err(flaw)) = price.map(price::Options::price) {
        let path: Vec<&str> = path.iter().copied().chain(flaw.field.split('.')).collect();
        findings.problem(&path, flaw.why);
    }
}

/// Whether budgets can be kept as they are written.
pub(super) fn check_budgets(config: &Config, findings: &mut Findings<'_>) {
    let alert_at = &config.budgets.alert_at;
    let wrong = alert_at.len() > budget::MAX_ALERTS
        || alert_at.iter().any(|percent| !(1..=100).contains(percent));
    findings.refuse_if(wrong, &["budgets", "alert_at"], "must be at most 8 shares of 1 to 100");
    let none = config.budgets.max_output_tokens == 0;
    let message = "0 would reserve nothing for answers: write what a model gives at most";
    findings.refuse_if(none, &["budgets", "max_output_tokens"], message);
    for (name, team) in &config.teams {
        findings.refuse_if(
            name.trim().is_empty() || name.len() > 128 || !is_plain_line(name),
            &["teams", name],
            "a name of a team is 1 to 128 bytes on one line, without control or direction marks",
        );
        if team.budget.hard && Budgets::from(team.budget).is_none() {
            let path = ["teams", name, "budget", "hard"];
            findings.warning(&path, "there is no budget to keep: set day, month or total");
        }
    }
}
