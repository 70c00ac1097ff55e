//! From what a configuration says of a secret to the secret: the only place that reads one.
//!
//! No message here ever holds a value, only where it should have come from.

use super::{Config, check::Findings, environment::Environment};
use std::{
    collections::BTreeMap,
    fmt, fs,
    io::Read,
    path::{Path, PathBuf},
};
use tidegate_core::Secret;
use tidegate_policy::setting::SecretRef;

/// Longest secret: the longest tokens there are have a few KiB.
const MAX_BYTES: u64 = 64 << 10;

/// The secrets that could be found.
#[derive(Default)]
pub(super) struct Secrets {
    /// By the upstream's name.
    pub(super) api_keys: BTreeMap<String, Secret<String>>,
    /// By the upstream's name.
    pub(super) client_secrets: BTreeMap<String, Secret<String>>,
    pub(super) admin_token: Option<Secret<String>>,
}

/// The secrets that every start needs: all but the address of the ledger's database.
pub(super) fn all(
    config: &Config,
    environment: &Environment,
    findings: &mut Findings<'_>,
) -> Secrets {
    let mut secrets = Secrets::default();
    for (owner, written) in written(config) {
        let Some(secret) = found(written, &owner.path(), environment, findings) else { continue };
        match owner {
            Owner::ApiKey(upstream) => _ = secrets.api_keys.insert(upstream, secret),
            Owner::ClientSecret(upstream) => _ = secrets.client_secrets.insert(upstream, secret),
            Owner::AdminToken => secrets.admin_token = Some(secret),
        }
    }
    secrets
}

/// The address of the ledger's database, which has a password in it.
pub(super) fn ledger_url(
    config: &Config,
    environment: &Environment,
    findings: &mut Findings<'_>,
) -> Option<Secret<String>> {
    let written = config.ledger.url.as_ref()?;
    found(written, &["ledger", "url"], environment, findings)
}

/// Whose secret it is, and what it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// Our key at this upstream.
    ApiKey(String),
    /// Our secret at the token endpoint of this upstream.
    ClientSecret(String),
    /// What operators must send.
    AdminToken,
}

impl Owner {
    /// Where the setting is.
    fn path(&self) -> Vec<&str> {
        match self {
            Self::ApiKey(upstream) => vec!["upstreams", upstream, "api_key"],
            Self::ClientSecret(upstream) => vec!["upstreams", upstream, "oauth", "client_secret"],
            Self::AdminToken => vec!["server", "admin_token"],
        }
    }
}

impl fmt::Display for Owner {
    /// The setting.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path().join("."))
    }
}

/// A secret that is in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SecretFile {
    pub(crate) owner: Owner,
    /// As it was written.
    pub(crate) shown: PathBuf,
    /// Where it is.
    path: PathBuf,
}

impl SecretFile {
    /// The secret as it is in the file now. A pipe, which gives what it has only once, is not read.
    ///
    /// # Errors
    ///
    /// A sentence that says what is wrong, never a value.
    pub(crate) fn read(&self) -> Result<Secret<String>, String> {
        let shown = self.shown.display();
        match fs::metadata(&self.path) {
            Ok(found) if found.is_file() => {}
            Ok(_) => return Err(format!("{shown} is no regular file")),
            Err(cause) => return Err(format!("cannot read {shown}: {cause}")),
        }
        checked(file(&self.shown, &self.path)?, &shown.to_string(), "the setting")
    }
}

/// The secrets that are in regular files.
pub(super) fn files(config: &Config, environment: &Environment) -> Vec<SecretFile> {
    let files = written(config).filter_map(|(owner, written)| {
        let SecretRef::File(shown) = written else { return None };
        Some(SecretFile { owner, shown: shown.clone(), path: environment.locate(shown) })
    });
    files.filter(|file| fs::metadata(&file.path).is_ok_and(|found| found.is_file())).collect()
}

/// What is written of every secret.
fn written(config: &Config) -> impl Iterator<Item = (Owner, &SecretRef)> {
    let api_keys = config.upstreams.iter().filter_map(|(name, upstream)| {
        Some((Owner::ApiKey(name.clone()), upstream.api_key.as_ref()?))
    });
    let client_secrets = config.upstreams.iter().filter_map(|(name, upstream)| {
        let oauth = upstream.oauth.as_ref()?;
        Some((Owner::ClientSecret(name.clone()), &oauth.client_secret))
    });
    let admin_token = config.server.admin_token.as_ref().map(|token| (Owner::AdminToken, token));
    api_keys.chain(client_secrets).chain(admin_token)
}

/// The secret written at `path`; says what is wrong or risky about it.
fn found(
    written: &SecretRef,
    path: &[&str],
    environment: &Environment,
    findings: &mut Findings<'_>,
) -> Option<Secret<String>> {
    let key = path.last().copied().unwrap_or_default();
    let secret =
        resolve(written, key, environment).map_err(|message| findings.problem(path, message)).ok();
    match written {
        SecretRef::Literal(_) if findings.is_in_a_file(path) => findings
            .warning(path, "is written out here: use { env = \"NAME\" } or { file = \"/path\" }"),
        SecretRef::File(file) if others_can_read(&environment.locate(file)) => {
            findings.warning(path, format!("every user can read {}: chmod o-r it", file.display()))
        }
        _ => {}
    }
    secret
}

/// The secret itself, written under `key`.
///
/// # Errors
///
/// A sentence that says what is missing, never a value.
fn resolve(
    written: &SecretRef,
    key: &str,
    environment: &Environment,
) -> Result<Secret<String>, String> {
    let (text, from) = match written {
        SecretRef::Literal(secret) => (secret.expose().clone(), "it".to_owned()),
        SecretRef::Env(name) => (variable(name, environment)?, format!("${name}")),
        SecretRef::File(path) => {
            (file(path, &environment.locate(path))?, path.display().to_string())
        }
    };
    checked(text, &from, key)
}

fn checked(text: String, from: &str, key: &str) -> Result<Secret<String>, String> {
    if text.trim().is_empty() {
        return Err(format!("{from} is empty: leave {key} out if there is none"));
    }
    if text.chars().any(|c| c.is_control() || !c.is_ascii()) {
        return Err(format!("{from} holds a character that no key has (a line break, perhaps)"));
    }
    Ok(Secret::new(text))
}

fn variable(name: &str, environment: &Environment) -> Result<String, String> {
    if environment.is_unreadable(name) {
        return Err(format!("the environment variable {name} is not UTF-8 text"));
    }
    let value = environment.variable(name).map(str::to_owned);
    value.ok_or_else(|| format!("the environment variable {name} is not set: export it first"))
}

fn file(shown: &Path, path: &Path) -> Result<String, String> {
    let shown = shown.display();
    let unreadable = |cause: std::io::Error| format!("cannot read {shown}: {cause}");
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(unreadable)?;
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(format!("{shown} is longer than 64 KiB: that is no secret"));
    }
    let text = String::from_utf8(bytes).map_err(|_| format!("{shown} is not UTF-8 text"))?;
    // Editors and `echo` end a file with a line break that is no part of the secret.
    let text = text.strip_suffix('\n').unwrap_or(&text);
    Ok(text.strip_suffix('\r').unwrap_or(text).to_owned())
}

#[cfg(unix)]
fn others_can_read(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(path).is_ok_and(|file| file.permissions().mode() & 0o004 != 0)
}

#[cfg(not(unix))]
const fn others_can_read(_: &Path) -> bool {
    false
}
