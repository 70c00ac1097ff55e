//! Writes `docs/configuration.md` and `examples/tidegate.toml` from the schema, and fails when
//! they have drifted. `TIDEGATE_REWRITE=1 cargo test -p tidegate reference` rewrites them.

mod sections;

use super::{Config, Environment, Sources, load, schema};
use sections::{Section, Shape, sections};
use serde_json::{Value, json};
use std::{env, fs, path::Path};

/// Values shown in the example: of keys that have no default, and of names to choose.
const SAMPLES: &[(&str, &str)] = &[
    ("load.elevated.pressure", "0.5"),
    ("load.elevated.in_flight_share", "0.8"),
    ("load.elevated.shorten_timeouts", "1.0"),
    ("load.elevated.refuse", "\"nothing\""),
    ("load.high.pressure", "1.0"),
    ("load.high.in_flight_share", "0.9"),
    ("load.high.shorten_timeouts", "1.0"),
    ("load.high.refuse", "\"bulk\""),
    ("load.critical.pressure", "4.0"),
    ("load.critical.in_flight_share", "0.97"),
    ("load.critical.shorten_timeouts", "1.0"),
    ("load.critical.refuse", "\"bulk\""),
    ("models.chat.hedge.after", "\"300ms\""),
    ("upstreams.*", "vllm"),
    ("models.*", "chat"),
    ("upstreams.vllm.base_url", "\"http://10.0.0.5:8000/v1\""),
    ("upstreams.vllm.api_key", "{ env = \"VLLM_KEY\" }"),
    ("upstreams.vllm.requests_per_minute", "600"),
    ("upstreams.vllm.requests_per_second", "10"),
    ("upstreams.vllm.tokens_per_minute", "200_000"),
    ("models.chat.targets", "[{ upstream = \"vllm\", model = \"qwen3-8b\", weight = 1 }]"),
    ("models.chat.mirror", "{ upstream = \"vllm\", model = \"qwen3-next\", share = 0.05 }"),
    ("models.chat.price", "{ input = 0.15, output = 0.60, cached_input = 0.075 }"),
    ("prices.file", "\"model_prices_and_context_window.json\""),
    ("teams.*", "search"),
    ("teams.search.budget.day", "20.0"),
    ("teams.search.budget.month", "400.0"),
    ("teams.search.budget.total", "5000.0"),
    ("ledger.url", "{ env = \"DATABASE_URL\" }"),
    ("ledger.retention", "\"400days\""),
    ("server.admin_token", "{ env = \"TIDEGATE_ADMIN_TOKEN\" }"),
    ("oauth.issuer", "\"https://gateway.example\""),
    ("oauth.audience", "\"https://gateway.example\""),
    ("oauth.issuers.*", "corp"),
    ("oauth.issuers.corp.issuer", "\"https://login.corp.example\""),
    ("oauth.issuers.corp.audience", "\"tidegate\""),
    ("oauth.issuers.corp.jwks_url", "\"https://login.corp.example/jwks.json\""),
    ("oauth.issuers.corp.team_claim", "\"department\""),
    ("oauth.issuers.corp.models_claim", "\"scope\""),
    (
        "upstreams.vllm.oauth",
        "{ token_url = \"https://login.example/token\", client_id = \"us\", client_secret = { env = \"OAUTH_SECRET\" } }",
    ),
    ("server.tls", "{ cert = \"cert.pem\", key = \"key.pem\" }"),
    ("limits.default.requests_per_minute", "600"),
    ("limits.default.tokens_per_minute", "200_000"),
    ("limits.default.cost_per_minute", "0.50"),
    ("limits.default.concurrency", "64"),
    ("limits.default.burst", "\"60s\""),
    ("limits.callers.*", "key_7f3a2b"),
    ("limits.teams.*", "search"),
    ("limits.models.*", "chat"),
    ("limits.upstreams.*", "vllm"),
    ("upstreams.vllm.connection.ca_file", "\"/etc/ssl/our-ca.pem\""),
    ("upstreams.vllm.connection.headers", "{ x-team = \"search\" }"),
];

/// The tables a reader meets first, first.
const ORDER: &[&str] = &[
    "server",
    "upstreams",
    "models",
    "limits",
    "teams",
    "budgets",
    "prices",
    "oauth",
    "retry",
    "retry_budget",
    "breaker",
    "queue",
    "load",
    "memory",
    "idempotency",
    "ledger",
    "log",
];

/// Tables whose header the example leaves commented out too: nobody is trusted unasked.
const OPTIONAL: [&str; 1] = ["oauth.issuers.corp"];

/// Keys that the example does not leave commented out.
const ACTIVE: [&str; 2] = ["upstreams.vllm.base_url", "models.chat.targets"];

#[test]
fn the_reference_is_what_the_types_say() {
    let mut page = String::from(
        "# Configuration\n\n\
         <!-- Generated from the types. Rewrite: TIDEGATE_REWRITE=1 cargo test -p tidegate reference -->\n\n\
         The file is `tidegate.toml`, found by `--config`, by `TIDEGATE_CONFIG`, or in the working\n\
         directory. `--profile prod` lays `tidegate.prod.toml` over it, and any value can be set from the\n\
         environment: `TIDEGATE__SERVER__LISTEN=0.0.0.0:8080`. Flags win over all of them.\n\n\
         Durations are written `\"250ms\"`, `\"30s\"`, `\"1h 30m\"`; sizes `\"512KiB\"`, `\"16MiB\"`; secrets\n\
         `{ env = \"NAME\" }` or `{ file = \"/run/secrets/x\" }`. A file of `api_key`, `client_secret` or `admin_token`\n\
         is read again when it changes, the environment never is.\n\n\
         Relative paths begin at the working directory. Unknown keys are errors. `tidegate check` says what is wrong, and where, and prints\n\
         what a configuration comes to.\n",
    );
    for section in sections(&|_| "NAME".to_owned()) {
        page.push_str(&reference_of(&section));
    }
    same_or_rewritten("docs/configuration.md", &page);
}

#[test]
fn the_example_is_what_the_types_say() {
    same_or_rewritten("examples/tidegate.toml", &example());
}

fn example() -> String {
    let mut file = String::from(
        "# Every key of a Tidegate configuration, with its default. Generated from the types.\n\
         # Lines that begin with `#key = ` are keys left at their default (or at a sample value where\n\
         # there is none): remove the # to set them. `tidegate check --config FILE` checks the result.\n",
    );
    for section in sections(&|path| sample(&format!("{path}.*")).unwrap_or("NAME").to_owned()) {
        file.push_str(&example_of(&section));
    }
    file
}

#[test]
fn the_example_loads_as_it_is_and_with_every_key_set() {
    let text = example();
    let as_it_is = loaded(&text);
    // Files that are not there, and what excludes a key that is.
    let all = text.replace("\n#tls = ", "\n# tls = ").replace("\n#oauth = ", "\n# oauth = ");
    let all: Vec<&str> = all.lines().map(|line| uncommented(line).unwrap_or(line)).collect();
    let mut all = loaded(&all.join("\n"));
    assert!(as_it_is.upstreams.contains_key("vllm") && as_it_is.models.contains_key("chat"));
    // Sample values aside, what is commented out is the default.
    assert!(all.limits != as_it_is.limits && all.upstreams != as_it_is.upstreams);
    all.limits = as_it_is.limits.clone();
    all.upstreams = as_it_is.upstreams.clone();
    all.models = as_it_is.models.clone();
    assert!(as_it_is.oauth.issuers.is_empty() && all.oauth.issuers.contains_key("corp"));
    all.oauth = as_it_is.oauth.clone();
    all.ledger = as_it_is.ledger.clone();
    assert!(all.teams != as_it_is.teams);
    all.teams = as_it_is.teams.clone();
    all.prices = as_it_is.prices.clone();
    all.server.admin_token = None;
    assert_eq!(all, as_it_is);
}

fn loaded(text: &str) -> Config {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("tidegate.toml"), text).unwrap();
    fs::write(dir.path().join("model_prices_and_context_window.json"), "{}").unwrap();
    let environment = Environment::of(
        dir.path(),
        &[
            ("VLLM_KEY", "x"),
            ("TIDEGATE_ADMIN_TOKEN", "x"),
            ("DATABASE_URL", "postgres://u@db.internal/x"),
        ],
    );
    let loaded = load(&Sources::default(), &environment);
    loaded.unwrap_or_else(|problems| panic!("{problems}\n{text}")).config
}

/// `#key = value` without its `#`; prose has a space there.
fn uncommented(line: &str) -> Option<&str> {
    let rest = line.strip_prefix('#')?;
    rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '[').then_some(rest)
}

fn reference_of(section: &Section) -> String {
    let path = section.path.join(".");
    let heading = match section.shape {
        Shape::Table => format!("[{path}]"),
        Shape::Inline => format!("{path} = {{ … }}"),
        Shape::List => format!("{path} = [{{ … }}]"),
    };
    let mut text = format!("\n## `{heading}`\n\n{}\n\n", section.about);
    text.push_str("| key | value | default | meaning |\n|---|---|---|---|\n");
    for key in &section.keys {
        let default = match &key.default {
            Some(value) => format!("`{}`", toml_of(value)),
            None => "–".to_owned(),
        };
        let cell = |text: &str| text.replace('|', "\\|").replace('\n', " ");
        text.push_str(&format!(
            "| `{}` | {} | {} | {} |\n",
            key.name,
            cell(&key.kind),
            cell(&default),
            cell(&key.about)
        ));
    }
    text
}

fn example_of(section: &Section) -> String {
    let path = section.path.join(".");
    if section.shape != Shape::Table {
        return String::new();
    }
    let mark = if OPTIONAL.contains(&&*path) { "#" } else { "" };
    let mut text = format!("\n{}{mark}[{path}]\n", comment(&section.about));
    for key in &section.keys {
        let full = format!("{path}.{}", key.name);
        let default = key.default.as_ref().map(toml_of);
        let Some(value) = sample(&full).map(str::to_owned).or(default) else {
            panic!("{full} has neither a default nor a sample: add one to SAMPLES");
        };
        let mark = if ACTIVE.contains(&&*full) { "" } else { "#" };
        text.push_str(&format!("{}{mark}{} = {value}\n", comment(&key.about), key.name));
    }
    text
}

fn sample(path: &str) -> Option<&'static str> {
    let of = |path: &str| SAMPLES.iter().find(|(key, _)| *key == path).map(|(_, value)| *value);
    // Limits are the same whose they are.
    let limit =
        || of(&format!("limits.default.{}", path.strip_prefix("limits.")?.rsplit('.').next()?));
    of(path).or_else(limit)
}

fn comment(about: &str) -> String {
    let mut text = String::new();
    let mut line = String::from("#");
    for word in about.split_whitespace() {
        if line.len() + word.len() > 96 {
            text.push_str(&line);
            text.push('\n');
            line = String::from("#");
        }
        line.push(' ');
        line.push_str(word);
    }
    text + &line + "\n"
}

fn toml_of(value: &Value) -> String {
    match value {
        Value::Object(table) => {
            if table.is_empty() {
                return "{}".to_owned();
            }
            let pairs = table.iter().filter(|(_, value)| !value.is_null());
            let pairs: Vec<String> =
                pairs.map(|(key, value)| format!("{key} = {}", toml_of(value))).collect();
            format!("{{ {} }}", pairs.join(", "))
        }
        Value::Array(items) => {
            format!("[{}]", items.iter().map(toml_of).collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}

fn in_repository(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

fn same_or_rewritten(path: &str, text: &str) {
    let file = in_repository(path);
    if env::var_os("TIDEGATE_REWRITE").is_some() {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, text).unwrap();
    }
    let there = fs::read_to_string(&file).unwrap_or_default();
    assert!(
        there == text,
        "{path} has drifted from the types: TIDEGATE_REWRITE=1 cargo test -p tidegate reference"
    );
}

#[test]
fn the_schema_refuses_unknown_keys() {
    let root = serde_json::to_value(schema()).unwrap();
    assert_eq!(root["additionalProperties"], json!(false));
}
