//! Which path is what.

use crate::table::{self, At, Listed};
use hyper::Method;
use std::borrow::Cow;
use tidegate_core::Operation;

/// Where tokens are issued.
pub(crate) const TOKEN: &str = "/oauth/token";
/// Where the keys are that tokens are checked with.
pub(crate) const KEY_SET: &str = "/.well-known/jwks.json";
/// Where all of this is said (RFC 8414 §3).
pub(crate) const METADATA: &str = "/.well-known/oauth-authorization-server";

/// What models are found below.
pub(crate) const MODELS_PREFIX: &str = "/v1/models/";

/// Something that can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// A call for the engine.
    Call(Operation),
    /// The models the caller may use.
    Models,
    /// One of them, by its name in the path.
    Model,
    /// A token for a key.
    Token,
    /// The keys tokens are checked with.
    KeySet,
    /// Where tokens come from.
    Metadata,
    /// Whether the process is up.
    Live,
    /// Whether it takes calls.
    Ready,
}

/// No such thing, or not in this way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NoRoute {
    /// Nothing is at this path.
    Path,
    /// Only these methods are, as the `Allow` header says it.
    Method(String),
}

/// All there is on the callers' port, calls first.
const TABLE: &[At<Route>] = &[
    At {
        path: "/v1/chat/completions",
        ways: &[(Method::POST, Route::Call(Operation::ChatCompletions))],
    },
    At { path: "/v1/completions", ways: &[(Method::POST, Route::Call(Operation::Completions))] },
    At { path: "/v1/embeddings", ways: &[(Method::POST, Route::Call(Operation::Embeddings))] },
    At { path: "/v1/responses", ways: &[(Method::POST, Route::Call(Operation::Responses))] },
    At { path: "/v1/models", ways: &[(Method::GET, Route::Models)] },
    At { path: "/v1/models/{+model}", ways: &[(Method::GET, Route::Model)] },
    At { path: TOKEN, ways: &[(Method::POST, Route::Token)] },
    At { path: KEY_SET, ways: &[(Method::GET, Route::KeySet)] },
    At { path: METADATA, ways: &[(Method::GET, Route::Metadata)] },
    At { path: "/livez", ways: &[(Method::GET, Route::Live)] },
    At { path: "/readyz", ways: &[(Method::GET, Route::Ready)] },
];

/// The route of a request, and what stands in its path in the place of a name, unescaped.
pub(crate) fn find<'p>(method: &Method, path: &'p str) -> Result<(Route, Cow<'p, str>), NoRoute> {
    let (route, name) = table::find(TABLE, method, path)?;
    Ok((route, unescape(name).ok_or(NoRoute::Path)?))
}

/// All paths of the callers' port and the methods they take.
pub fn callers_routes() -> Vec<Listed> {
    table::list(TABLE)
}

/// Undoes percent-encoding; `None` when it is broken or no UTF-8.
fn unescape(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('%') {
        return Some(Cow::Borrowed(text));
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let [high, low, after @ ..] = rest else { return None };
        let digit = |byte: u8| char::from(byte).to_digit(16);
        bytes.push((digit(*high)? << 4 | digit(*low)?) as u8);
        rest = after;
    }
    String::from_utf8(bytes).ok().map(Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_is_found() {
        let [get, head, post, put] = [Method::GET, Method::HEAD, Method::POST, Method::PUT];
        let model = |name: &str| Ok((Route::Model, name.to_owned().into()));
        let plain = |route| Ok((route, Cow::Borrowed("")));
        let refused = |methods: &str| Err(NoRoute::Method(methods.to_owned()));
        for (method, path, expected) in [
            (&post, "/v1/chat/completions", plain(Route::Call(Operation::ChatCompletions))),
            (&post, "/v1/completions", plain(Route::Call(Operation::Completions))),
            (&post, "/v1/embeddings", plain(Route::Call(Operation::Embeddings))),
            (&post, "/v1/responses", plain(Route::Call(Operation::Responses))),
            (&get, "/v1/responses", refused("POST")),
            (&get, "/v1/models", plain(Route::Models)),
            (&head, "/v1/models", plain(Route::Models)),
            (&post, "/v1/models", refused("GET, HEAD")),
            (&get, "/v1/models/a", model("a")),
            (&get, "/v1/models/org/a", model("org/a")),
            (&get, "/v1/models/org%2Fa%20b", model("org/a b")),
            (&get, "/v1/models/%zz", Err(NoRoute::Path)),
            (&get, "/v1/models/%ff", Err(NoRoute::Path)),
            (&get, "/v1/models/", Err(NoRoute::Path)),
            (&put, "/v1/models/a", refused("GET, HEAD")),
            (&get, "/livez", plain(Route::Live)),
            (&head, "/readyz", plain(Route::Ready)),
            (&post, "/oauth/token", plain(Route::Token)),
            (&get, "/oauth/token", refused("POST")),
            (&get, "/.well-known/jwks.json", plain(Route::KeySet)),
            (&head, "/.well-known/oauth-authorization-server", plain(Route::Metadata)),
            (&post, "/readyz", refused("GET, HEAD")),
            (&get, "/", Err(NoRoute::Path)),
            (&post, "/chat/completions", Err(NoRoute::Path)),
            (&post, "/v1/chat/completions/", Err(NoRoute::Path)),
        ] {
            assert_eq!(find(method, path), expected, "{method} {path}");
        }
    }

    #[test]
    fn every_operation_has_its_path() {
        for operation in Operation::ALL {
            let path = format!("/v1{}", operation.path());
            assert_eq!(find(&Method::POST, &path), Ok((Route::Call(operation), "".into())));
        }
    }
}
