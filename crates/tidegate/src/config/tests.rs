//! Text in, configuration or exact message out; here the layers and how they lie over each other.

mod mistakes;
mod money;
mod secrets;

use super::{AccessTo, Config, Environment, Loaded, Override, Sources, load, problem::Problems};
use std::{fs, path::Path};

/// A directory with configuration files, and an environment.
struct Case {
    dir: tempfile::TempDir,
    variables: Vec<(String, String)>,
    sources: Sources,
}

impl Case {
    fn new(text: &str) -> Self {
        let case = Self {
            dir: tempfile::tempdir().unwrap(),
            variables: Vec::new(),
            sources: Sources::default(),
        };
        case.file("tidegate.toml", text)
    }

    fn file(self, name: &str, text: &str) -> Self {
        fs::write(self.dir.path().join(name), text).unwrap();
        self
    }

    fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.into(), value.into()));
        self
    }

    fn profile(mut self, name: &str) -> Self {
        self.sources.profile = Some(name.into());
        self
    }

    fn flag(mut self, flag: &'static str, key: &'static [&'static str], value: &str) -> Self {
        self.sources.overrides.push(Override { flag, key, value: value.into() });
        self
    }

    fn environment(&self) -> Environment {
        let variables: Vec<(&str, &str)> =
            self.variables.iter().map(|(name, value)| (&**name, &**value)).collect();
        Environment::of(self.dir.path(), &variables)
    }

    fn load(&self) -> Result<Loaded, Problems> {
        load(&self.sources, &self.environment())
    }

    #[track_caller]
    fn loads(&self) -> Loaded {
        self.load().unwrap_or_else(|problems| panic!("{problems}"))
    }

    #[track_caller]
    fn fails_with(&self, expected: &[&str]) {
        let problems = self.load().expect_err("loads").to_string();
        // Paths of the temporary directory are different each time.
        let problems = problems.replace(&format!("{}/", self.dir.path().display()), "");
        assert_eq!(problems.lines().collect::<Vec<_>>(), expected);
    }
}

/// Looks like a key, and is looked for wherever something is shown.
const CANARY: &str = "sk-canary-4711";

const GOOD: &str = r#"
[server]
listen = "127.0.0.1:9000"
[upstreams.vllm]
base_url = "http://10.0.0.5:8000/v1"
max_concurrency = 8
[models.chat]
targets = [ { upstream = "vllm", model = "qwen3-8b" } ]
timeouts = { connect = "3s", first_token = "10s" }
[limits.default]
requests_per_minute = 600
"#;

#[test]
fn nothing_written_is_the_default() {
    let dir = tempfile::tempdir().unwrap();
    let loaded = load(&Sources::default(), &Environment::of(dir.path(), &[])).unwrap();
    assert_eq!(loaded.config, Config::default());
    assert!(loaded.files.is_empty() && loaded.warnings.is_empty());
}

#[test]
fn each_layer_lies_over_the_one_before() {
    let profile = "[server]\nlisten = '127.0.0.1:9001'\n[models.chat.timeouts]\nconnect = '4s'";
    let case = || Case::new(GOOD).file("tidegate.prod.toml", profile);
    let listen = |case: Case| case.loads().config.server.listen.to_string();

    assert_eq!(listen(case()), "127.0.0.1:9000");
    assert_eq!(listen(case().profile("prod")), "127.0.0.1:9001");
    let variable = || case().profile("prod").variable("TIDEGATE__SERVER__LISTEN", "0.0.0.0:9002");
    assert_eq!(listen(variable()), "0.0.0.0:9002");
    assert_eq!(
        listen(variable().flag("--listen", &["server", "listen"], "[::1]:9003")),
        "[::1]:9003"
    );

    let loaded = case().profile("prod").loads();
    let timeouts = &loaded.config.models["chat"].timeouts;
    assert_eq!((timeouts.connect.as_secs(), timeouts.idle.as_secs()), (4, 30));
    assert_eq!(loaded.files, [Path::new("tidegate.toml"), Path::new("tidegate.prod.toml")]);
}

#[test]
fn a_file_is_found_by_flag_then_variable_then_place() {
    let other = "[server]\nlisten = '127.0.0.1:1'";
    let case = Case::new(GOOD).file("other.toml", other).variable("TIDEGATE_CONFIG", "other.toml");
    assert_eq!(case.loads().config.server.listen.port(), 1);
    let mut case = case.file("third.toml", "server.listen = 'localhost:2'");
    case.sources.config = Some("third.toml".into());
    assert_eq!(case.loads().config.server.listen.to_string(), "127.0.0.1:2");
}

#[test]
fn every_value_can_come_from_the_environment() {
    let loaded = Case::new("[upstreams.my-vLLM]\nbase_url = 'http://a/v1'\n[models.\"Qwen/3.5\"]\ntargets = [ { upstream = 'my-vLLM' } ]")
        .variable("TIDEGATE__UPSTREAMS__MY_VLLM__MAX_CONCURRENCY", "12")
        .variable("TIDEGATE__UPSTREAMS__MY_VLLM__API_KEY", "12345")
        .variable("TIDEGATE__MODELS__CHAT__TARGETS", "[{ upstream = 'my-vLLM', weight = 3 }]")
        .variable("TIDEGATE__LIMITS__DEFAULT__CONCURRENCY", "7")
        .variable("TIDEGATE__LOG__ACCESS", "off")
        .variable("TIDEGATE__SERVER__LIMITS__MAX_BODY", "1MiB")
        .variable("TIDEGATE_OTHER", "not ours")
        .loads();
    let config = &loaded.config;
    assert_eq!(
        config.upstreams["my-vLLM"].max_concurrency,
        tidegate_policy::concurrency::Options::Fixed(12)
    );
    assert_eq!(loaded.api_keys["my-vLLM"].expose(), "12345", "text, though it looks like a number");
    assert_eq!(config.models["chat"].targets[0].weight, 3);
    assert_eq!(config.limits.default.concurrency, Some(7));
    assert_eq!(config.log.access, AccessTo::Off);
    assert_eq!(config.server.limits.max_body, 1 << 20);
    assert!(loaded.warnings.is_empty(), "a literal from the environment is not in a file");
}

#[test]
fn what_check_prints_can_be_read_back() {
    let loaded = Case::new(GOOD).loads();
    let printed = toml::to_string(&loaded.config).unwrap();
    let again = Case::new(&printed).loads();
    assert_eq!(again.config, loaded.config, "{printed}");
    assert!(printed.contains("listen = \"127.0.0.1:9000\"") && printed.contains("data_dir"));
}
