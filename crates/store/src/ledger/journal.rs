//! The files entries lie in until a database has them: `ledger-journal/WRITER-NUMBER.journal`.
//!
//! A file belongs to the process that holds its lock. What a process that died left behind is
//! taken over by the next one that starts, and deleted when the database has it.

use super::record::{self, FILE_HEAD, Found, Row};
use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// A file is followed by the next one at this length, whatever has been stored of it.
const MAX_FILE_BYTES: u64 = 64 << 20;
/// The same, once all of it has been stored: it can then be deleted.
const STORED_FILE_BYTES: u64 = 4 << 20;
/// Bytes read at once: some thousand records.
const WINDOW_BYTES: u64 = 512 << 10;

const EXTENSION: &str = "journal";

/// A file of the journal, and how far it has been stored.
#[derive(Clone)]
pub(super) struct Segment {
    pub(super) file: Arc<File>,
    pub(super) path: PathBuf,
    pub(super) writer: i64,
    /// Bytes of whole records, the head included.
    pub(super) len: u64,
    /// Of these, stored.
    pub(super) stored: u64,
    /// Nothing more will be appended.
    pub(super) sealed: bool,
}

impl Segment {
    /// Bytes that have not been stored.
    pub(super) const fn left(&self) -> u64 {
        self.len.saturating_sub(self.stored)
    }

    /// Whether the next entry goes into another file.
    pub(super) const fn is_full(&self) -> bool {
        self.len >= MAX_FILE_BYTES || (self.len >= STORED_FILE_BYTES && self.left() == 0)
    }

    /// Makes the file of this number for `writer`, and takes it.
    ///
    /// # Errors
    ///
    /// When it cannot be made.
    pub(super) fn create(dir: &Path, writer: i64, number: u64) -> io::Result<Self> {
        let path = dir.join(format!("{:016x}-{number:06}.{EXTENSION}", writer.cast_unsigned()));
        // Under another name until it is locked: nobody takes it for one that was left behind.
        let unlocked = path.with_extension("new");
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options.open(&unlocked)?;
        file.try_lock().map_err(io::Error::from)?;
        write_at(&file, &record::file_head(writer), 0)?;
        fs::rename(&unlocked, &path)?;
        let head = FILE_HEAD as u64;
        Ok(Self { file: Arc::new(file), path, writer, len: head, stored: head, sealed: false })
    }

    /// Writes `records` at the end. What was written of them before an error is written over.
    ///
    /// # Errors
    ///
    /// When there is no room, above all.
    pub(super) fn write(&self, records: &[u8]) -> io::Result<()> {
        write_at(&self.file, records, self.len)
    }

    /// Brings what was written to the disk itself, the name of the file included.
    ///
    /// # Errors
    ///
    /// When the disk does not take it.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()?;
        match self.path.parent() {
            Some(dir) => File::open(dir)?.sync_all(),
            None => Ok(()),
        }
    }

    /// Reads the bytes that come next.
    ///
    /// # Errors
    ///
    /// When they cannot be read.
    pub(super) fn window(&self, into: &mut Vec<u8>) -> io::Result<()> {
        let len = self.left().min(WINDOW_BYTES);
        into.resize(usize::try_from(len).expect("a window fits into memory"), 0);
        read_at(&self.file, into, self.stored)
    }
}

/// Rows from the start of a window, and where the next one is.
pub(super) struct Batch<'a> {
    pub(super) rows: Vec<Row<'a>>,
    /// Bytes of the rows, and of what was damaged between and after them.
    pub(super) len: usize,
    /// Of these, damaged.
    pub(super) damaged: usize,
}

/// At most `most` rows of `window`, after which nothing follows when it is the `last` one.
pub(super) fn rows(window: &[u8], most: usize, last: bool) -> Batch<'_> {
    let mut batch = Batch { rows: Vec::with_capacity(most), len: 0, damaged: 0 };
    while batch.rows.len() < most && batch.len < window.len() {
        let rest = &window[batch.len..];
        let skipped = match record::decode(rest) {
            Found::Row(row, len) => {
                batch.rows.push(row);
                batch.len += len;
                continue;
            }
            Found::Incomplete if !last => return batch,
            // A torn tail, or a damaged length that reaches beyond the end.
            Found::Incomplete => match record::next_magic(rest) {
                next if next + 4 > rest.len() => rest.len(),
                next => next,
            },
            Found::Damaged(len) => len.min(rest.len()),
        };
        batch.len += skipped;
        batch.damaged += skipped;
    }
    batch
}

/// Makes the journal's directory in `data_dir`.
///
/// # Errors
///
/// When it is not there and cannot be made.
pub(super) fn directory(data_dir: &Path) -> io::Result<PathBuf> {
    let path = data_dir.join("ledger-journal");
    let mut dir = fs::DirBuilder::new();
    dir.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut dir, 0o700);
    dir.create(&path)?;
    Ok(path)
}

/// Takes over every file that no process holds, oldest first by writer.
///
/// # Errors
///
/// When the directory cannot be read.
pub(super) fn left_behind(dir: &Path) -> io::Result<Vec<Segment>> {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == EXTENSION));
    paths.sort();
    let mut segments = Vec::new();
    for path in paths {
        match take_over(&path) {
            Ok(Some(segment)) => segments.push(segment),
            Ok(None) => {}
            Err(cause) => {
                let path = path.display();
                tracing::error!("the ledger's journal {path} cannot be read, and stays: {cause}");
            }
        }
    }
    Ok(segments)
}

/// The file, unless another process holds it or there is nothing in it.
fn take_over(path: &Path) -> io::Result<Option<Segment>> {
    let file = File::options().read(true).write(true).open(path)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(cause)) => return Err(cause),
    }
    let len = file.metadata()?.len();
    if len <= FILE_HEAD as u64 {
        fs::remove_file(path)?;
        return Ok(None);
    }
    let mut head = [0; FILE_HEAD];
    read_at(&file, &mut head, 0)?;
    let Some(writer) = record::writer_of(&head) else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is none of this version's"));
    };
    let (file, path) = (Arc::new(file), path.to_owned());
    Ok(Some(Segment { file, path, writer, len, stored: FILE_HEAD as u64, sealed: true }))
}

#[cfg(unix)]
fn write_at(file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, at)
}

#[cfg(unix)]
fn read_at(file: &File, into: &mut [u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, into, at)
}

#[cfg(not(unix))]
fn write_at(mut file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    use std::io::{Seek, SeekFrom, Write};
    file.seek(SeekFrom::Start(at))?;
    file.write_all(bytes)
}

#[cfg(not(unix))]
fn read_at(mut file: &File, into: &mut [u8], at: u64) -> io::Result<()> {
    use std::io::{Read, Seek, SeekFrom};
    file.seek(SeekFrom::Start(at))?;
    file.read_exact(into)
}
