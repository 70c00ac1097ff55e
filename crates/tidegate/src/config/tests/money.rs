//! Prices, budgets and the ledger.

use super::{CANARY, Case};

const ONE_MODEL: &str = "[upstreams.a]\nbase_url = 'http://x/v1'\n\
                         [models.m]\ntargets = [{ upstream = 'a' }]\n";

#[test]
fn prices_and_budgets_are_checked() {
    Case::new(
        "[upstreams.a]\nbase_url = 'http://x/v1'\n[models.m]\n\
         targets = [{ upstream = 'a', price = { input = 1, output = -1 } }]\n\
         mirror = { upstream = 'a', share = 1.0, price = { input = 2e6, output = 1 } }\n\
         price = { input = 1, output = 1, above = [{ tokens = 9, input = 1, output = 1 }, \
         { tokens = 9, input = 1, output = 1 }] }\n\
         [budgets]\nalert_at = [0, 50]\nmax_output_tokens = 0\n\
         [teams.search]\nbudget = { day = -5 }\n[teams.' ']\n[teams.'a\u{202e}b']\n",
    )
    .fails_with(&[
        "tidegate.toml:4:60: models.m.targets[0].price.output: must be 0, or 0.000001 to 1000000: US dollars per million tokens",
        "tidegate.toml:5:59: models.m.mirror.price.input: must be 0, or 0.000001 to 1000000: US dollars per million tokens",
        "tidegate.toml:6:93: models.m.price.above[1].tokens: must be at least 1, and more than at the step before",
        "tidegate.toml:8:12: budgets.alert_at: must be at most 8 shares of 1 to 100",
        "tidegate.toml:9:21: budgets.max_output_tokens: 0 would reserve nothing for answers: write what a model gives at most",
        "tidegate.toml:11:18: teams.search.budget.day: -5 is no amount of US dollars: write a number from 0 to 18 million",
        "tidegate.toml:12:1: teams. : a name of a team is 1 to 128 bytes on one line, without control or direction marks",
        "tidegate.toml:13:1: teams.a\u{202e}b: a name of a team is 1 to 128 bytes on one line, without control or direction marks",
    ]);
    let hard = format!("{ONE_MODEL}[teams.search]\nbudget = {{ hard = true }}\n");
    let loaded = Case::new(&hard).loads();
    assert!(loaded.warnings[0].to_string().contains("no budget to keep"), "{:?}", loaded.warnings);
}

#[test]
fn a_price_list_is_read_from_its_file() {
    let named = format!("{ONE_MODEL}[prices]\nfile = 'prices.json'\n");
    let list = r#"{"m": {"input_cost_per_token": 1.5e-07, "output_cost_per_token": 6e-07}}"#;
    let loaded = Case::new(&named).file("prices.json", list).loads();
    assert_eq!(loaded.prices["m"].base().input.pico(), 150_000);
    Case::new(&named).fails_with(&[
        "tidegate.toml:6:8: prices.file: cannot read prices.json: No such file or directory (os error 2)",
    ]);
    Case::new(&named).file("prices.json", "[]").fails_with(&[
        "tidegate.toml:6:8: prices.file: prices.json is not LiteLLM's price file: that is one JSON object, a model to a key",
    ]);
    let empty = Case::new(&named).file("prices.json", "{}").loads();
    assert!(empty.warnings[0].to_string().contains("lists no price"), "{:?}", empty.warnings);
}

#[test]
fn the_ledger_is_where_it_is_said_to_be() {
    use tidegate_store::ledger::Database;
    let url = format!("postgres://u:{CANARY}@db.internal/x");
    let kept = |case: Case| match case.loads().ledger {
        None => "nowhere".to_owned(),
        Some(Database::Sqlite) => "sqlite".to_owned(),
        Some(Database::Postgres(url)) => url.expose().clone(),
    };
    assert_eq!(kept(Case::new("")), "sqlite");
    assert_eq!(kept(Case::new("").variable("DATABASE_URL", &url)), url);
    let other = Case::new("").variable("DATABASE_URL", "mysql://u@db/x");
    let warnings: Vec<_> = other.loads().warnings.iter().map(ToString::to_string).collect();
    assert!(warnings.iter().any(|warning| warning.contains("$DATABASE_URL is no address")));
    assert_eq!(kept(other), "sqlite");
    let named = Case::new("[ledger]\nurl = { env = 'BOOKS' }").variable("BOOKS", &url);
    assert_eq!(kept(named.variable("DATABASE_URL", "postgres://u@other/y")), url);
    let off = Case::new("[ledger]\nenabled = false").variable("DATABASE_URL", "postgres://");
    assert_eq!(kept(off), "nowhere");

    let wrong = format!("[ledger]\nretention = '0s'\nurl = 'postgres://u:{CANARY}@db:port/x'");
    let problems = Case::new(&wrong).load().expect_err("loads").to_string();
    assert!(problems.contains("tidegate.toml:2:13: ledger.retention: 0 would"), "{problems}");
    assert!(problems.contains("ledger.url: this is no address of a PostgreSQL"), "{problems}");
    assert!(!problems.contains(CANARY), "{problems}");
    let variable = Case::new("").variable("DATABASE_URL", "postgres://u@db:port/x");
    let problems = variable.load().expect_err("loads").to_string();
    assert!(problems.contains("ledger.url: $DATABASE_URL: this is no address"), "{problems}");
}
