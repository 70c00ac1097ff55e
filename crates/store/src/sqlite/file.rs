//! The file itself: for our eyes only, still the one that was opened, and what is wrong with it.

use crate::schema::Unusable;
use rusqlite::ErrorCode;
use std::{fs, io, path::Path};
use tidegate_core::{Error, Kind, Origin, Result};

/// Which file was opened, whatever its name is now, and which write-ahead log.
///
/// *Why the log too:* SQLite would go on with one that has no name any more. What is committed to
/// it is seen by no other process, and gone if this one is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    file: Inode,
    log: Option<Inode>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Inode {
    device: u64,
    number: u64,
}

impl Identity {
    /// Of the file that has this name now, after it was read through an open connection (which
    /// makes the log); `None` where systems have no such thing.
    #[cfg(unix)]
    pub(crate) fn of(path: &Path) -> io::Result<Option<Self>> {
        use std::os::unix::fs::MetadataExt;
        let inode = |path: &Path| {
            let file = fs::metadata(path)?;
            Ok::<_, io::Error>(Inode { device: file.dev(), number: file.ino() })
        };
        let mut log = path.as_os_str().to_owned();
        log.push("-wal");
        Ok(Some(Self { file: inode(path)?, log: inode(Path::new(&log)).ok() }))
    }

    /// Of the file that has this name now; `None` where systems have no such thing.
    #[cfg(not(unix))]
    pub(crate) fn of(path: &Path) -> io::Result<Option<Self>> {
        fs::metadata(path).map(|_| None)
    }
}

/// Refuses a state whose file, or its log, was deleted or replaced since it was opened.
///
/// SQLite would go on with the file that has no name any more: what is written to it is lost.
/// Taking over another file by itself would end every key that is not in it.
pub(crate) fn still_there(path: &Path, opened: Option<Identity>) -> Result<()> {
    if matches!(Identity::of(path), Ok(now) if now == opened) {
        return Ok(());
    }
    let message = format!(
        "{} or its -wal was deleted or replaced while it was open: put it back, or restart to use \
         what is there now",
        path.display()
    );
    Err(Error::new(Kind::Internal, Origin::Gateway, message))
}

/// Makes the directory and the file for our eyes only; what is there already stays as it is.
///
/// SQLite gives its `-wal` and `-shm` files the mode of the database.
pub(crate) fn make_private(data_dir: &Path, path: &Path) -> Result<()> {
    let mut dir = fs::DirBuilder::new();
    dir.recursive(true);
    let mut file = fs::OpenOptions::new();
    // Never opened when it is there: closing it again would end the locks that another
    // connection of this process holds on it.
    file.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
        dir.mode(0o700);
        file.mode(0o600);
    }
    dir.create(data_dir).map_err(|cause| not_writable(data_dir, cause))?;
    match file.open(path) {
        Err(cause) if cause.kind() != io::ErrorKind::AlreadyExists => {
            Err(not_writable(path, cause))
        }
        _ => Ok(()),
    }
}

fn not_writable(path: &Path, cause: io::Error) -> Error {
    internal(
        format!(
            "cannot write {} ({cause}): choose a data_dir that this user may write",
            path.display()
        ),
        cause,
    )
}

/// Of a row that a person must mend.
pub(super) fn unreadable(path: &Path, why: &str) -> Error {
    let message = format!(
        "{} holds a key whose row cannot be read ({why}): mend or delete that row",
        path.display()
    );
    Error::new(Kind::Internal, Origin::Gateway, message)
}

pub(super) fn unusable(path: &Path, cause: Unusable) -> Error {
    let path = path.display();
    match cause {
        Unusable::Foreign => Error::new(
            Kind::Internal,
            Origin::Gateway,
            format!("{path} is a database of another program: choose another data_dir"),
        ),
        Unusable::Newer { found, known } => Error::new(
            Kind::Internal,
            Origin::Gateway,
            format!(
                "{path} was written by a newer Tidegate (schema {found}, this one knows {known}): \
                 use that version, or another data_dir"
            ),
        ),
        Unusable::Sqlite(cause) => {
            let what = match cause.sqlite_error_code() {
                Some(ErrorCode::NotADatabase) => {
                    "is not a SQLite database: choose another data_dir, or move the file away"
                }
                Some(ErrorCode::DatabaseCorrupt) => {
                    "is damaged: restore it from a backup, or move it away and make new keys"
                }
                Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                    "is locked by another process for more than 5 s: find it and try again"
                }
                Some(ErrorCode::DiskFull) => "cannot grow: the disk is full",
                Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::CannotOpen) => {
                    "cannot be written: check what it is and who may write it, or choose another \
                     data_dir"
                }
                _ => return internal(format!("{path} cannot be used: {cause}"), cause),
            };
            internal(format!("{path} {what}"), cause)
        }
    }
}

fn internal(message: String, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::new(Kind::Internal, Origin::Gateway, message).caused_by(cause)
}
