//! Text in, exact message out: every layer, every mistake, and no secret in any of them.

use super::{
    AccessTo, AdminListen, Config, Environment, Loaded, Override, Sources, load,
    load_without_secrets, problem::Problems,
};
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
fn what_is_wrong_is_said_with_its_place() {
    for (text, expected) in [
        (
            "[server]\nlisen = 'x'",
            &["tidegate.toml:2:1: unknown key `lisen` in server; did you mean `listen`?"][..],
        ),
        (
            "[server]\nlisen = 'x'\n[models.m]\ntargets = [{ upstream = 'a' }]",
            &[
                "tidegate.toml:2:1: unknown key `lisen` in server; did you mean `listen`?",
                "tidegate.toml:4:25: models.m.targets[0].upstream: there is no upstream `a`; there are no upstreams",
            ],
        ),
        ("[sever]\n", &["tidegate.toml:1:2: unknown key `sever`; did you mean `server`?"]),
        (
            "server.listen = 'here'",
            &[
                "tidegate.toml:1:17: server.listen: `here` is not an address to listen on: write IP and port, like \"127.0.0.1:8080\"",
            ],
        ),
        (
            "server.limits.header_timeout = '10'",
            &[
                "tidegate.toml:1:32: server.limits.header_timeout: `10` is not a duration: write it like \"250ms\", \"30s\" or \"10m\"",
            ],
        ),
        (
            "server.limits.max_streams = 0",
            &[
                "tidegate.toml:1:29: server.limits.max_streams: is zero: nothing could be served; give it a value above zero",
            ],
        ),
        (
            "idempotency.ttl = '0s'",
            &[
                "tidegate.toml:1:19: idempotency.ttl: zero would keep nothing: give it a value above zero, or set enabled = false",
            ],
        ),
        (
            "log.access = 'of'",
            &[
                "tidegate.toml:1:14: log.access: `of` is neither \"stderr\" nor \"off\" nor a path: write a file of this directory as \"./of\"",
            ],
        ),
        (
            "[upstreams.a]\nprotocol = 'opanai'\nbase_url = 'http://x/v1'",
            &[
                "tidegate.toml:2:12: upstreams.a.protocol: `opanai` is not a choice here; did you mean `openai`?",
            ],
        ),
        (
            "[limits.default]\nrequests_per_minute = -1",
            &[
                "tidegate.toml:2:23: limits.default.requests_per_minute: expected a whole number from 0 to 4294967295, found the number -1",
            ],
        ),
        (
            "[limits.team]\n",
            &["tidegate.toml:1:9: unknown key `team` in limits; did you mean `teams`?"],
        ),
        (
            "[limits.teams.search]\nconcurrency = 0\ncost_per_minute = -1\nalgorithm = 'fixed_window'\nburst = '5s'",
            &[
                "tidegate.toml:2:15: limits.teams.search.concurrency: 0 would refuse every call; leave it out for no limit",
                "tidegate.toml:3:19: limits.teams.search.cost_per_minute: must be more than 0 and at most 18000000 US dollars",
                "tidegate.toml:5:9: limits.teams.search.burst: only a token bucket has one: leave it out, or write algorithm = \"token_bucket\"",
            ],
        ),
        (
            "[limits.default]\nalgorithm = 'bucket'",
            &[
                "tidegate.toml:2:13: limits.default.algorithm: `bucket` is not a choice here; the choices are: token_bucket, leaky_bucket, fixed_window, sliding_window",
            ],
        ),
        (
            "[limits.models.chat]\nconcurrency = 1\n[limits.upstreams.vllm]\nconcurrency = 1",
            &[
                "tidegate.toml:1:1: limits.models.chat: there is no model `chat`; there are no models",
                "tidegate.toml:3:1: limits.upstreams.vllm: there is no upstream `vllm`; there are no upstreams",
            ],
        ),
        (
            "[upstreams.a]\n[models.b]\n",
            &[
                "tidegate.toml:1:1: upstreams.a: `base_url` is missing: where is it, like \"http://10.0.0.5:8000/v1\"",
                "tidegate.toml:2:1: models.b.targets: at least one is needed, like [{ upstream = \"NAME\" }]",
            ],
        ),
        (
            "[retry]\nmax_attempts = 0",
            &["tidegate.toml:2:16: retry.max_attempts: counts the first attempt: 1 means no retry"],
        ),
        (
            "server.admin_listen = 'of'",
            &[
                "tidegate.toml:1:23: server.admin_listen: `of` is not an address to listen on: write IP and port, like \"127.0.0.1:8080\"; \"off\" for no admin port",
            ],
        ),
        (
            "server.admin_listen = '0.0.0.0:8081'",
            &[
                "tidegate.toml:1:23: server.admin_listen: other machines can reach 0.0.0.0:8081: set server.admin_token, or listen on 127.0.0.1",
            ],
        ),
        (
            "[server]\nlisten = '127.0.0.1:8081'\n",
            &[
                "tidegate.toml:1:1: server.admin_listen: is the callers' port too: choose another, or \"off\"",
            ],
        ),
        (
            "[server]\nadmin_listen = '[::]:8081'\nadmin_token = 3\n",
            &[
                "tidegate.toml:3:15: server.admin_token: a secret is written { env = \"NAME\" }, { file = \"/path\" } or as a string",
            ],
        ),
        (
            "[server]\nadmin_listen = '[::]:8081'\nadmin_token = { env = 'NONE' }\n",
            &[
                "tidegate.toml:3:15: server.admin_token: the environment variable NONE is not set: export it first",
            ],
        ),
        (
            "server.tls = { cert = 'no.pem', key = 'no.key' }",
            &[
                "tidegate.toml:1:14: server.tls: cannot read certificate no.pem: No such file or directory (os error 2)",
            ],
        ),
    ] {
        Case::new(text).fails_with(expected);
    }
}

#[test]
fn every_mistake_is_said_at_once() {
    Case::new(
        "[upstreams.vllm]\nbase_url = 'http://x/v1'\nmax_concurrency = 0\napi_kee = 'x'\n\
         [models.chat]\ntargets = [ { upstream = 'vlm', weight = 0 } ]\n\
         timeouts = { idle = '0s', conect = '1s' }\nprice = { input = -1, output = 1 }\n",
    )
    .fails_with(&[
        "tidegate.toml:3:19: upstreams.vllm.max_concurrency: 0 would let no call through; leave it out for no limit of ours",
        "tidegate.toml:4:1: unknown key `api_kee` in upstreams.vllm; did you mean `api_key`?",
        "tidegate.toml:6:11: models.chat.targets: every weight is 0, so no call could go anywhere",
        "tidegate.toml:6:26: models.chat.targets[0].upstream: there is no upstream `vlm`; did you mean `vllm`?",
        "tidegate.toml:7:21: models.chat.timeouts.idle: must be more than 0",
        "tidegate.toml:7:27: unknown key `conect` in models.chat.timeouts; did you mean `connect`?",
        "tidegate.toml:8:19: models.chat.price.input: must be 0 to 1000000: US dollars per million tokens",
    ]);
}

const ONE_MODEL: &str = "[upstreams.a]\nbase_url = 'http://x/v1'\n\
                         [models.m]\ntargets = [{ upstream = 'a' }]\n";

#[test]
fn prices_and_budgets_are_checked() {
    Case::new(
        "[upstreams.a]\nbase_url = 'http://x/v1'\n[models.m]\n\
         targets = [{ upstream = 'a', price = { input = 1, output = -1 } }]\n\
         mirror = { upstream = 'a', share = 1.0, price = { input = 2e6, output = 1 } }\n\
         [budgets]\nalert_at = [0, 50]\nmax_output_tokens = 0\n\
         [teams.search]\nbudget = { day = -5 }\n[teams.' ']\n",
    )
    .fails_with(&[
        "tidegate.toml:4:60: models.m.targets[0].price.output: must be 0 to 1000000: US dollars per million tokens",
        "tidegate.toml:5:59: models.m.mirror.price.input: must be 0 to 1000000: US dollars per million tokens",
        "tidegate.toml:7:12: budgets.alert_at: must be at most 8 shares of 1 to 100",
        "tidegate.toml:8:21: budgets.max_output_tokens: 0 would reserve nothing for answers: write what a model gives at most",
        "tidegate.toml:10:18: teams.search.budget.day: -5 is no amount of US dollars: write a number from 0 to 18 million",
        "tidegate.toml:11:1: teams. : a name of a team is 1 to 128 bytes on one line, as keys name it",
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
    assert_eq!(loaded.prices["m"].input.pico(), 150_000);
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
fn canaries_and_mirrors_are_checked() {
    Case::new(
        "[upstreams.a]\nbase_url = 'http://x/v1'\n[models.m]\n\
         targets = [{ upstream = 'a', match = { header = { name = 'x y', value = '1' } } }]\n\
         mirror = { upstream = 'b', share = 0.5 }\n",
    )
    .fails_with(&[
        "tidegate.toml:4:58: models.m.targets[0].match.header.name: is no name of a header",
        "tidegate.toml:5:23: models.m.mirror.upstream: there is no upstream `b`; did you mean `a`?",
    ]);
}

#[test]
fn one_mistake_is_said_once() {
    for (text, expected) in [
        (
            "upstreams.a = 3\nmodels.m.targets = [{ upstream = 'a' }]",
            "tidegate.toml:1:15: upstreams.a: expected a table, found the number 3",
        ),
        (
            "upstreams.a.base_url = 3\nmodels.m.targets = [{ upstream = 'a' }]",
            "tidegate.toml:1:24: upstreams.a.base_url: expected a string, found the number 3",
        ),
        (
            "models.m.targets = 3",
            "tidegate.toml:1:20: models.m.targets: expected a list, found the number 3",
        ),
        (
            "models.m.targets = [{ upstram = 'a' }]",
            "tidegate.toml:1:23: unknown key `upstram` in models.m.targets[0]; did you mean `upstream`?",
        ),
    ] {
        let problems = Case::new(text).load().expect_err("loads").to_string();
        assert_eq!(problems, expected);
    }
}

#[test]
fn mistakes_of_every_layer_name_their_layer() {
    let case = Case::new("[server]\nlisten = 1")
        .file("tidegate.prod.toml", "[server]\ndata_dri = 'x'")
        .profile("prod")
        .variable("TIDEGATE__SERVER__LIMITS__MAX_STREAMS", "many")
        .variable("TIDEGATE__", "x")
        .variable("TIDEGATE__LOG__ACCES", "off")
        .variable("TIDEGATE__LIMITS__DEFAULT__CONCURRENCY", "-7")
        .flag("--requests", &["limits", "default", "requests_per_minute"], "x");
    case.fails_with(&[
        "tidegate.prod.toml:2:1: unknown key `data_dri` in server; did you mean `data_dir`?",
        "tidegate.toml:2:10: server.listen: expected a string, found the number 1",
        "environment variable TIDEGATE__: names no key: write it like TIDEGATE__SERVER__LISTEN",
        "environment variable TIDEGATE__LIMITS__DEFAULT__CONCURRENCY: limits.default.concurrency: expected a whole number from 0 to 4294967295, found the number -7",
        "environment variable TIDEGATE__LOG__ACCES: unknown key `acces` in log; did you mean `access`?",
        "environment variable TIDEGATE__SERVER__LIMITS__MAX_STREAMS: server.limits.max_streams: expected a whole number from 0 to 4294967295, found a string",
        "--requests: limits.default.requests_per_minute: expected a whole number from 0 to 4294967295, found a string",
    ]);
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    Case::new("a = ").fails_with(&[
        "tidegate.toml:1:5: not TOML: string values must be quoted, expected literal string",
    ]);
    Case::new("[server]\nlisten = '127.0.0.1:1'\nlisten = '127.0.0.1:2'")
        .fails_with(&["tidegate.toml:3:1: not TOML: duplicate key"]);
    let case = Case::new("").variable("TIDEGATE_CONFIG", "missing.toml");
    case.fails_with(&["missing.toml: there is no such file: check --config or TIDEGATE_CONFIG"]);
    let case = Case::new("");
    fs::write(case.dir.path().join("tidegate.toml"), b"a = 1\nb = '\xff'").unwrap();
    case.fails_with(&["tidegate.toml: is not UTF-8 text (line 2)"]);
    let case = Case::new("").file("tidegate.test.toml", "").file("tidegate.prod.toml", "");
    case.profile("prdo")
        .fails_with(&["--profile: there is no tidegate.prdo.toml; did you mean `prod`?"]);
    Case::new("")
        .profile("x")
        .fails_with(&["--profile: there is no tidegate.x.toml; there are no profiles"]);
    Case::new("")
        .profile("../x")
        .fails_with(&["--profile: `../x` is no name of a profile: use letters, digits, - and _"]);
}

const CANARY: &str = "sk-canary-4711";

fn with_key(api_key: &str) -> Case {
    Case::new(&format!(
        "[upstreams.a]\nbase_url = 'http://x/v1'\napi_key = {api_key}\n[models.m]\ntargets = [{{ upstream = 'a' }}]"
    ))
}

#[test]
fn secrets_are_found_where_they_are_said_to_be() {
    let key = |case: Case| case.loads().api_keys["a"].expose().clone();
    assert_eq!(key(with_key(&format!("'{CANARY}'"))), CANARY);
    assert_eq!(key(with_key("{ env = 'KEY' }").variable("KEY", CANARY)), CANARY);
    for text in [CANARY.to_owned(), format!("{CANARY}\n"), format!("{CANARY}\r\n")] {
        assert_eq!(key(with_key("{ file = 'key.txt' }").file("key.txt", &text)), CANARY);
    }
}

#[test]
fn the_admin_port_is_on_loopback_has_a_token_or_is_off() {
    let loaded = |text: &str| Case::new(text).variable("TOKEN", CANARY).loads();
    let address = |text: &str| AdminListen::At(text.parse().unwrap());
    for (text, admin_listen, has_token) in [
        ("", address("127.0.0.1:8081"), false),
        ("server.admin_listen = 'off'", AdminListen::Off, false),
        ("server.admin_listen = 'localhost:0'", address("127.0.0.1:0"), false),
        ("server.admin_listen = '[::1]:1'", address("[::1]:1"), false),
        (
            "server.admin_listen = '0.0.0.0:1'\nserver.admin_token = { env = 'TOKEN' }",
            address("0.0.0.0:1"),
            true,
        ),
    ] {
        let loaded = loaded(text);
        assert_eq!(loaded.config.server.admin_listen, admin_listen, "{text}");
        assert_eq!(loaded.admin_token.is_some(), has_token, "{text}");
        let printed = toml::to_string(&loaded.config).unwrap();
        assert_eq!(Case::new(&printed).variable("TOKEN", CANARY).loads().config, loaded.config);
    }
    let off = Case::new("").flag("--admin-listen", &["server", "admin_listen"], "off").loads();
    assert_eq!(off.config.server.admin_listen, AdminListen::Off);
    let loaded = Case::new(&format!("server.admin_token = '{CANARY}'")).loads();
    assert_eq!(loaded.admin_token.as_ref().unwrap().expose(), CANARY);
    assert!(loaded.warnings[0].to_string().contains("server.admin_token: is written out here"));
}

#[test]
fn a_secret_that_is_not_there_names_key_and_source() {
    let at = "tidegate.toml:3:11: upstreams.a.api_key:";
    with_key("{ env = 'KEY' }")
        .fails_with(&[&format!("{at} the environment variable KEY is not set: export it first")]);
    with_key("{ file = 'key.txt' }").fails_with(&[&format!(
        "{at} cannot read key.txt: No such file or directory (os error 2)"
    )]);
    with_key("{ file = 'key.txt' }")
        .file("key.txt", "\n")
        .fails_with(&[&format!("{at} key.txt is empty: leave api_key out if there is none")]);
    let config = with_key("{ env = 'KEY' }");
    assert!(load_without_secrets(&config.sources, &config.environment()).is_ok());
}

#[test]
fn a_secret_in_the_open_is_warned_of() {
    let warnings = |case: Case| {
        let warnings = case.loads().warnings;
        warnings.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    assert_eq!(
        warnings(with_key(&format!("'{CANARY}'"))),
        "tidegate.toml:3:11: upstreams.a.api_key: is written out here: use { env = \"NAME\" } or { file = \"/path\" }"
    );
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let case = with_key("{ file = 'key.txt' }").file("key.txt", CANARY);
        let file = case.dir.path().join("key.txt");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(warnings(case).contains("every user can read key.txt"));
    }
}

#[test]
fn no_secret_is_ever_shown() {
    // What can be read, and must not be shown when it is printed.
    let shown = |case: &Case| match case.load() {
        Ok(loaded) => [
            format!("{loaded:?}"),
            toml::to_string(&loaded.config.redacted()).unwrap(),
            serde_json::to_string(&loaded.config.redacted()).unwrap(),
            loaded.warnings.iter().map(ToString::to_string).collect(),
        ]
        .concat(),
        Err(problems) => format!("{problems} {problems:?}"),
    };
    let file = |text: &str| with_key("{ file = 'key.txt' }").file("key.txt", text);
    for case in [
        with_key(&format!("'{CANARY}'")),
        with_key(&format!("'{CANARY}\\n'")),
        with_key(&format!("\"{CANARY}\\n\"")),
        with_key("{ env = 'KEY' }").variable("KEY", CANARY),
        with_key("{ env = 'KEY' }").variable("KEY", &format!("{CANARY}\n{CANARY}")),
        file(CANARY),
        file(&format!("{CANARY}\n\n{CANARY}")),
        file(&CANARY.repeat(10_000)),
        // Mistakes in writing it.
        with_key(&format!("'{CANARY}")),
        with_key(CANARY),
        with_key(&format!("['{CANARY}']")),
        with_key(&format!("{{ evn = '{CANARY}' }}")),
        with_key(&format!("{{ env = ['{CANARY}'] }}")),
        with_key(&format!("{{ value = '{CANARY}' }}\nmax_concurrency = '{CANARY}'")),
        with_key("''").variable("TIDEGATE__UPSTREAMS__A__API_KEY", CANARY),
        with_key("''").variable("TIDEGATE__UPSTREAMS__A__API_KEY", &format!("['{CANARY}']")),
        with_key("''").variable("TIDEGATE__UPSTREAMS__A", CANARY),
        with_key("''").variable("TIDEGATE__UPSTREAMS__A__REQUESTS_PER_MINUTE", CANARY),
        with_key(&format!("'k'\nconnection.headers = {{ x-key = '{CANARY}' }}")),
        with_key(&format!("'k'\nconnection.headers = {{ x-key = ['{CANARY}'] }}")),
        Case::new(&format!("server.admin_token = '{CANARY}'")),
        Case::new(&format!("server.admin_token = '{CANARY}\\n'")),
        Case::new(&format!("server.admin_token = ['{CANARY}']")),
        Case::new(&format!("[upstreams.a]\nbase_url = 'https://u:{CANARY}@x/v1'")),
        Case::new(&format!("[upstreams.a]\nbase_url = 'https://x/v1?key={CANARY}'")),
    ] {
        let shown = shown(&case);
        assert!(!shown.contains("canary"), "{shown}");
    }
}

#[test]
fn what_check_prints_can_be_read_back() {
    let loaded = Case::new(GOOD).loads();
    let printed = toml::to_string(&loaded.config).unwrap();
    let again = Case::new(&printed).loads();
    assert_eq!(again.config, loaded.config, "{printed}");
    assert!(printed.contains("listen = \"127.0.0.1:9000\"") && printed.contains("data_dir"));
}

#[test]
fn an_upstream_nobody_uses_is_warned_of() {
    let loaded = Case::new("[upstreams.a]\nprotocol = 'sim'\nbase_url = 'http://x'").loads();
    let warnings: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        warnings,
        [
            "tidegate.toml:3:12: upstreams.a.base_url: the built-in simulator needs none",
            "tidegate.toml:1:1: upstreams.a: no model has it as a target",
        ]
    );
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

#[test]
fn an_account_at_a_token_endpoint_is_checked_and_its_secret_resolved() {
    let with = |oauth: &str| {
        Case::new(&format!(
            "[upstreams.a]\nbase_url = 'http://x/v1'\noauth = {oauth}\n[models.m]\ntargets = [{{ upstream = 'a' }}]"
        ))
    };
    let good = "{ token_url = 'http://127.0.0.1:9/token', client_id = 'us', client_secret = { env = 'S' } }";
    let loaded = with(good).variable("S", "canary").loads();
    assert_eq!(loaded.client_secrets["a"].expose(), "canary");
    assert!(loaded.warnings.is_empty() && !format!("{loaded:?}").contains("canary"));
    let at = "tidegate.toml:3:";
    let fails = |oauth: &str, says: &str| {
        let problems = with(oauth).variable("S", "canary").load().expect_err(oauth).to_string();
        assert!(problems.contains(at) && problems.contains(says), "{problems}");
        assert!(!problems.contains("canary"), "{problems}");
    };
    let open = with(&good.replace("127.0.0.1:9", "t")).variable("S", "canary").loads();
    assert!(open.warnings[0].to_string().contains("token_url: is plain HTTP"));
    fails(
        &good.replace("http://127.0.0.1:9/token", "t"),
        "oauth.token_url: must start with http://",
    );
    fails(&good.replace("'us'", "''"), "oauth.client_id: is empty");
    fails(&good.replace("'S'", "'GONE'"), "the environment variable GONE is not set");
    fails(&format!("{good}\napi_key = {{ env = 'S' }}"), "oauth: stands beside api_key");
    fails("{ token_url = 'http://t' }", "client_id");
}

#[test]
fn oauth_is_checked_where_it_is_written() {
    let case = |oauth: &str| Case::new(&format!("[oauth]\n{oauth}"));
    case("token_lifetime = '10s'")
        .fails_with(&["tidegate.toml:2:18: oauth.token_lifetime: is not from \"1m\" to \"24h\""]);
    case("[oauth.issuers.corp]\nissuer = 'https://i.example'").fails_with(&[
        "tidegate.toml:2:1: oauth.issuers.corp.audience: is missing: tokens made for others must \
         not open this gateway",
    ]);
    let good = "[oauth.issuers.corp]\nissuer = 'https://i.example'\naudience = 'gate'";
    let loaded = case(good).loads();
    assert_eq!(loaded.config.oauth.issuers["corp"].caller_claim, "sub");
    assert!(loaded.warnings.is_empty());
    let open = case(&good.replace("https", "http")).loads();
    assert!(open.warnings[0].to_string().contains("issuers.corp.issuer: is plain HTTP"));
    let loopback = case(&good.replace("https://i.example", "http://[::1]:8080")).loads();
    assert!(loopback.warnings.is_empty());
}
