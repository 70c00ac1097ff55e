//! `--set body.FIELD=VALUE`: one field put into every body.

use crate::input::{InputError, json};

/// `--set body.a.b=VALUE`
#[derive(Debug)]
pub(super) struct Set {
    pub(super) path: Vec<String>,
    pub(super) json: String,
}

impl Set {
    /// Reads `name` (`body.a.b`) and `value`: JSON, or else a string.
    ///
    /// # Errors
    ///
    /// A name that is no field of the body.
    pub(super) fn new(name: &str, value: &str) -> Result<Self, InputError> {
        let path: Option<Vec<String>> =
            name.strip_prefix("body.").map(|path| path.split('.').map(str::to_owned).collect());
        let path = path.filter(|path| path.iter().all(|name| !name.is_empty())).ok_or_else(|| {
            InputError::new(format!(
                "--set {name}: names are written body.FIELD, for example --set body.temperature=0"
            ))
        })?;
        let json = match serde_json::from_str::<json::Raw<'_>>(value) {
            Ok(raw) => raw.get().to_owned(),
            Err(_) => {
                let mut quoted = String::new();
                json::push_string(&mut quoted, value);
                quoted
            }
        };
        if path == ["stream"] && json == "true" {
            return Err(InputError::new("--set body.stream=true: a batch keeps whole answers"));
        }
        Ok(Self { path, json })
    }
}
