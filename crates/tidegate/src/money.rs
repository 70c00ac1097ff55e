//! What models cost, and what is said when a budget runs out.

use std::{collections::BTreeMap, sync::Arc};
use tidegate_core::Price;
use tidegate_engine::{Alert, Payer};
use tidegate_policy::{budget::Period, price};
use tidegate_sdk::ModelSettings;

/// One target of a model, and its price.
#[derive(Debug, PartialEq)]
pub(crate) struct Priced<'a> {
    pub(crate) upstream: &'a str,
    pub(crate) upstream_model: &'a str,
    /// `None` when nobody knows.
    pub(crate) price: Option<Price>,
    /// Where that is written: a key of the configuration, or the price list.
    pub(crate) from: &'static str,
}

/// The targets of the model `name`, with the price of each as the engine takes it: its own, else
/// the model's, else the one that is `listed` for the upstream's own name of the model.
pub(crate) fn targets<'a>(
    name: &'a str,
    model: &'a ModelSettings,
    listed: &BTreeMap<Arc<str>, Price>,
) -> impl Iterator<Item = Priced<'a>> {
    model.targets.iter().map(move |target| {
        let upstream_model = target.model.as_deref().unwrap_or(name);
        let written = |written: Option<&price::Options>| written.and_then(|w| w.price().ok());
        let (price, from) = match (written(target.price.as_ref()), written(model.price.as_ref())) {
            (Some(price), _) => (Some(price), "target"),
            (None, Some(price)) => (Some(price), "model"),
            (None, None) => (listed.get(upstream_model).copied(), "list"),
        };
        let from = if price.is_some() { from } else { "unknown" };
        Priced { upstream: &target.upstream, upstream_model, price, from }
    })
}

/// `budget of the team search: 80 % of $100.00 for the month are spent ($80.12)`
pub(crate) fn shown(alert: &Alert) -> String {
    let crossed = &alert.crossed;
    let payer = match &alert.payer {
        Payer::Caller(id) => format!("key {id}"),
        Payer::Team(name) => format!("team {name}"),
    };
    let period = match crossed.period {
        Period::Total => "in all".to_owned(),
        period @ (Period::Day | Period::Month) => format!("for the {}", period.name()),
    };
    let (percent, limit, spent) = (crossed.percent, crossed.limit, crossed.spent);
    format!("budget of the {payer}: {percent} % of {limit} {period} are spent ({spent})")
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_core::{Money, Rates};
    use tidegate_policy::budget::Crossed;

    #[test]
    fn the_nearest_price_counts() {
        let model: ModelSettings = toml::from_str(
            "targets = [{ upstream = 'a', model = 'x', price = { input = 1, output = 2 } },
                        { upstream = 'b', model = 'x' }, { upstream = 'c' }]",
        )
        .unwrap();
        let listed = Price::flat(Rates::new(Money::from_pico(7), Money::ZERO));
        let listed = BTreeMap::from([("x".into(), listed)]);
        let found = |model: &ModelSettings| -> Vec<_> {
            let all = targets("chat", model, &listed);
            all.map(|t| (t.from, t.price.map(|price| price.base().input.pico()))).collect()
        };
        assert_eq!(
            found(&model),
            [("target", Some(1_000_000)), ("list", Some(7)), ("unknown", None)]
        );
        let own = price::Options::flat(3.0, 3.0);
        let priced = ModelSettings { price: Some(own), ..model };
        assert_eq!(
            found(&priced),
            [("target", Some(1_000_000)), ("model", Some(3_000_000)), ("model", Some(3_000_000))]
        );
    }

    #[test]
    fn an_alert_is_one_line() {
        let crossed = Crossed {
            period: Period::Month,
            percent: 80,
            limit: Money::DOLLAR.times(100),
            spent: Money::from_usd(80.12).unwrap(),
        };
        let alert = Alert { payer: Payer::Team("search".into()), crossed };
        assert_eq!(
            shown(&alert),
            "budget of the team search: 80 % of $100.00 for the month are spent ($80.12)"
        );
    }
}
