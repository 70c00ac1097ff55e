//! The journal's writing side: two threads, so that neither a full page cache nor an fsync ever
//! stops calls in flight.
//!
//! ```text
//! dispatcher --append--> buffer --writer thread: write(2)--> file <--fsync-- sync thread
//!      ^                                     |
//!      +--------- written (a count) ---------+
//! ```

use super::record::{self, Head, Place};
use parking_lot::{Condvar, Mutex};
use std::{
    fs::File,
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};
use tokio::sync::Notify;

/// Longest time a record written stays unsynced.
const SYNC_EVERY: Duration = Duration::from_millis(100);

/// Shortest time between two writes: what comes in meanwhile shares one.
const GATHER: Duration = Duration::from_millis(1);

/// Bytes waiting to be written above which no new row is started.
const BACKLOG: u64 = 8 << 20;

/// Takes every record right after it was written: the output in completion order.
pub(crate) type Sink = Box<dyn FnMut(&Head, &[u8]) -> io::Result<()> + Send>;

/// Appends records to the journal.
pub(crate) struct Writer {
    shared: Arc<Shared>,
    /// Where the next record will begin.
    end: u64,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    /// There is something to write, or the end has come.
    fill: Condvar,
    /// There is something to sync, or the end has come.
    dirty: Condvar,
    written: AtomicU64,
    moved: Notify,
}

#[derive(Default)]
struct State {
    buffer: Vec<u8>,
    unsynced: bool,
    writer_waits: bool,
    /// Nothing more will be appended.
    stopping: bool,
    /// Nothing more will be written.
    complete: bool,
    failed: Option<io::Error>,
}

impl Writer {
    /// Appends to `file`, whose write position is `end`.
    ///
    /// # Errors
    ///
    /// When the file cannot be shared with a thread, or no thread can be started.
    pub(crate) fn start(file: File, end: u64, sink: Option<Sink>) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            fill: Condvar::new(),
            dirty: Condvar::new(),
            written: AtomicU64::new(end),
            moved: Notify::new(),
        });
        let mut this = Self { shared: shared.clone(), end, threads: Vec::new() };
        let syncs = file.try_clone()?;
        let syncer = shared.clone();
        this.spawn("batch-sync", move || syncer.sync_until_stopped(&syncs))?;
        this.spawn("batch-journal", move || shared.write_until_stopped(file, sink))?;
        Ok(this)
    }

    fn spawn(&mut self, name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
        self.threads.push(std::thread::Builder::new().name(name.into()).spawn(body)?);
        Ok(())
    }

    /// Appends a record; `line` writes the row's output line, newline included.
    ///
    /// Never blocks on the disk. The record is written when [`Writer::written`] has reached its
    /// end.
    pub(crate) fn append(&mut self, head: &Head, line: impl FnOnce(&mut Vec<u8>)) -> Place {
        let mut state = self.shared.state.lock();
        let before = state.buffer.len();
        record::encode(&mut state.buffer, head, line);
        let place = Place { offset: self.end, len: (state.buffer.len() - before) as u32 };
        self.end += u64::from(place.len);
        if state.writer_waits {
            state.writer_waits = false;
            self.shared.fill.notify_one();
        }
        place
    }

    /// Where the file ends, as far as it has been handed to the system.
    pub(crate) fn written(&self) -> u64 {
        self.shared.written.load(Ordering::Acquire)
    }

    /// Waits until more has been written, or writing has failed.
    pub(crate) async fn moved(&self) {
        self.shared.moved.notified().await;
    }

    /// Whether the disk cannot keep up.
    pub(crate) fn is_behind(&self) -> bool {
        self.end - self.written() > BACKLOG
    }

    /// Why writing failed, once. After it nothing more is written.
    pub(crate) fn failure(&self) -> Option<io::Error> {
        self.shared.state.lock().failed.take()
    }

    /// Writes and syncs all that was appended.
    ///
    /// # Errors
    ///
    /// The first failure of any write or sync.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.stop();
        match self.failure() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn stop(&mut self) {
        self.shared.state.lock().stopping = true;
        self.shared.fill.notify_one();
        // The writer, started last, goes first: the last sync must see all it wrote.
        while let Some(thread) = self.threads.pop() {
            let panicked = thread.join().is_err();
            let mut state = self.shared.state.lock();
            if panicked {
                state.failed.get_or_insert_with(|| io::Error::other("a journal thread panicked"));
            }
            state.complete = true;
            self.shared.dirty.notify_one();
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn write_until_stopped(&self, mut file: File, mut sink: Option<Sink>) {
        let mut batch = Vec::new();
        let mut last_write = Instant::now().checked_sub(GATHER).unwrap_or_else(Instant::now);
        while self.take(&mut batch, last_write) {
            last_write = Instant::now();
            let done = file.write_all(&batch).and_then(|()| copy(&batch, sink.as_mut()));
            let mut state = self.state.lock();
            if let Err(error) = done {
                state.failed.get_or_insert(error);
                drop(state);
                self.moved.notify_one();
                return;
            }
            self.written.fetch_add(batch.len() as u64, Ordering::Release);
            if !std::mem::replace(&mut state.unsynced, true) {
                self.dirty.notify_one();
            }
            drop(state);
            self.moved.notify_one();
        }
    }

    /// Waits for something to write and moves it into `batch`; `false` at the end.
    fn take(&self, batch: &mut Vec<u8>, last_write: Instant) -> bool {
        batch.clear();
        // One burst must not hold its memory for the rest of the job.
        batch.shrink_to(1 << 20);
        let mut state = self.state.lock();
        while state.buffer.is_empty() {
            if state.stopping {
                return false;
            }
            state.writer_waits = true;
            self.fill.wait(&mut state);
        }
        if let Some(rest) = GATHER.checked_sub(last_write.elapsed())
            && !state.stopping
        {
            drop(state);
            std::thread::sleep(rest);
            state = self.state.lock();
        }
        std::mem::swap(&mut state.buffer, batch);
        true
    }

    fn sync_until_stopped(&self, file: &File) {
        let mut state = self.state.lock();
        loop {
            while !state.unsynced && !state.complete {
                self.dirty.wait(&mut state);
            }
            let last = state.complete;
            state.unsynced = false;
            drop(state);
            let synced = file.sync_data();
            state = self.state.lock();
            if let Err(error) = synced {
                // What a failed fsync leaves on disk is unknown: never try again on top of it.
                state.failed.get_or_insert(error);
                self.moved.notify_one();
                return;
            }
            if last {
                return;
            }
            let next = Instant::now() + SYNC_EVERY;
            while !state.complete && !self.dirty.wait_until(&mut state, next).timed_out() {}
        }
    }
}

fn copy(batch: &[u8], sink: Option<&mut Sink>) -> io::Result<()> {
    let Some(sink) = sink else { return Ok(()) };
    let mut rest = batch;
    while let Some((head, line)) = record::decode(rest) {
        sink(&head, line)?;
        let len = record::FRAME + record::payload_len(rest).expect("it was decoded");
        rest = &rest[len..];
    }
    Ok(())
}
