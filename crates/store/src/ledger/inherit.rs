//! What processes that died left behind: who takes it over, and in which order it is stored.
//!
//! A file belongs to whoever holds its lock, and the system ends a lock with its process, however
//! that ends. Journals come before slots: an attempt that ended has its real entry in a journal,
//! and perhaps still a provisional one of the same name in a slot, and what is stored first stays.
//! So all files of one writer must go to one process, or another could be faster with the slots:
//! processes that start at once look one after the other, and one that finds a writer who is just
//! dying, with only some of its files let go, looks again.

use super::{
    journal::{self, Segment, read_at},
    record::{self, FILE_HEAD, Form},
    slots,
};
use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

/// How long another process may take to look, and to let go of its files when it dies. After that
/// what is there is taken all the same: then an attempt may be entered at its most.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often it is looked again.
const AGAIN: Duration = Duration::from_millis(10);

/// Takes over every file that no process holds, in the order they are to be stored.
///
/// # Errors
///
/// When the directory cannot be read.
pub(super) fn left_behind(dir: &Path) -> io::Result<Vec<Segment>> {
    let give_up = Instant::now() + PATIENCE;
    let _turn = turn(dir, give_up);
    loop {
        let mut found = Found::look(dir)?;
        if !found.is_parted() || Instant::now() >= give_up {
            found.free.sort_by(|one, other| order(one).cmp(&order(other)));
            return Ok(found.free);
        }
        // What it took is let go, and the rest perhaps too.
        drop(found);
        thread::sleep(AGAIN);
    }
}

/// Journals first.
fn order(segment: &Segment) -> (bool, &Path) {
    (segment.form == Form::Slots, &segment.path)
}

/// The right to look, which is a lock on the directory itself; `None` where there is none to be had.
fn turn(dir: &Path, give_up: Instant) -> Option<File> {
    let turn = File::open(dir).ok()?;
    loop {
        match turn.try_lock() {
            Ok(()) => return Some(turn),
            Err(TryLockError::WouldBlock) if Instant::now() < give_up => thread::sleep(AGAIN),
            Err(_) => return None,
        }
    }
}

/// What was found in the directory.
#[derive(Default)]
struct Found {
    free: Vec<Segment>,
    /// Files that other processes hold.
    held: Vec<PathBuf>,
}

impl Found {
    fn look(dir: &Path) -> io::Result<Self> {
        let mut found = Self::default();
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            let Some(form) = form_of(&path) else { continue };
            match take_over(&path, form) {
                Ok(Taken::Free(segment)) => found.free.push(segment),
                Ok(Taken::Held) => found.held.push(path),
                Ok(Taken::Empty) => {}
                // Whoever held it has deleted it meanwhile.
                Err(cause) if cause.kind() == io::ErrorKind::NotFound => {}
                Err(cause) => {
                    let path = path.display();
                    tracing::error!(
                        "the ledger's journal {path} cannot be read, and stays: {cause}"
                    );
                }
            }
        }
        Ok(found)
    }

    /// Whether some writer's files are free and others held.
    fn is_parted(&self) -> bool {
        let mut free = self.free.iter().map(|segment| writer_in(&segment.path));
        free.any(|writer| self.held.iter().any(|path| writer_in(path) == writer))
    }
}

fn form_of(path: &Path) -> Option<Form> {
    match path.extension()?.to_str()? {
        journal::EXTENSION => Some(Form::Journal),
        slots::EXTENSION => Some(Form::Slots),
        _ => None,
    }
}

/// What the file's name says of its writer: what is before the number.
fn writer_in(path: &Path) -> Option<&str> {
    path.file_stem()?.to_str()?.split('-').next()
}

enum Taken {
    Free(Segment),
    /// By another process.
    Held,
    /// There was nothing in it.
    Empty,
}

fn take_over(path: &Path, form: Form) -> io::Result<Taken> {
    let file = File::options().read(true).write(true).open(path)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(Taken::Held),
        Err(TryLockError::Error(cause)) => return Err(cause),
    }
    let len = file.metadata()?.len();
    let mut head = [0; FILE_HEAD];
    let least = match form {
        Form::Journal => FILE_HEAD as u64,
        Form::Slots => slots::SLOT_BYTES,
    };
    if len <= least {
        fs::remove_file(path)?;
        return Ok(Taken::Empty);
    }
    read_at(&file, &mut head, 0)?;
    let Some((writer, head)) = record::writer_of(form, &head) else {
        let why = "its head is damaged, or none of this version's";
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    };
    let stored = match form {
        Form::Journal => head as u64,
        Form::Slots => slots::SLOT_BYTES,
    };
    let (file, path) = (Arc::new(file), path.to_owned());
    Ok(Taken::Free(Segment { file, path, form, writer, len, stored, sealed: true }))
}

#[cfg(test)]
mod tests {
    use super::{
        super::record::tests::{entry, old},
        *,
    };

    #[test]
    fn a_writer_who_is_just_dying_is_waited_for_and_its_journals_come_first() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = Vec::new();
        for number in [1, 0] {
            let made = Segment::create(dir.path(), 1, number).unwrap();
            let mut record = Vec::new();
            record::encode(1, 1, &entry(1), &mut record);
            made.write(&record).unwrap();
            files.push(made);
        }
        for (writer, sequence) in [(0, 1), (1, 2)] {
            let slots = slots::Slots::new(dir.path(), writer, 64);
            slots.put(sequence, &entry(sequence)).unwrap();
            slots.close();
        }
        let found = Found::look(dir.path()).unwrap();
        assert_eq!((found.free.len(), found.held.len(), found.is_parted()), (2, 2, true));
        drop((found, files.pop()));
        assert!(Found::look(dir.path()).unwrap().is_parted(), "one of them is still held");
        drop(files);
        let order: Vec<_> = left_behind(dir.path())
            .unwrap()
            .iter()
            .map(|segment| (segment.form, segment.path.file_stem().unwrap().to_owned()))
            .collect();
        assert_eq!(
            order,
            [
                (Form::Journal, "0000000000000001-000000".into()),
                (Form::Journal, "0000000000000001-000001".into()),
                (Form::Slots, "0000000000000000".into()),
                (Form::Slots, "0000000000000001".into()),
            ]
        );
    }

    #[test]
    fn files_with_nothing_but_a_head_are_cleared_away() {
        let dir = tempfile::tempdir().unwrap();
        drop(Segment::create(dir.path(), 1, 0).unwrap());
        let slots = dir.path().join("0000000000000001.slots");
        drop(journal::create(&slots, Form::Slots, 1).unwrap());
        assert!(left_behind(dir.path()).unwrap().is_empty());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_whose_head_is_damaged_is_left_where_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let made = Segment::create(dir.path(), 1, 0).unwrap();
        made.write(&[0; 100]).unwrap();
        let path = made.path.clone();
        drop(made);
        let mut bytes = fs::read(&path).unwrap();
        bytes[9] ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert!(left_behind(dir.path()).unwrap().is_empty());
        assert_eq!(fs::read(&path).unwrap(), bytes);
    }

    #[test]
    fn a_journal_of_the_first_version_is_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let mut bytes = b"TGLEDGR1".to_vec();
        bytes.extend(7u64.to_le_bytes());
        bytes.extend(old(3, &entry(3)));
        fs::write(dir.path().join("0000000000000007-000000.journal"), bytes).unwrap();
        let found = left_behind(dir.path()).unwrap();
        let mut window = Vec::new();
        found[0].window(&mut window).unwrap();
        let batch = journal::rows(&window, 10, true);
        assert_eq!((found[0].writer, batch.damaged, batch.rows[0].sequence), (7, 0, 3));
    }
}
