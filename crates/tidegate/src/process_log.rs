//! The log of the process itself: what operators should hear of that is no call, on standard
//! error.
//!
//! *Why a thread:* as with the access log, a pipe that nobody reads must not hold up a call. Lines
//! that find no room are dropped: the first of them say what is wrong.

use std::{
    io::{self, Write},
    sync::mpsc::{self, SyncSender},
    thread,
};
use tracing::level_filters::LevelFilter;

/// Lines that may wait.
const QUEUE: usize = 256;

/// Writes warnings and errors of this process to standard error, from now on.
///
/// # Errors
///
/// When the system gives no thread.
pub(crate) fn start() -> io::Result<()> {
    let (sender, lines) = mpsc::sync_channel::<Vec<u8>>(QUEUE);
    thread::Builder::new().name("process-log".into()).spawn(move || {
        for line in lines {
            // Nobody can be told that nobody can be told.
            drop(io::stderr().write_all(&line));
        }
    })?;
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(LevelFilter::WARN)
        .with_target(false)
        .with_ansi(false)
        .with_writer(move || Lines(sender.clone()))
        .finish();
    // Only a second call could fail, and there the first one's still stands.
    drop(tracing::subscriber::set_global_default(subscriber));
    Ok(())
}

/// Takes one line at a time, as `tracing_subscriber` writes them.
struct Lines(SyncSender<Vec<u8>>);

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // Full: dropped rather than waited for.
        drop(self.0.try_send(line.to_vec()));
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
