//! The paths that are not a model's: `/sim/*`, `/livez`, `/v1/models`.

use crate::{
    Sim,
    body::{Outgoing, Pages},
    call::{JSON, check_key},
    generation::{CREATED, json},
    refusal::Refusal,
};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde::Serialize;
use std::sync::Arc;

/// Longest body of `POST /sim/faults`.
const MAX_FAULTS_BYTES: usize = 64 << 10;

/// Answers a request that is for no model.
pub(crate) async fn answer(sim: &Arc<Sim>, request: Request<Incoming>) -> Response<Outgoing> {
    let method = request.method().clone();
    let result = match (&method, request.uri().path()) {
        (&Method::GET, "/livez") => Ok(text("ok\n")),
        (&Method::GET, "/sim/ledger") => ledger(sim, request.uri().query().unwrap_or_default()),
        (&Method::DELETE, "/sim/ledger") => {
            sim.ledger.lock().clear();
            Ok(whole(json(&sim.totals()).into()))
        }
        (&Method::GET, "/sim/ledger/totals") => Ok(whole(json(&sim.totals()).into())),
        (&Method::GET, "/sim/faults") => Ok(whole(json(&*sim.faults()).into())),
        (&Method::POST, "/sim/faults") => change_faults(sim, request.into_body()).await,
        (&Method::DELETE, "/sim/faults") => {
            sim.set_faults(crate::Faults::default());
            Ok(whole(json(&*sim.faults()).into()))
        }
        (&Method::GET, path) => models(sim, path, request.headers()),
        (_, path) => Err(not_found(&method, path)),
    };
    result.unwrap_or_else(|refusal| {
        let mut response = whole(refusal.body());
        *response.status_mut() = StatusCode::from_u16(refusal.status).expect("a literal status");
        response
    })
}

fn whole(body: Bytes) -> Response<Outgoing> {
    let mut response = Response::new(body.into());
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response
}

fn text(body: &'static str) -> Response<Outgoing> {
    Response::new(Bytes::from_static(body.as_bytes()).into())
}

fn not_found(method: &Method, path: &str) -> Refusal {
    let message = format!("Unknown request URL: {method} {path}");
    Refusal::new(404, "invalid_request_error", Some("not_found"), "invalid", message)
}

/// `?since=N&limit=N&format=array|ndjson`.
fn ledger(sim: &Arc<Sim>, query: &str) -> Result<Response<Outgoing>, Refusal> {
    let (mut since, mut limit, mut is_array) = (0, u64::MAX, true);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let number = || {
            let message = format!("`{name}` must be a number, not `{value}`");
            value.parse::<u64>().map_err(|_| Refusal::invalid("query", message))
        };
        match (name, value) {
            ("since", _) => since = number()?,
            ("limit", _) => limit = number()?,
            ("format", "array") => is_array = true,
            ("format", "ndjson") => is_array = false,
            _ => {
                let message = format!(
                    "`{pair}` is not known: give since=N, limit=N, format=array or format=ndjson"
                );
                return Err(Refusal::invalid("query", message));
            }
        }
    }
    let pages = Pages::new(Arc::clone(sim), since, limit, is_array);
    let mut response = Response::new(Outgoing::Ledger(pages));
    let kind = if is_array { "application/json" } else { "application/x-ndjson" };
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static(kind));
    Ok(response)
}

async fn change_faults(sim: &Sim, body: Incoming) -> Result<Response<Outgoing>, Refusal> {
    let body = Limited::new(body, MAX_FAULTS_BYTES).collect().await.map_err(|error| {
        Refusal::invalid("body", format!("the body could not be read: {error}"))
    })?;
    sim.change_faults(&body.to_bytes()).map_err(|why| Refusal::invalid("faults", why))?;
    Ok(whole(json(&*sim.faults()).into()))
}

#[derive(Serialize)]
struct Models<'a> {
    object: &'static str,
    data: Vec<Model<'a>>,
}

#[derive(Serialize)]
struct Model<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
}

fn models(sim: &Sim, path: &str, headers: &http::HeaderMap) -> Result<Response<Outgoing>, Refusal> {
    let Some(rest) = path.strip_prefix("/v1/models") else {
        return Err(not_found(&Method::GET, path));
    };
    check_key(&sim.faults(), headers)?;
    let model = |id| Model { id, object: "model", created: CREATED, owned_by: "tidegate-sim" };
    let known = || sim.options.models.iter().map(String::as_str);
    match rest.strip_prefix('/') {
        None if rest.is_empty() => {
            let data = known().map(model).collect();
            Ok(whole(json(&Models { object: "list", data }).into()))
        }
        Some(id) => match known().find(|known| *known == id) {
            Some(id) => Ok(whole(json(&model(id)).into())),
            None => Err(Refusal::unknown_model(id)),
        },
        None => Err(not_found(&Method::GET, path)),
    }
}
