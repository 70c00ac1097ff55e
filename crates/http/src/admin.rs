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

mod guard;
mod keys;
mod mirrors;
mod upstreams;
mod usage;

use crate::{
    Compression, Drained, Options, accept,
    outcome::Success,
    pulse::Pulse,
    refusal::{self, Refusal},
    routes::NoRoute,
    service::{Front, Service, json, live, ready},
    table::{self, At, Listed},
};
use guard::Guard;
use hyper::{Method, StatusCode, body::Incoming, http::request::Parts};
use keys::Action;
use mirrors::Mirrors;
use std::{io, sync::Arc, time::Duration};
use tidegate_core::{Answer, Keys, Ledger, Secret};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;
use upstreams::Upstreams;

pub use keys::KeyView;

/// Connections at once: scrapers, probes and a few open dashboards.
const MAX_CONNECTIONS: usize = 256;
/// Every answer is here at once, so only writing it can take time.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest body of a request: what is to be changed of one key.
const MAX_BODY: usize = 64 << 10;

/// What operators are answered from.
#[derive(Clone)]
pub struct Admin {
    /// Says what the upstreams are doing.
    pub answer: Arc<dyn Answer>,
    /// The callers' keys. Without it nothing is at `/admin/keys`.
    pub keys: Option<Arc<dyn Keys>>,
    /// What was used. Without it `/admin/usage` says that nobody keeps account.
    pub ledger: Option<Arc<dyn Ledger>>,
    /// What operators must send as `Authorization: Bearer`, as it is now.
    pub token: Option<watch::Receiver<Secret<String>>>,
}

/// Serves `admin` on `listener` until `stop`, then drains; every task is joined on return. Plain
/// HTTP/1.1 and HTTP/2.
///
/// `/livez` and `/readyz` are for everybody, the rest for those who send the token as
/// `Authorization: Bearer`. Without a token the request's `Host` must be loopback instead. A
/// request with an `Origin` other than its own host is refused either way.
///
/// # Errors
///
/// At once, when there is no token and `listener` is not on loopback.
pub async fn serve_admin(
    listener: TcpListener,
    admin: Admin,
    stop: CancellationToken,
) -> io::Result<Drained> {
    let Admin { answer, keys, ledger, token } = admin;
    let address = listener.local_addr()?;
    if token.is_none() && !address.ip().to_canonical().is_loopback() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("the admin port on {address} can be reached from other machines: set a token"),
        ));
    }
    let options = Options {
        max_body: MAX_BODY,
        max_connections: MAX_CONNECTIONS,
        max_connections_per_ip: MAX_CONNECTIONS,
        drain_timeout: DRAIN_TIMEOUT,
        compression: Compression::Off,
        ..Options::default()
    };
    let service = Service::Admin(Desk { guard: Guard { token }, keys, ledger });
    Ok(accept::run(listener, None, Front::new(service, answer, options, stop)).await)
}

/// What an operator's request meets.
pub(crate) struct Desk {
    guard: Guard,
    keys: Option<Arc<dyn Keys>>,
    ledger: Option<Arc<dyn Ledger>>,
}

/// Answers a request whose head is well-formed.
pub(crate) async fn answer(
    front: &Front,
    desk: &Desk,
    parts: &Parts,
    body: &mut Incoming,
    pulse: &Pulse,
) -> Result<Success, Refusal> {
    desk.guard.check_site(parts).map_err(Refusal::Fixed)?;
    let route = find(&parts.method, parts.uri.path());
    if !matches!(route, Ok(Route::Live | Route::Ready)) {
        desk.guard.check_token(&parts.headers).map_err(Refusal::Fixed)?;
    }
    let route = route.map_err(|no_route| match no_route {
        NoRoute::Path => Refusal::Fixed(&refusal::NOT_FOUND_BY_ADMIN),
        NoRoute::Method(allowed) => Refusal::Method(allowed),
    })?;
    match route {
        Route::Upstreams => {
            let body = json(&Upstreams(&front.answer.upstreams()));
            Ok(Success::Own { status: StatusCode::OK, json: body })
        }
        Route::Mirrors => {
            let body = json(&Mirrors(&front.answer.mirrors()));
            Ok(Success::Own { status: StatusCode::OK, json: body })
        }
        Route::Keys(action) => match &desk.keys {
            Some(keys) => keys::answer(&**keys, action, front, parts, body, pulse).await,
            None => Err(Refusal::Fixed(&refusal::NOT_FOUND_BY_ADMIN)),
        },
        Route::Usage => usage::answer(desk.ledger.as_deref(), parts.uri.query()).await,
        Route::Live => Ok(live()),
        Route::Ready => Ok(ready(front)),
    }
}

/// Something an operator can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route<'a> {
    /// What the limiters of every upstream model are doing.
    Upstreams,
    /// What became of the copies that mirrors got.
    Mirrors,
    /// Something about callers' keys.
    Keys(Action<'a>),
    /// What was used and what it cost.
    Usage,
    /// Whether the process is up.
    Live,
    /// Whether it takes calls.
    Ready,
}

/// Makes the route of what stands in the path in the place of an id.
type Make = for<'a> fn(&'a str) -> Route<'a>;

/// All there is on the operators' port.
const TABLE: &[At<Make>] = &[
    At { path: "/livez", ways: &[(Method::GET, |_| Route::Live)] },
    At { path: "/readyz", ways: &[(Method::GET, |_| Route::Ready)] },
    At { path: "/admin/upstreams", ways: &[(Method::GET, |_| Route::Upstreams)] },
    At { path: "/admin/mirrors", ways: &[(Method::GET, |_| Route::Mirrors)] },
    At { path: "/admin/usage", ways: &[(Method::GET, |_| Route::Usage)] },
    At {
        path: "/admin/keys",
        ways: &[
            (Method::GET, |_| Route::Keys(Action::List)),
            (Method::POST, |_| Route::Keys(Action::Create)),
        ],
    },
    At {
        path: "/admin/keys/{id}",
        ways: &[
            (Method::GET, |id| Route::Keys(Action::Show(id))),
            (Method::PATCH, |id| Route::Keys(Action::Update(id))),
            (Method::DELETE, |id| Route::Keys(Action::Revoke(id))),
        ],
    },
    At {
        path: "/admin/keys/{id}/rotate",
        ways: &[(Method::POST, |id| Route::Keys(Action::Rotate(id)))],
    },
];

/// The route of a request.
fn find<'a>(method: &Method, path: &'a str) -> Result<Route<'a>, NoRoute> {
    let (make, id) = table::find(TABLE, method, path)?;
    Ok(make(id))
}

/// All paths of the operators' port and the methods they take.
pub fn operators_routes() -> Vec<Listed> {
    table::list(TABLE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_is_found() {
        let (get, head, post) = (Method::GET, Method::HEAD, Method::POST);
        let keys = |action| Ok(Route::Keys(action));
        let refused = |methods: &str| Err(NoRoute::Method(methods.to_owned()));
        for (method, path, found) in [
            (&get, "/admin/upstreams", Ok(Route::Upstreams)),
            (&head, "/admin/upstreams", Ok(Route::Upstreams)),
            (&post, "/admin/upstreams", refused("GET, HEAD")),
            (&get, "/admin/mirrors", Ok(Route::Mirrors)),
            (&get, "/admin/usage", Ok(Route::Usage)),
            (&get, "/livez", Ok(Route::Live)),
            (&head, "/readyz", Ok(Route::Ready)),
            (&post, "/readyz", refused("GET, HEAD")),
            (&get, "/admin/keys", keys(Action::List)),
            (&head, "/admin/keys", keys(Action::List)),
            (&post, "/admin/keys", keys(Action::Create)),
            (&Method::PUT, "/admin/keys", refused("GET, HEAD, POST")),
            (&get, "/admin/keys/a", keys(Action::Show("a"))),
            (&Method::PATCH, "/admin/keys/a", keys(Action::Update("a"))),
            (&Method::DELETE, "/admin/keys/a", keys(Action::Revoke("a"))),
            (&post, "/admin/keys/a", refused("DELETE, GET, HEAD, PATCH")),
            (&post, "/admin/keys/a/rotate", keys(Action::Rotate("a"))),
            (&get, "/admin/keys/a/rotate", refused("POST")),
            (&get, "/admin/keys/a/b", Err(NoRoute::Path)),
            (&get, "/admin/keys/", Err(NoRoute::Path)),
            (&get, "/admin/keysy", Err(NoRoute::Path)),
            (&get, "/", Err(NoRoute::Path)),
            (&get, "/admin", Err(NoRoute::Path)),
            (&get, "/admin/", Err(NoRoute::Path)),
            (&get, "/admin/upstreams/", Err(NoRoute::Path)),
            (&get, "/v1/models", Err(NoRoute::Path)),
        ] {
            assert_eq!(find(method, path), found, "{method} {path}");
        }
    }
}
