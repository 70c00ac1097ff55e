//! Errors for everybody but OpenAI's clients: `application/problem+json` (RFC 9457).

use crate::service::json;
use bytes::Bytes;
use hyper::StatusCode;
use serde::Serialize;

/// A problem that needs no page of its own, so its type is `about:blank` and its title the
/// status's. `code` is ours: stable, for programs; `detail` is for people.
#[derive(Serialize)]
struct Problem<'a> {
    r#type: &'static str,
    title: &'a str,
    status: u16,
    detail: &'a str,
    code: &'a str,
    /// The field of the body that is at fault.
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<&'a str>,
}

/// The body of a refusal.
pub(crate) fn encode(status: StatusCode, code: &str, detail: &str, field: Option<&str>) -> Bytes {
    let title = status.canonical_reason().unwrap_or_default();
    json(&Problem { r#type: "about:blank", title, status: status.as_u16(), detail, code, field })
}
