"""A PostgreSQL of our own that can be hung, killed and started again."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile

from rig import Failed, Process, expect


class Postgres:
    """A PostgreSQL of our own in a temporary directory, on a socket and a free port."""

    def __init__(self, rig):
        self.directory = tempfile.mkdtemp(prefix="pg-")
        os.chmod(self.directory, 0o755)
        self.user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        self.user = self.user if os.geteuid() == 0 else []
        if self.user:
            os.chown(self.directory, 65534, 65534)
        self.data = os.path.join(self.directory, "data")
        self.port = free_port()
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        self.child = None

    def __enter__(self):
        self._run(binary("initdb"), "-D", self.data, "-U", "postgres", "-A", "trust", "--no-sync")
        self.start()
        return self

    def _run(self, *argv):
        done = subprocess.run([*self.user, *argv], capture_output=True, text=True, cwd=self.directory)
        expect(done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}")

    def start(self):
        argv = [binary("postgres"), "-D", self.data, "-p", str(self.port), "-k", self.directory]
        argv += ["-c", "listen_addresses=127.0.0.1", "-c", "max_connections=50"]
        self.child = Process([*self.user, *argv], cwd=self.directory)
        self.child.find("ready to accept connections")

    def signal(self, number):
        """To the server and all of its sessions."""
        pids = subprocess.run(["pgrep", "-P", str(self.child.pid)], capture_output=True, text=True)
        for pid in [self.child.pid, *map(int, pids.stdout.split())]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self):
        self.signal(signal.SIGKILL)
        self.child.wait()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(self.data, "postmaster.pid"))

    def __exit__(self, *_):
        self.signal(signal.SIGCONT)
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)


def binary(name):
    found = shutil.which(name)
    if found:
        return found
    for root in sorted(os.listdir("/usr/lib/postgresql"), reverse=True):
        path = f"/usr/lib/postgresql/{root}/bin/{name}"
        if os.access(path, os.X_OK):
            return path
    raise Failed(f"{name} is not there; apt-get install postgresql")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
