//! Which path is what.

use hyper::Method;
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// A call for the engine.
    Call(Operation),
    /// The models the caller may use.
    Models,
    /// One of them.
    Model(String),
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoRoute {
    /// Nothing is at this path.
    Path,
    /// Only these methods are.
    Method(&'static str),
}

/// The route of a request. `HEAD` goes wherever `GET` does.
pub(crate) fn find(method: &Method, path: &str) -> Result<Route, NoRoute> {
    if let Some(operation) = Operation::from_path(path) {
        return if method == Method::POST {
            Ok(Route::Call(operation))
        } else {
            Err(NoRoute::Method("POST"))
        };
    }
    if path == TOKEN {
        return if method == Method::POST {
            Ok(Route::Token)
        } else {
            Err(NoRoute::Method("POST"))
        };
    }
    let route = match path {
        KEY_SET => Route::KeySet,
        METADATA => Route::Metadata,
        "/v1/models" => Route::Models,
        "/livez" => Route::Live,
        "/readyz" => Route::Ready,
        _ => {
            let name = path.strip_prefix(MODELS_PREFIX).filter(|name| !name.is_empty());
            Route::Model(name.and_then(unescape).ok_or(NoRoute::Path)?)
        }
    };
    if method == Method::GET || method == Method::HEAD {
        Ok(route)
    } else {
        Err(NoRoute::Method("GET, HEAD"))
    }
}

/// Undoes percent-encoding; `None` when it is broken or no UTF-8.
fn unescape(text: &str) -> Option<String> {
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
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_is_found() {
        let [get, head, post, put] = [Method::GET, Method::HEAD, Method::POST, Method::PUT];
        let model = |name: &str| Ok(Route::Model(name.to_owned()));
        for (method, path, expected) in [
            (&post, "/v1/chat/completions", Ok(Route::Call(Operation::ChatCompletions))),
            (&post, "/v1/completions", Ok(Route::Call(Operation::Completions))),
            (&post, "/v1/embeddings", Ok(Route::Call(Operation::Embeddings))),
            (&post, "/v1/responses", Ok(Route::Call(Operation::Responses))),
            (&get, "/v1/responses", Err(NoRoute::Method("POST"))),
            (&get, "/v1/models", Ok(Route::Models)),
            (&head, "/v1/models", Ok(Route::Models)),
            (&post, "/v1/models", Err(NoRoute::Method("GET, HEAD"))),
            (&get, "/v1/models/a", model("a")),
            (&get, "/v1/models/org/a", model("org/a")),
            (&get, "/v1/models/org%2Fa%20b", model("org/a b")),
            (&get, "/v1/models/%zz", Err(NoRoute::Path)),
            (&get, "/v1/models/%ff", Err(NoRoute::Path)),
            (&get, "/v1/models/", Err(NoRoute::Path)),
            (&put, "/v1/models/a", Err(NoRoute::Method("GET, HEAD"))),
            (&get, "/livez", Ok(Route::Live)),
            (&head, "/readyz", Ok(Route::Ready)),
            (&post, "/oauth/token", Ok(Route::Token)),
            (&get, "/oauth/token", Err(NoRoute::Method("POST"))),
            (&get, "/.well-known/jwks.json", Ok(Route::KeySet)),
            (&head, "/.well-known/oauth-authorization-server", Ok(Route::Metadata)),
            (&post, "/readyz", Err(NoRoute::Method("GET, HEAD"))),
            (&get, "/", Err(NoRoute::Path)),
            (&post, "/chat/completions", Err(NoRoute::Path)),
            (&post, "/v1/chat/completions/", Err(NoRoute::Path)),
        ] {
            assert_eq!(find(method, path), expected, "{method} {path}");
        }
    }
}
