//! Upstreams: where they are, and what we are there.

use super::{Findings, is_header_name, is_open_to_others};
use tidegate_sdk::{OauthSettings, Protocol, UpstreamSettings};
use tidegate_upstream::ClientCredentials;

/// Whether the upstream can be called as it is written.
pub(super) fn check(name: &str, upstream: &UpstreamSettings, findings: &mut Findings<'_>) {
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
