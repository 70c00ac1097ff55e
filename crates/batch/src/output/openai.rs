//! Rows as OpenAI's batch output and error lines (`--format openai-batch`).
//!
//! Answers go to the output, everything else to the error file. A request the upstream refused is
//! a response with its status; only a request nobody answered has an `error`.

use super::row::Line;
use tidegate_wire::batch_line::{Response, write_failure, write_response};

/// Appends `line` as OpenAI writes it.
pub(super) fn encode(line: &Line<'_>, out: &mut Vec<u8>) {
    let id = format!("batch_req_{:08x}", line.index);
    let own_id = format!("request-{}", line.index);
    let custom_id = line.custom_id.as_deref().unwrap_or(&own_id);
    match (&line.response, &line.error) {
        (Some(response), _) => write_response(
            out,
            &Response {
                id: &id,
                custom_id,
                status: response.status_code,
                request_id: response.request_id.as_deref().unwrap_or(&id),
                body: response.body.get().as_bytes(),
            },
        ),
        (None, error) => {
            let (code, message) = error
                .as_ref()
                .map_or(("internal_error", "no answer"), |error| (code(error), &error.message));
            write_failure(out, &id, custom_id, code, message);
        }
    }
}

/// OpenAI's own words where it has them.
fn code<'a>(error: &'a super::row::LineError<'_>) -> &'a str {
    match (&*error.class, &*error.code) {
        ("timeout", _) => "request_timeout",
        ("skipped", _) => "batch_cancelled",
        (_, code) => code,
    }
}
