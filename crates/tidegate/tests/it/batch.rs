use crate::{
    cli::check,
    web::{BIN, simulator},
};
use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

fn batch(dir: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(BIN);
    for name in ["OPENAI_BASE_URL", "OPENAI_API_KEY", "TIDEGATE_CONFIG"] {
        command.env_remove(name);
    }
    command.arg("batch").args(args).current_dir(dir).output().unwrap()
}

fn rows(path: &Path) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn prompts(dir: &Path, count: usize) {
    let line = |n| {
        format!(
            "{{\"custom_id\":\"r{n}\",\"method\":\"POST\",\"url\":\"/v1/chat/completions\",\"body\":{{\"model\":\"m\",\
             \"messages\":[{{\"role\":\"user\",\"content\":\"row {n}\"}}],\"max_tokens\":4}}}}\n"
        )
    };
    fs::write(dir.join("data.jsonl"), (0..count).map(line).collect::<String>()).unwrap();
}

#[test]
fn the_first_command_answers_every_row_and_the_second_calls_nothing() {
    let dir = tempfile::tempdir().unwrap();
    prompts(dir.path(), 50);
    check(&batch(dir.path(), &["data.jsonl"]), 0, &["data.out.jsonl"]);
    let out = dir.path().join("data.out.jsonl");
    let answered = rows(&out);
    assert_eq!(answered.len(), 50);
    for (n, row) in answered.iter().enumerate() {
        assert_eq!(row["index"], n);
        assert_eq!(row["custom_id"], format!("r{n}"));
        assert_eq!(row["status"], "ok");
        assert_eq!(row["response"]["status_code"], 200);
        assert!(row["usage"].is_object());
    }
    let before = fs::read(&out).unwrap();
    check(&batch(dir.path(), &["data.jsonl"]), 0, &["everything is done"]);
    assert_eq!(fs::read(&out).unwrap(), before);
}

#[test]
fn a_table_keeps_its_columns() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("t.csv"), "id,text\n1,\"a, b\"\n2,c\n").unwrap();
    let args = ["t.csv", "--prompt", "Summarise: {{ text }}"];
    check(&batch(dir.path(), &args), 0, &[]);
    let answered = rows(&dir.path().join("t.out.jsonl"));
    assert_eq!(answered[0]["input"]["text"], "a, b");
    let args = ["t.csv", "--prompt", "Summarise: {{ text }}", "-o", "t.out.csv"];
    check(&batch(dir.path(), &args), 0, &[]);
    let table = fs::read_to_string(dir.path().join("t.out.csv")).unwrap();
    assert!(table.starts_with("id,text,"), "{table}");
    assert_eq!(table.lines().count(), 3, "{table}");
}

#[test]
fn every_bad_line_is_named_before_anything_is_called() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("bad.jsonl"), "{\"messages\":[]}\n{oops\n[1]\n").unwrap();
    check(&batch(dir.path(), &["bad.jsonl"]), 2, &["line 2", "line 3"]);
    assert!(!dir.path().join("bad.out.jsonl").exists());
    fs::write(dir.path().join("t.csv"), "id,text\n1,a\n").unwrap();
    check(&batch(dir.path(), &["t.csv", "--prompt", "{{ body }}"]), 2, &["body", "text"]);
    fs::write(dir.path().join("empty.jsonl"), "").unwrap();
    check(&batch(dir.path(), &["empty.jsonl"]), 2, &["empty"]);
}

#[test]
fn an_output_that_is_not_ours_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    prompts(dir.path(), 2);
    fs::write(dir.path().join("data.out.jsonl"), "precious\n").unwrap();
    check(&batch(dir.path(), &["data.jsonl"]), 2, &["data.out.jsonl", "--overwrite"]);
    assert_eq!(fs::read_to_string(dir.path().join("data.out.jsonl")).unwrap(), "precious\n");
}

#[test]
fn a_base_url_that_is_none_is_a_usage_error_and_no_internal_one() {
    let dir = tempfile::tempdir().unwrap();
    prompts(dir.path(), 1);
    for url in ["localhost:8000", "http://u:sk-canary@127.0.0.1:9/v1"] {
        let output = batch(dir.path(), &["data.jsonl", "--base-url", url]);
        check(&output, 2, &["base_url"]);
        assert!(!String::from_utf8_lossy(&output.stderr).contains("canary"));
    }
}

#[test]
fn nobody_there_is_6_and_a_wrong_key_is_4() {
    let dir = tempfile::tempdir().unwrap();
    prompts(dir.path(), 20);
    // Port 9 (discard) is closed on any machine that runs tests.
    let args = ["data.jsonl", "--base-url", "http://127.0.0.1:9/v1", "--max-attempts", "1"];
    check(&batch(dir.path(), &args), 6, &["127.0.0.1:9"]);

    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (_sim, address) = runtime.block_on(simulator(&["--api-key", "sk-right"]));
    let base = format!("http://{address}/v1");
    check(&batch(dir.path(), &["data.jsonl", "--base-url", &base]), 4, &["OPENAI_API_KEY"]);
}

#[test]
fn status_of_a_named_output_hinted_at_another_job() {
    let dir = tempfile::tempdir().unwrap();
    let rows = "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]}\n{\"messages\":[]}\n";
    fs::write(dir.path().join("data.jsonl"), rows).unwrap();
    check(&batch(dir.path(), &["data.jsonl", "-o", "other.jsonl"]), 3, &[]);
    let status = batch(dir.path(), &["status", "data.jsonl", "-o", "other.jsonl"]);
    let said = String::from_utf8_lossy(&status.stdout);
    assert!(said.contains("batch retry data.jsonl -o other.jsonl"), "{said}");
}
