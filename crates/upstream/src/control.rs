//! One small exchange with a server that is no model server: a token endpoint, an issuer's keys.
//!
//! *Why over the same pool:* one way out means one set of rules for names, addresses, TLS and
//! authorities. Such exchanges are rare, so a connection is opened for each and closed after it.
//! Redirects are not followed: a secret must not go where an answer says.

use crate::{
    connect::{Dialer, Protocol},
    decode::Source,
    fault,
    options::Options,
    pool::{Patience, Pool},
    request::RequestBody,
};
use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, Version,
    header::{ACCEPT, CONTENT_ENCODING, CONTENT_TYPE, HOST, USER_AGENT},
    uri::Scheme,
};
use std::time::Duration;
use tidegate_core::{Error, Kind, Origin, Result, Retry};
use tokio::time::{Instant, timeout};

/// Where such an exchange goes.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    url: Uri,
    options: Options,
}

/// What came back.
pub(crate) struct Said {
    pub(crate) status: StatusCode,
    pub(crate) body: Bytes,
}

/// Fetches a public document of at most `max_bytes` within `patience`.
///
/// # Errors
///
/// A sentence that says what was in the way.
pub async fn fetch(url: &str, max_bytes: usize, patience: Duration) -> Result<Bytes, String> {
    let place = Place::parse(url, &Options::default())?;
    let said = place.exchange(Method::GET, HeaderMap::new(), Bytes::new(), max_bytes, patience);
    let said = said.await.map_err(|error| error.message().to_owned())?;
    match said.status {
        StatusCode::OK => Ok(said.body),
        status => Err(format!("{} answered {status}", place.authority())),
    }
}

impl Place {
    /// Reads a URL; the certificate authorities and the like are those of `options`.
    ///
    /// # Errors
    ///
    /// What is wrong with it, never the URL itself, which may hold a secret.
    pub(crate) fn parse(url: &str, options: &Options) -> Result<Self, String> {
        let wrong = |what: &str| Err(what.to_owned());
        let Ok(url) = url.trim().parse::<Uri>() else { return wrong("is not a URL") };
        if url.scheme() != Some(&Scheme::HTTP) && url.scheme() != Some(&Scheme::HTTPS) {
            return wrong("must start with http:// or https://");
        }
        match url.authority() {
            Some(authority) if authority.as_str().contains('@') => {
                return wrong("must not hold a user name or password");
            }
            Some(authority) if !authority.host().is_empty() => {}
            _ => return wrong("has no host"),
        }
        let options =
            Options { max_connections: 1, headers: Default::default(), ..options.clone() };
        Ok(Self { url, options })
    }

    /// Host and port, for messages.
    pub(crate) fn authority(&self) -> &str {
        self.url.authority().map_or("", |authority| authority.as_str())
    }

    /// Sends one request and reads its answer whole.
    pub(crate) async fn exchange(
        &self,
        method: Method,
        headers: HeaderMap,
        body: Bytes,
        max_bytes: usize,
        patience: Duration,
    ) -> Result<Said> {
        let exchange = async {
            let dialer = Dialer::new(self.authority(), &self.url, &self.options, None)?;
            let pool = Pool::new(dialer, &self.options);
            let patience = Patience { connect: patience, deadline: Instant::now() + patience };
            let make = |protocol| self.request(&method, &headers, &body, protocol);
            let answer = pool.send(patience, None, make).await?;
            let encoding = answer.headers.get(CONTENT_ENCODING);
            let encoding = encoding.and_then(|value| value.to_str().ok());
            let source = Source::new(answer.body, encoding)?;
            Ok(Said { status: answer.status, body: self.whole(source, max_bytes).await? })
        };
        timeout(patience, exchange).await.unwrap_or_else(|_| {
            let message = format!("{} did not answer within {patience:?}", self.authority());
            Err(Error::new(Kind::Unavailable, Origin::Upstream, message))
        })
    }

    async fn whole(&self, mut source: Source, max_bytes: usize) -> Result<Bytes> {
        let mut whole = BytesMut::new();
        while let Some(chunk) = source.chunk().await {
            whole.extend_from_slice(&chunk?);
            if whole.len() > max_bytes {
                let message = format!("{} answers more than {max_bytes} bytes", self.authority());
                return Err(fault::wrong(message).with_retry(Retry::Never));
            }
        }
        Ok(whole.freeze())
    }

    fn request(
        &self,
        method: &Method,
        headers: &HeaderMap,
        body: &Bytes,
        protocol: Protocol,
    ) -> Request<RequestBody> {
        let mut request = Request::new(RequestBody::whole(body.clone()));
        *request.method_mut() = method.clone();
        let mut headers = headers.clone();
        headers.insert(USER_AGENT, crate::request::USER_AGENT_VALUE);
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        if !body.is_empty() {
            let form = HeaderValue::from_static("application/x-www-form-urlencoded");
            headers.insert(CONTENT_TYPE, form);
        }
        match protocol {
            Protocol::Http1 => {
                if let Ok(host) = HeaderValue::from_str(self.authority()) {
                    headers.insert(HOST, host);
                }
                let path = self.url.path_and_query().map_or("/", |path| path.as_str());
                *request.uri_mut() = path.parse().expect("the path of a URL is one");
            }
            Protocol::Http2 => {
                *request.version_mut() = Version::HTTP_2;
                *request.uri_mut() = self.url.clone();
            }
        }
        *request.headers_mut() = headers;
        request
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_place_is_said_without_repeating_it() {
        let parse = |url: &str| Place::parse(url, &Options::default());
        assert!(parse("https://i.example/keys?p=1").is_ok());
        for bad in ["", "i.example", "ftp://canary", "https://u:canary@h/", "http://", "h h"] {
            let said = parse(bad).unwrap_err();
            assert!(!said.contains("canary"), "{said}");
        }
    }
}
