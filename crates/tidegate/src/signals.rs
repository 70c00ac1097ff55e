//! SIGINT and SIGTERM: the first drains, the second aborts.

use crate::output;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Exit code of an aborted command, as shells expect it of an interrupted one.
const INTERRUPTED: i32 = 130;

/// A token cancelled by the first signal; `on_first` is said then. The second ends the process.
///
/// # Errors
///
/// When the system refuses to install a handler.
pub(crate) fn drain_on_signal(on_first: &'static str) -> std::io::Result<CancellationToken> {
    let token = CancellationToken::new();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let drain = token.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if drain.is_cancelled() {
                output::note("aborted");
                std::process::exit(INTERRUPTED);
            }
            output::note(on_first);
            drain.cancel();
        }
    });
    Ok(token)
}
