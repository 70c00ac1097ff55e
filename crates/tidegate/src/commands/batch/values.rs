//! How the values of flags are written, and what is said of one that is not so.

use tidegate_core::Operation;

/// Rows in flight at once; `None` is as many as the upstream turns out to take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Concurrency(pub(super) Option<u32>);

pub(super) fn operation(text: &str) -> Result<Operation, String> {
    let named = Operation::ALL.into_iter().find(|operation| {
        text == operation.name() || text.trim_start_matches('/') == &operation.path()[1..]
    });
    named
        .or_else(|| Operation::from_path(text))
        .or(match text {
            "completions" => Some(Operation::Completions),
            _ => None,
        })
        .ok_or_else(|| "it is one of chat, completions, embeddings, responses".into())
}

pub(super) fn assignment(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((path, value)) if !path.is_empty() => Ok((path.to_owned(), value.to_owned())),
        _ => Err("write it as PATH=VALUE, such as body.temperature=0".into()),
    }
}

pub(super) fn concurrency(text: &str) -> Result<Concurrency, String> {
    const MOST: u32 = 100_000;
    match text.parse() {
        _ if text == "auto" => Ok(Concurrency(None)),
        Ok(rows) if (1..=MOST).contains(&rows) => Ok(Concurrency(Some(rows))),
        _ => Err(format!("it is auto, or a number from 1 to {MOST}")),
    }
}

pub(super) fn dollars(text: &str) -> Result<f64, String> {
    let number = text.strip_prefix('$').unwrap_or(text).parse::<f64>().ok();
    number
        .filter(|number| number.is_finite() && *number >= 0.0)
        .ok_or_else(|| "it is an amount of US dollars, such as 5.00".into())
}

pub(super) fn positive(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok();
    number
        .filter(|number| number.is_finite() && *number > 0.0)
        .ok_or_else(|| "it is a number above 0".into())
}
