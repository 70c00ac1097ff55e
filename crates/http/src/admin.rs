//! The operators' port: what the gateway is doing, for them alone (SPEC §4).
//!
//! *Why a port of its own:* what callers can reach must not tell them about each other, and a
//! firewall knows ports, not paths. The loop, the clocks and the strict checks are those of the
//! callers' port; only what is answered, and to whom, differs.
//!
//! Without a token the port is open to whoever can connect, which is why it is then served on
//! loopback only. A browser on the same machine can connect too, on behalf of any page it shows:
//! a page that had its own name resolved to 127.0.0.1 is told by its `Host`, any other page by
//! its `Origin`.

mod mirrors;
mod upstreams;

use crate::{
    Compression, Drained, Options, accept,
    outcome::Success,
    refusal::{self, Fixed, Refusal},
    routes::NoRoute,
    service::{Front, Service, json, live, ready},
};
use hyper::{
    HeaderMap, Method, StatusCode,
    header::{AUTHORIZATION, HOST, ORIGIN},
    http::request::Parts,
};
use mirrors::Mirrors;
use std::{hint::black_box, io, net::IpAddr, sync::Arc, time::Duration};
use tidegate_core::{Answer, Secret};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use upstreams::Upstreams;

/// Connections at once: scrapers, probes and a few open dashboards.
const MAX_CONNECTIONS: usize = 256;
/// Every answer is here at once, so only writing it can take time.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves what `answer` knows of itself on `listener` until `stop`, then drains; every task is
/// joined on return. Plain HTTP/1.1 and HTTP/2.
///
/// `/livez` and `/readyz` are for everybody, the rest for those who send `token` as
/// `Authorization: Bearer`. Without a token the request's `Host` must be loopback instead. A
/// request with an `Origin` other than its own host is refused either way.
///
/// # Errors
///
/// At once, when there is no token and `listener` is not on loopback.
pub async fn serve_admin(
    listener: TcpListener,
    answer: Arc<dyn Answer>,
    token: Option<Secret<String>>,
    stop: CancellationToken,
) -> io::Result<Drained> {
    let address = listener.local_addr()?;
    if token.is_none() && !address.ip().to_canonical().is_loopback() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("the admin port on {address} can be reached from other machines: set a token"),
        ));
    }
    let options = Options {
        max_connections: MAX_CONNECTIONS,
        max_connections_per_ip: MAX_CONNECTIONS,
        drain_timeout: DRAIN_TIMEOUT,
        compression: Compression::Off,
        ..Options::default()
    };
    let service = Service::Admin(Guard { token });
    Ok(accept::run(listener, None, Front::new(service, answer, options, stop)).await)
}

/// Answers a request whose head is well-formed.
pub(crate) fn answer(front: &Front, guard: &Guard, parts: &Parts) -> Result<Success, Refusal> {
    guard.check_site(parts).map_err(Refusal::Fixed)?;
    let route = find(&parts.method, parts.uri.path());
    if !matches!(route, Ok(Route::Live | Route::Ready)) {
        guard.check_token(&parts.headers).map_err(Refusal::Fixed)?;
    }
    match route {
        Ok(Route::Upstreams) => {
            let body = json(&Upstreams(&front.answer.upstreams()));
            Ok(Success::Own { status: StatusCode::OK, json: body })
        }
        Ok(Route::Mirrors) => {
            let body = json(&Mirrors(&front.answer.mirrors()));
            Ok(Success::Own { status: StatusCode::OK, json: body })
        }
        Ok(Route::Live) => Ok(live()),
        Ok(Route::Ready) => Ok(ready(front)),
        Err(NoRoute::Path) => Err(Refusal::Fixed(&refusal::NOT_FOUND_BY_ADMIN)),
        Err(NoRoute::Method(allowed)) => Err(Refusal::Method(allowed)),
    }
}

/// Something an operator can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    /// What the limiters of every upstream model are doing.
    Upstreams,
    /// What became of the copies that mirrors got.
    Mirrors,
    /// Whether the process is up.
    Live,
    /// Whether it takes calls.
    Ready,
}

/// The route of a request. `HEAD` goes wherever `GET` does.
fn find(method: &Method, path: &str) -> Result<Route, NoRoute> {
    let route = match path {
        "/admin/upstreams" => Route::Upstreams,
        "/admin/mirrors" => Route::Mirrors,
        "/livez" => Route::Live,
        "/readyz" => Route::Ready,
        _ => return Err(NoRoute::Path),
    };
    if method == Method::GET || method == Method::HEAD {
        Ok(route)
    } else {
        Err(NoRoute::Method("GET, HEAD"))
    }
}

/// Who may ask.
pub(crate) struct Guard {
    token: Option<Secret<String>>,
}

impl Guard {
    /// Refuses what a page of another site makes a browser ask.
    fn check_site(&self, parts: &Parts) -> Result<(), &'static Fixed> {
        // HTTP/2 says it in `:authority`; where both are there they are the same.
        let in_header = parts.headers.get(HOST).and_then(|host| host.to_str().ok());
        let host = in_header.or_else(|| parts.uri.authority().map(|authority| authority.as_str()));
        if self.token.is_none() && !host.is_some_and(is_loopback) {
            return Err(&refusal::FOREIGN_HOST);
        }
        let is_own = |origin: &str| {
            // Something before us may have taken TLS off, so the scheme is not known here.
            let rest = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
            rest.zip(host).is_some_and(|(origin, host)| origin.eq_ignore_ascii_case(host))
        };
        let mut origins = parts.headers.get_all(ORIGIN).iter();
        if origins.all(|origin| origin.to_str().is_ok_and(is_own)) {
            Ok(())
        } else {
            Err(&refusal::FOREIGN_ORIGIN)
        }
    }

    fn check_token(&self, headers: &HeaderMap) -> Result<(), &'static Fixed> {
        let Some(token) = &self.token else { return Ok(()) };
        let said = headers.get(AUTHORIZATION).and_then(|value| {
            let (scheme, said) = value.to_str().ok()?.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| said.trim())
        });
        match said {
            Some(said) if is_same(said.as_bytes(), token.expose().as_bytes()) => Ok(()),
            _ => Err(&refusal::NO_ADMIN_TOKEN),
        }
    }
}

/// Whether a `Host` can only mean this machine, whatever its port (a tunnel has its own).
fn is_loopback(host: &str) -> bool {
    // `strict` has checked that at most a port follows.
    let name = match host.strip_prefix('[') {
        Some(literal) => literal.split(']').next(),
        None => host.split(':').next(),
    };
    name.is_some_and(|name| {
        name.eq_ignore_ascii_case("localhost")
            || name.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
    })
}

/// Whether the two are equal, in a time that tells at most their lengths.
fn is_same(one: &[u8], other: &[u8]) -> bool {
    let differing = one.iter().zip(other).fold(0, |found, (a, b)| black_box(found | (a ^ b)));
    one.len() == other.len() && differing == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_means_this_machine() {
        for host in
            ["localhost", "LocalHost:8081", "127.0.0.1", "127.0.0.1:1", "[::1]", "[::1]:8081"]
        {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "gate",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "evil.localhost:8081",
            "10.0.0.1:8081",
            "0.0.0.0",
            "[::2]:8081",
            "[::]",
            "2130706433",
            "127.1",
            "",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn tokens_are_compared_whole() {
        assert!(is_same(b"token", b"token"));
        for other in ["", "toke", "token2", "Token", "tokem"] {
            assert!(!is_same(b"token", other.as_bytes()), "{other}");
            assert!(!is_same(other.as_bytes(), b"token"), "{other}");
        }
    }

    #[test]
    fn every_route_is_found() {
        for (path, route) in [
            ("/admin/upstreams", Route::Upstreams),
            ("/livez", Route::Live),
            ("/readyz", Route::Ready),
        ] {
            assert_eq!(find(&Method::GET, path), Ok(route));
            assert_eq!(find(&Method::HEAD, path), Ok(route));
            assert_eq!(find(&Method::POST, path), Err(NoRoute::Method("GET, HEAD")));
        }
        for path in ["/", "/admin", "/admin/", "/admin/upstreams/", "/v1/models"] {
            assert_eq!(find(&Method::GET, path), Err(NoRoute::Path), "{path}");
        }
    }
}
