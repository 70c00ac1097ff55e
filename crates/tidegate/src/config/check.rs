//! What a type cannot say: names that must exist, numbers that would stop everything.

mod limits;
mod money;

use super::{
    AdminListen, Config,
    decode::show_path,
    problem::{Place, Problem, hint},
    tree::Node,
};
use tidegate_sdk::{ModelSettings, OauthSettings, Protocol, UpstreamSettings};
use tidegate_upstream::ClientCredentials;

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
        check_upstream(name, upstream, findings);
    }
    for (name, model) in &config.models {
        check_model(name, model, config, findings);
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

fn check_upstream(name: &str, upstream: &UpstreamSettings, findings: &mut Findings<'_>) {
    let path = ["upstreams", name];
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    findings.refuse_if(
        name.is_empty() || name.len() > 64 || !name.chars().all(plain),
        &path,
        "a name of an upstream is 1 to 64 letters, digits, - _ or .",
    );
    let key = |key| ["upstreams", name, key];
    match (upstream.protocol, upstream.base_url.as_str()) {
        (Protocol::Sim, "") => {}
        (Protocol::Sim, _) => {
            findings.warning(&key("base_url"), "the built-in simulator needs none")
        }
        (Protocol::Openai, "") => findings
            .problem(&path, "`base_url` is missing: where is it, like \"http://10.0.0.5:8000/v1\""),
        (Protocol::Openai, url) => {
            if let Err(message) = check_url(url) {
                findings.problem(&key("base_url"), message);
            }
        }
    }
    let fixed = tidegate_policy::concurrency::Options::Fixed(0);
    let nothing = "0 would let no call through; leave it out for no limit of ours";
    findings.refuse_if(upstream.max_concurrency == fixed, &key("max_concurrency"), nothing);
    for (name, rate) in [
        ("requests_per_minute", upstream.requests_per_minute),
        ("requests_per_second", upstream.requests_per_second),
    ] {
        let wrong = rate.is_some_and(|rate| !rate.is_finite() || rate <= 0.0);
        findings.refuse_if(wrong, &key(name), "must be more than 0");
    }
    findings.refuse_if(upstream.tokens_per_minute == Some(0), &key("tokens_per_minute"), nothing);
    if let Some(oauth) = &upstream.oauth {
        check_account(name, upstream, oauth, findings);
    }
    check_connection(name, &upstream.connection, findings);
}

/// Our account at an upstream's token endpoint.
fn check_account(
    name: &str,
    upstream: &UpstreamSettings,
    oauth: &OauthSettings,
    findings: &mut Findings<'_>,
) {
    let key = |key| ["upstreams", name, "oauth", key];
    if let Err(wrong) = ClientCredentials::check_url(&oauth.token_url) {
        findings.problem(&key("token_url"), wrong);
    } else if is_open_to_others(&oauth.token_url) {
        findings.warning(&key("token_url"), "is plain HTTP: our secret can be read on the way");
    }
    findings.refuse_if(
        oauth.client_id.is_empty(),
        &key("client_id"),
        "is empty: who are we there?",
    );
    let whole = ["upstreams", name, "oauth"];
    let both = "stands beside api_key: the upstream is sent a key or a token, so leave one out";
    findings.refuse_if(upstream.api_key.is_some(), &whole, both);
    let simulated = "is for an upstream that asks for tokens: the built-in simulator asks for none";
    findings.refuse_if(upstream.protocol == Protocol::Sim, &whole, simulated);
}

fn check_connection(
    name: &str,
    connection: &tidegate_upstream::Options,
    findings: &mut Findings<'_>,
) {
    let key = |key| ["upstreams", name, "connection", key];
    for (name, zero) in [
        ("max_connections", connection.max_connections == 0),
        ("lifetime", connection.lifetime.is_zero()),
        ("max_answer_bytes", connection.max_answer_bytes == 0),
    ] {
        findings.refuse_if(zero, &key(name), "must be more than 0");
    }
    for (header, value) in &connection.headers {
        let path = ["upstreams", name, "connection", "headers", header];
        findings.refuse_if(!is_header_name(header), &path, "is no name of a header");
        let wrong = value.chars().any(|c| c.is_control() || !c.is_ascii());
        findings.refuse_if(wrong, &path, "has a value with a character that no header has");
    }
}

fn is_header_name(name: &str) -> bool {
    let token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    !name.is_empty() && name.chars().all(token)
}

/// A URL is not repeated in messages: one with a password in it was written before.
fn check_url(url: &str) -> Result<(), &'static str> {
    let Some(rest) = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://")) else {
        return Err("must begin with http:// or https://");
    };
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    if authority.contains('@') {
        return Err("holds a user or password: put the key into `api_key`");
    }
    if url.contains(['?', '#']) {
        return Err("ends with its path, such as /v1: no ? and no #");
    }
    if url.chars().any(|c| c.is_whitespace() || c.is_control() || !c.is_ascii()) {
        return Err("holds a character that no URL has");
    }
    let port = match authority.rsplit_once(':') {
        Some((_, port)) if !port.ends_with(']') => Some(port),
        _ => None,
    };
    let host = port.map_or(authority, |port| &authority[..authority.len() - port.len() - 1]);
    if host.is_empty() {
        return Err("names no host");
    }
    if port.is_some_and(|port| !port.parse::<u16>().is_ok_and(|port| port > 0)) {
        return Err("its port is not a number from 1 to 65535");
    }
    if path.ends_with("chat/completions") {
        return Err("ends with /v1: the rest of the path is each call's own");
    }
    Ok(())
}

fn check_model(name: &str, model: &ModelSettings, config: &Config, findings: &mut Findings<'_>) {
    let path = ["models", name];
    let bad = |c: char| c.is_control() || c.is_whitespace();
    findings.refuse_if(
        name.is_empty() || name.len() > 256 || name.contains(bad),
        &path,
        "a name of a model is 1 to 256 bytes without blanks",
    );
    let targets = ["models", name, "targets"];
    findings.refuse_if(
        model.targets.is_empty(),
        &targets,
        "at least one is needed, like [{ upstream = \"NAME\" }]",
    );
    for (index, target) in model.targets.iter().enumerate() {
        let index = index.to_string();
        let path = ["models", name, "targets", &index, "upstream"];
        check_upstream_is_there(&target.upstream, &path, config, findings);
        if let Some(header) = target.matches.as_ref().and_then(|found| found.header.as_ref()) {
            let path = ["models", name, "targets", &index, "match", "header", "name"];
            let wrong = !is_header_name(&header.name);
            findings.refuse_if(wrong, &path, "is no name of a header");
        }
        let empty = target.model.as_ref().is_some_and(String::is_empty);
        let path = ["models", name, "targets", &index, "model"];
        findings.refuse_if(empty, &path, "is empty: leave it out for the callers' own name");
    }
    let parked = !model.targets.is_empty() && model.targets.iter().all(|target| target.weight == 0);
    findings.refuse_if(parked, &targets, "every weight is 0, so no call could go anywhere");
    if !model.targets.is_empty() && model.targets.iter().all(|target| target.matches.is_some()) {
        findings.warning(&targets, "every target has a match: calls that fit none are refused");
    }
    if let Some(mirror) = &model.mirror {
        let path = ["models", name, "mirror", "upstream"];
        check_upstream_is_there(&mirror.upstream, &path, config, findings);
    }
    check_timeouts(name, model, findings);
    money::check_prices(name, model, findings);
}

fn check_upstream_is_there(
    written: &str,
    path: &[&str],
    config: &Config,
    findings: &mut Findings<'_>,
) {
    if !config.upstreams.contains_key(written) && !findings.is_lost(written) {
        let hint = hint(written, config.upstreams.keys().map(String::as_str), "upstreams");
        findings.problem(path, format!("there is no upstream `{written}`{hint}"));
    }
}

fn check_timeouts(name: &str, model: &ModelSettings, findings: &mut Findings<'_>) {
    use tidegate_policy::timeout::FirstToken;
    let timeouts = &model.timeouts;
    let first_token = match timeouts.first_token {
        FirstToken::Adaptive => None,
        FirstToken::Fixed(clock) => Some(clock),
    };
    for (key, clock) in [
        ("connect", Some(timeouts.connect)),
        ("first_token", first_token),
        ("idle", Some(timeouts.idle)),
        ("total", Some(timeouts.total)),
    ] {
        let zero = clock.is_some_and(|clock| clock.is_zero());
        findings.refuse_if(zero, &["models", name, "timeouts", key], "must be more than 0");
    }
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

#[cfg(test)]
mod tests {
    use super::check_url;

    #[test]
    fn urls_that_cannot_work_are_refused() {
        for good in [
            "http://10.0.0.5:8000/v1",
            "https://api.openai.com/v1",
            "http://localhost",
            "http://[::1]:8080/v1",
            "http://[::1]/v1",
        ] {
            assert_eq!(check_url(good), Ok(()), "{good}");
        }
        for (bad, said) in [
            ("api.openai.com", "must begin"),
            ("ftp://x/v1", "must begin"),
            ("https://user:canary@x/v1", "password"),
            ("https://x/v1?key=canary", "no ?"),
            ("https:///v1", "no host"),
            ("https://:80/v1", "no host"),
            ("https://x:port/v1", "port"),
            ("https://x:99999/v1", "port"),
            ("https://x:0/v1", "port"),
            ("https://x y/v1", "character"),
            ("https://x/v1/chat/completions", "ends with /v1"),
        ] {
            let message = check_url(bad).unwrap_err();
            assert!(message.contains(said) && !message.contains("canary"), "{bad}: {message}");
        }
    }
}
