//! Looking for secrets where they do not belong.

use crate::web::send;
use http_body_util::BodyExt as _;
use std::{
    fmt::Write as _,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Output,
};

/// What was seen where it does not belong.
#[derive(Default)]
pub(super) struct Findings(pub(super) String);

impl Findings {
    pub(super) fn look(&mut self, place: &str, at: &[u8], secrets: &[&str]) {
        for secret in secrets {
            if let Some(how) = seen(at, secret) {
                writeln!(self.0, "{place}: {secret} {how}: {}", String::from_utf8_lossy(at))
                    .unwrap();
            }
        }
    }
}

/// Every file below `dir`.
pub(super) fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

/// Sends one request and looks through its answer.
pub(super) async fn ask(
    findings: &mut Findings,
    secrets: &[&str],
    to: SocketAddr,
    (method, path): (&str, &str),
    headers: &[(&str, &str)],
    body: &str,
) -> u16 {
    let response = send(to, method, path, headers, body).await;
    let (head, body) = response.into_parts();
    let mut said = format!("{:?}\n", head.headers).into_bytes();
    if let Ok(body) = body.collect().await {
        said.extend_from_slice(&body.to_bytes());
    }
    findings.look(&format!("{method} {path} {:?}", headers.first()), &said, secrets);
    head.status.as_u16()
}

pub(super) fn looked_through(what: &str, output: &Output, secrets: &[&str]) {
    let mut findings = Findings::default();
    findings.look("standard output", &output.stdout, secrets);
    findings.look("standard error", &output.stderr, secrets);
    assert!(findings.0.is_empty(), "{what}: {}", findings.0);
}

/// Looks through the data directory. The signing keys are what their files are for.
pub(super) fn at_rest(findings: &mut Findings, state: &Path, secrets: &[&str]) {
    for path in files(state).iter().filter(|path| !is_pem(path)) {
        findings.look(&path.display().to_string(), &fs::read(path).unwrap(), secrets);
    }
}

pub(super) fn private_keys(state: &Path) -> Vec<String> {
    let files = files(state);
    let pems = files.iter().filter(|path| is_pem(path));
    let lines = pems.map(|path| fs::read_to_string(path).unwrap().lines().nth(1).unwrap().into());
    let keys: Vec<String> = lines.collect();
    assert!(!keys.is_empty());
    keys
}

pub(super) fn is_pem(path: &Path) -> bool {
    path.extension().is_some_and(|kind| kind == "pem")
}

/// How a secret could be seen in `haystack`, if it can.
fn seen(haystack: &[u8], secret: &str) -> Option<&'static str> {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let has = |needle: &[u8]| haystack.windows(needle.len()).any(|found| found == needle);
    let lower = haystack.to_ascii_lowercase();
    if lower.windows(secret.len()).any(|found| found == secret.to_ascii_lowercase().as_bytes()) {
        return Some("as it is");
    }
    let hex = secret.bytes().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").unwrap();
        hex
    });
    if lower.windows(hex.len()).any(|found| found == hex.as_bytes()) {
        return Some("in hexadecimal");
    }
    let bytes = secret.bytes().map(|byte| byte.to_string()).collect::<Vec<_>>().join(", ");
    if has(bytes.as_bytes()) {
        return Some("as bytes");
    }
    // What stands before it shifts its base64 by none, one or two bytes; whole groups stay.
    for skipped in 0..3 {
        let groups = secret.as_bytes()[skipped..].chunks_exact(3).map(|group| {
            let bits = u32::from_be_bytes([0, group[0], group[1], group[2]]);
            [18, 12, 6, 0].map(|shift| DIGITS[(bits >> shift) as usize & 63])
        });
        if has(&groups.flatten().collect::<Vec<u8>>()) {
            return Some("in base64");
        }
    }
    None
}

#[test]
fn a_canary_is_found_however_it_is_written() {
    const SECRET: &str = super::FROM_FILE;
    assert_eq!(seen(b"x kAnArYFile2cS9 y", SECRET), Some("as it is"));
    assert_eq!(seen(b"x canary y", SECRET), None);
    // "us:kAnArYFile2cS9", as HTTP Basic has it.
    assert_eq!(seen(b"Basic dXM6a0FuQXJZRmlsZTJjUzk=", SECRET), Some("in base64"));
    assert_eq!(seen(format!("{:?}", SECRET.as_bytes()).as_bytes(), SECRET), Some("as bytes"));
    assert_eq!(seen(b"6b416e41725946696c65326353 39", SECRET), None);
    assert_eq!(seen(b"6b416e41725946696c6532635339", SECRET), Some("in hexadecimal"));
}
