//! Where a PostgreSQL database is, as it is written and as it is meant.

use super::{CONNECT_TIMEOUT, STATEMENT_TIMEOUT, explain, tls::Tls};
use std::{net::IpAddr, path::PathBuf, time::Duration};
use tidegate_core::{Error, Kind, Origin, Result, Secret};
use tokio_postgres::{
    Config,
    config::{Host, SslMode},
};

/// Where a database is, and how to speak to it.
#[derive(Clone)]
pub(in super::super) struct Address {
    pub(super) config: Config,
    pub(super) tls: Tls,
}

impl Address {
    /// Reads `postgres://user:password@host:5432/database`, or libpq's `key=value` words.
    ///
    /// # Errors
    ///
    /// Says what is wrong with it, without repeating it.
    pub(in super::super) fn parse(url: &Secret<String>) -> Result<Self> {
        let wrong = |what: &str| {
            Error::new(
                Kind::InvalidRequest,
                Origin::Gateway,
                format!(
                    "{what}: write it like postgres://user:password@host:5432/database?sslmode=require"
                ),
            )
        };
        let Parts { url, ssl_mode, root_cert } = split(url.expose());
        let mut config: Config = url.parse().map_err(|cause: tokio_postgres::Error| {
            let mut why = explain(&cause);
            // Its name may be a part of a password that holds a `?`.
            if why.contains("unknown option") {
                why = "it has an option that is unknown".to_owned();
            }
            wrong(&format!("this is no address of a PostgreSQL database ({why})"))
        })?;
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err(wrong("the address names no host"));
        }
        // Otherwise the rest of the password would be the name of the host, and told.
        if config
            .get_hosts()
            .iter()
            .any(|host| matches!(host, Host::Tcp(name) if name.contains('@')))
        {
            return Err(wrong("the password holds an `@`, which is to be written %40"));
        }
        let ssl_mode = match ssl_mode.as_deref() {
            None if is_local(&config) => SslMode::Disable,
            None | Some("prefer" | "allow") => SslMode::Prefer,
            Some("disable") => SslMode::Disable,
            Some("require" | "verify-ca" | "verify-full") => SslMode::Require,
            Some(_) => return Err(wrong("sslmode is disable, prefer, require or verify-full")),
        };
        config.ssl_mode(ssl_mode).connect_timeout(CONNECT_TIMEOUT);
        config.keepalives_idle(Duration::from_secs(30)).tcp_user_timeout(STATEMENT_TIMEOUT);
        if config.get_application_name().is_none() {
            config.application_name("tidegate");
        }
        let tls = Tls::new(root_cert.as_deref()).map_err(|what| wrong(&what))?;
        Ok(Self { config, tls })
    }

    /// Host and database, as they may be shown.
    pub(in super::super) fn shown(&self) -> String {
        let host = match self.config.get_hosts().first() {
            Some(Host::Tcp(host)) => host.clone(),
            #[cfg(unix)]
            Some(Host::Unix(path)) => path.display().to_string(),
            None => self.config.get_hostaddrs().first().map(IpAddr::to_string).unwrap_or_default(),
        };
        match self.config.get_dbname().or(self.config.get_user()) {
            Some(name) => format!("{host}/{name}"),
            None => host,
        }
    }
}

/// What the crate below does not know of a URL is taken out of it.
struct Parts {
    url: String,
    ssl_mode: Option<String>,
    root_cert: Option<PathBuf>,
}

fn split(url: &str) -> Parts {
    let mut parts = Parts { url: String::new(), ssl_mode: None, root_cert: None };
    let is_url = url.contains("://");
    let (head, words) = match url.split_once('?') {
        Some((head, words)) if is_url => (head, words.split('&').collect::<Vec<_>>()),
        _ if is_url => (url, Vec::new()),
        _ => ("", url.split_whitespace().collect()),
    };
    let mut kept = Vec::new();
    for word in words {
        match word.split_once('=') {
            Some(("sslmode", mode)) => parts.ssl_mode = Some(mode.to_owned()),
            Some(("sslrootcert", path)) => parts.root_cert = Some(unescape(path).into()),
            _ => kept.push(word),
        }
    }
    parts.url = match (is_url, kept.is_empty()) {
        (true, true) => head.to_owned(),
        (true, false) => format!("{head}?{}", kept.join("&")),
        (false, _) => kept.join(" "),
    };
    parts
}

/// The one escape a path needs in a URL.
fn unescape(path: &str) -> String {
    path.replace("%2F", "/").replace("%2f", "/")
}

/// Whether nobody stands in between.
fn is_local(config: &Config) -> bool {
    config.get_hosts().iter().all(|host| match host {
        Host::Tcp(name) => {
            name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
        }
        #[cfg(unix)]
        Host::Unix(_) => true,
    }) && config.get_hostaddrs().iter().all(IpAddr::is_loopback)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(url: &str) -> Result<Address> {
        Address::parse(&Secret::new(url.to_owned()))
    }

    #[test]
    fn tls_is_used_unless_nobody_stands_in_between() {
        let mode = |url| parsed(url).unwrap().config.get_ssl_mode();
        for (url, expected) in [
            ("postgres://u:p@db.example/x", SslMode::Prefer),
            ("postgres://u:p@127.0.0.1/x", SslMode::Disable),
            ("postgresql:///x?host=/run/postgresql", SslMode::Disable),
            ("postgres://u:p@localhost/x?sslmode=require", SslMode::Require),
            ("postgres://u:p@db.example/x?sslmode=verify-full&connect_timeout=3", SslMode::Require),
            ("postgres://u:p@db.example/x?sslmode=disable", SslMode::Disable),
            ("host=db.example user=u sslmode=verify-ca", SslMode::Require),
        ] {
            assert_eq!(mode(url), expected, "{url}");
        }
        let address = parsed("postgres://u:canary@db.example:6543/books").unwrap();
        assert_eq!(address.shown(), "db.example/books");
    }

    #[test]
    fn what_cannot_be_used_is_refused_and_not_repeated() {
        for (url, said) in [
            ("", "no host"),
            ("postgres://u:canary@db:notaport/x", "no address"),
            ("postgres://u:canary@db/x?sslmode=sometimes", "sslmode is"),
            ("postgres://u:canary@db/x?sslrootcert=/no/such/file", "sslrootcert"),
        ] {
            let error = parsed(url).err().unwrap();
            assert!(error.message().contains(said), "{url}: {error}");
            assert!(!format!("{error:?}").contains("canary"), "{url}: {error:?}");
        }
    }
}
