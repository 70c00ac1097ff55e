//! What a type cannot say: names that must exist, numbers that would stop everything.

mod limits;
mod model;
mod money;
mod upstream;

use super::{
    AdminListen, Config,
    decode::show_path,
    problem::{Place, Problem, hint},
    tree::Node,
};

/// What was found, each thing placed where it was written.
pub(super) struct Findings<'a> {
    tree: &'a Node,
    /// Paths of what could not be read: nothing more is said of what depends on them.
    lost: &'a [Vec<String>],
    pub(super) problems: Vec<Problem>,
    pub(super) warnings: Vec<Problem>,
}

impl<'a> Findings<'a> {
    pub(super) const fn new(tree: &'a Node, lost: &'a [Vec<String>]) -> Self {
        Self { tree, lost, problems: Vec::new(), warnings: Vec::new() }
    }

    /// Something that cannot work.
    pub(super) fn problem(&mut self, path: &[&str], message: impl AsRef<str>) {
        // Enough was said of what lies above or below.
        let follows = |lost: &Vec<String>| lost.iter().zip(path).all(|(lost, word)| lost == word);
        if !self.lost.iter().any(follows) {
            self.problems.push(self.at(path, message.as_ref()));
        }
    }

    /// Something that works and should be looked at.
    pub(super) fn warning(&mut self, path: &[&str], message: impl AsRef<str>) {
        self.warnings.push(self.at(path, message.as_ref()));
    }

    /// Whether the value was written in a file, and not given from outside.
    pub(super) fn is_in_a_file(&self, path: &[&str]) -> bool {
        matches!(self.tree.nearest(path).place, Place::File { .. })
    }

    /// Whether an upstream is there, but could not be read.
    fn is_lost(&self, upstream: &str) -> bool {
        self.lost.iter().any(|lost| match &lost[..] {
            [table] => table == "upstreams",
            [table, name] => table == "upstreams" && name == upstream,
            _ => false,
        })
    }

    /// Whether the value at `path` is there, but could not be read.
    fn could_not_read(&self, path: &[&str]) -> bool {
        self.lost.iter().any(|lost| lost == path)
    }

    fn at(&self, path: &[&str], message: &str) -> Problem {
        let place = self.tree.nearest(path).place.clone();
        Problem::new(place, format!("{}: {message}", show_path(path)))
    }

    fn refuse_if(&mut self, wrong: bool, path: &[&str], message: &str) {
        if wrong {
            self.problem(path, message);
        }
    }
}

/// Checks everything, and stops at nothing.
pub(super) fn check(config: &Config, findings: &mut Findings<'_>) {
    check_server(config, findings);
    for (name, upstream) in &config.upstreams {
        upstream::check(name, upstream, findings);
    }
    for (name, model) in &config.models {
        model::check(name, model, config, findings);
    }
    limits::check(config, findings);
    money::check_budgets(config, findings);
    check_oauth(config, findings);
    check_retry(config, findings);
    check_idempotency(config, findings);
    warn_of_unused_upstreams(config, findings);
}

fn check_server(config: &Config, findings: &mut Findings<'_>) {
    if let Err(error) = config.http_options().check() {
        let message = error.to_string();
        match message.strip_prefix("tls: ") {
            Some(message) => findings.problem(&["server", "tls"], message),
            None => {
                let (key, said) = message.split_once(' ').unwrap_or((&message, "is wrong"));
                findings.problem(&["server", "limits", key], said);
            }
        }
    }
    check_admin(config, findings);
}

fn check_oauth(config: &Config, findings: &mut Findings<'_>) {
    if let Err((keys, message)) = config.oauth.check() {
        let path: Vec<&str> =
            ["oauth"].into_iter().chain(keys.iter().map(String::as_str)).collect();
        findings.problem(&path, message);
    }
    for (name, issuer) in &config.oauth.issuers {
        let (key, url) = match &issuer.jwks_url {
            Some(url) => ("jwks_url", url),
            None => ("issuer", &issuer.issuer),
        };
        if is_open_to_others(url) {
            let message = "is plain HTTP: whoever is on the way can put its own keys there";
            findings.warning(&["oauth", "issuers", name, key], message);
        }
    }
}

/// Whether a URL is plain HTTP to another machine.
fn is_open_to_others(url: &str) -> bool {
    let Some(rest) = url.strip_prefix("http://") else { return false };
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let host = match authority.strip_prefix('[') {
        Some(literal) => literal.split(']').next(),
        None => authority.split(':').next(),
    };
    let host = host.unwrap_or_default();
    let is_loopback = |address: std::net::IpAddr| address.to_canonical().is_loopback();
    host != "localhost" && !host.parse().is_ok_and(is_loopback)
}

fn check_idempotency(config: &Config, findings: &mut Findings<'_>) {
    let options = &config.idempotency;
    let nothing = "zero would keep nothing: give it a value above zero, or set enabled = false";
    for (key, is_zero) in [
        ("ttl", options.ttl.is_zero()),
        ("max_answer", options.max_answer == 0),
        ("max_bytes", options.max_bytes == 0),
        ("max_keys", options.max_keys == 0),
    ] {
        findings.refuse_if(is_zero, &["idempotency", key], nothing);
    }
    if options.max_answer > options.max_bytes {
        let message = "is more than max_bytes: such an answer is pushed out as soon as it is kept";
        findings.warning(&["idempotency", "max_answer"], message);
    }
}

fn check_admin(config: &Config, findings: &mut Findings<'_>) {
    let server = &config.server;
    let AdminListen::At(address) = server.admin_listen else { return };
    let path = ["server", "admin_listen"];
    let is_open =
        server.admin_token.is_none() && !findings.could_not_read(&["server", "admin_token"]);
    if is_open && !address.ip().to_canonical().is_loopback() {
        let message = format!(
            "other machines can reach {address}: set server.admin_token, or listen on 127.0.0.1"
        );
        findings.problem(&path, message);
    }
    let is_callers = address == server.listen && address.port() != 0;
    findings.refuse_if(is_callers, &path, "is the callers' port too: choose another, or \"off\"");
}

fn is_header_name(name: &str) -> bool {
    let token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    !name.is_empty() && name.chars().all(token)
}

fn check_retry(config: &Config, findings: &mut Findings<'_>) {
    let path = ["retry", "max_attempts"];
    let none = config.retry.max_attempts == 0;
    findings.refuse_if(none, &path, "counts the first attempt: 1 means no retry");
    let budget = &config.retry_budget;
    for (key, value) in [("ratio", budget.ratio), ("floor_per_second", budget.floor_per_second)] {
        let wrong = !value.is_finite() || value < 0.0;
        findings.refuse_if(wrong, &["retry_budget", key], "must be 0 or more");
    }
}

fn warn_of_unused_upstreams(config: &Config, findings: &mut Findings<'_>) {
    let targets = || config.models.values().flat_map(|model| &model.targets);
    let mirrors = || config.models.values().filter_map(|model| model.mirror.as_ref());
    for name in config.upstreams.keys() {
        let is_mirror = mirrors().any(|mirror| mirror.upstream == *name);
        if !is_mirror && !targets().any(|target| target.upstream == *name) {
            findings.warning(&["upstreams", name], "no model has it as a target");
        }
    }
}
