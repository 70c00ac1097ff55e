//! A row as a request: what identifies it, and what is still to be read for it.

use crate::{
    images::Picture,
    input::{Fault, json},
    request::{Request, RequestHash},
};
use bytes::Bytes;
use std::{borrow::Cow, sync::Arc};
use tidegate_core::Operation;
use tidegate_wire::request;

/// A row as a request, borrowed from its line; a picture's bytes are not in it yet.
#[derive(Debug)]
pub(crate) struct Prepared<'a> {
    pub(crate) operation: Operation,
    pub(crate) model: Cow<'a, str>,
    pub(crate) custom_id: Option<Cow<'a, str>>,
    pub(crate) body: Cow<'a, str>,
    pub(super) columns: Option<Cow<'a, str>>,
    pub(super) image: Option<Image>,
    pub(crate) priority: f64,
    /// Key that brings equal beginnings of prompts together; 0 unless grouped so.
    pub(crate) prefix_key: u64,
}

/// The picture of a body.
#[derive(Debug)]
pub(super) enum Image {
    /// Its URL is in the body.
    Url,
    /// Its `data:` URL goes in at this place when the row is sent.
    File { at: usize, picture: Picture },
}

/// A row's request whose picture, if any, is still to be read.
pub(crate) struct Unloaded {
    request: Request,
    image: Option<(usize, Picture)>,
}

/// What a picture counts as in the estimate of tokens: about 765 tokens, a 1024 px picture.
const IMAGE_COUNTED_BYTES: usize = 3060;

impl Prepared<'_> {
    /// First 128 bits of BLAKE3 over endpoint, model and body, each with its length before it;
    /// a picture's path, size and time of change stand for its bytes.
    pub(crate) fn hash(&self) -> RequestHash {
        let mut hasher = blake3::Hasher::new();
        let mut add = |part: &str| {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        };
        add(self.operation.path());
        add(&self.model);
        add(&self.body);
        if let Some(Image::File { picture, .. }) = &self.image {
            add(&picture.stamp());
        }
        let mut first = [0; 16];
        first.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        RequestHash(first)
    }

    /// Bytes of the body to estimate tokens from.
    pub(crate) fn counted_bytes(&self) -> usize {
        self.body.len() + if self.image.is_some() { IMAGE_COUNTED_BYTES } else { 0 }
    }

    /// Length of the body as it will be sent.
    pub(crate) fn body_len(&self) -> usize {
        match &self.image {
            Some(Image::File { picture, .. }) => self.body.len() + picture.encoded_bytes(),
            Some(Image::Url) | None => self.body.len(),
        }
    }

    /// The request of row `index`, free of the line it was read from.
    pub(crate) fn unloaded(self, index: u64, hash: RequestHash) -> Unloaded {
        let counted_bytes = self.counted_bytes();
        let request = Request {
            index,
            custom_id: self.custom_id.as_deref().map(Arc::from),
            operation: self.operation,
            hash,
            body: Bytes::from(self.body.into_owned()),
            counted_bytes,
            columns: self.columns.map(|columns| Bytes::from(columns.into_owned())),
        };
        let image = match self.image {
            Some(Image::File { at, picture }) => Some((at, picture)),
            Some(Image::Url) | None => None,
        };
        Unloaded { request, image }
    }

    /// The same, free of the row it was read from.
    pub(super) fn into_owned(self) -> Prepared<'static> {
        Prepared {
            operation: self.operation,
            model: Cow::Owned(self.model.into_owned()),
            custom_id: self.custom_id.map(|id| Cow::Owned(id.into_owned())),
            body: Cow::Owned(self.body.into_owned()),
            columns: self.columns.map(|columns| Cow::Owned(columns.into_owned())),
            image: self.image,
            priority: self.priority,
            prefix_key: self.prefix_key,
        }
    }
}

impl Unloaded {
    /// The request, its picture read and encoded now.
    ///
    /// # Errors
    ///
    /// When the picture is gone or has changed.
    pub(crate) fn load(self) -> Result<Request, Fault> {
        let Some((at, picture)) = self.image else { return Ok(self.request) };
        let body = std::str::from_utf8(&self.request.body).expect("it was built as text");
        let mut whole = String::with_capacity(body.len() + picture.encoded_bytes());
        whole.push_str(&body[..at]);
        picture.push_data_url(&mut whole)?;
        whole.push_str(&body[at..]);
        Ok(Request { body: Bytes::from(whole), ..self.request })
    }
}

/// Checks a built body the way the engine will read it.
///
/// # Errors
///
/// A field with a wrong value, or a stream asked for; with its column when it stands in `line`.
pub(crate) fn check(
    line: Option<&str>,
    operation: Operation,
    body: &str,
) -> Result<request::View, Fault> {
    let at = |param: &str, message: &str| match line {
        Some(line) => field_in(line, param)
            .map_or_else(|| Fault::new(message), |raw| Fault::of(line, raw.get(), message)),
        None => Fault::new(message),
    };
    let view = request::read(operation, body.as_bytes())
        .map_err(|error| at(error.param().unwrap_or_default(), error.message()))?;
    if view.stream {
        return Err(at(
            "stream",
            "'stream' is true, but a batch keeps whole answers: take it out, or --set body.stream=false",
        ));
    }
    Ok(view)
}

/// The field `name` of the body in `line`, where it is written; one that was set is nowhere.
fn field_in<'a>(line: &'a str, name: &str) -> Option<json::Raw<'a>> {
    let find = |text: &'a str, name: &str| {
        let mut found = None;
        let _ = json::fields(text, |key, raw| {
            if key.0 == name {
                found = Some(raw);
            }
        });
        found
    };
    let inner = find(line, "body").and_then(|body| find(body.get(), name));
    inner.or_else(|| find(line, name))
}
