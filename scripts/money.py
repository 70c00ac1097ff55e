#!/usr/bin/env python3
"""Callers and money, measured: limits, books that balance, budgets, a database that is away.

    money.py --bin target/release/tidegate               # everything, about ten minutes
    money.py --bin target/release/tidegate --short       # everything, small, about two minutes
    money.py --bin target/release/tidegate limits books  # by name
    money.py --list

Every check starts `tidegate serve` before `tidegate sim` on free ports, and compares what the
gateway counts with what the simulator's own ledger says. The exit code is 1 when a bound is broken.
"""

import asyncio
import collections
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.parse

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import battery  # noqa: E402
from rig import Failed, Gateway, Process, Sim, expect, get_json  # noqa: E402

CHECKS = {}
ALGORITHMS = ("token_bucket", "leaky_bucket", "fixed_window", "sliding_window")
# USD per million tokens; 0.15 is 150,000 picodollars a token.
INPUT, CACHED, OUTPUT = 0.15, 0.075, 0.60


def check(function):
    CHECKS[function.__name__] = function
    return function


class Stage:
    """One gateway before one simulator; `config` comes after its upstream and model."""

    def __init__(
        self, rig, stack, config="", sim=(), env=None, upstream="", models=("sim-small",), log="off"
    ):
        self.rig = rig
        self.sim = stack.enter_context(Sim(rig.binary, "--slots", 2000, *sim))
        lines = [
            "[upstreams.sim]",
            f'base_url = "{self.sim.url}/v1"',
            "max_concurrency = 2000",
            upstream,
        ]
        for name in models:
            # A machine that is busy with something else is no upstream that hangs.
            patient = 'timeouts = { first_token = "60s" }'
            lines += [f"[models.{name}]", 'targets = [{ upstream = "sim" }]', patient, file_price()]
        lines.append(config)
        self.directory = tempfile.mkdtemp(dir=rig.directory)
        with environment(env or {}):
            self.server = stack.enter_context(
                Gateway(rig.binary, self.directory, "\n".join(lines), access_log=log)
            )
        self.admin = self.server.find(r"admin +(http://\S+)").group(1)
        self.admin = self.admin.split("/admin")[0].rstrip("/")

    def usage(self):
        """Sums over the gateway's ledger, as far as it has been stored."""
        row = get_json(f"{self.admin}/admin/usage")["data"]
        return row[0] if row else collections.Counter()

    def settled(self, attempts, within=20):
        """The same, once so many attempts are in it; entries are stored behind the calls."""
        until = time.monotonic() + within
        while True:
            with contextlib.suppress(Failed, OSError):
                row = self.usage()
                if row["attempts"] >= attempts:
                    return row
            if time.monotonic() > until:
                return self.usage()
            time.sleep(0.05)


@contextlib.contextmanager
def environment(change):
    before = {name: os.environ.get(name) for name in change}
    os.environ.update(change)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


class Answer:
    """Status, headers in lower case, body; `cut` when the caller hung up first."""

    def __init__(self, head, body, cut=False):
        status, *lines = head.decode("latin-1").split("\r\n")
        self.status = int(status.split()[1]) if status else 0
        self.headers = dict(line.lower().split(": ", 1) for line in lines if ": " in line)
        self.body, self.cut = body, cut


async def post(server, body, headers="", cut_after=None):
    """One call on a connection of its own; hangs up after `cut_after` events, where given."""
    payload = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection(*server.address, limit=1 << 20)
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {server.key}\r\nConnection: close\r\n{headers}"
        f"Content-Length: {len(payload)}\r\n\r\n"
    )
    try:
        writer.write(head.encode() + payload)
        said = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
        if cut_after is None or b" 200 " not in said[:13]:
            return Answer(said[:-4], await asyncio.wait_for(reader.read(-1), 60))
        for _ in range(cut_after):
            await asyncio.wait_for(reader.readuntil(b"data: "), 60)
        return Answer(said[:-4], b"", cut=True)
    finally:
        writer.close()


def ask(number, **fields):
    message = {"role": "user", "content": f"Call number {number}, please."}
    return {"model": "sim-small", "messages": [message], "min_tokens": 8, "max_tokens": 8, **fields}


@check
def limits(rig):
    """Three times the limit for a while, after 500 calls at once: never more than is allowed."""
    rate, seconds = 600, rig.size(60, 10)
    per_second = rate / 60
    for algorithm in ALGORITHMS:
        limit = f'[limits.default]\nrequests_per_minute = {rate}\nalgorithm = "{algorithm}"'
        with contextlib.ExitStack() as stack:
            stage = Stage(rig, stack, limit)
            admitted, worst, took = asyncio.run(press(stage.server, per_second * 3, seconds))
        at_once = {"token_bucket": rate, "leaky_bucket": 1, "fixed_window": rate, "sliding_window": rate}
        # A fixed window may end in between: then a second window's worth.
        windows = 2 if algorithm == "fixed_window" else 1
        steady = 0 if algorithm.endswith("window") else per_second * took
        most = (at_once[algorithm] * windows + steady) * 1.01 + 1
        rig.figure(f"{algorithm}: admitted", admitted, most)
        rig.figure(f"{algorithm}: headers off by", worst, 1)


async def press(server, per_second, seconds):
    """Calls admitted, how far `remaining` was from what was admitted next, and how long it took."""
    start, answers = time.monotonic(), []
    answers += await asyncio.gather(*(post(server, ask(n)) for n in range(500)))
    expect({a.status for a in answers} <= {200, 429}, {a.status for a in answers})
    worst, number = 0, 500
    told = None
    while time.monotonic() - start < seconds:
        answer = await post(server, ask(number))
        answers.append(answer)
        left = answer.headers.get("x-ratelimit-remaining-requests")
        if left is not None and told is not None and answer.status == 200:
            # One was taken since, and some came back while we waited.
            worst = max(worst, told - 1 - int(left))
        if answer.status == 429:
            expect("retry-after" in answer.headers, "a 429 without Retry-After")
            worst = max(worst, int(left or 0))
        told = None if left is None else int(left)
        number += 1
        due = start + (number - 500) / per_second
        await asyncio.sleep(max(0, due - time.monotonic()))
    admitted = sum(answer.status == 200 for answer in answers)
    return admitted, worst, time.monotonic() - start


# What a call does, and the model it names.
KINDS = {"whole": "answered", "stream": "answered", "cut": "cut", "torn": "torn", "early": "early"}
# Events after which the caller hangs up: "cut" where the simulator has fallen silent for good (a
# role and half of the eight tokens), "torn" while it goes on.
HANGS_UP_AFTER = {"cut": 5, "torn": 3}
COLUMNS = ("attempts", "input_tokens", "output_tokens", "cost_picodollars")


@check
def books(rig):
    """Calls good, failed, retried, streamed and cut: the gateway's books are the simulator's."""
    count = rig.size(100_000, 4_000)
    with contextlib.ExitStack() as stack:
        # The tokens of a prompt whose stream is cut are known when every event tells them.
        upstream = 'connection = { stream_usage = "continuous" }'
        models = sorted(set(KINDS.values()))
        sim = ("--ttft", "5ms", "--itl", "100ms", "--models", ",".join(models))
        stage = Stage(rig, stack, sim=sim, upstream=upstream, models=models)
        faults = {"error_rate": 0.03, "error_status": 500, "reset_rate": 0.01}
        endings = collections.Counter()
        for kinds, share, change in (
            (("whole", "stream"), 2 / 3, faults),
            (("cut",), 1 / 3, {"error_rate": 0, "reset_rate": 0, "stall_mid_rate": 1}),
            (("torn",), 1 / 3, {"stall_mid_rate": 0}),
        ):
            stage.sim.faults(**change)
            endings += asyncio.run(mixed(stage, int(count * share), kinds, rig.random))
        theirs, ours = both_books(stage)
        endings += asyncio.run(mixed(stage, count // 10, ("early",), rig.random))
        early = [side["early"] for side in both_books(stage)]
    for name in sorted(endings):
        rig.figure(f"ended: {name}", endings[name])
    # The simulator fails before it knows the model, so attempts are compared in all.
    attempts = [sum(books["attempts"] for books in side.values()) for side in (theirs, ours)]
    rig.figure("attempts, simulator's", attempts[0])
    rig.figure("attempts, off by", abs(attempts[1] - attempts[0]), 0)
    for model in ("answered", "cut", "torn"):
        for name in COLUMNS[1:]:
            # What the simulator writes while a hang-up is on its way to it, nobody has read.
            unread = model == "torn" and name != "input_tokens"
            bound = theirs[model][name] / 1_000 if unread else 0
            rig.figure(f"{model}: {name}, simulator's", theirs[model][name])
            rig.figure(f"{model}: {name}, off by", abs(ours[model][name] - theirs[model][name]), bound)
    # Whoever hangs up before the first token is billed an estimate of the prompt, nothing else. Of
    # the soonest of them the simulator may not have read the request.
    apart = abs(early[0]["attempts"] - early[1]["attempts"])
    rig.figure("early: attempts, off by", apart, early[0]["attempts"] / 100)
    rig.figure("early: output_tokens", early[1]["output_tokens"], 0)
    estimate = early[1]["input_tokens"] / early[0]["input_tokens"]
    rig.figure("early: input_tokens, estimated / true", estimate)


def both_books(stage):
    """The simulator's and the gateway's sums by model, once nothing is in flight."""
    until = time.monotonic() + 20
    while stage.sim.totals()["in_flight"] and time.monotonic() < until:
        time.sleep(0.02)
    theirs = collections.defaultdict(collections.Counter)
    for entry in stage.sim.ledger():
        books = theirs[entry["model"]]
        books["attempts"] += 1
        if entry["status"] == 200 or entry["model"] == "early":
            books["input_tokens"] += entry["prompt_tokens"]
            books["output_tokens"] += entry["completion_tokens"]
    for books in theirs.values():
        pico = books["input_tokens"] * 150_000 + books["output_tokens"] * 600_000
        books["cost_picodollars"] = pico
    stage.settled(sum(books["attempts"] for books in theirs.values()))
    rows = get_json(f"{stage.admin}/admin/usage?group_by=model")["data"]
    return theirs, {row["model"]: row for row in rows}


async def mixed(stage, count, kinds, chance):
    plan = [(n, chance.choice(kinds)) for n in range(count)]
    endings, queue = collections.Counter(), iter(plan)

    async def worker():
        for number, kind in queue:
            body = ask(number, stream=kind not in ("whole", "early"), model=KINDS[kind])
            if kind == "early":
                answer = await leave(stage.server, body, stage.rig.random.uniform(0.05, 0.4))
            else:
                answer = await post(stage.server, body, cut_after=HANGS_UP_AFTER.get(kind))
            endings[f"{kind}: {answer.status}"] += 1

    await asyncio.gather(*(worker() for _ in range(stage.rig.size(200, 60))))
    return endings


async def leave(server, body, after):
    """One call whose caller hangs up so many seconds after asking, answered or not."""
    with contextlib.suppress(TimeoutError):
        return await asyncio.wait_for(post(server, body), after)
    return Answer(b"", b"", cut=True)


@check
def budget(rig):
    """A budget of one dollar: hard, it is never overspent; soft, by what was in flight at most."""
    # A call of eight answer tokens at 5,000 dollars a million costs four cents.
    price = "price = { input = 10.0, output = 5000.0 }"
    for kind in ("hard", "soft"):
        with contextlib.ExitStack() as stack:
            stage = Stage(rig, stack, sim=("--ttft", "50ms"))
            with open(os.path.join(stage.directory, "tidegate.toml")) as file:
                config = file.read().replace(file_price(), price)
            with open(os.path.join(stage.directory, "tidegate.toml"), "w") as file:
                file.write(config)
            stage.server.terminate()
            stage.server.wait()
            key = make_key(rig, stage.directory, "--budget-total", "1", *(["--hard"] if kind == "hard" else []))
            server = stack.enter_context(Again(rig.binary, stage.directory))
            server.key = key
            stage.server, stage.admin = server, admin_of(server)
            at_once = 40
            statuses = asyncio.run(spend(server, 200, at_once))
            spent = stage.settled(statuses[200])["cost_picodollars"] / 1e12
        dearest = 8 * 5000 / 1e6 + 0.01
        rig.figure(f"{kind}: spent", spent, 1.0 if kind == "hard" else 1.0 + at_once * dearest, "USD")
        at_least = 1.0 - dearest if kind == "hard" else 1.0
        rig.figure(f"{kind}: of the dollar used (at least {at_least:.2f})", spent, holds=spent >= at_least)
        rig.figure(f"{kind}: refused with 402", statuses[402], holds=statuses[402] > 0)
        rig.figure(f"{kind}: other answers", sum(statuses.values()) - statuses[200] - statuses[402], 0)


def file_price():
    return f"price = {{ input = {INPUT}, cached_input = {CACHED}, output = {OUTPUT} }}"


def make_key(rig, directory, *flags):
    argv = [rig.binary, "keys", "create", "--name", "spender", "--data-dir", os.path.join(directory, "data"), *flags]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=directory)
    expect(done.returncode == 0, f"keys create: {done.stderr}")
    return done.stdout.split()[0]


class Again(Process):
    """The gateway once more on the state of a `Stage`."""

    def __init__(self, binary, directory):
        flags = ["--admin-listen", "127.0.0.1:0", "--access-log", "off"]
        flags += ["--data-dir", os.path.join(directory, "data")]
        flags += ["--config", os.path.join(directory, "tidegate.toml")]
        super().__init__([binary, "serve", "--listen", "127.0.0.1:0", *flags], cwd=directory)
        self.url = self.find(r"http://[\d.]+:\d+").group(0)
        host, port = self.url.removeprefix("http://").split(":")
        self.address = (host, int(port))


def admin_of(server):
    return server.find(r"admin +(http://\S+)").group(1).split("/admin")[0].rstrip("/")


async def spend(server, count, at_once):
    statuses, queue = collections.Counter(), iter(range(count))

    async def worker():
        for number in queue:
            answer = await post(server, ask(number))
            statuses[answer.status] += 1

    await asyncio.gather(*(worker() for _ in range(at_once)))
    return statuses


@check
def postgres(rig):
    """PostgreSQL hung, then killed, under load: no call fails or slows; every row is there once."""
    seconds, away = rig.size(60, 12), rig.size(15, 3)
    with contextlib.ExitStack() as stack:
        database = stack.enter_context(Postgres(rig))
        stage = Stage(
            rig, stack, "[ledger]\nurl = { env = \"DATABASE_URL\" }", env={"DATABASE_URL": database.url}
        )
        alone = load(rig, stage, away)
        bench = start_load(rig, stage, seconds)
        stack.enter_context(bench)
        time.sleep(2)
        database.signal(signal.SIGSTOP)
        time.sleep(away)
        database.signal(signal.SIGCONT)
        time.sleep(2)
        database.kill()
        time.sleep(away)
        database.start()
        report = bench.report()
        ended = stage.sim.totals()["requests"]
        rows = stage.settled(ended, within=60)["attempts"]
    failed = report["requests"]["measured"] - report["requests"]["ok"]
    rig.figure("calls failed", failed, 0)
    p99 = report["latency"]["service"]["p99_ms"] / alone["latency"]["service"]["p99_ms"]
    rig.figure("p99 / with the database there", p99, rig.size(1.1, None))
    rig.figure("rows missing or twice", abs(rows - ended), 0)


class Bench(Process):
    def report(self):
        code = self.wait()
        expect(code in (0, 3), f"bench ended with {code}:\n{self.said()}")
        with open(self.path) as file:
            return json.load(file)


def start_load(rig, stage, seconds, rate=200):
    path = rig.path(f"load-{time.monotonic_ns()}.json")
    argv = [rig.binary, "bench", stage.server.url + "/v1", "--model", "sim-small", "--rate", rate]
    argv += ["--duration", f"{seconds}s", "--warmup", "1s", "--json", path, "--quiet"]
    bench = Bench([*argv, "--api-key-env", "OPENAI_API_KEY"], env={"OPENAI_API_KEY": stage.server.key})
    bench.path = path
    return bench


def load(rig, stage, seconds, rate=200):
    with start_load(rig, stage, seconds, rate) as bench:
        return bench.report()


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
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@check
def overhead(rig):
    """CPU per call with keys, limits, budgets, ledger and access log, beside the same without."""
    seconds, costs = rig.size(20, 4), {}
    full = (
        "[limits.default]\nrequests_per_minute = 100000000\ntokens_per_minute = 100000000000\n"
        "concurrency = 100000\n"
    )
    bare = "[ledger]\nenabled = false\n"
    for turn in range(rig.size(3, 1)):
        for name, config in (("bare", bare), ("full", full)):
            with contextlib.ExitStack() as stack:
                log = "off" if name == "bare" else rig.path("access.log")
                stage = Stage(rig, stack, config, sim=("--ttft", "1ms"), log=log)
                load(rig, stage, 1)
                before = cpu(stage.server.pid), stage.sim.totals()["requests"]
                load(rig, stage, seconds, rate=rig.size(2_500, 500))
                used, calls = cpu(stage.server.pid) - before[0], stage.sim.totals()["requests"] - before[1]
                costs.setdefault(name, []).append(used / calls * 1e6)
    median = {name: sorted(values)[len(values) // 2] for name, values in costs.items()}
    rig.figure("bare", median["bare"], unit="µs")
    rig.figure("full", median["full"], unit="µs")
    rig.figure("full / bare", median["full"] / median["bare"], rig.size(1.15, None))


def cpu(pid):
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    sys.exit(battery.main(CHECKS, __doc__))
