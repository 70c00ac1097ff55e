//! The file itself: for our eyes only, and still the one that was opened.

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
    let message = format!(
        "cannot write {} ({cause}): choose a data_dir that this user may write",
        path.display()
    );
    Error::new(Kind::Internal, Origin::Gateway, message).caused_by(cause)
}

/// Of a row that a person must mend.
pub(super) fn unreadable(path: &Path, why: &str) -> Error {
    let message = format!(
        "{} holds a key whose row cannot be read ({why}): mend or delete that row",
        path.display()
    );
    Error::new(Kind::Internal, Origin::Gateway, message)
}
