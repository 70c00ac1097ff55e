//! `/v1/analyze`: a base64 image and the features wanted of it.

use crate::{
    Options,
    call::Work,
    chance::{Chance, hash},
    fields::Text,
    generation::json,
    refusal::Refusal,
    request::parse,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

const LABELS: [&str; 10] =
    ["boat", "harbour", "person", "street", "animal", "food", "document", "building", "sea", "sky"];
const COLORS: [&str; 6] = ["#0a2342", "#2ca58d", "#84bc9c", "#fffdf7", "#f46197", "#333333"];

#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    model: Option<Text<'a>>,
    #[serde(borrow)]
    image: Option<Text<'a>>,
    features: Option<Vec<String>>,
}

#[derive(Serialize)]
struct Reply<'a> {
    model: &'a str,
    image: Image,
    features: Features,
}

#[derive(Serialize)]
struct Image {
    bytes: usize,
    hash: String,
    format: &'static str,
    width: Option<u32>,
    height: Option<u32>,
}

/// Only what was asked for is there.
#[derive(Default, Serialize)]
struct Features {
    #[serde(skip_serializing_if = "Option::is_none")]
    labels: Option<Vec<Label>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    objects: Option<Vec<Object>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    faces: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    colors: Option<Vec<&'static str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    safe: Option<bool>,
}

#[derive(Serialize)]
struct Label {
    name: &'static str,
    score: f64,
}

#[derive(Serialize)]
struct Object {
    name: &'static str,
    score: f64,
    /// Left, top, width, height, as shares of the image.
    #[serde(rename = "box")]
    area: [f64; 4],
}

/// `{"image": "<base64 or data: URI>", "features": ["labels", "objects", "text", "faces",
/// "colors", "safe"]}`; without `features` the labels.
pub(crate) fn plan(
    body: &[u8],
    options: &Options,
    model: impl FnOnce(&str) -> Arc<str>,
) -> Result<Work, Refusal> {
    let body: Body<'_> = parse(body)?;
    let model = model(body.model.as_ref().map_or(&options.models[0], |model| &model.0));
    let image = body.image.ok_or_else(|| Refusal::missing("image"))?.0;
    let encoded = match image.strip_prefix("data:") {
        None => image.as_ref(),
        Some(uri) => {
            uri.split_once(";base64,")
                .ok_or_else(|| {
                    Refusal::invalid("image", "`image` is a data: URI without ;base64,")
                })?
                .1
        }
    };
    let bytes = STANDARD
        .decode(encoded.trim_ascii())
        .map_err(|error| Refusal::invalid("image", format!("`image` is not base64: {error}")))?;
    if bytes.is_empty() {
        return Err(Refusal::invalid("image", "`image` is empty"));
    }
    let image_hash = hash(&bytes);
    let mut chance = Chance::new(&[options.seed, image_hash]);
    let wanted = body.features.unwrap_or_else(|| vec!["labels".into()]);
    let mut features = Features::default();
    for feature in &wanted {
        add(&mut features, feature, &mut chance)?;
    }
    let (format, width, height) = inspect(&bytes);
    let hash = format!("{image_hash:016x}");
    let image = Image { bytes: bytes.len(), hash, format, width, height };
    let reply = json(&Reply { model: &model, image, features });
    Ok(Work::Json { reply, model, items: wanted.len().max(1), prompt_tokens: 85 })
}

fn add(features: &mut Features, feature: &str, chance: &mut Chance) -> Result<(), Refusal> {
    let count = 1 + chance.below(3);
    let score = |chance: &mut Chance| (5000.0 + chance.unit() * 4999.0).round() / 1e4;
    match feature {
        "labels" => {
            let label = |_| Label { name: chance.pick(&LABELS), score: score(chance) };
            features.labels = Some((0..count).map(label).collect());
        }
        "objects" => {
            let object = |_| Object {
                name: chance.pick(&LABELS),
                score: score(chance),
                area: [0.0; 4].map(|_: f64| (chance.unit() * 50.0).round() / 100.0),
            };
            features.objects = Some((0..count).map(object).collect());
        }
        "text" => {
            let words: Vec<_> = (0..count + 1).map(|_| chance.pick(&LABELS)).collect();
            features.text = Some(words.join(" "));
        }
        "faces" => features.faces = Some(count - 1),
        "colors" => features.colors = Some((0..count).map(|_| chance.pick(&COLORS)).collect()),
        "safe" => features.safe = Some(chance.below(10) > 0),
        other => {
            let message = format!(
                "`{other}` is no feature: give labels, objects, text, faces, colors or safe"
            );
            return Err(Refusal::invalid("features", message));
        }
    }
    Ok(())
}

/// Format by its first bytes, size where the header has it at a fixed place.
fn inspect(bytes: &[u8]) -> (&'static str, Option<u32>, Option<u32>) {
    let big = |at: usize| Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?));
    let little = |at: usize| Some(u32::from(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?)));
    match bytes {
        [0x89, b'P', b'N', b'G', ..] => ("png", big(16), big(20)),
        [b'G', b'I', b'F', b'8', ..] => ("gif", little(6), little(8)),
        [0xff, 0xd8, 0xff, ..] => ("jpeg", None, None),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => ("webp", None, None),
        [b'B', b'M', ..] => ("bmp", None, None),
        _ => ("unknown", None, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_told_by_their_first_bytes() {
        let png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x10\0\0\0\x20";
        assert_eq!(inspect(png), ("png", Some(16), Some(32)));
        assert_eq!(inspect(b"GIF89a\x05\0\x06\0"), ("gif", Some(5), Some(6)));
        assert_eq!(inspect(b"\x89PNG"), ("png", None, None));
        assert_eq!(inspect(b"x"), ("unknown", None, None));
    }

    #[test]
    fn a_bad_image_is_named() {
        let check = |body: &str, named: &str| {
            let refusal =
                plan(body.as_bytes(), &Options::default(), |name| name.into()).err().unwrap();
            assert!(refusal.message.contains(named), "{}", refusal.message);
        };
        check(r#"{"image":"!!"}"#, "base64");
        check(r#"{"image":"AAAA","features":["smell"]}"#, "smell");
        check("{}", "image");
    }
}
