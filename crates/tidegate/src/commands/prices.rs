//! `tidegate prices`: what models cost, and where that is written.

use crate::{
    config::{self, Environment, Sources, hint},
    money::{self, Priced},
    output,
};
use serde::Serialize;
use std::{collections::BTreeMap, fmt::Write, sync::Arc};
use tidegate_core::{Money, Price, Rates};

/// Exit code when the model is not there.
const USAGE: u8 = 2;

/// Says what models cost, in US dollars per million tokens
///
/// One line for each target of each configured model, and one more for each step of its price:
/// what calls cost whose prompt has more tokens than stands under ABOVE. A target's own price
/// comes first, then its model's, then the one in the price list (`prices.file`). What none of
/// them says is unknown: its calls cost nobody knows what, and hard budgets refuse them.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  tidegate prices
  tidegate prices gpt-4o-mini --json")]
pub(crate) struct Args {
    #[command(flatten)]
    sources: Sources,
    /// This model only: one of the configuration, or of the price list
    model: Option<String>,
    /// As a JSON array
    #[arg(long)]
    json: bool,
}

/// What one target costs.
#[derive(Serialize)]
struct Line<'a> {
    model: &'a str,
    upstream: Option<&'a str>,
    upstream_model: &'a str,
    #[serde(flatten)]
    base: Shown,
    /// What calls with long prompts cost instead, shortest first.
    above: Vec<Above>,
    /// `target`, `model`, `list` or `unknown`.
    from: &'static str,
}

/// US dollars per million tokens; `null` is unknown.
#[derive(Default, Serialize)]
struct Shown {
    input: Option<f64>,
    cached_input: Option<f64>,
    cache_write: Option<f64>,
    output: Option<f64>,
}

#[derive(Serialize)]
struct Above {
    /// In prompts of more tokens than this.
    tokens: u64,
    #[serde(flatten)]
    rates: Shown,
}

pub(crate) fn run(args: Args) -> anyhow::Result<u8> {
    let (config, listed) = match config::load_prices(&args.sources, &Environment::current()) {
        Ok(loaded) => loaded,
        Err(problems) => return Ok(problems.report()),
    };
    let lines = match lines(&config, &listed, args.model.as_deref()) {
        Ok(lines) => lines,
        Err(message) => {
            output::note(&format!("error: {message}"));
            return Ok(USAGE);
        }
    };
    let shown = match args.json {
        true => serde_json::to_string_pretty(&lines)? + "\n",
        false => table(&lines),
    };
    output::data(&shown)?;
    Ok(0)
}

fn lines<'a>(
    config: &'a config::Config,
    listed: &'a BTreeMap<Arc<str>, Price>,
    only: Option<&'a str>,
) -> Result<Vec<Line<'a>>, String> {
    let wanted = config.models.iter().filter(|(name, _)| only.is_none_or(|only| only == *name));
    let lines: Vec<_> = wanted
        .flat_map(|(name, model)| {
            money::targets(name, model, listed).map(move |target| Line::of(name, &target))
        })
        .collect();
    let Some(only) = only.filter(|_| lines.is_empty()) else { return Ok(lines) };
    match listed.get(only) {
        Some(price) => Ok(vec![Line::new(only, None, only, Some(*price), "list")]),
        None => {
            let names = config.models.keys().map(String::as_str);
            let hint = hint(only, names, "models");
            Err(format!(
                "`{only}` is neither a configured model nor one that the price list has a price \
                 by tokens alone for{hint}"
            ))
        }
    }
}

impl<'a> Line<'a> {
    fn of(model: &'a str, target: &Priced<'a>) -> Self {
        let Priced { upstream, upstream_model, price, from } = *target;
        Self::new(model, Some(upstream), upstream_model, price, from)
    }

    fn new(
        model: &'a str,
        upstream: Option<&'a str>,
        upstream_model: &'a str,
        price: Option<Price>,
        from: &'static str,
    ) -> Self {
        let steps = price.as_ref().into_iter().flat_map(Price::steps);
        let above =
            steps.map(|step| Above { tokens: step.above, rates: Shown::of(step.rates) }).collect();
        let base = price.map(|price| Shown::of(price.base())).unwrap_or_default();
        Self { model, upstream, upstream_model, base, above, from }
    }
}

impl Shown {
    fn of(Rates { input, cached_input, cache_write, output }: Rates) -> Self {
        let million = |token: Money| Some(token.times(1_000_000).usd());
        Self {
            input: million(input),
            cached_input: million(cached_input),
            cache_write: million(cache_write),
            output: million(output),
        }
    }
}

const COLUMNS: [&str; 9] = [
    "MODEL",
    "UPSTREAM",
    "UPSTREAM MODEL",
    "ABOVE",
    "INPUT",
    "CACHED",
    "WRITTEN",
    "OUTPUT",
    "FROM",
];

/// Columns as wide as what is in them.
fn table(lines: &[Line<'_>]) -> String {
    let usd = |usd: Option<f64>| usd.map_or_else(|| "unknown".to_owned(), |usd| usd.to_string());
    let mut rows = vec![COLUMNS.map(str::to_owned)];
    for line in lines {
        let steps = line.above.iter().map(|step| (step.tokens, &step.rates));
        rows.extend([(0, &line.base)].into_iter().chain(steps).map(|(above, rates)| {
            [
                line.model.to_owned(),
                line.upstream.unwrap_or("-").to_owned(),
                line.upstream_model.to_owned(),
                above.to_string(),
                usd(rates.input),
                usd(rates.cached_input),
                usd(rates.cache_write),
                usd(rates.output),
                line.from.to_owned(),
            ]
        }));
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> =
        (0..COLUMNS.len()).map(|column| width(column).unwrap_or_default()).collect();
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        writeln!(text, "{}", line.trim_end()).expect("a string takes it all");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config() -> config::Config {
        toml::from_str(
            "[upstreams.a]\nbase_url = 'http://a/v1'\n\
             [models.chat]\ntargets = [{ upstream = 'a', model = 'm' }]\n\
             price = { input = 0.15, output = 0.6, cached_input = 0.1, \
             above = [{ tokens = 200000, input = 0.3, output = 0.9 }] }\n\
             [models.other]\ntargets = [{ upstream = 'a' }]\n",
        )
        .unwrap()
    }

    #[test]
    fn what_models_cost_is_a_table() {
        let (config, none) = (config(), BTreeMap::new());
        assert_eq!(
            table(&lines(&config, &none, None).unwrap()),
            "MODEL  UPSTREAM  UPSTREAM MODEL  ABOVE   INPUT    CACHED   WRITTEN  OUTPUT   FROM\n\
             chat   a         m               0       0.15     0.1      0.15     0.6      model\n\
             chat   a         m               200000  0.3      0.3      0.3      0.9      model\n\
             other  a         other           0       unknown  unknown  unknown  unknown  unknown\n"
        );
    }

    #[test]
    fn programs_get_the_steps_as_a_list() {
        let (config, none) = (config(), BTreeMap::new());
        let chat = serde_json::to_value(&lines(&config, &none, Some("chat")).unwrap()[0]).unwrap();
        let step = json!({
            "tokens": 200_000, "input": 0.3, "cached_input": 0.3, "cache_write": 0.3, "output": 0.9
        });
        assert_eq!(
            chat,
            json!({
                "model": "chat", "upstream": "a", "upstream_model": "m", "input": 0.15,
                "cached_input": 0.1, "cache_write": 0.15, "output": 0.6, "above": [step],
                "from": "model"
            })
        );
        let other =
            serde_json::to_value(&lines(&config, &none, Some("other")).unwrap()[0]).unwrap();
        assert_eq!((&other["input"], &other["above"]), (&json!(null), &json!([])));
    }

    #[test]
    fn a_model_of_the_list_may_be_asked_for() {
        let price = Price::flat(Rates::new(Money::ZERO, Money::from_pico(75_000_000)));
        let (config, listed) = (config(), BTreeMap::from([("o1".into(), price)]));
        let found = lines(&config, &listed, Some("o1")).unwrap();
        assert_eq!((found[0].base.output, found[0].from), (Some(75.0), "list"));
        let unknown = lines(&config, &listed, Some("chta")).err().unwrap();
        assert!(unknown.contains("`chta` is neither") && unknown.contains("chat"), "{unknown}");
    }
}
