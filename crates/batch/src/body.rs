//! Bodies: a row becomes the request to send.
//!
//! # Why
//!
//! A ready-made body is spliced, never rebuilt: fields nobody here knows survive, and numbers keep
//! their spelling. A body made from columns is one prepared beginning and the row's own messages.

mod columns;
mod line;
mod prepared;
mod set;

use crate::{
    input::{Fault, GroupBy, InputError, InputOptions, json},
    schema::Schema,
    template::{Templates, list},
};
pub(crate) use prepared::{Prepared, Unloaded, check};
use set::Set;
use std::{
    borrow::Cow,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};
use tidegate_core::Operation;

/// How rows become requests: everything the options say of it, prepared once.
#[derive(Debug)]
pub(crate) struct Recipe {
    endpoint: Operation,
    /// Model asked for with `--model`: it replaces a body's own.
    model: Option<String>,
    /// Model of rows that name none.
    default_model: Option<String>,
    templates: Option<Templates>,
    sets: Vec<Set>,
    schema: Option<Arc<Schema>>,
    /// Beginning of a body made from columns, up to its messages; `None` without a model.
    beginning: Option<String>,
    image_column: Option<String>,
    priority_column: Option<String>,
    by_prefix: bool,
    /// Folder that relative paths in `--image-column` start from.
    base: PathBuf,
    max_row_bytes: usize,
}

/// Longest template file.
const MAX_PROMPT_FILE_BYTES: u64 = 4 * 1024 * 1024;
const NO_MODEL: &str = "no model is named: give --model NAME";

impl Recipe {
    /// Prepares what `options` say.
    ///
    /// # Errors
    ///
    /// An option that is not usable, by its flag.
    pub(crate) fn new(options: &InputOptions) -> Result<Self, InputError> {
        let prompt = match (&options.prompt, &options.prompt_file) {
            (Some(_), Some(_)) => {
                return Err(InputError::new("give --prompt or --prompt-file, not both"));
            }
            (Some(prompt), None) => Some(prompt.clone()),
            (None, Some(path)) => Some(read_prompt(path)?),
            (None, None) => None,
        };
        if prompt.is_none() && options.system.is_some() {
            return Err(InputError::new(
                "--system goes with --prompt: ready-made bodies carry their own system message",
            ));
        }
        let endpoint = options.endpoint;
        if options.system.is_some()
            && matches!(endpoint, Operation::Completions | Operation::Embeddings)
        {
            return Err(unfit("--system", endpoint));
        }
        if options.image_column.is_some() && prompt.is_none() {
            return Err(InputError::new(
                "--image-column goes with --prompt: say what to ask about each picture",
            ));
        }
        if options.image_column.is_some() {
            takes_images("--image-column", endpoint)?;
        }
        let templates =
            prompt.map(|prompt| Templates::new(prompt, options.system.clone())).transpose()?;
        let schema = options.schema.as_deref().map(Schema::open).transpose()?.map(Arc::new);
        let mut sets = Vec::new();
        for (name, value) in &options.set {
            sets.push(Set::new(name, value)?);
        }
        let mut recipe = Self {
            endpoint,
            model: options.model.clone(),
            default_model: options.default_model.clone(),
            templates,
            sets,
            schema,
            beginning: None,
            image_column: options.image_column.clone(),
            priority_column: options.priority_column.clone(),
            by_prefix: options.group_by == Some(GroupBy::Prefix),
            base: options.path.parent().unwrap_or(Path::new("")).to_owned(),
            max_row_bytes: options.max_row_bytes,
        };
        recipe.take_model_from_sets()?;
        if recipe.templates.is_some() {
            recipe.prepare_beginning()?;
        }
        Ok(recipe)
    }

    /// Checks the recipe against the columns every row is known to have.
    ///
    /// # Errors
    ///
    /// A missing `--prompt` or model, or a column that is named but not there.
    pub(crate) fn check_columns(&self, columns: &[String], what: &str) -> Result<(), InputError> {
        let Some(templates) = &self.templates else {
            return Err(InputError::new(format!(
                "{what} need --prompt to make a request of their columns ({}), for example \
                 --prompt '{{{{ {} }}}}'",
                list(columns),
                example(columns)
            )));
        };
        if self.beginning.is_none() {
            return Err(InputError::new(NO_MODEL));
        }
        templates.check(columns)?;
        for (flag, name) in
            [("--image-column", &self.image_column), ("--priority-column", &self.priority_column)]
        {
            if let Some(name) = name
                && !columns.contains(name)
            {
                return Err(InputError::new(format!(
                    "{flag} names column '{name}', which the input lacks; its columns are: {}",
                    list(columns)
                )));
            }
        }
        Ok(())
    }

    /// Checks that the recipe fits a folder or glob of pictures.
    ///
    /// # Errors
    ///
    /// An option that does not go with pictures.
    pub(crate) fn check_images(&self) -> Result<(), InputError> {
        takes_images("a folder of pictures", self.endpoint)?;
        if self.image_column.is_some() {
            return Err(InputError::new(
                "--image-column names a column of JSONL or CSV: take it out for a folder of pictures",
            ));
        }
        if self.priority_column.is_some() {
            return Err(InputError::new("--priority-column needs columns: pictures have none"));
        }
        self.check_columns(&image_columns(), "pictures")
    }

    /// Checks that the whole body, its picture included, is not over-large.
    ///
    /// # Errors
    ///
    /// When it is.
    pub(crate) fn check_size(&self, prepared: &Prepared<'_>) -> Result<(), Fault> {
        let (length, most) = (prepared.body_len(), self.max_row_bytes);
        if length <= most {
            return Ok(());
        }
        Err(Fault::new(format!(
            "the request has {length} bytes; at most {most} are sent (--max-row)"
        )))
    }

    /// The schema answers must follow.
    pub(crate) const fn schema(&self) -> Option<&Arc<Schema>> {
        self.schema.as_ref()
    }

    /// `body` with the schema and every `--set` in it.
    fn with_extras<'a>(
        &self,
        operation: Operation,
        mut body: Cow<'a, str>,
    ) -> Result<Cow<'a, str>, Fault> {
        if let Some(schema) = &self.schema {
            let (path, value) = schema.field(operation).map_err(Fault::new)?;
            body = Cow::Owned(json::set(&body, &path, &value)?);
        }
        for set in &self.sets {
            body = Cow::Owned(json::set(&body, &set.path, &set.json)?);
        }
        Ok(body)
    }

    /// `--set body.model=x` is `--model x`.
    fn take_model_from_sets(&mut self) -> Result<(), InputError> {
        for set in self.sets.extract_if(.., |set| set.path == ["model"]) {
            let model = serde_json::from_str(&set.json)
                .map_err(|_| InputError::new("--set body.model: a model's name is a string"))?;
            self.model = Some(model);
        }
        match &self.model {
            Some(model) if model.trim().is_empty() => Err(InputError::new("--model is empty")),
            _ => Ok(()),
        }
    }

    fn prepare_beginning(&mut self) -> Result<(), InputError> {
        let made = content_fields(self.endpoint);
        if let Some(set) = self.sets.iter().find(|set| made.contains(&set.path[0].as_str())) {
            return Err(InputError::new(format!(
                "--set body.{} does not go with --prompt, which makes that field",
                set.path.join(".")
            )));
        }
        let Some(model) = self.model.as_ref().or(self.default_model.as_ref()) else {
            return Ok(());
        };
        let mut start = String::from("{\"model\":");
        json::push_string(&mut start, model);
        start.push('}');
        let whole = self
            .with_extras(self.endpoint, Cow::Owned(start))
            .map_err(|fault| InputError::new(fault.message))?;
        self.beginning = whole.strip_suffix('}').map(str::to_owned);
        Ok(())
    }
}

/// Fields that hold what a request of `operation` is about.
const fn content_fields(operation: Operation) -> &'static [&'static str] {
    match operation {
        Operation::ChatCompletions => &["messages"],
        Operation::Completions => &["prompt"],
        Operation::Embeddings => &["input"],
        Operation::Responses => &["input", "instructions"],
    }
}

fn read_prompt(path: &Path) -> Result<String, InputError> {
    let unreadable = |error| InputError::unreadable(path, error);
    if fs::metadata(path).map_err(unreadable)?.len() > MAX_PROMPT_FILE_BYTES {
        return Err(InputError::new(format!(
            "the template {} is longer than {MAX_PROMPT_FILE_BYTES} bytes",
            path.display()
        )));
    }
    fs::read_to_string(path).map_err(unreadable)
}

fn takes_images(what: &str, endpoint: Operation) -> Result<(), InputError> {
    match endpoint {
        Operation::ChatCompletions | Operation::Responses => Ok(()),
        Operation::Completions | Operation::Embeddings => Err(unfit(what, endpoint)),
    }
}

fn unfit(what: &str, endpoint: Operation) -> InputError {
    InputError::new(format!(
        "{what} does not go with /v1{}: use --endpoint chat or responses",
        endpoint.path()
    ))
}

/// What a template can name of a picture.
fn image_columns() -> Vec<String> {
    vec!["file".into(), "path".into()]
}

/// A column to show in an example: one a template can name, and that is more than an id.
fn example(columns: &[String]) -> &str {
    let is_identifier = |name: &&String| {
        !name.is_empty()
            && !name.starts_with(|c: char| c.is_ascii_digit())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    let mut named = columns.iter().filter(is_identifier);
    let telling = named.clone().find(|name| *name != "id" && !name.ends_with("_id"));
    telling.or(named.next()).map_or("row[\"name\"]", |name| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(options: InputOptions, expected: &str) {
        let said = match Recipe::new(&options) {
            Ok(recipe) => recipe.check_columns(&["a".into(), "b c".into()], "CSV rows"),
            Err(error) => Err(error),
        };
        let said = said.err().map_or_else(|| "ok".to_owned(), |error| error.to_string());
        assert!(said.contains(expected), "{said}");
    }

    fn prompt(prompt: &str) -> InputOptions {
        InputOptions {
            prompt: Some(prompt.into()),
            default_model: Some("m".into()),
            ..InputOptions::default()
        }
    }

    #[test]
    fn options_that_do_not_go_together_name_their_flag() {
        let set = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
        check(prompt("{{ a }}"), "ok");
        check(InputOptions::default(), "--prompt '{{ a }}'");
        check(prompt("{{ x }}"), "column 'x'");
        check(InputOptions { default_model: None, ..prompt("{{ a }}") }, "--model NAME");
        check(InputOptions { prompt_file: Some("x".into()), ..prompt("x") }, "not both");
        check(InputOptions { system: Some("x".into()), ..InputOptions::default() }, "--system");
        let endpoint = Operation::Embeddings;
        check(InputOptions { system: Some("x".into()), endpoint, ..prompt("x") }, "/v1/embeddings");
        check(InputOptions { image_column: Some("z".into()), ..prompt("x") }, "--image-column");
        check(
            InputOptions { priority_column: Some("z".into()), ..prompt("x") },
            "--priority-column",
        );
        check(InputOptions { model: Some(" ".into()), ..prompt("x") }, "--model is empty");
        check(InputOptions { set: set("temperature", "0"), ..prompt("x") }, "body.FIELD");
        check(InputOptions { set: set("body.", "0"), ..prompt("x") }, "body.FIELD");
        check(InputOptions { set: set("body.stream", "true"), ..prompt("x") }, "whole answers");
        check(InputOptions { set: set("body.messages", "[]"), ..prompt("x") }, "body.messages");
        check(InputOptions { set: set("body.model", "7"), ..prompt("x") }, "is a string");
        check(InputOptions { set: set("body.model", "x"), ..prompt("x") }, "ok");
        check(
            InputOptions { prompt_file: Some("/nowhere".into()), prompt: None, ..prompt("") },
            "/nowhere",
        );
        check(
            InputOptions { schema: Some("/nowhere.json".into()), ..prompt("x") },
            "/nowhere.json",
        );
    }
}
