//! Why a job could not be run: what the command line turns into exit codes 1 and 2.
//!
//! Rows that fail are data, not failures; a job that stops early is an [`crate::End`].

use std::{io, path::Path};

/// What kept a job from running, or from keeping its results.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The input, an option or a path is not usable; the message says what to do.
    #[error("{0}")]
    Usage(String),
    /// A file could not be read or written.
    #[error("{message}: {source}")]
    Io {
        /// What was being done, to which file, and what is safe.
        message: String,
        /// What the system said.
        source: io::Error,
    },
    /// A bug on our side.
    #[error("internal error: {0}")]
    Internal(String),
}

impl Failure {
    /// The process exit code of SPEC §2.
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Io { .. } | Self::Internal(_) => 1,
        }
    }

    /// `doing` failed on `path`.
    pub(crate) fn io(doing: &str, path: &Path, source: io::Error) -> Self {
        Self::Io { message: format!("cannot {doing} {}", path.display()), source }
    }
}
