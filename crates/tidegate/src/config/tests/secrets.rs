//! Secrets: found where they are said to be, and never shown.

use super::{
    super::{AdminListen, load_without_secrets},
    CANARY, Case,
};
use std::fs;

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
    for blank in ["", "\n", " ", " \t\r\n"] {
        with_key("{ file = 'key.txt' }")
            .file("key.txt", blank)
            .fails_with(&[&format!("{at} key.txt is empty: leave api_key out if there is none")]);
    }
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
