//! `/admin/keys`: what administrators do with callers' keys.
//!
//! | method and path | does |
//! |---|---|
//! | `GET /admin/keys` | lists them, oldest first, revoked ones included |
//! | `POST /admin/keys` | makes one |
//! | `GET /admin/keys/ID` | shows one |
//! | `PATCH /admin/keys/ID` | changes one: what is named, `null` takes away (RFC 7396) |
//! | `DELETE /admin/keys/ID` | revokes one |
//! | `POST /admin/keys/ID/rotate` | gives one a new secret |
//!
//! The secret is in the answers to both `POST`s and nowhere else. `tidegate keys` does the same
//! through the same [`Keys`].

mod form;
mod view;

use crate::{
    body,
    coding::Coding,
    intake,
    outcome::Success,
    pulse::Pulse,
    refusal::Refusal,
    service::{Front, json},
};
use bytes::Bytes;
use hyper::{StatusCode, body::Incoming, http::request::Parts};
use std::time::{SystemTime, UNIX_EPOCH};
use tidegate_core::{Error, KeyRecord, Keys, Kind, Minted, Origin};

pub use view::KeyView;

/// What is to be done, and with which key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action<'a> {
    List,
    Create,
    Show(&'a str),
    Update(&'a str),
    Revoke(&'a str),
    Rotate(&'a str),
}

/// Does it.
pub(super) async fn answer(
    keys: &dyn Keys,
    action: Action<'_>,
    front: &Front,
    parts: &Parts,
    body: &mut Incoming,
    pulse: &Pulse,
) -> Result<Success, Refusal> {
    let now = unix_now();
    match action {
        Action::List => {
            let keys = keys.keys().await?;
            let views: Vec<KeyView<'_>> = keys.iter().map(|key| KeyView::new(key, now)).collect();
            Ok(Success::Own { status: StatusCode::OK, json: json(&views) })
        }
        Action::Create => {
            let change = form::read_change(&read(front, parts, body, pulse).await?, now)?;
            let made = keys.create_key(change).await?;
            tracing::info!(key = &*made.1.id, "key made through the admin port");
            Ok(with_secret(StatusCode::CREATED, &made, now))
        }
        Action::Show(id) => shown(keys.key(id).await?, now),
        Action::Update(id) => {
            let change = form::read_change(&read(front, parts, body, pulse).await?, now)?;
            let updated = keys.update_key(id, change).await?;
            if updated.is_some() {
                tracing::info!(key = id, "key changed through the admin port");
            }
            shown(updated, now)
        }
        Action::Revoke(id) => {
            if !keys.revoke_key(id).await? {
                return Err(unknown());
            }
            tracing::info!(key = id, "key revoked through the admin port");
            shown(keys.key(id).await?, now)
        }
        Action::Rotate(id) => {
            let grace = form::read_grace(&read(front, parts, body, pulse).await?)?;
            let rotated = keys.rotate_key(id, grace).await?.ok_or_else(unknown)?;
            tracing::info!(key = id, "key rotated through the admin port");
            Ok(with_secret(StatusCode::OK, &rotated, now))
        }
    }
}

/// The request's body, which is JSON or nothing.
async fn read(
    front: &Front,
    parts: &Parts,
    body: &mut Incoming,
    pulse: &Pulse,
) -> Result<Bytes, Refusal> {
    intake::check_media(&parts.headers)?;
    let coding = Coding::of_body(&parts.headers).map_err(|_| Refusal::Coding)?;
    body::read(body, coding, &front.options, pulse).await
}

fn shown(record: Option<KeyRecord>, now: u64) -> Result<Success, Refusal> {
    let record = record.ok_or_else(unknown)?;
    Ok(Success::Own { status: StatusCode::OK, json: json(&KeyView::new(&record, now)) })
}

/// The one moment a secret is shown.
fn with_secret(status: StatusCode, (secret, record): &Minted, now: u64) -> Success {
    let view = KeyView::new(record, now).with_secret(secret);
    Success::Own { status, json: json(&view) }
}

/// The id is not repeated: somebody may have written a whole key there.
fn unknown() -> Refusal {
    let message = "there is no key of this id: see GET /admin/keys";
    Error::new(Kind::NotFound, Origin::Caller, message).into()
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
