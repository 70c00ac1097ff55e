//! `tidegate bench` from the outside: its files, its table and its exit codes.

use crate::web::{BIN, simulator};
use std::{path::Path, process::Command, time::Duration};
use tidegate_testkit::process::{Pipe, Tidegate};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

/// Runs `tidegate bench`; exit code, standard output, standard error.
fn bench(dir: &Path, args: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(BIN).arg("bench").args(args).current_dir(dir).output().unwrap();
    let text = |pipe: &[u8]| String::from_utf8_lossy(pipe).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[tokio::test]
async fn a_run_writes_its_reports_and_compares() {
    let dir = tempfile::tempdir().unwrap();
    let (_sim, address) = simulator(&["--ttft", "5ms", "--itl", "1ms"]).await;
    let url = format!("http://{address}");
    let common = ["--warmup", "0s", "-n", "30", "--stream", "--max-tokens", "4"];
    for (file, load) in [("a.json", ["--rate", "300"]), ("b.json", ["--concurrency", "4"])] {
        let args = [&[&*url, "--json", file, "--html", "page.html"][..], &load, &common].concat();
        let (code, table, said) = bench(dir.path(), &args);
        assert_eq!(code, Some(0), "{said}");
        assert!(table.contains("30 ok (100 %)") && table.contains("first token"), "{table}");
    }
    let page = std::fs::read_to_string(dir.path().join("page.html")).unwrap();
    assert!(page.contains("<svg"));

    let to_stdout = [&url, "--json", "-", "--rate", "100", "--arrivals", "uniform"];
    let (code, json, table) = bench(dir.path(), &[&to_stdout[..], &common].concat());
    let report: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((code, &report["requests"]["ok"]), (Some(0), &30.into()));
    assert!(table.contains("30 ok"), "the table gives way to the data: {table}");

    let (code, text, _) = bench(dir.path(), &["compare", "a.json", "b.json"]);
    assert!(code == Some(0) && text.contains("ratio") && text.contains("not the same load"));
    let mut worse: serde_json::Value = read(&dir.path().join("a.json"));
    twice_as_slow(&mut worse);
    std::fs::write(dir.path().join("worse.json"), worse.to_string()).unwrap();
    let apart = ["compare", "a.json", "worse.json", "--fail-above", "50%"];
    let (code, text, said) = bench(dir.path(), &apart);
    assert!(code == Some(3) && text.contains("WORSE"), "{text}");
    assert!(said.contains("worse by more than 50 %"), "{said}");
    let same = ["compare", "a.json", "a.json", "--fail-above", "1%"];
    assert_eq!(bench(dir.path(), &same).0, Some(0));
}

fn read(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Doubles every percentile of a report.
fn twice_as_slow(report: &mut serde_json::Value) {
    match report {
        serde_json::Value::Object(fields) => {
            for (name, value) in fields {
                match value.as_f64() {
                    Some(number) if name.starts_with('p') && name.ends_with("_ms") => {
                        *value = (number * 2.0).into()
                    }
                    _ => twice_as_slow(value),
                }
            }
        }
        serde_json::Value::Array(values) => values.iter_mut().for_each(twice_as_slow),
        _ => {}
    }
}

#[tokio::test]
async fn errors_have_exit_codes() {
    let dir = tempfile::tempdir().unwrap();
    let (_sim, address) = simulator(&["--error-rate", "1", "--error-status", "503"]).await;
    let url = format!("http://{address}");
    let few = ["--warmup", "0s", "-n", "5", "-c", "1"];
    let (code, table, _) = bench(dir.path(), &[&[&*url][..], &few].concat());
    assert!(code == Some(0) && table.contains("503: 5"), "{table}");
    let strict = [&[&*url, "--max-error-share", "1%"][..], &few].concat();
    assert_eq!(bench(dir.path(), &strict).0, Some(3));
    for (args, code, says) in [
        (&["ftp://h"][..], 2, "http://"),
        (&[&*url, "--rate", "0"], 2, "--rate"),
        (&[&*url, "--slo", "p99=1s"], 2, "ttft"),
        (&[&*url, "--prompts", "none.jsonl"], 2, "none.jsonl"),
        (&[&*url, "--api-key-env", "NO_SUCH_VARIABLE"], 2, "no such variable"),
        (&["compare", "a.json", "b.json"], 2, "a.json"),
        (&["http://127.0.0.1:1", "--model", "m", "--json", "new.json"], 6, "127.0.0.1:1"),
        (&["http://127.0.0.1:99999"], 2, "65535"),
        (&[&*url, "--max-in-flight", "5"], 2, "--rate"),
        (&[&*url, "--rate", "-5"], 2, "--rate must be"),
        (&[&*url, "--html", "-"], 2, "--html"),
        (&[&*url, "--json", "new.json", "--html", "/proc/none"], 2, "cannot be written"),
        (&[&*url, "--max-error-share", "101%"], 2, "100%"),
        (&[&*url, "--rate", "0.01", "--warmup", "0s", "--duration", "10ms"], 2, "measured"),
    ] {
        let (found, _, said) = bench(dir.path(), args);
        assert!(found == Some(code) && said.contains(says), "{args:?}: {found:?} {said}");
    }
    assert!(!dir.path().join("new.json").exists(), "an empty file is no report");

    let (_sim, address) = simulator(&["--api-key", "right"]).await;
    let mut locked = Command::new(BIN);
    locked.args(["bench", &format!("http://{address}")]).env("OPENAI_API_KEY", "wrong");
    let output = locked.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(4) && said.contains("check the key"), "{said}");
}

#[tokio::test]
async fn an_interrupted_run_reports_what_it_saw() {
    const ANSWER: &str =
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
    let dir = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let mut command = Command::new(BIN);
    command
        .args(["bench", &url, "--model", "m", "-c", "1", "--warmup", "0s", "--json", "run.json"]);
    let process = Tidegate::spawn_command(command.current_dir(dir.path())).unwrap();
    let (mut socket, _) = listener.accept().await.unwrap();
    let mut request = [0; 4096];
    // Some are answered, and one is in flight when the signal comes.
    for number in 0..10 {
        assert!(socket.read(&mut request).await.unwrap() > 0);
        if number == 9 {
            process.terminate().unwrap();
            process.line(Pipe::Stderr, "stopping").await;
        }
        socket.write_all(ANSWER.as_bytes()).await.unwrap();
    }
    let ended = process.wait(Duration::from_secs(30)).await;
    assert_eq!(ended.status.code(), Some(130), "{}", ended.stderr);
    assert!(ended.stdout.contains("stopped before its time"), "{}", ended.stdout);
    let report = read(&dir.path().join("run.json"));
    assert_eq!((&report["requests"]["ok"], &report["ended_early"]), (&10.into(), &true.into()));
}
