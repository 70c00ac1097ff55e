//! The log of the process itself: what operators should hear of that is no call, on standard
//! error.
//!
//! *Why a thread:* as with the access log, a pipe that nobody reads must not hold up a call. Lines
//! that find no room are dropped: the first of them say what is wrong.

use crate::config::Level;
use std::{
    io::{self, Write},
    sync::{
        OnceLock,
        mpsc::{self, SyncSender},
    },
    thread,
};
use tidegate_core::redact;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{filter::Targets, fmt, layer::SubscriberExt as _, registry};

/// Lines that may wait.
const QUEUE: usize = 256;
/// What the targets of our own crates begin with.
const OURS: &str = "tidegate";

/// Where lines go, once the log has begun.
static QUEUE_IN: OnceLock<SyncSender<Vec<u8>>> = OnceLock::new();

/// Writes what this process says of itself, up to `level`, to standard error, from now on.
///
/// Of libraries it is warnings and errors at most: below that some write whole messages, and
/// callers' keys with them.
///
/// # Errors
///
/// When the system gives no thread.
pub(crate) fn start(level: Level) -> io::Result<()> {
    let (sender, lines) = mpsc::sync_channel::<Vec<u8>>(QUEUE);
    thread::Builder::new().name("process-log".into()).spawn(move || {
        for line in lines {
            // Nobody can be told that nobody can be told.
            drop(io::stderr().write_all(&line));
        }
    })?;
    // Of two starts the first one stands, here and below.
    let sender = QUEUE_IN.get_or_init(|| sender).clone();
    let own = match level {
        Level::Off => LevelFilter::OFF,
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
        Level::Trace => LevelFilter::TRACE,
    };
    let wanted = Targets::new().with_default(own.min(LevelFilter::WARN)).with_target(OURS, own);
    let lines =
        fmt::layer().with_target(false).with_ansi(false).with_writer(move || Lines(sender.clone()));
    // Outermost, so that what is not wanted costs nothing: it filters for all.
    let subscriber = registry().with(lines).with(wanted);
    // Only a second call could fail, and there the first one's still stands.
    drop(tracing::subscriber::set_global_default(subscriber));
    Ok(())
}

/// Says `text` at whatever level, without waiting; `false` when the log has not begun or has no
/// room.
pub(crate) fn say(text: &str) -> bool {
    QUEUE_IN.get().is_some_and(|queue| queue.try_send(text.as_bytes().to_vec()).is_ok())
}

/// Takes one line at a time, as `tracing_subscriber` writes them.
struct Lines(SyncSender<Vec<u8>>);

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // Whoever wrote it has seen to that already; one that was forgotten is caught here.
        let cleaned = redact(&String::from_utf8_lossy(line)).into_owned();
        // Full: dropped rather than waited for.
        drop(self.0.try_send(cleaned.into_bytes()));
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
