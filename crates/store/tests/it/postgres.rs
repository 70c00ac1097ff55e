//! A PostgreSQL server of the test's own, from the Debian package, in a directory of its own.
//!
//! It listens on a Unix socket in that directory, so no port is taken. PostgreSQL refuses to run
//! as root; then it runs as `nobody`.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};
use tempfile::TempDir;
use tidegate_core::Secret;

/// A running server; it ends with this value.
pub(crate) struct Server {
    dir: TempDir,
    options: Vec<String>,
    process: Option<Child>,
}

impl Server {
    /// A new server with an empty database.
    pub(crate) fn start() -> Self {
        Self::start_with(&[], |_| ())
    }

    /// One with these settings, after `prepare` has seen its directory.
    pub(crate) fn start_with(options: &[&str], prepare: impl FnOnce(&Path)) -> Self {
        let dir = TempDir::with_prefix("tidegate-pg-").unwrap();
        hand_over(dir.path());
        let data = dir.path().join("data");
        let made = unprivileged("initdb")
            .args(["--auth=trust", "--username=tidegate", "--no-sync", "--encoding=UTF8"])
            .args(["--locale=en_US.UTF-8", "-D"])
            .arg(&data)
            .env("LC_ALL", "C.UTF-8")
            .output()
            .expect(MISSING);
        let made = if made.status.success() {
            made
        } else {
            // Without that locale: any will do.
            drop(fs::remove_dir_all(&data));
            let mut again = unprivileged("initdb");
            again.args(["--auth=trust", "--username=tidegate", "--no-sync", "--encoding=UTF8"]);
            again.args(["--locale=C.UTF-8", "-D"]).arg(&data).output().expect(MISSING)
        };
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        prepare(dir.path());
        hand_over(dir.path());
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        let mut server = Self { dir, options, process: None };
        server.run();
        server
    }

    /// Runs it (again) and returns when it takes connections.
    pub(crate) fn run(&mut self) {
        let mut command = unprivileged("postgres");
        command.arg("-D").arg(self.dir.path().join("data"));
        command.arg("-k").arg(self.dir.path());
        for option in ["listen_addresses=", "fsync=off", "log_min_messages=log"] {
            command.args(["-c", option]);
        }
        command.args(self.options.iter().flat_map(|option| ["-c", option]));
        let mut child = command.stderr(Stdio::piped()).spawn().expect(MISSING);
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut said = String::new();
        loop {
            let line = lines.next().unwrap_or_else(|| panic!("PostgreSQL ended:\n{said}")).unwrap();
            said.push_str(&line);
            said.push('\n');
            if line.contains("database system is ready to accept connections") {
                break;
            }
        }
        // What it says from now on is read, or it would stop at a full pipe.
        std::thread::spawn(move || lines.for_each(drop));
        self.process = Some(child);
    }

    /// The address of its database over the socket.
    pub(crate) fn url(&self) -> Secret<String> {
        let dir = self.dir.path().display();
        Secret::new(format!("postgres:///postgres?host={dir}&user=tidegate"))
    }

    /// Ends it and every connection at once, as a crash does.
    pub(crate) fn kill(&mut self) {
        let pids = self.pids();
        signal("KILL", &pids);
        self.process.take().unwrap().wait().unwrap();
        // Its children hold the shared memory until they are gone.
        while pids.iter().any(|pid| is_running(*pid)) {
            std::thread::yield_now();
        }
        drop(fs::remove_file(self.dir.path().join("data/postmaster.pid")));
    }

    /// Stops it where it stands, with every connection.
    pub(crate) fn hang(&self) {
        signal("STOP", &self.pids());
    }

    /// Lets it go on.
    pub(crate) fn go_on(&self) {
        signal("CONT", &self.pids());
    }

    /// The server and its children.
    fn pids(&self) -> Vec<u32> {
        let server = self.process.as_ref().unwrap().id();
        let mut pids = vec![server];
        for entry in fs::read_dir("/proc").unwrap() {
            let name = entry.unwrap().file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
            if parent_of(pid) == Some(server) {
                pids.push(pid);
            }
        }
        pids
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.process.is_some() {
            self.kill();
        }
    }
}

const MISSING: &str = "this test needs PostgreSQL: apt-get install postgresql (./test does)";

/// A program of PostgreSQL's, run as somebody who may run it, and ended with this thread.
fn unprivileged(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.arg("--pdeathsig=KILL");
    if fs::metadata("/proc/self").is_ok_and(|me| std::os::unix::fs::MetadataExt::uid(&me) == 0) {
        command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups"]);
    }
    command.arg(installed(program)).current_dir("/").stdin(Stdio::null()).process_group(0);
    command
}

/// Where the program is: Debian keeps those of each version in a directory of its own.
fn installed(program: &str) -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let mut found: Vec<PathBuf> = versions
        .map(|version| version.unwrap().path().join("bin").join(program))
        .filter(|path| path.exists())
        .collect();
    found.sort();
    found.pop().unwrap_or_else(|| program.into())
}

/// Gives a directory to whom the server runs as.
fn hand_over(dir: &Path) {
    if std::os::unix::fs::MetadataExt::uid(&fs::metadata(dir).unwrap()) == 0
        || fs::metadata("/proc/self").is_ok_and(|me| std::os::unix::fs::MetadataExt::uid(&me) == 0)
    {
        let owner = Command::new("chown").args(["-R", "nobody:nogroup"]).arg(dir).status();
        assert!(owner.unwrap().success());
    }
}

fn signal(name: &str, pids: &[u32]) {
    let pids = pids.iter().map(u32::to_string);
    // One that has ended meanwhile needs no signal.
    drop(Command::new("kill").arg(format!("-{name}")).args(pids).stderr(Stdio::null()).status());
}

fn stat(pid: u32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // After the name, which is in parentheses: state, parent, …
    let rest = stat.rsplit_once(") ")?.1;
    Some(rest.split(' ').map(str::to_owned).collect())
}

fn parent_of(pid: u32) -> Option<u32> {
    stat(pid)?.get(1)?.parse().ok()
}

fn is_running(pid: u32) -> bool {
    stat(pid).is_some_and(|fields| fields[0] != "Z")
}
