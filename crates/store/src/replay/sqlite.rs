//! Kept answers in a file of the data directory, which outlive the process.
//!
//! *How:* one thread writes. It takes everything that waits, does it in one transaction, and only
//! then tells those who wait: one flush of the disk (write-ahead log, `synchronous=FULL`) serves
//! all that came while the one before was under way. A file of its own, so that a flood of keys
//! delays no change of the callers' keys.
//!
//! The file holds answers as they were given: it is made for this user only, and deleted answers
//! are overwritten.

use super::{
    Options,
    owner::Owner,
    table::{Table, Trouble},
};
use crate::sqlite::make_private;
use parking_lot::{Condvar, Mutex};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    thread::{self, JoinHandle},
};
use tidegate_core::{
    Begun, BoxFuture, Ended, Error, Execution, Kind, Origin, ReplayKey, Replays, Result, Unkept,
};
use tokio::sync::oneshot;

/// Pieces of work in one transaction, at most.
const BATCH: usize = 256;

/// Kept answers in `idempotency.sqlite`.
pub struct Sqlite {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
}

impl Sqlite {
    /// The database file of a data directory.
    pub fn path_in(data_dir: &Path) -> PathBuf {
        data_dir.join("idempotency.sqlite")
    }

    /// Opens the file in `data_dir`, making both (mode 0700, 0600) if they are not there.
    ///
    /// Does I/O on the calling thread: call it at start, not from a task.
    ///
    /// # Errors
    ///
    /// [`Kind::Internal`], naming the path and what to do, when the directory cannot be written,
    /// or the file is damaged or not ours.
    pub fn open(data_dir: &Path, options: Options) -> Result<Self> {
        let path = Self::path_in(data_dir);
        make_private(data_dir, &path)?;
        let owner = Owner::new(data_dir).map_err(|cause| {
            let dir = data_dir.display();
            internal(format!("cannot write and lock a file in {dir} ({cause}): choose a data_dir on a local disk that this user may write"))
                .caused_by(cause)
        })?;
        let table = Table::open(&path, options).map_err(|trouble| unusable(&path, trouble))?;
        let shared =
            Arc::new(Shared { path, owner, queue: Mutex::default(), wake: Condvar::new() });
        let writing = Arc::clone(&shared);
        let writer = thread::Builder::new()
            .name("idempotency".into())
            .spawn(move || write(&writing, table))
            .map_err(|cause| internal(format!("no thread for kept answers ({cause})")))?;
        Ok(Self { shared, writer: Some(writer) })
    }

    /// Gives work to the writer and waits until it is done.
    fn done<T: Send + 'static>(
        &self,
        work: impl FnOnce(oneshot::Sender<Result<T>>) -> Work,
    ) -> BoxFuture<'static, Result<T>> {
        done(&self.shared, work)
    }
}

impl Replays for Sqlite {
    fn begin(&self, key: ReplayKey) -> BoxFuture<'_, Result<Begun>> {
        self.done(|told| Work::Begin { key, told })
    }

    fn sweep(&self) -> BoxFuture<'_, Result<()>> {
        self.done(|told| Work::Sweep { told: Some(told) })
    }
}

impl Drop for Sqlite {
    /// What waits is still written.
    fn drop(&mut self) {
        self.shared.queue.lock().closed = true;
        self.shared.wake.notify_one();
        if let Some(writer) = self.writer.take() {
            // A writer that panicked has said so; its rows read as interrupted.
            let _ = writer.join();
        }
    }
}

struct Shared {
    path: PathBuf,
    owner: Owner,
    queue: Mutex<Queue>,
    wake: Condvar,
}

/// What waits for the writer: for each request that is waited for one begin, for each that runs
/// one end.
#[derive(Default)]
struct Queue {
    work: Vec<Work>,
    closed: bool,
}

enum Work {
    Begin { key: ReplayKey, told: oneshot::Sender<Result<Begun>> },
    Finish { id: [u8; 32], ended: Ended, told: Option<oneshot::Sender<Result<()>>> },
    Abandon { id: [u8; 32] },
    Sweep { told: Option<oneshot::Sender<Result<()>>> },
}

impl Shared {
    fn push(&self, work: Work) {
        let mut queue = self.queue.lock();
        // Nobody would do it; those who wait are told by its being dropped.
        if !queue.closed {
            queue.work.push(work);
            self.wake.notify_one();
        }
    }

    /// What is to be done next; `None` at the end.
    fn next(&self) -> Option<Vec<Work>> {
        let mut queue = self.queue.lock();
        while queue.work.is_empty() {
            if queue.closed {
                return None;
            }
            self.wake.wait(&mut queue);
        }
        let count = queue.work.len().min(BATCH);
        Some(queue.work.drain(..count).collect())
    }
}

fn done<T: Send + 'static>(
    shared: &Shared,
    work: impl FnOnce(oneshot::Sender<Result<T>>) -> Work,
) -> BoxFuture<'static, Result<T>> {
    let (told, hears) = oneshot::channel();
    shared.push(work(told));
    Box::pin(async {
        hears.await.unwrap_or_else(|_| Err(internal("the writer of kept answers has ended")))
    })
}

/// One execution of this process.
struct Running {
    shared: Arc<Shared>,
    id: [u8; 32],
    is_over: bool,
}

impl Execution for Running {
    fn finish(mut self: Box<Self>, ended: Ended) -> BoxFuture<'static, Result<()>> {
        self.is_over = true;
        done(&self.shared, |told| Work::Finish { id: self.id, ended, told: Some(told) })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.is_over {
            self.shared.push(Work::Abandon { id: self.id });
        }
    }
}

/// Does what comes, until the end.
fn write(shared: &Arc<Shared>, mut table: Table) {
    let _closing = Closing(shared);
    let mut owed = Vec::new();
    while let Some(mut batch) = shared.next() {
        // Ends come before the begins of those who heard of them.
        batch.splice(0..0, owed.drain(..));
        owed = write_batch(shared, &mut table, batch);
    }
}

/// Does a batch durably, then tells those who wait; what must be done again if it could not be.
fn write_batch(shared: &Arc<Shared>, table: &mut Table, batch: Vec<Work>) -> Vec<Work> {
    let owner = &shared.owner;
    let written = table.durably(|table| {
        batch.iter().map(|work| work.apply(table, owner)).collect::<Result<Vec<_>, _>>()
    });
    match written {
        Ok(outcomes) => {
            for (work, outcome) in batch.into_iter().zip(outcomes) {
                work.tell(outcome, shared);
            }
            Vec::new()
        }
        Err(trouble) => {
            let error = unusable(&shared.path, trouble);
            batch.into_iter().filter_map(|work| work.fail(&error)).collect()
        }
    }
}

/// What came of one piece of work.
enum Outcome {
    Begun(Option<Begun>),
    Refused(Error),
    Done,
    /// There is more of the same.
    More,
}

impl Work {
    fn apply(&self, table: &mut Table, owner: &Owner) -> Result<Outcome, Trouble> {
        match self {
            Self::Begin { key, .. } => match table.begin(key, owner) {
                Ok(begun) => Ok(Outcome::Begun(begun)),
                Err(Trouble::Refused(error)) => Ok(Outcome::Refused(error)),
                Err(trouble) => Err(trouble),
            },
            Self::Finish { id, ended, .. } => {
                table.finish(id, owner, ended).map(|()| Outcome::Done)
            }
            Self::Abandon { id } => table.abandon(id, owner).map(|()| Outcome::Done),
            Self::Sweep { .. } => {
                table.sweep(owner).map(|more| if more { Outcome::More } else { Outcome::Done })
            }
        }
    }

    fn tell(self, outcome: Outcome, shared: &Arc<Shared>) {
        match (self, outcome) {
            (Self::Begin { key, told }, Outcome::Begun(begun)) => {
                let begun = begun.unwrap_or_else(|| {
                    let running = Running { shared: shared.clone(), id: key.id, is_over: false };
                    Begun::Fresh(Box::new(running))
                });
                // Whoever hung up meanwhile drops it, and an execution with it.
                let _ = told.send(Ok(begun));
            }
            (Self::Begin { told, .. }, Outcome::Refused(error)) => {
                let _ = told.send(Err(error));
            }
            (Self::Sweep { told }, Outcome::More) => shared.push(Self::Sweep { told }),
            (Self::Finish { told: Some(told), .. } | Self::Sweep { told: Some(told) }, _) => {
                let _ = told.send(Ok(()));
            }
            _ => {}
        }
    }

    /// Says that it was not done; what must be done all the same.
    fn fail(self, error: &Error) -> Option<Self> {
        let again = || internal(error.message());
        match self {
            Self::Begin { told, .. } => {
                let _ = told.send(Err(again()));
                None
            }
            Self::Sweep { told } => {
                told.map(|told| told.send(Err(again())));
                None
            }
            Self::Abandon { id } => Some(Self::Abandon { id }),
            Self::Finish { id, told, .. } => {
                told.map(|told| told.send(Err(again())));
                Some(Self::Finish { id, ended: Ended::Unkept(Unkept::Interrupted), told: None })
            }
        }
    }
}

/// Tells those who wait when the writer is gone, even by a panic.
struct Closing<'a>(&'a Shared);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        let mut queue = self.0.queue.lock();
        queue.closed = true;
        let left = std::mem::take(&mut queue.work);
        drop(queue);
        drop(left);
    }
}

fn unusable(path: &Path, trouble: Trouble) -> Error {
    match trouble {
        Trouble::Refused(error) => error,
        Trouble::File(why) => {
            why.into_error(path, "(repeats of earlier requests are then carried out again)")
        }
    }
}

fn internal(message: impl Into<String>) -> Error {
    Error::new(Kind::Internal, Origin::Gateway, message)
}
