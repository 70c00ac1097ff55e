//! The files entries lie in until a database has them: `ledger-journal/WRITER-NUMBER.journal`.
//!
//! A file belongs to the process that holds its lock. What a process that died left behind is
//! [taken over](super::inherit) by the next one that starts, and deleted when the database has it.

use super::record::{self, FILE_HEAD, Form, Found, Row};
use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// A file is followed by the next one at this length, whatever has been stored of it.
const MAX_FILE_BYTES: u64 = 64 << 20;
/// The same, once all of it has been stored: it can then be deleted.
const STORED_FILE_BYTES: u64 = 4 << 20;
/// Bytes read at once: some two thousand records.
pub(super) const WINDOW_BYTES: u64 = 512 << 10;

pub(super) const EXTENSION: &str = "journal";

/// A file of the journal, and how far it has been stored.
#[derive(Clone)]
pub(super) struct Segment {
    pub(super) file: Arc<File>,
    pub(super) path: PathBuf,
    pub(super) form: Form,
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
        let file = create(&path, Form::Journal, writer)?;
        let head = FILE_HEAD as u64;
        Ok(Self {
            file: Arc::new(file),
            path,
            form: Form::Journal,
            writer,
            len: head,
            stored: head,
            sealed: false,
        })
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

/// Makes a file of ours for `writer`, and takes it.
///
/// # Errors
///
/// When it cannot be made.
pub(super) fn create(path: &Path, form: Form, writer: i64) -> io::Result<File> {
    // Under another name until it is locked: nobody takes it for one that was left behind.
    let unlocked = path.with_extension("new");
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(&unlocked)?;
    file.try_lock().map_err(io::Error::from)?;
    write_at(&file, &record::file_head(form, writer), 0)?;
    fs::rename(&unlocked, path)?;
    Ok(file)
}

#[cfg(unix)]
pub(super) fn write_at(file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, at)
}

#[cfg(unix)]
pub(super) fn read_at(file: &File, into: &mut [u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, into, at)
}

/// Held from the seek to the end: several threads write to one file of slots.
#[cfg(not(unix))]
static CURSOR: parking_lot::Mutex<()> = parking_lot::Mutex::new(());

#[cfg(not(unix))]
pub(super) fn write_at(mut file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    use std::io::{Seek, SeekFrom, Write};
    let _alone = CURSOR.lock();
    file.seek(SeekFrom::Start(at))?;
    file.write_all(bytes)
}

#[cfg(not(unix))]
pub(super) fn read_at(mut file: &File, into: &mut [u8], at: u64) -> io::Result<()> {
    use std::io::{Read, Seek, SeekFrom};
    let _alone = CURSOR.lock();
    file.seek(SeekFrom::Start(at))?;
    file.read_exact(into)
}
