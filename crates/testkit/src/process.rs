//! The real binary as a child process, its output read as it comes.

use parking_lot::Mutex;
use std::{
    collections::VecDeque,
    ffi::OsStr,
    io::{self, BufRead, BufReader, Read},
    net::SocketAddr,
    process::{Child, Command, ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};
use tokio::sync::watch;

/// A running `tidegate`; killed when dropped.
///
/// The caller names the program, because only the binary's own tests know where it is:
/// `Tidegate::spawn(env!("CARGO_BIN_EXE_tidegate"), ["sim", "--listen", "127.0.0.1:0"])`.
#[derive(Debug)]
pub struct Tidegate {
    child: Child,
    stdout: Output,
    stderr: Output,
}

/// Which of the two pipes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pipe {
    /// Data.
    Stdout,
    /// Everything else.
    Stderr,
}

/// A process that has ended, and all it said (each pipe's last 10,000 lines).
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to stdout.
    pub stdout: String,
    /// What it wrote to stderr.
    pub stderr: String,
}

impl Tidegate {
    /// Starts `program` with `args`.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn spawn<S: AsRef<OsStr>>(
        program: &str,
        args: impl IntoIterator<Item = S>,
    ) -> io::Result<Self> {
        Self::spawn_command(Command::new(program).args(args).stdin(Stdio::null()))
    }

    /// Starts `command`, whose directory, environment and standard input the caller has set.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn spawn_command(command: &mut Command) -> io::Result<Self> {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let stdout = Output::read(child.stdout.take().expect("stdout is piped"));
        let stderr = Output::read(child.stderr.take().expect("stderr is piped"));
        Ok(Self { child, stdout, stderr })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a line that contains `what`, one already written included.
    ///
    /// # Panics
    ///
    /// When the process ends without it, or after 30 s, with what it said instead.
    pub async fn line(&self, pipe: Pipe, what: &str) -> String {
        self.find(pipe, what, |line| line.contains(what).then(|| line.to_owned())).await
    }

    /// The address of the first URL (`http://127.0.0.1:4711`) it prints to stderr.
    ///
    /// # Panics
    ///
    /// When the process ends without one, or after 30 s, with what it said instead.
    pub async fn addr(&self) -> SocketAddr {
        self.find(Pipe::Stderr, "an address", address).await
    }

    /// What it has said so far.
    pub fn said(&self, pipe: Pipe) -> String {
        self.output(pipe).text()
    }

    /// Sends SIGTERM: it drains.
    ///
    /// # Errors
    ///
    /// When there is no shell to send it.
    pub fn terminate(&self) -> io::Result<()> {
        // The standard library only knows SIGKILL, and a signal by hand is unsafe code.
        let kill = format!("kill -TERM {}", self.id());
        Command::new("sh").args(["-c", &kill]).status().map(|_| ())
    }

    /// Sends SIGKILL and waits until the process is gone.
    ///
    /// # Errors
    ///
    /// When the process cannot be signalled.
    pub fn kill(&mut self) -> io::Result<ExitStatus> {
        self.child.kill()?;
        self.child.wait()
    }

    /// Waits for its end.
    ///
    /// # Panics
    ///
    /// After `timeout`, with what it said until then.
    pub async fn wait(mut self, timeout: Duration) -> Finished {
        // Both pipes end with the process, so this waits for it without polling.
        let ended = async { tokio::join!(self.stdout.ended(), self.stderr.ended()) };
        if tokio::time::timeout(timeout, ended).await.is_err() {
            panic!("still running after {timeout:?}; it said:\n{}", self.everything());
        }
        let status = self.child.wait().expect("a child can be waited for");
        Finished { status, stdout: self.stdout.text(), stderr: self.stderr.text() }
    }

    async fn find<T>(&self, pipe: Pipe, what: &str, find: impl Fn(&str) -> Option<T>) -> T {
        let timeout = Duration::from_secs(30);
        match tokio::time::timeout(timeout, self.output(pipe).find(find)).await {
            Ok(Some(found)) => found,
            Ok(None) => panic!("it ended without {what:?}; it said:\n{}", self.everything()),
            Err(_) => panic!("no {what:?} for {timeout:?}; it said:\n{}", self.everything()),
        }
    }

    const fn output(&self, pipe: Pipe) -> &Output {
        match pipe {
            Pipe::Stdout => &self.stdout,
            Pipe::Stderr => &self.stderr,
        }
    }

    fn everything(&self) -> String {
        format!("--- stdout\n{}\n--- stderr\n{}", self.stdout.text(), self.stderr.text())
    }
}

impl Drop for Tidegate {
    fn drop(&mut self) {
        // Both fail only when the process is gone and waited for already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn address(line: &str) -> Option<SocketAddr> {
    line.split("http://").skip(1).find_map(|rest| {
        let end = rest.find(|c: char| c == '/' || c.is_whitespace()).unwrap_or(rest.len());
        rest[..end].trim_end_matches(['.', ',', ')', '"', '`']).parse().ok()
    })
}

/// One pipe, read by a thread of its own so that the process never blocks on it.
#[derive(Debug)]
struct Output {
    lines: Arc<Mutex<VecDeque<String>>>,
    /// Lines read so far and whether the pipe has ended.
    progress: watch::Receiver<(usize, bool)>,
}

impl Output {
    const MAX_LINES: usize = 10_000;

    fn read(pipe: impl Read + Send + 'static) -> Self {
        let (sender, progress) = watch::channel((0, false));
        let lines: Arc<Mutex<VecDeque<String>>> = Arc::default();
        let kept = lines.clone();
        // It ends with the pipe, that is with the process, which is killed on drop.
        std::thread::spawn(move || {
            let mut pipe = BufReader::new(pipe);
            let mut bytes = Vec::new();
            while matches!(pipe.read_until(b'\n', &mut bytes), Ok(read) if read > 0) {
                let line = String::from_utf8_lossy(&bytes).trim_end_matches('\n').to_owned();
                let mut lines = kept.lock();
                if lines.len() == Self::MAX_LINES {
                    lines.pop_front();
                }
                lines.push_back(line);
                drop(lines);
                sender.send_modify(|(read, _)| *read += 1);
                bytes.clear();
            }
            sender.send_modify(|(_, ended)| *ended = true);
        });
        Self { lines, progress }
    }

    /// The first line, kept or to come, in which `find` finds something; `None` at the end.
    async fn find<T>(&self, find: impl Fn(&str) -> Option<T>) -> Option<T> {
        let mut progress = self.progress.clone();
        loop {
            let (_, ended) = *progress.borrow_and_update();
            if let Some(found) = self.lines.lock().iter().find_map(|line| find(line)) {
                return Some(found);
            }
            if ended || progress.changed().await.is_err() {
                return None;
            }
        }
    }

    async fn ended(&self) {
        // An error means that the thread is gone, and the pipe with it.
        let _ = self.progress.clone().wait_for(|(_, ended)| *ended).await;
    }

    fn text(&self) -> String {
        self.lines.lock().iter().map(String::as_str).collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Tidegate {
        Tidegate::spawn("sh", ["-c", script]).unwrap()
    }

    #[tokio::test]
    async fn lines_addresses_and_the_end_are_awaited() {
        let process = shell(
            "echo 'listening on http://127.0.0.1:4711/v1, go' >&2; sleep 0.05; echo ready; exit 3",
        );
        assert_eq!(process.addr().await.port(), 4711);
        assert_eq!(process.line(Pipe::Stdout, "read").await, "ready");
        let finished = process.wait(Duration::from_secs(30)).await;
        assert_eq!(finished.status.code(), Some(3));
        assert_eq!(finished.stdout, "ready");
    }

    #[tokio::test]
    async fn it_can_be_asked_to_end() {
        let process =
            shell("trap 'echo drained; exit 0' TERM; echo up; while :; do sleep 0.01; done");
        process.line(Pipe::Stdout, "up").await;
        process.terminate().unwrap();
        assert!(process.wait(Duration::from_secs(30)).await.stdout.ends_with("drained"));
    }

    #[tokio::test]
    #[should_panic(expected = "bad luck")]
    async fn a_line_that_never_comes_shows_what_was_said() {
        shell("echo 'bad luck' >&2; exit 1").line(Pipe::Stderr, "ready").await;
    }

    #[test]
    fn addresses_are_found_in_prose() {
        assert_eq!(address("sim on http://127.0.0.1:8080."), "127.0.0.1:8080".parse().ok());
        assert_eq!(address("see http://example.org"), None);
    }
}
