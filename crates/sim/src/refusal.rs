//! Answers that say no, in OpenAI's error body.

use bytes::Bytes;
use serde::Serialize;

/// A refusal before any work was done.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    /// OpenAI's `type`.
    pub(crate) kind: &'static str,
    pub(crate) code: Option<&'static str>,
    pub(crate) param: Option<&'static str>,
    pub(crate) message: String,
    /// The word in the ledger.
    pub(crate) why: &'static str,
}

#[derive(Serialize)]
struct Body<'a> {
    error: Inner<'a>,
}

#[derive(Serialize)]
struct Inner<'a> {
    message: &'a str,
    r#type: &'a str,
    param: Option<&'a str>,
    code: Option<&'a str>,
}

impl Refusal {
    pub(crate) fn new(
        status: u16,
        kind: &'static str,
        code: Option<&'static str>,
        why: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self { status, kind, code, param: None, message: message.into(), why }
    }

    /// A field that is not right.
    pub(crate) fn invalid(param: &'static str, message: impl Into<String>) -> Self {
        let refusal = Self::new(400, "invalid_request_error", None, "invalid", message);
        Self { param: Some(param), ..refusal }
    }

    /// A field that is not there.
    pub(crate) fn missing(param: &'static str) -> Self {
        Self::invalid(param, format!("Missing required parameter: '{param}'."))
    }

    /// A body that does not parse, with the line and column `error` tells.
    pub(crate) fn invalid_json(error: &serde_json::Error) -> Self {
        let message = format!("We could not parse the JSON body of your request: {error}");
        Self::new(400, "invalid_request_error", Some("invalid_json"), "invalid", message)
    }

    pub(crate) fn unknown_model(model: &str) -> Self {
        let message =
            format!("The model `{model}` does not exist or you do not have access to it.");
        let code = Some("model_not_found");
        let refusal = Self::new(404, "invalid_request_error", code, "model", message);
        Self { param: Some("model"), ..refusal }
    }

    /// One of the hidden limits.
    pub(crate) fn limited(why: &'static str, message: &'static str) -> Self {
        let kind = if why == "tokens" { "tokens" } else { "requests" };
        Self::new(429, kind, Some("rate_limit_exceeded"), why, message)
    }

    pub(crate) fn body(&self) -> Bytes {
        let error =
            Inner { message: &self.message, r#type: self.kind, param: self.param, code: self.code };
        serde_json::to_vec(&Body { error }).expect("strings are always written").into()
    }
}
