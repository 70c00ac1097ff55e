//! Bodies made from columns: templates, messages, pictures.

use super::{
    NO_MODEL, Prepared, Recipe, image_columns,
    line::{checked_id, priority},
    prepared::Image,
};
use crate::{
    images::Picture,
    input::{Fault, json},
    order,
    template::{Columns, Rendered},
};
use std::{borrow::Cow, path::Path};
use tidegate_core::Operation;

/// Where a row's picture comes from.
enum Source {
    Url(String),
    File(Picture),
}

impl Recipe {
    /// The request made from the columns of one row.
    ///
    /// # Errors
    ///
    /// A column that is missing or unusable.
    pub(crate) fn row<'a>(&self, columns: Columns<'a>) -> Result<Prepared<'a>, Fault> {
        let custom_id = columns.text("custom_id").filter(|id| !id.is_empty());
        let custom_id = custom_id.map(checked_id).transpose()?;
        let source = match &self.image_column {
            Some(column) => Some(self.image_source(&columns, column)?),
            None => None,
        };
        let rank = match &self.priority_column {
            Some(column) => match columns.text(column) {
                Some(text) => priority(&text, || Fault::new(self.bad_priority(&text)))?,
                None => 0.0,
            },
            None => 0.0,
        };
        let mut prepared = self.built(columns, source)?;
        prepared.priority = rank;
        prepared.custom_id = custom_id;
        Ok(prepared)
    }

    /// The request about the picture `path`.
    ///
    /// # Errors
    ///
    /// A picture that is missing, empty, over-large or none.
    pub(crate) fn image(&self, path: &Path) -> Result<Prepared<'static>, Fault> {
        let picture = Picture::look(path.to_owned(), self.max_row_bytes)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let shown = path.to_string_lossy().into_owned();
        let (names, cells) = (image_columns(), [&*name, &*shown]);
        let columns = Columns::Cells { names: &names, cells: &cells };
        let prepared = self.built(columns, Some(Source::File(picture)))?;
        Ok(Prepared {
            columns: Some(Cow::Owned(columns.to_json())),
            custom_id: None,
            ..prepared.into_owned()
        })
    }

    fn built<'a>(
        &self,
        columns: Columns<'a>,
        source: Option<Source>,
    ) -> Result<Prepared<'a>, Fault> {
        let templates = self.templates.as_ref().expect("rows are only read with a template");
        let beginning = self.beginning.as_ref().ok_or(Fault::new(NO_MODEL))?;
        let rendered = templates.render(columns)?;
        let mut body = String::with_capacity(beginning.len() + rendered.prompt.len() + 128);
        body.push_str(beginning);
        let image = push_content(&mut body, self.endpoint, &rendered, source);
        body.push('}');
        let prefix_key =
            if self.by_prefix { order::prefix_key(&body[beginning.len()..]) } else { 0 };
        let model = self.model.as_ref().or(self.default_model.as_ref());
        Ok(Prepared {
            operation: self.endpoint,
            model: Cow::Owned(model.cloned().unwrap_or_default()),
            custom_id: None,
            body: Cow::Owned(body),
            columns: Some(match columns {
                Columns::Object(text) => Cow::Borrowed(text.trim_ascii()),
                cells @ Columns::Cells { .. } => Cow::Owned(cells.to_json()),
            }),
            image,
            priority: 0.0,
            prefix_key,
        })
    }

    fn image_source(&self, columns: &Columns<'_>, column: &str) -> Result<Source, Fault> {
        let text =
            columns.text(column).filter(|text| !text.trim().is_empty()).ok_or_else(|| {
                Fault::new(format!("the image column '{column}' is empty: give a path or a URL"))
            })?;
        let text = text.trim();
        if ["http://", "https://", "data:image/"].iter().any(|scheme| text.starts_with(scheme)) {
            return Ok(Source::Url(text.to_owned()));
        }
        if text.contains("://") || text.starts_with("data:") {
            return Err(Fault::new(format!(
                "the image column '{column}' must hold a path or an http(s) URL"
            )));
        }
        Picture::look(self.base.join(text), self.max_row_bytes).map(Source::File)
    }
}

/// Appends the fields that hold the prompt, and says where a picture's bytes go.
fn push_content(
    body: &mut String,
    operation: Operation,
    rendered: &Rendered,
    source: Option<Source>,
) -> Option<Image> {
    let prompt = &rendered.prompt;
    let mut image = None;
    match operation {
        Operation::ChatCompletions => {
            body.push_str(",\"messages\":[");
            if let Some(system) = &rendered.system {
                body.push_str("{\"role\":\"system\",\"content\":");
                json::push_string(body, system);
                body.push_str("},");
            }
            body.push_str("{\"role\":\"user\",\"content\":");
            match source {
                None => json::push_string(body, prompt),
                Some(source) => {
                    body.push_str("[{\"type\":\"text\",\"text\":");
                    json::push_string(body, prompt);
                    body.push_str("},{\"type\":\"image_url\",\"image_url\":{\"url\":");
                    image = Some(push_image(body, source));
                    body.push_str("}}]");
                }
            }
            body.push_str("}]");
        }
        Operation::Completions => {
            body.push_str(",\"prompt\":");
            json::push_string(body, prompt);
        }
        Operation::Embeddings => {
            body.push_str(",\"input\":");
            json::push_string(body, prompt);
        }
        Operation::Responses => {
            if let Some(system) = &rendered.system {
                body.push_str(",\"instructions\":");
                json::push_string(body, system);
            }
            body.push_str(",\"input\":");
            match source {
                None => json::push_string(body, prompt),
                Some(source) => {
                    body.push_str(
                        "[{\"role\":\"user\",\"content\":[{\"type\":\"input_text\",\"text\":",
                    );
                    json::push_string(body, prompt);
                    body.push_str("},{\"type\":\"input_image\",\"image_url\":");
                    image = Some(push_image(body, source));
                    body.push_str("}]}]");
                }
            }
        }
    }
    image
}

fn push_image(body: &mut String, source: Source) -> Image {
    match source {
        Source::Url(url) => {
            json::push_string(body, &url);
            Image::Url
        }
        Source::File(picture) => {
            body.push('"');
            let at = body.len();
            body.push('"');
            Image::File { at, picture }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::InputOptions;
    use std::fs;

    const PNG: &[u8] = b"\x89PNG\r\n\x1a\nrest";

    #[track_caller]
    fn check(options: InputOptions, expected: &str) {
        let recipe = Recipe::new(&options).unwrap();
        let names = ["q".to_owned(), "pic".to_owned()];
        let columns =
            Columns::Cells { names: &names, cells: &["a \"b\"", "https://example.com/a.png"] };
        assert_eq!(recipe.row(columns).unwrap().body, expected);
    }

    fn options(endpoint: Operation) -> InputOptions {
        InputOptions {
            endpoint,
            prompt: Some("{{ q }}?".into()),
            model: Some("m".into()),
            ..InputOptions::default()
        }
    }

    #[test]
    fn every_operation_has_its_own_body() {
        let asked =
            |operation| InputOptions { system: Some("Be {{ q }}".into()), ..options(operation) };
        let seen =
            |operation| InputOptions { image_column: Some("pic".into()), ..options(operation) };
        check(options(Operation::Completions), r#"{"model":"m","prompt":"a \"b\"?"}"#);
        check(options(Operation::Embeddings), r#"{"model":"m","input":"a \"b\"?"}"#);
        check(
            asked(Operation::ChatCompletions),
            r#"{"model":"m","messages":[{"role":"system","content":"Be a \"b\""},{"role":"user","content":"a \"b\"?"}]}"#,
        );
        check(
            asked(Operation::Responses),
            r#"{"model":"m","instructions":"Be a \"b\"","input":"a \"b\"?"}"#,
        );
        check(
            seen(Operation::ChatCompletions),
            r#"{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"a \"b\"?"},{"type":"image_url","image_url":{"url":"https://example.com/a.png"}}]}]}"#,
        );
        check(
            seen(Operation::Responses),
            r#"{"model":"m","input":[{"role":"user","content":[{"type":"input_text","text":"a \"b\"?"},{"type":"input_image","image_url":"https://example.com/a.png"}]}]}"#,
        );
    }

    #[test]
    fn a_picture_is_read_only_when_its_row_is_sent() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.png"), PNG).unwrap();
        let options = InputOptions {
            path: dir.path().join("rows.csv"),
            image_column: Some("pic".into()),
            ..options(Operation::ChatCompletions)
        };
        let recipe = Recipe::new(&options).unwrap();
        let names = ["q".to_owned(), "pic".to_owned()];
        let row = |pic| {
            let columns = Columns::Cells { names: &names, cells: &["x", pic] };
            recipe.row(columns).map(Prepared::into_owned)
        };
        let prepared = row("a.png").unwrap();
        assert!(prepared.body.contains(r#""url":"""#) && prepared.counted_bytes() > 3000);
        let hash = prepared.hash();
        let request = prepared.unloaded(3, hash).load().unwrap();
        let body = std::str::from_utf8(&request.body).unwrap();
        assert!(body.contains(r#"{"url":"data:image/png;base64,iVBORw0KGgpyZXN0"}"#), "{body}");
        assert!(request.counted_bytes < 4000);
        assert_eq!(request.columns.unwrap(), r#"{"q":"x","pic":"a.png"}"#);
        for (pic, expected) in [
            ("", "is empty"),
            ("gone.png", "does not exist"),
            ("file:///etc/passwd", "http(s)"),
            ("data:text/html,x", "http(s)"),
        ] {
            let said = row(pic).unwrap_err().message;
            assert!(said.contains(expected), "{said}");
        }
    }

    #[test]
    fn a_folders_picture_names_itself() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        fs::write(&path, PNG).unwrap();
        let prompt = Some("What is {{ file }}?".into());
        let recipe =
            Recipe::new(&InputOptions { prompt, ..options(Operation::ChatCompletions) }).unwrap();
        recipe.check_images().unwrap();
        let prepared = recipe.image(&path).unwrap();
        assert!(prepared.body.contains("What is a.png?"));
        let before = prepared.hash();
        fs::write(&path, [PNG, b"more"].concat()).unwrap();
        assert_ne!(recipe.image(&path).unwrap().hash(), before, "its size is part of the row");
        assert!(Recipe::new(&options(Operation::ChatCompletions)).unwrap().check_images().is_err());
    }
}
