//! `/v1/embeddings`: vectors of length one, near each other when the texts share words.

use crate::{
    Options,
    call::Work,
    chance::{hash, mix},
    fields::{Input, Text},
    generation::json,
    refusal::Refusal,
    request::parse,
    tokens,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize, Serializer};
use std::{borrow::Cow, sync::Arc};

/// Inputs of one request at most, as OpenAI has it.
const MAX_INPUTS: usize = 2048;
/// Tokens of an input that move its vector.
const MAX_TOKENS: u32 = 512;

#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    model: Option<Text<'a>>,
    #[serde(borrow)]
    input: Option<Input<'a>>,
    dimensions: Option<usize>,
    encoding_format: Option<Encoding>,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Encoding {
    #[default]
    Float,
    Base64,
}

#[derive(Serialize)]
struct Reply<'a> {
    object: &'static str,
    data: Vec<Embedding>,
    model: &'a str,
    usage: Usage,
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: u32,
    total_tokens: u32,
}

#[derive(Serialize)]
struct Embedding {
    object: &'static str,
    index: usize,
    embedding: Vector,
}

struct Vector(Vec<f32>, Encoding);

impl Serialize for Vector {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self.1 {
            Encoding::Float => self.0.serialize(to),
            Encoding::Base64 => {
                let bytes: Vec<u8> = self.0.iter().flat_map(|part| part.to_le_bytes()).collect();
                to.serialize_str(&STANDARD.encode(bytes))
            }
        }
    }
}

pub(crate) fn plan(
    body: &[u8],
    options: &Options,
    model: impl FnOnce(&str) -> Arc<str>,
) -> Result<Work, Refusal> {
    let body: Body<'_> = parse(body)?;
    let model = model(&body.model.ok_or_else(|| Refusal::missing("model"))?.0);
    let inputs = body.input.ok_or_else(|| Refusal::missing("input"))?.into_items();
    if inputs.is_empty() || inputs.len() > MAX_INPUTS {
        return Err(Refusal::invalid("input", "`input` must have from 1 to 2048 items"));
    }
    let dimensions = body.dimensions.unwrap_or(options.dimensions);
    if !(1..=8192).contains(&dimensions) {
        return Err(Refusal::invalid("dimensions", "`dimensions` must be from 1 to 8192"));
    }
    let encoding = body.encoding_format.unwrap_or_default();
    let from = mix(options.seed ^ hash(model.as_bytes()));
    let total = inputs.iter().fold(0u32, |sum, (_, tokens)| sum.saturating_add(*tokens));
    let items = inputs.len();
    let embedding = |(index, (text, _)): (usize, (Cow<'_, str>, u32))| Embedding {
        object: "embedding",
        index,
        embedding: Vector(vector(&text, dimensions, from), encoding),
    };
    let reply = Reply {
        object: "list",
        data: inputs.into_iter().enumerate().map(embedding).collect(),
        model: &model,
        usage: Usage { prompt_tokens: total, total_tokens: total },
    };
    Ok(Work::Json { reply: json(&reply), model: Arc::clone(&model), items, prompt_tokens: total })
}

/// Each token adds eight signed marks at places its hash tells (feature hashing).
fn vector(text: &str, dimensions: usize, from: u64) -> Vec<f32> {
    let mut vector = vec![0.0f32; dimensions];
    let mut rest = text;
    for _ in 0..MAX_TOKENS {
        let length = tokens::first(rest);
        if length == 0 {
            break;
        }
        let mut state = mix(from ^ short_hash(rest[..length].trim_start()));
        for _ in 0..8 {
            state = mix(state.wrapping_add(0x9E37_79B9_7F4A_7C15));
            let at = (((state >> 1) as u128 * dimensions as u128) >> 63) as usize;
            vector[at] += if state & 1 == 0 { 1.0 } else { -1.0 };
        }
        rest = &rest[length..];
    }
    let length = vector.iter().map(|part| part * part).sum::<f32>().sqrt();
    if length == 0.0 {
        vector[0] = 1.0;
        return vector;
    }
    vector.iter_mut().for_each(|part| *part /= length);
    vector
}

/// A token's bytes, mixed; cheaper than a real hash for so few.
fn short_hash(token: &str) -> u64 {
    token.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte.to_ascii_lowercase())).wrapping_mul(0x100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dot(a: &str, b: &str) -> f32 {
        vector(a, 256, 1).iter().zip(vector(b, 256, 1)).map(|(a, b)| a * b).sum()
    }

    #[test]
    fn near_texts_have_near_vectors() {
        let text = "the tide turns at the old gate";
        assert!((dot(text, text) - 1.0).abs() < 1e-4);
        assert!(dot(text, "the tide turns at the new gate") > 0.7);
        assert!(dot(text, "quarterly revenue grew eight percent") < 0.3);
        assert_eq!(vector("", 4, 1), [1.0, 0.0, 0.0, 0.0]);
    }
}
