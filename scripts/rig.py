"""Starts the real binary on free ports, waits for what it prints, and reads the simulator's ledger.

Python's standard library only. Nothing sleeps to wait: lines are awaited on the process's pipe.
"""

import collections
import json
import os
import re
import resource
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request


class Failed(Exception):
    """A check did not hold; the message says what was seen."""


def expect(holds, message):
    if not holds:
        raise Failed(message)


class Process:
    """A child whose standard error is read as it comes; killed when the `with` block ends."""

    def __init__(self, argv, cwd=None, env=None, stdin=subprocess.DEVNULL, stdout=None):
        self.argv = [str(word) for word in argv]
        self.lines = collections.deque(maxlen=10_000)
        self.changed = threading.Condition()
        self.ended = False
        self.started = time.monotonic()
        self.usage = None
        self.child = subprocess.Popen(
            self.argv,
            cwd=cwd,
            env=None if env is None else {**os.environ, **env},
            stdin=stdin,
            stdout=stdout if stdout is not None else subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        self.pid = self.child.pid
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.child.stderr:
            with self.changed:
                self.lines.append(line.decode("utf-8", "replace").rstrip("\n"))
                self.changed.notify_all()
        with self.changed:
            self.ended = True
            self.changed.notify_all()

    def find(self, pattern, timeout=30):
        """The first match of `pattern` in what it has printed or prints within `timeout` seconds."""
        until = time.monotonic() + timeout
        with self.changed:
            while True:
                for line in self.lines:
                    match = re.search(pattern, line)
                    if match:
                        return match
                left = until - time.monotonic()
                if self.ended or left <= 0:
                    break
                self.changed.wait(left)
        raise Failed(f"{' '.join(self.argv)} never printed {pattern!r}; it said:\n{self.said()}")

    def ends_within(self, seconds):
        """Whether it closes its standard error, that is ends, within `seconds`."""
        with self.changed:
            return self.changed.wait_for(lambda: self.ended, seconds)

    def said(self):
        with self.changed:
            return "\n".join(self.lines)

    def wait(self, timeout=3600):
        """Waits for the end; returns the exit code and keeps what it used (`os.wait4`)."""
        if self.child.returncode is None:
            timer = threading.Timer(timeout, self.child.kill)
            timer.start()
            try:
                _, status, self.usage = os.wait4(self.pid, 0)
            finally:
                timer.cancel()
            self.elapsed = time.monotonic() - self.started
            self.child.returncode = os.waitstatus_to_exitcode(status)
            self.reader.join(5)
        return self.child.returncode

    def kill(self):
        if self.child.returncode is None:
            self.child.kill()
            self.wait()

    def terminate(self):
        if self.child.returncode is None:
            self.child.send_signal(signal.SIGTERM)

    @property
    def cpu_seconds(self):
        return self.usage.ru_utime + self.usage.ru_stime

    @property
    def max_rss_mib(self):
        return self.usage.ru_maxrss / 1024

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()


class Server(Process):
    """A `tidegate sim` or `tidegate serve`, ready when it has printed its address."""

    def __init__(self, argv, **options):
        super().__init__(argv, **options)
        try:
            self.url = self.find(r"http://[\d.]+:\d+").group(0)
        except Failed:
            self.kill()
            raise
        host, port = self.url.removeprefix("http://").split(":")
        self.address = (host, int(port))


class Gateway(Server):
    """A `tidegate serve` with its state in `directory`, and the key it printed."""

    def __init__(self, binary, directory, config=None, access_log="off"):
        flags = ["--admin-listen", "127.0.0.1:0"]
        flags += ["--data-dir", os.path.join(directory, "data"), "--access-log", access_log]
        if config:
            path = os.path.join(directory, "tidegate.toml")
            with open(path, "w") as file:
                file.write(config)
            flags += ["--config", path]
        super().__init__([binary, "serve", "--listen", "127.0.0.1:0", *flags], cwd=directory)
        try:
            self.key = self.find(r"tg-\w+-\w+").group(0)
        except Failed:
            self.kill()
            raise


class Sim(Server):
    """A simulated model server in a process of its own."""

    def __init__(self, binary, *flags):
        raise_file_limit()
        super().__init__([binary, "sim", "--listen", "127.0.0.1:0", *flags])

    def faults(self, **change):
        return get_json(self.url + "/sim/faults", change)

    def totals(self):
        return get_json(self.url + "/sim/ledger/totals")

    def ledger(self):
        """Every entry, oldest first, one by one."""
        with urllib.request.urlopen(self.url + "/sim/ledger?format=ndjson", timeout=60) as answer:
            for line in answer:
                if line.strip():
                    yield json.loads(line)


def get_json(url, body=None, headers=None, timeout=60):
    data = None if body is None else json.dumps(body).encode()
    headers = {"content-type": "application/json", **(headers or {})}
    request = urllib.request.Request(url, data=data, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        said = error.read().decode("utf-8", "replace")
        raise Failed(f"{url} answered {error.code}: {said}") from None


def raise_file_limit():
    """Hundreds of connections need more descriptors than the usual soft limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft = hard if hard != resource.RLIM_INFINITY else 65_536
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 65_536), hard))
