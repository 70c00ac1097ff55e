//! The price list that a configuration names.

use super::{Config, check::Findings, environment::Environment};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};
use tidegate_core::Price;
use tidegate_wire::prices;

/// Longest price list: LiteLLM's has about 1.5 MB for 2,500 models.
const MAX_BYTES: u64 = 64 << 20;

/// What models cost that have no price of their own here.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct PriceList {
    /// LiteLLM's price file, `model_prices_and_context_window.json`: it lists models by the upstreams' own names of them. Read at the start. Default: none.
    pub(crate) file: Option<PathBuf>,
}

/// What models cost, by the upstreams' own names of them.
pub(super) fn read(
    config: &Config,
    environment: &Environment,
    findings: &mut Findings<'_>,
) -> BTreeMap<Arc<str>, Price> {
    let Some(file) = &config.prices.file else { return BTreeMap::new() };
    let path = ["prices", "file"];
    let listed = text(&environment.locate(file))
        .map_err(|cause| format!("cannot read {}: {cause}", file.display()))
        .and_then(|text| prices::read(&text).map_err(|why| format!("{} {why}", file.display())));
    match listed {
        Ok(listed) => {
            if listed.prices.is_empty() {
                findings.warning(&path, format!("{} lists no price", file.display()));
            }
            listed.prices
        }
        Err(message) => {
            findings.problem(&path, message);
            BTreeMap::new()
        }
    }
}

fn text(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(io::Error::other("it is longer than 64 MiB: that is no price list"));
    }
    Ok(bytes)
}
