//! One process per job: an advisory lock on a file in the run directory.
//!
//! The system drops the lock when the process dies, however it dies, so there is never a stale
//! lock to clean up.

use crate::Failure;
use std::{
    fs::{File, TryLockError},
    io::{Read, Write},
    path::Path,
};

/// The right to run the job; given back on drop.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock at `path`.
    ///
    /// # Errors
    ///
    /// When another process runs the job, or the file cannot be opened.
    pub(crate) fn take(path: &Path) -> Result<Self, Failure> {
        let mut file = open(path).map_err(|error| Failure::io("open", path, error))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let owner = owner(&mut file);
                return Err(Failure::Usage(format!(
                    "another process{owner} is running this job; wait for it, or watch it with \
                     `tidegate batch status`"
                )));
            }
            Err(TryLockError::Error(error)) => return Err(Failure::io("lock", path, error)),
        }
        // The number is for people only; the lock itself is what counts.
        let _ = file.set_len(0).and_then(|()| write!(file, "{}", std::process::id()));
        Ok(Self { _file: file })
    }

    /// Whether some process holds the lock at `path` now.
    pub(crate) fn is_held(path: &Path) -> bool {
        match File::open(path) {
            Ok(file) => matches!(file.try_lock(), Err(TryLockError::WouldBlock)),
            Err(_) => false,
        }
    }
}

fn open(path: &Path) -> std::io::Result<File> {
    File::options().read(true).write(true).create(true).truncate(false).open(path)
}

fn owner(file: &mut File) -> String {
    let mut pid = String::new();
    match file.read_to_string(&mut pid) {
        Ok(1..) => format!(" (process {pid})"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::Lock;

    #[test]
    fn a_job_is_run_by_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        assert!(!Lock::is_held(&path));
        let lock = Lock::take(&path).unwrap();
        assert!(Lock::is_held(&path));
        let refused = Lock::take(&path).unwrap_err().to_string();
        assert!(refused.contains("another process (process "), "{refused}");
        drop(lock);
        Lock::take(&path).unwrap();
    }
}
