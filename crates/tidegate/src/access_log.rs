//! The access log: one line per ended call or refused request, written by a thread of its own.
//!
//! *Why a thread:* a pipe that nobody reads, or a slow disk, must not hold up a call. The queue
//! is bounded and drops the newest line when it is full; how many is said in the log itself once
//! there is room. The thread gathers what arrives within 50 ms into one write, so that a busy
//! gateway wakes it twenty times a second and not once per call.

mod line;
mod object;

use crate::config::AccessTo;
use line::{Line, RefusedLine};
use std::{
    fs::File,
    io::{self, IsTerminal, Write},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::{self, Receiver, SyncSender, TrySendError},
    },
    thread,
    time::{Duration, Instant},
};
use tidegate_engine::{Record, Records};
use tidegate_http::{Refusals, Refused};

/// Lines that may wait: at 10,000 calls/s nearly a second, in 3 MiB.
const QUEUE: usize = 8192;
/// How long the thread gathers lines before it writes them.
const GATHER: Duration = Duration::from_millis(50);
/// Bytes after which gathered lines are written, however many wait.
const BUFFER: usize = 64 << 10;

/// What the engine's records, and the requests its front refuses, are turned into.
pub(crate) struct AccessLog {
    queue: SyncSender<Message>,
    ended: Receiver<()>,
    lost: Arc<AtomicU64>,
}

enum Message {
    // Boxed: the queue's ring would be two megabytes otherwise, and in no cache.
    Ended(Box<Record>),
    Refused(Box<Refused>),
    /// Write what is here and end.
    Stop,
}

impl AccessLog {
    /// Opens the log; `None` when it is off.
    ///
    /// # Errors
    ///
    /// When the file cannot be opened, naming it and the key.
    pub(crate) fn start(to: &AccessTo) -> io::Result<Option<Self>> {
        let (out, style): (Box<dyn Write + Send>, _) = match to {
            AccessTo::Off => return Ok(None),
            AccessTo::Stderr if io::stderr().is_terminal() => (own_stderr()?, Style::Pretty),
            AccessTo::Stderr => (own_stderr()?, Style::Json),
            AccessTo::File(path) => (Box::new(append_to(path)?), Style::Json),
        };
        Self::over(out, style, QUEUE).map(Some)
    }

    fn over(out: Box<dyn Write + Send>, style: Style, queue: usize) -> io::Result<Self> {
        let (sender, receiver) = mpsc::sync_channel(queue);
        let (end, ended) = mpsc::sync_channel(1);
        let lost = Arc::new(AtomicU64::new(0));
        let mut writer = Writer { out, style, lost: lost.clone(), buffer: Vec::new(), lines: 0 };
        thread::Builder::new().name("access-log".into()).spawn(move || {
            writer.run(&receiver);
            // Nobody waiting is no error.
            let _ = end.try_send(());
        })?;
        Ok(Self { queue: sender, ended, lost })
    }

    /// Where the engine puts its records: never waits, never fails.
    pub(crate) fn records(&self) -> Records {
        let put = self.put();
        Arc::new(move |record| put(Message::Ended(record)))
    }

    /// Where the front tells of the requests it refuses itself: never waits, never fails.
    pub(crate) fn refusals(&self) -> Refusals {
        let put = self.put();
        Arc::new(move |refused| put(Message::Refused(Box::new(refused))))
    }

    fn put(&self) -> impl Fn(Message) + use<> {
        let (queue, lost) = (self.queue.clone(), self.lost.clone());
        move |message| {
            if queue.try_send(message).is_err() {
                lost.fetch_add(1, Relaxed);
            }
        }
    }

    /// Lines that were dropped and not yet reported in the log itself.
    #[cfg(test)]
    fn lost(&self) -> u64 {
        self.lost.load(Relaxed)
    }

    /// Writes what waits and ends, within `patience`: a reader who does not read is left alone.
    ///
    /// Blocks; call it when the last call has settled. `false` when time ran out first.
    pub(crate) fn finish(self, patience: Duration) -> bool {
        let give_up = Instant::now() + patience;
        let mut stop = Message::Stop;
        while let Err(TrySendError::Full(again)) = self.queue.try_send(stop) {
            if Instant::now() >= give_up {
                return false;
            }
            stop = again;
            thread::sleep(Duration::from_millis(5));
        }
        let left = give_up.saturating_duration_since(Instant::now());
        self.ended.recv_timeout(left).is_ok()
    }
}

/// Our own handle of standard error: the shared one is locked while it writes, and a log line
/// that waits for a reader would make everyone else who writes there wait too.
fn own_stderr() -> io::Result<Box<dyn Write + Send>> {
    #[cfg(unix)]
    {
        use std::os::fd::AsFd;
        let own = io::stderr().as_fd().try_clone_to_owned()?;
        Ok(Box::new(File::from(own)))
    }
    #[cfg(not(unix))]
    Ok(Box::new(io::stderr()))
}

fn append_to(path: &Path) -> io::Result<File> {
    File::options().append(true).create(true).open(path).map_err(|cause| {
        let message = format!("log.access: cannot append to {}: {cause}", path.display());
        io::Error::new(cause.kind(), message)
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    Json,
    Pretty,
}

struct Writer {
    out: Box<dyn Write + Send>,
    style: Style,
    lost: Arc<AtomicU64>,
    buffer: Vec<u8>,
    /// In the buffer, those that it says were lost included.
    lines: u64,
}

impl Writer {
    fn run(&mut self, queue: &Receiver<Message>) {
        let mut is_busy = false;
        loop {
            // While there is much to write nobody wakes it: it looks again by itself.
            let first = if is_busy { Ok(None) } else { queue.recv().map(Some) };
            let Ok(first) = first else { return };
            if !matches!(first, Some(Message::Stop)) {
                thread::sleep(GATHER);
            }
            let more = std::iter::from_fn(|| queue.try_recv().ok());
            let mut stop = false;
            is_busy = false;
            for message in first.into_iter().chain(more) {
                is_busy = true;
                match message {
                    Message::Ended(record) => self.add(&record),
                    Message::Refused(refused) => self.add_refused(&refused),
                    Message::Stop => stop = true,
                }
                if self.buffer.len() >= BUFFER {
                    self.write();
                }
                if stop {
                    break;
                }
            }
            self.add_lost();
            self.write();
            if stop {
                return;
            }
        }
    }

    fn add(&mut self, record: &Record) {
        self.lines += 1;
        let line = Line::of(record);
        match self.style {
            Style::Json => line.json(&mut self.buffer),
            Style::Pretty => line.pretty(&mut self.buffer),
        }
    }

    fn add_refused(&mut self, refused: &Refused) {
        self.lines += 1;
        let line = RefusedLine::of(refused);
        match self.style {
            Style::Json => line.json(&mut self.buffer),
            Style::Pretty => line.pretty(&mut self.buffer),
        }
    }

    fn add_lost(&mut self) {
        let lost = self.lost.swap(0, Relaxed);
        if lost == 0 {
            return;
        }
        let line = match self.style {
            Style::Json => format!("{{\"access_log_lines_lost\":{lost}}}\n"),
            Style::Pretty => format!("({lost} lines of the access log were lost)\n"),
        };
        // If this line is lost too, they are to be said again.
        self.lines += lost;
        self.buffer.extend_from_slice(line.as_bytes());
    }

    /// A line that cannot be written is lost and counted, like one that found no room.
    fn write(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        if lines > 0 && self.out.write_all(&self.buffer).and_then(|()| self.out.flush()).is_err() {
            self.lost.fetch_add(lines, Relaxed);
        }
        self.buffer.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use line::tests::record;
    use std::sync::{Condvar, Mutex};

    /// A reader whose end is shut until it is opened.
    #[derive(Clone, Default)]
    struct Pipe(Arc<(Mutex<PipeState>, Condvar)>);

    #[derive(Default)]
    struct PipeState {
        is_open: bool,
        written: Vec<u8>,
    }

    impl Pipe {
        fn open(&self) {
            self.0.0.lock().unwrap().is_open = true;
            self.0.1.notify_all();
        }

        fn text(&self) -> String {
            String::from_utf8(self.0.0.lock().unwrap().written.clone()).unwrap()
        }
    }

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut state =
                self.0.1.wait_while(self.0.0.lock().unwrap(), |state| !state.is_open).unwrap();
            state.written.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_blocked_pipe_blocks_nobody_and_what_was_lost_is_said() {
        let pipe = Pipe::default();
        let log = AccessLog::over(Box::new(pipe.clone()), Style::Json, 4).unwrap();
        let records = log.records();
        for _ in 0..200_000 {
            records(Box::new(record()));
        }
        assert!(log.lost() > 0, "four lines wait, a buffer is being written, the rest is gone");
        pipe.open();
        assert!(log.finish(Duration::from_secs(60)));
        let text = pipe.text();
        assert!(text.lines().count() < 200_000);
        assert!(text.contains("\"access_log_lines_lost\":"), "{}", text.lines().last().unwrap());
        let counted: u64 = text
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
            .map(|line| line["access_log_lines_lost"].as_u64().unwrap_or(1))
            .sum();
        assert_eq!(counted, 200_000, "every line is written or counted");
    }

    #[test]
    fn the_end_does_not_wait_for_a_reader_who_does_not_read() {
        let log = AccessLog::over(Box::new(Pipe::default()), Style::Json, 4).unwrap();
        (log.records())(Box::new(record()));
        assert!(!log.finish(Duration::from_millis(50)));
    }

    #[test]
    fn a_file_is_appended_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.log");
        for _ in 0..2 {
            let log = AccessLog::start(&AccessTo::File(path.clone())).unwrap().unwrap();
            (log.records())(Box::new(record()));
            assert!(log.finish(Duration::from_secs(60)));
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 2);
        let nowhere = AccessTo::File(dir.path().join("no/such/dir.log"));
        let Err(error) = AccessLog::start(&nowhere) else { panic!("opened") };
        assert!(error.to_string().starts_with("log.access: cannot append to"), "{error}");
        assert!(AccessLog::start(&AccessTo::Off).unwrap().is_none());
    }
}
