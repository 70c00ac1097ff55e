use crate::web::BIN;
use std::process::{Command, Output};

fn run(dir: &std::path::Path, args: &[&str]) -> Output {
    Command::new(BIN).args(args).current_dir(dir).env_remove("TIDEGATE_CONFIG").output().unwrap()
}

/// It ended with `code`, and said these words.
#[track_caller]
pub(crate) fn check(output: &Output, code: i32, stderr: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    for words in stderr {
        assert!(said.contains(words), "`{words}` is not in: {said}");
    }
}

#[test]
fn a_bad_configuration_is_refused_with_its_line_and_column() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tidegate.toml");
    std::fs::write(
        &file,
        "[server]\nlisen = \"127.0.0.1:1\"\n[models.a]\ntargets = [{ upstream = \"x\" }]\n",
    )
    .unwrap();
    for verb in ["check", "serve"] {
        check(
            &run(dir.path(), &[verb]),
            2,
            &["tidegate.toml:2:1", "lisen", "`listen`", "tidegate.toml:4"],
        );
    }
}

#[test]
fn check_prints_what_it_comes_to_without_secrets() {
    let dir = tempfile::tempdir().unwrap();
    let config = "[upstreams.a]\nbase_url = \"http://127.0.0.1:9/v1\"\napi_key = \"sk-canary\"\n\
                  [models.m]\ntargets = [{ upstream = \"a\" }]\n";
    std::fs::write(dir.path().join("tidegate.toml"), config).unwrap();
    let output = run(dir.path(), &["check"]);
    check(&output, 0, &["warning"]);
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(
        shown.contains("[redacted]")
            && shown.contains("requests_per_minute") | shown.contains("max_body"),
        "{shown}"
    );
    for pipe in [&output.stdout, &output.stderr] {
        assert!(!String::from_utf8_lossy(pipe).contains("canary"));
    }
}

#[test]
fn schema_and_completions_are_data_on_stdout() {
    let dir = tempfile::tempdir().unwrap();
    let schema = run(dir.path(), &["schema"]);
    check(&schema, 0, &[]);
    let schema: serde_json::Value = serde_json::from_slice(&schema.stdout).unwrap();
    assert!(schema["properties"]["upstreams"].is_object());
    for shell in ["bash", "zsh", "fish"] {
        let script = run(dir.path(), &["completions", shell]);
        check(&script, 0, &[]);
        assert!(String::from_utf8_lossy(&script.stdout).contains("tidegate"));
    }
}

#[test]
fn usage_errors_exit_with_2() {
    let dir = tempfile::tempdir().unwrap();
    check(&run(dir.path(), &["batch", "--no-such-flag"]), 2, &["--no-such-flag"]);
    check(&run(dir.path(), &["nonsense"]), 2, &["nonsense"]);
    check(&run(dir.path(), &["batch", "absent.jsonl"]), 2, &["absent.jsonl"]);
}

#[test]
fn every_verb_has_help_with_an_example() {
    let dir = tempfile::tempdir().unwrap();
    for verb in ["serve", "batch", "sim", "check", "keys", "schema", "completions"] {
        let output = run(dir.path(), &[verb, "--help"]);
        check(&output, 0, &[]);
        let help = String::from_utf8_lossy(&output.stdout);
        assert!(help.contains("Example"), "{verb}: {help}");
    }
}

#[test]
fn a_start_that_cannot_succeed_says_what_to_change() {
    let dir = tempfile::tempdir().unwrap();
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = held.local_addr().unwrap().to_string();
    std::fs::write(dir.path().join("file"), "").unwrap();
    let free = "127.0.0.1:0";
    for (listen, admin_listen, data_dir, words) in [
        (&*taken, free, "state", &[&*taken, "--listen", "server.listen"][..]),
        (free, &taken, "state", &[&taken, "--admin-listen", "server.admin_listen", "`off`"]),
        (free, "0.0.0.0:0", "state", &["--admin-listen", "server.admin_token"]),
        (free, "nowhere", "state", &["--admin-listen", "`nowhere`", "\"off\""]),
        (free, "off", "file/state", &["file/state", "--data-dir"]),
    ] {
        let flags = ["--listen", listen, "--admin-listen", admin_listen, "--data-dir", data_dir];
        check(&run(dir.path(), &[&["serve"][..], &flags].concat()), 2, words);
    }
}
