//! Pictures as rows: found by folder or glob, looked at when the batch opens, read when sent.
//!
//! # Why
//!
//! A base64 picture is megabytes. Held in memory or written to the journal, a thousand of them
//! sink a batch; so a row keeps the path, and the bytes are encoded for the one call that needs them.

use crate::input::{Fault, InputError};
use base64::{Engine, prelude::BASE64_STANDARD};
use glob::MatchOptions;
use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

/// Extensions of files taken for pictures in a folder or glob.
const EXTENSIONS: [&str; 5] = ["png", "jpg", "jpeg", "gif", "webp"];

/// A picture that was there and sound when it was looked at.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Picture {
    path: PathBuf,
    size_bytes: u64,
    modified_nanos: u128,
    mime: &'static str,
}

/// Whether `path` has the extension of a picture.
pub(crate) fn is_picture(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or("");
    EXTENSIONS.iter().any(|known| known.eq_ignore_ascii_case(extension))
}

/// Whether `path` is written as a glob.
pub(crate) fn is_glob(path: &Path) -> bool {
    path.to_str().is_some_and(|path| path.contains(['*', '?', '[']))
}

/// The pictures in the folder `path`, by name; hidden files and folders below it are left out.
///
/// # Errors
///
/// When it cannot be read, or holds no picture.
pub(crate) fn in_folder(path: &Path) -> Result<Vec<PathBuf>, InputError> {
    let unreadable = |error| InputError::unreadable(path, error);
    let mut found = Vec::new();
    for entry in fs::read_dir(path).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        if !hidden && is_picture(&entry.path()) && !entry.path().is_dir() {
            found.push(entry.path());
        }
    }
    sorted(found, || {
        format!(
            "{} holds no pictures (png, jpg, gif, webp); for folders below it write a glob, \
             for example '{}/**/*.png'",
            path.display(),
            path.display()
        )
    })
}

/// The pictures that match the glob `pattern`, by path; hidden files only when it names their dot.
///
/// # Errors
///
/// A bad pattern, a folder that cannot be read, or no match that is a picture.
pub(crate) fn matching(pattern: &Path) -> Result<Vec<PathBuf>, InputError> {
    let text = pattern.to_string_lossy();
    let options = MatchOptions { require_literal_leading_dot: true, ..MatchOptions::new() };
    let paths = glob::glob_with(&text, options)
        .map_err(|error| InputError::new(format!("the glob {text} is not valid: {error}")))?;
    let (mut found, mut others) = (Vec::new(), 0);
    for path in paths {
        let path = path.map_err(|error| {
            let path = error.path().to_owned();
            InputError::unreadable(&path, error.into())
        })?;
        match is_picture(&path) && !path.is_dir() {
            true => found.push(path),
            false => others += 1,
        }
    }
    sorted(found, || match others {
        0 => format!("nothing matches {text}: check the path, and quote it for your shell"),
        _ => format!(
            "no picture (png, jpg, gif, webp) matches {text}; to run several JSONL files, \
             join them: cat {text} | tidegate batch -"
        ),
    })
}

fn sorted(
    mut found: Vec<PathBuf>,
    none: impl FnOnce() -> String,
) -> Result<Vec<PathBuf>, InputError> {
    if found.is_empty() {
        return Err(InputError::new(none()));
    }
    found.sort_unstable();
    Ok(found)
}

impl Picture {
    /// Looks at the file: there, not empty, not over-large, and by its first bytes a picture.
    ///
    /// `max_encoded_bytes` bounds its base64 form, which is a third longer than the file.
    ///
    /// # Errors
    ///
    /// What is wrong with it, naming the path.
    pub(crate) fn look(path: PathBuf, max_encoded_bytes: usize) -> Result<Self, Fault> {
        let shown = path.display();
        let unreadable = |error: io::Error| {
            Fault::new(match error.kind() {
                io::ErrorKind::NotFound => format!("the picture {shown} does not exist"),
                _ => format!("the picture {shown} cannot be read: {error}"),
            })
        };
        let mut file = File::open(&path).map_err(unreadable)?;
        let about = file.metadata().map_err(unreadable)?;
        if !about.is_file() {
            return Err(Fault::new(format!("{shown} is not a file")));
        }
        let size_bytes = about.len();
        if size_bytes == 0 {
            return Err(Fault::new(format!("the picture {shown} is empty")));
        }
        let max_bytes = max_encoded_bytes as u64 / 4 * 3;
        if size_bytes > max_bytes {
            return Err(Fault::new(format!(
                "the picture {shown} has {size_bytes} bytes; at most {max_bytes} fit a request: \
                 scale it down, or raise --max-row"
            )));
        }
        let mut head = [0; 12];
        let mut read = 0;
        while read < head.len() {
            match file.read(&mut head[read..]).map_err(unreadable)? {
                0 => break,
                more => read += more,
            }
        }
        let Some(mime) = mime(&head[..read]) else {
            return Err(Fault::new(format!(
                "{shown} is no PNG, JPEG, GIF or WebP picture: convert it, or take it out"
            )));
        };
        let modified = about.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let modified_nanos = modified.unwrap_or_default().as_nanos();
        Ok(Self { path, size_bytes, modified_nanos, mime })
    }

    /// What stands for the picture's bytes in the row's identity: path, size, time of change.
    pub(crate) fn stamp(&self) -> String {
        format!("{}\n{}\n{}", self.path.display(), self.size_bytes, self.modified_nanos)
    }

    /// Bytes its `data:` URL will have.
    pub(crate) fn encoded_bytes(&self) -> usize {
        (self.size_bytes as usize).div_ceil(3) * 4 + self.mime.len() + 13
    }

    /// Reads the file and appends it as a `data:` URL.
    ///
    /// # Errors
    ///
    /// When it is gone, or no longer what it was.
    pub(crate) fn push_data_url(&self, out: &mut String) -> Result<(), Fault> {
        let shown = self.path.display();
        let mut bytes = Vec::with_capacity(self.size_bytes as usize + 1);
        File::open(&self.path)
            .and_then(|file| file.take(self.size_bytes + 1).read_to_end(&mut bytes))
            .map_err(|error| Fault::new(format!("the picture {shown} cannot be read: {error}")))?;
        if bytes.len() as u64 != self.size_bytes || mime(&bytes) != Some(self.mime) {
            return Err(Fault::new(format!("the picture {shown} changed while the batch ran")));
        }
        out.push_str("data:");
        out.push_str(self.mime);
        out.push_str(";base64,");
        BASE64_STANDARD.encode_string(&bytes, out);
        Ok(())
    }
}

/// The kind of picture its first bytes say it is.
fn mime(head: &[u8]) -> Option<&'static str> {
    match head {
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Some("image/png"),
        [0xff, 0xd8, 0xff, ..] => Some("image/jpeg"),
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Some("image/gif"),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some("image/webp"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PNG: &[u8] = b"\x89PNG\r\n\x1a\nrest";

    #[track_caller]
    fn check(name: &str, bytes: &[u8], expected: &str) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        let mut url = String::new();
        let got = Picture::look(path, 64).and_then(|picture| {
            picture.push_data_url(&mut url)?;
            assert_eq!(url.len(), picture.encoded_bytes());
            Ok(())
        });
        match got {
            Ok(()) => assert_eq!(url, expected),
            Err(fault) => {
                assert!(
                    fault.message.contains(name) && fault.message.contains(expected),
                    "{fault:?}"
                );
            }
        }
    }

    #[test]
    fn pictures_are_told_by_their_bytes() {
        check("a.png", PNG, "data:image/png;base64,iVBORw0KGgpyZXN0");
        check("named-wrongly.png", b"\xff\xd8\xff\xe0", "data:image/jpeg;base64,/9j/4A==");
        check("a.gif", b"GIF89a", "data:image/gif;base64,R0lGODlh");
        check("a.webp", b"RIFF0000WEBP", "data:image/webp;base64,UklGRjAwMDBXRUJQ");
        check("a.png", b"<svg>", "no PNG");
        check("a.png", b"", "is empty");
        check("a.png", &PNG.repeat(5), "at most 48");
    }

    #[test]
    fn a_picture_that_changed_is_not_sent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        fs::write(&path, PNG).unwrap();
        let picture = Picture::look(path.clone(), 1000).unwrap();
        fs::write(&path, b"\x89PNG\r\n\x1a\nlonger").unwrap();
        assert!(picture.push_data_url(&mut String::new()).is_err());
        fs::remove_file(&path).unwrap();
        assert!(picture.push_data_url(&mut String::new()).is_err());
        assert!(Picture::look(path, 1000).unwrap_err().message.contains("does not exist"));
    }

    #[test]
    fn folders_and_globs_are_listed_in_order() {
        let dir = tempfile::tempdir().unwrap();
        assert!(in_folder(dir.path()).unwrap_err().to_string().contains("no pictures"));
        for name in ["b.JPG", "a.png", "notes.txt", ".hidden.png"] {
            fs::write(dir.path().join(name), PNG).unwrap();
        }
        let names = |paths: Vec<PathBuf>| -> Vec<String> {
            paths.iter().map(|p| p.file_name().unwrap().to_string_lossy().into_owned()).collect()
        };
        assert_eq!(names(in_folder(dir.path()).unwrap()), ["a.png", "b.JPG"]);
        assert_eq!(names(matching(&dir.path().join("*.p*")).unwrap()), ["a.png"]);
        let none = matching(&dir.path().join("*.txt")).unwrap_err().to_string();
        assert!(none.contains("no picture"), "{none}");
        assert!(
            matching(&dir.path().join("*.gif"))
                .unwrap_err()
                .to_string()
                .contains("nothing matches")
        );
        assert!(in_folder(&dir.path().join("gone")).is_err());
    }
}
