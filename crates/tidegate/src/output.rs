//! Data goes to standard output, everything else to standard error.

use std::io::{self, Write};

/// Writes data. A reader who has seen enough (`| head`) is no error.
///
/// # Errors
///
/// When standard output cannot be written, a full disk for example.
pub(crate) fn data(text: &str) -> io::Result<()> {
    bytes(text.as_bytes())
}

/// Writes data that is no text.
///
/// # Errors
///
/// As [`data`].
pub(crate) fn bytes(data: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(data).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => done,
    }
}

/// Tells the person at the terminal something; when nobody can be told, nothing is lost.
pub(crate) fn note(text: &str) {
    drop(writeln!(io::stderr().lock(), "{text}"));
}
