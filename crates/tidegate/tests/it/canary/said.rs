//! What the command line says of configurations, environments and keys with secrets in them.

use super::{LITERAL, look::looked_through};
use crate::web::BIN;
use std::{fs, path::Path, process::Command};

/// Secrets written where none belongs: `check` says what is wrong without repeating them.
#[test]
fn what_is_wrong_with_a_configuration_is_said_without_its_secrets() {
    let whole =
        |more: &str| format!("[upstreams.a]\nbase_url = \"http://127.0.0.1:1/v1\"\n{more}\n");
    for (config, is_good) in [
        (whole(&format!("api_key = \"{LITERAL}\"")), true),
        (whole(&format!("connection = {{ headers = {{ x-a = \"{LITERAL}\" }} }}")), true),
        (
            whole(&format!(
                "oauth = {{ token_url = \"http://a/t\", client_id = \"a\", client_secret = \"{LITERAL}\" }}"
            )),
            true,
        ),
        (format!("[server]\nadmin_token = \"{LITERAL}\""), true),
        (whole(&format!("api_key = {{ evn = \"{LITERAL}\" }}")), false),
        (whole(&format!("api_key = [\"{LITERAL}\"]")), false),
        (whole(&format!("api_key = \"{LITERAL}\\n\"")), false),
        (whole(&format!("api_kee = \"{LITERAL}\"")), false),
        (whole(&format!("api_key = \"{LITERAL}")), false),
        (whole(&format!("oauth = \"{LITERAL}\"")), false),
        (whole(&format!("connection = {{ headers = {{ x-a = \"{LITERAL}\\n\" }} }}")), false),
        (whole(&format!("connection = {{ headers = \"{LITERAL}\" }}")), false),
        (format!("[upstreams.a]\nbase_url = \"http://us:{LITERAL}@127.0.0.1:1/v1\""), false),
        (format!("[server]\nadmin_token = {{ file = [\"{LITERAL}\"] }}"), false),
        (format!("[ledger]\nurl = \"postgres://us:{LITERAL}@h:x/db\""), false),
        (format!("[ledger]\nurl = \"postgres://us:a@{LITERAL}@h/db\""), false),
        (format!("[ledger]\nurl = \"postgres://us:{LITERAL}/a@h/db\""), true),
        (format!("[ledger]\nurl = \"postgres://us:a%{LITERAL}@h/db\""), true),
        (format!("[ledger]\nurl = \"postgres://us:a@h/db?{LITERAL}=1\""), false),
        (format!("[ledger]\nurl = \"postgres://us:a@h/db?sslmode={LITERAL}\""), false),
        (format!("[ledger]\nurl = \"host=h password={LITERAL} port=x\""), false),
        (format!("[ledger]\nurl = \"host=h password='{LITERAL}\""), false),
        (format!("[ledger]\nurl = \"{LITERAL}\""), false),
        (format!("[ledger]\nurl = \"mysql://us:{LITERAL}@h/db\""), false),
        (format!("[ledger]\nurl = \"postgres://us:{LITERAL}@h/db\""), true),
        (whole("connection = { ca_file = \"key.pem\" }").replace("http:", "https:"), false),
        (
            whole(&format!(
                "oauth = {{ token_url = \"http://a:{LITERAL}@h/\", client_id = \"a\", client_secret = \"a\" }}"
            )),
            false,
        ),
        (whole("api_key = { file = \"key.pem\" }"), false),
        (whole("api_key = { env = \"BROKEN_KEY\" }"), false),
        ("[server]\nadmin_token = { env = \"BROKEN_KEY\" }".to_owned(), false),
        ("[server]\ntls = { cert = \"key.pem\", key = \"key.pem\" }".to_owned(), false),
        ("[server]\ntls = { cert = \"cert.pem\", key = \"key.pem\" }".to_owned(), false),
        ("[server]\ntls = { cert = \"cert.pem\", key = \"cut.pem\" }".to_owned(), false),
        ("[server]\ntls = { cert = \"cert.pem\", key = \"line.pem\" }".to_owned(), false),
        ("[server]\ntls = { cert = \"line.pem\", key = \"line.pem\" }".to_owned(), false),
        ("[server]\ntls = { cert = \"cert.pem\", key = \"text.pem\" }".to_owned(), false),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tidegate.toml");
        fs::write(&file, &config).unwrap();
        pems(dir.path());
        // Without the network: what is good would be served until it is told to stop.
        let verbs: &[&[&str]] = &[
            &["check"],
            &["check", "--format", "json"],
            &["keys", "list"],
            &["usage"],
            &["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"],
        ];
        for verb in &verbs[..if is_good { 2 } else { verbs.len() }] {
            let mut command = Command::new(BIN);
            command.args(*verb).arg("--config").arg(&file).current_dir(dir.path());
            command.env("BROKEN_KEY", format!("a\n{LITERAL}")).env("RUST_BACKTRACE", "1");
            let output = command.env_remove("DATABASE_URL").output().unwrap();
            // Certificates and keys of ours are read when they are needed.
            let decides =
                if config.contains(".pem") { verb[0] == "serve" } else { verb[0] == "check" };
            if decides {
                assert_eq!(output.status.success(), is_good, "{config}: {output:?}");
            }
            looked_through(&config, &output, &[LITERAL]);
        }
    }
}

/// Files with keys that are wrong in different ways.
fn pems(dir: &Path) {
    const CERT: &str = "-----BEGIN CERTIFICATE-----\nMAAA\n-----END CERTIFICATE-----\n";
    let key = |body: &str| format!("-----BEGIN PRIVATE KEY-----{body}");
    for (name, text) in [
        ("cert.pem", CERT.to_owned()),
        ("key.pem", key(&format!("\n{LITERAL}!\n-----END PRIVATE KEY-----\n"))),
        ("cut.pem", key(&format!("\n{LITERAL}\n"))),
        // Its line breaks were lost.
        ("line.pem", key(&format!(" {LITERAL} -----END PRIVATE KEY-----"))),
        ("text.pem", LITERAL.to_owned()),
    ] {
        fs::write(dir.join(name), text).unwrap();
    }
}

/// The environment and flags hold secrets too, and variables with our prefix are configuration.
#[test]
fn neither_help_nor_errors_repeat_the_environment() {
    const NAMES: [&str; 12] = [
        "OPENAI_API_KEY",
        "TIDEGATE_SIM_KEY",
        "DATABASE_URL",
        "TIDEGATE__SERVER__ADMIN_TOKEN",
        "TIDEGATE__UPSTREAMS__A__API_KEY",
        "TIDEGATE__UPSTREAMS__A__OAUTH__CLIENT_SECRET",
        "TIDEGATE__UPSTREAMS__A__CONNECTION__HEADERS__X_SECRET",
        "TIDEGATE__UPSTREAMS__A__CONNECTION__HEADERS",
        "TIDEGATE__LEDGER__URL",
        "TIDEGATE__NOTHING",
        "TIDEGATE__SERVER__TLS__KEY",
        "TIDEGATE__UPSTREAMS__A",
    ];
    let verbs: &[&[&str]] = &[
        &["--help"],
        &["serve", "--help"],
        &["batch", "--help"],
        &["sim", "--help"],
        &["bench", "--help"],
        &["keys", "--help"],
        &["keys", "create", "--help"],
        &["check", "--help"],
        &["usage", "--help"],
        &["schema"],
        &["completions", "bash"],
        &["check"],
        &["check", "--format", "json"],
        &["serve", "--listen", "nowhere"],
        &["keys", "list"],
        &["usage"],
    ];
    for name in NAMES {
        for verb in verbs {
            let dir = tempfile::tempdir().unwrap();
            let mut command = Command::new(BIN);
            command.args(*verb).current_dir(dir.path()).env_remove("DATABASE_URL");
            let output = command.env(name, LITERAL).env("RUST_LOG", "trace").output().unwrap();
            looked_through(&format!("{name} {verb:?}"), &output, &[LITERAL]);
        }
    }
}

/// Our own signing keys, damaged in different ways.
#[test]
fn a_signing_key_that_cannot_be_used_is_not_repeated() {
    use std::os::unix::fs::PermissionsExt as _;
    for source in ["key.pem", "cut.pem", "line.pem", "text.pem", "cert.pem"] {
        let dir = tempfile::tempdir().unwrap();
        pems(dir.path());
        fs::create_dir_all(dir.path().join("oauth")).unwrap();
        let key = dir.path().join("oauth/eddsa-1700000001-x.pem");
        fs::copy(dir.path().join(source), &key).unwrap();
        fs::set_permissions(dir.path().join("oauth"), fs::Permissions::from_mode(0o700)).unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        let mut command = Command::new(BIN);
        command.args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "off", "--data-dir"]);
        command.arg(dir.path()).current_dir(dir.path()).env_remove("DATABASE_URL");
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains("eddsa-1700000001-x"), "{said}");
        looked_through(source, &output, &[LITERAL]);
    }
}
