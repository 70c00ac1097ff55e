"""One gateway before one simulator, its callers, and what its ledger says."""

import asyncio
import collections
import contextlib
import json
import os
import tempfile
import time

from rig import Failed, Gateway, Process, Sim, expect, get_json

# USD per million tokens; 0.15 is 150,000 picodollars a token.
INPUT, CACHED, OUTPUT = 0.15, 0.075, 0.60


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
            lines += [f"[models.{name}]", 'targets = [{ upstream = "sim" }]', patient, price()]
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


def price():
    return f"price = {{ input = {INPUT}, cached_input = {CACHED}, output = {OUTPUT} }}"


class Bench(Process):
    """A load that runs until its report is asked for."""

    def report(self):
        code = self.wait()
        expect(code in (0, 3), f"bench ended with {code}:\n{self.said()}")
        with open(self.path) as file:
            return json.load(file)


def start_load(rig, stage, seconds, rate=200, **more):
    path = rig.path(f"load-{time.monotonic_ns()}.json")
    argv = [rig.binary, "bench", stage.server.url + "/v1", "--model", "sim-small"]
    for flag, value in {"rate": rate, **more}.items():
        argv += [f"--{flag}", value] if value else []
    argv += ["--duration", f"{seconds}s", "--warmup", "1s", "--json", path, "--quiet"]
    bench = Bench([*argv, "--api-key-env", "OPENAI_API_KEY"], env={"OPENAI_API_KEY": stage.server.key})
    bench.path = path
    return bench


def load(rig, stage, seconds, **how):
    with start_load(rig, stage, seconds, **how) as bench:
        return bench.report()


def cpu(pid):
    """Seconds of a process so far, user and system."""
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
