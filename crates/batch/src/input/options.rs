//! What the command line says of an input, and why an input is refused.

use std::{io, path::PathBuf};
use tidegate_core::Operation;

/// Which rows a batch has, and how they become requests.
#[derive(Clone, Debug)]
pub struct InputOptions {
    /// File, folder or glob; `-` is standard input.
    pub path: PathBuf,
    /// Model to use: it replaces the one a body names.
    pub model: Option<String>,
    /// Model of rows that name none, when `model` is not given.
    pub default_model: Option<String>,
    /// Operation of rows that are no OpenAI batch lines. Default: chat.
    pub endpoint: Operation,
    /// Template (minijinja) of the prompt, over a row's columns.
    pub prompt: Option<String>,
    /// File to read that template from.
    pub prompt_file: Option<PathBuf>,
    /// Template of the system message.
    pub system: Option<String>,
    /// Fields to set in every body: `("body.temperature", "0")`; a value that is no JSON is a string.
    pub set: Vec<(String, String)>,
    /// File with the JSON Schema answers must follow.
    pub schema: Option<PathBuf>,
    /// Column with a picture's path or URL. Relative paths start at the input's folder.
    pub image_column: Option<String>,
    /// Take only the first rows, so many.
    pub limit: Option<u64>,
    /// Take only so many rows, picked by chance.
    pub sample: Option<u64>,
    /// What that chance starts from. Default: 0.
    pub seed: u64,
    /// Column with a number; rows with a higher one go first.
    pub priority_column: Option<String>,
    /// Rows to send one after the other.
    pub group_by: Option<GroupBy>,
    /// Longest row, and longest body with its picture. Default: 16 MiB.
    pub max_row_bytes: usize,
    /// Bad lines kept with their message; all are counted. Default: 20.
    pub max_bad_shown: usize,
}

impl Default for InputOptions {
    fn default() -> Self {
        Self {
            path: PathBuf::new(),
            model: None,
            default_model: None,
            endpoint: Operation::ChatCompletions,
            prompt: None,
            prompt_file: None,
            system: None,
            set: Vec::new(),
            schema: None,
            image_column: None,
            limit: None,
            sample: None,
            seed: 0,
            priority_column: None,
            group_by: None,
            max_row_bytes: 16 * 1024 * 1024,
            max_bad_shown: 20,
        }
    }
}

/// Which rows go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupBy {
    /// Those of like size, small ones first.
    Tokens,
    /// Those whose prompts begin alike.
    Prefix,
}

/// Why an input cannot be used at all; says what to do.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct InputError {
    message: String,
    source: Option<io::Error>,
}

impl InputError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), source: None }
    }

    /// The message with what the system said.
    pub(crate) fn caused(doing: String, source: io::Error) -> Self {
        Self { message: format!("{doing}: {source}"), source: Some(source) }
    }
}
