//! Which processes are alive, told by locks that end with them.
//!
//! *Why:* a row that says "running" was written by this process, by another on the same file, or
//! by one that was killed. Its caller must be told to wait in the first two cases, and that
//! nobody will answer in the third. A lease would have to expire first; a lock on a file is
//! released by the system in the moment its process ends, however it ends.

use aws_lc_rs::rand;
use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io,
    path::{Path, PathBuf},
};

const PREFIX: &str = "idempotency.";
const SUFFIX: &str = ".alive";

/// This process, as long as it holds its lock.
pub(super) struct Owner {
    pub(super) id: i64,
    dir: PathBuf,
    path: PathBuf,
    _lock: File,
}

impl Owner {
    /// Takes a lock nobody had before, and clears away those of processes that ended.
    pub(super) fn new(dir: &Path) -> io::Result<Self> {
        let mut id = [0; 8];
        rand::fill(&mut id).map_err(|_| io::Error::other("the system gives no randomness"))?;
        let id = i64::from_ne_bytes(id);
        let path = path_of(dir, id);
        let unlocked = path.with_extension("new");
        let lock = create(&unlocked)?;
        // Locked before it has the name others look for: nobody sees it without its lock.
        lock.lock()?;
        fs::rename(&unlocked, &path)?;
        let owner = Self { id, dir: dir.to_owned(), path, _lock: lock };
        owner.clear_away()?;
        Ok(owner)
    }

    /// Whether the process of this id still runs. When that cannot be told, it does.
    pub(super) fn is_alive(&self, id: i64) -> bool {
        id == self.id || is_locked(&path_of(&self.dir, id))
    }

    fn clear_away(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let is_lock = name.starts_with(PREFIX) && name.ends_with(SUFFIX);
            if is_lock && path != self.path && !is_locked(&path) {
                // Another process may be clearing away too.
                let _ = fs::remove_file(path);
            }
        }
        Ok(())
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // What stays is cleared away by the next process.
        let _ = fs::remove_file(&self.path);
    }
}

fn path_of(dir: &Path, id: i64) -> PathBuf {
    dir.join(format!("{PREFIX}{id:016x}{SUFFIX}"))
}

fn is_locked(path: &Path) -> bool {
    match File::open(path) {
        Ok(file) => matches!(file.try_lock(), Err(TryLockError::WouldBlock)),
        Err(cause) => cause.kind() != io::ErrorKind::NotFound,
    }
}

fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    options.open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_alive_while_it_holds_its_lock() {
        let dir = tempfile::tempdir().unwrap();
        let one = Owner::new(dir.path()).unwrap();
        let other = Owner::new(dir.path()).unwrap();
        assert!(one.is_alive(one.id) && one.is_alive(other.id) && other.is_alive(one.id));
        let id = other.id;
        drop(other);
        assert!(!one.is_alive(id));
    }

    #[test]
    fn what_a_killed_process_left_is_no_sign_of_life_and_is_cleared_away() {
        let dir = tempfile::tempdir().unwrap();
        let left = path_of(dir.path(), 7);
        fs::write(&left, "").unwrap();
        let other = dir.path().join("idempotency.sqlite");
        fs::write(&other, "").unwrap();
        let owner = Owner::new(dir.path()).unwrap();
        assert!(!owner.is_alive(7) && !left.exists() && other.exists());
    }
}
