//! The journal of a job: every answered row, written as it is answered, so that no row is lost
//! and none is paid twice.
//!
//! # Why a file of our own
//!
//! A row is appended once and read once, when the output is assembled. A length, a CRC and the
//! output line itself are all that takes: no index on disk, no database, one `write` for all rows
//! that came in together.
//!
//! # What survives what
//!
//! A row leaves the in-flight count when its record has been handed to the system: killing the
//! process repeats no more calls than were in flight. Records are fsynced within 100 ms: a power
//! cut may repeat the rows of that window as well. A torn tail is cut off on open; a damaged
//! record in the middle is skipped and its row runs again.

mod record;
mod scan;
mod writer;

pub(crate) use record::{Head, Status};
pub(crate) use scan::{Window, scan};
pub(crate) use writer::{Sink, Writer};

pub(crate) use record::{Place, identity};

use record::FILE_HEAD;
use std::{
    fs::File,
    io::{self, Seek, SeekFrom, Write},
    path::Path,
};

/// What was found when the journal was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Repaired {
    /// Bytes of a torn tail, cut off.
    pub(crate) torn_bytes: u64,
    /// Bytes of damaged records in the middle, skipped.
    pub(crate) damaged_bytes: u64,
}

/// Opens the journal at `path` to append to it, repairing its tail and showing every record.
///
/// # Errors
///
/// When it cannot be read or written, or is no journal of this version.
pub(crate) fn open(
    path: &Path,
    each: impl FnMut(Place, Head, &[u8]),
) -> io::Result<(File, u64, Repaired)> {
    let mut file =
        File::options().read(true).write(true).create(true).truncate(false).open(path)?;
    let len = file.metadata()?.len();
    if len < FILE_HEAD.len() as u64 {
        // New, or the process died while creating it: nothing can be in it.
        file.set_len(0)?;
        file.write_all(FILE_HEAD)?;
        file.sync_all()?;
        crate::files::sync_dir(path)?;
        return Ok((file, FILE_HEAD.len() as u64, Repaired::default()));
    }
    let found = scan(&file, each)?;
    if found.end < len {
        file.set_len(found.end)?;
        file.sync_all()?;
    }
    file.seek(SeekFrom::Start(found.end))?;
    let repaired = Repaired { torn_bytes: len - found.end, damaged_bytes: found.damaged_bytes };
    Ok((file, found.end, repaired))
}

#[cfg(test)]
mod tests;
