//! How many sockets this process may have open.

use rustix::process::{Resource, getrlimit, setrlimit};

/// Raises the number of open files this process may have to the most the system lets it: each
/// request in flight is a socket, and the usual limit of 1,024 would be the first thing measured.
///
/// Where that fails, connections that cannot be opened say so.
pub fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
    let _ = setrlimit(Resource::Nofile, raised);
}
