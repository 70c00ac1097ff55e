#!/usr/bin/env python3
"""The long measurements: limits met, kills survived, memory, CPU, cancels, strict requests.

    battery.py --bin target/release/tidegate                  # everything, about half an hour
    battery.py --bin target/release/tidegate --short          # everything, small, about two minutes
    battery.py --bin target/release/tidegate kills cpu        # by name
    battery.py --list

Every check starts its own processes on free ports in a directory of its own. Figures go to stdout as
a table, with the bound each has to keep; the exit code is 1 when one is broken.
"""

import argparse
import contextlib
import json
import os
import random
import re
import socket
import struct
import subprocess
import sys
import tempfile
import time
import traceback

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from invariants import check_batch  # noqa: E402
from rig import Failed, Gateway, Process, Sim, expect, raise_file_limit  # noqa: E402

CHECKS = {}


def check(function):
    CHECKS[function.__name__] = function
    return function


class Rig:
    """What a check gets: the binary, how large to be, a directory, and where its figures go."""

    def __init__(self, binary, short, seed, directory, name):
        self.binary, self.short, self.directory, self.name = binary, short, directory, name
        self.random = random.Random(seed)
        self.rows = []

    def size(self, long, short):
        return short if self.short else long

    def figure(self, what, value, bound=None, unit="", holds=None):
        """Notes a figure; `bound` is the most it may be unless `holds` says otherwise."""
        good = holds if holds is not None else (bound is None or value <= bound)
        self.rows.append((self.name, what, value, unit, bound, good))
        print(f"  {'ok  ' if good else 'FAIL'} {what}: {show(value)} {unit}", file=sys.stderr)

    def path(self, name):
        return os.path.join(self.directory, name)

    def input(self, name, rows):
        """A file of `rows` different chat calls with the ids row-0, row-1 …"""
        with open(self.path(name), "w") as file:
            for index in range(rows):
                body = {
                    "model": "sim-small",
                    "messages": [{"role": "user", "content": prompt(index)}],
                }
                line = {
                    "custom_id": f"row-{index}",
                    "method": "POST",
                    "url": "/v1/chat/completions",
                    "body": body,
                }
                file.write(json.dumps(line) + "\n")
        return self.path(name)

    def batch(self, sim, path, *flags):
        """A batch of `path` against `sim`, started."""
        return Process(
            [self.binary, "batch", path, "--progress", "json", *flags],
            cwd=self.directory,
            env={"OPENAI_BASE_URL": sim.url + "/v1", "OPENAI_API_KEY": "sk-battery"},
        )

    def finish(self, batch, code=0):
        got = batch.wait()
        expect(got == code, f"batch ended with {got}, not {code}:\n{batch.said()[-3000:]}")


def prompt(index):
    """Every word names its row, so that the answer, made of its words, shows whose it is."""
    return f"Summarise: {f'row{index} ' * 6}"


def output_of(path):
    return path.removesuffix(".jsonl") + ".out.jsonl"


@check
def limits(rig):
    """A hidden limit, not told and told: 0 rows lost, ≤ 1.05 × calls, ≤ 1.1 × the ideal time."""
    for rate in (100, 40):
        rows = rig.size(2_000, rate * 10)
        for told in (False, True):
            limit(rig, f"{rate}/s {'told' if told else 'not told'}", rows, rate, told=told)
    # A provider that lets nothing above its rate pass, not even for a moment: reported only.
    limit(rig, "100/s, burst 10, not told", rig.size(2_000, 1_000), 100, burst=10, bound=None)


def limit(rig, name, rows, rate, told=False, burst=None, bound=1.1):
    with Sim(rig.binary, "--ttft", "50ms", "--itl", "0", "--slots", "1000") as sim:
        sim.faults(rate=rate, burst=burst, retry_after="1s")
        path = rig.input(f"{name.replace('/', '-')}.jsonl", rows)
        with rig.batch(sim, path, *(("--rpm", str(rate * 60)) if told else ())) as batch:
            rig.finish(batch)
        ledger = list(sim.ledger())
    report = check_batch(output_of(path), ids(rows), ledger)
    rig.figure(f"{name}: rows lost", rows - report.ok, 0)
    rig.figure(f"{name}: calls per row", report.calls / rows, 1.05)
    # In a short run the first refusal's own second weighs too much to judge by.
    bound = bound and rig.size(bound, bound + 0.2)
    rig.figure(f"{name}: time / ideal", time_over_ideal(ledger, rate), bound)
    rig.figure(f"{name}: whole time", batch.elapsed, unit="s")


def time_over_ideal(ledger, rate):
    """Time from the first refusal (or start) to the end, over what the rows of it need at `rate`."""
    refused = [entry["start"] for entry in ledger if entry["status"] == 429]
    since = min(refused, default=min(entry["start"] for entry in ledger))
    after = [entry for entry in ledger if entry["outcome"] == "ok" and entry["start"] >= since]
    if not after:
        return 1.0
    return (max(entry["end"] for entry in after) - since) / 1000 / (len(after) / rate)


def ids(rows):
    return (f"row-{index}" for index in range(rows))


@check
def kills(rig):
    """kill -9 at random moments, each time the same command again: I1 to I8."""
    rows, kill_count, concurrency = rig.size(10_000, 1_000), rig.size(20, 5), 40
    path = rig.input("kills.jsonl", rows)
    flags = ("--concurrency", str(concurrency))
    # The kills have to fall within the run: each life is a random share of its part of it.
    longest = 1.2 * rows * 0.05 / concurrency / kill_count
    with Sim(rig.binary, "--ttft", "50ms", "--itl", "0", "--slots", "1000") as sim:
        acknowledged = 0
        for _ in range(kill_count):
            with rig.batch(sim, path, *flags) as batch:
                lives = rig.random.uniform(0.02, longest)
                expect(not batch.ends_within(lives), f"it ended by itself:\n{batch.said()}")
                batch.kill()
            acknowledged = rows_kept(rig, path, acknowledged)
        with rig.batch(sim, path, *flags) as batch:
            rig.finish(batch)
        rows_kept(rig, path, rows)
        allowed = kill_count * concurrency
        report = check_batch(output_of(path), ids(rows), sim.ledger(), extra_calls=allowed)
        with rig.batch(sim, path, *flags) as batch:
            rig.finish(batch)
        expect(sim.totals()["requests"] == report.calls, "a finished batch calls again")
    rig.figure("rows answered", report.ok, holds=report.ok == rows)
    rig.figure("repeated calls", report.extra_calls, allowed)


def rows_kept(rig, path, before):
    """I8: what was acknowledged before a kill is still there. Returns how many rows are."""
    status = subprocess.run(
        [rig.binary, "batch", "status", path, "--json"], capture_output=True, check=False
    )
    # Killed before it had begun: then nothing was acknowledged either.
    kept = json.loads(status.stdout)["ok"] if status.returncode == 0 else 0
    expect(kept >= before, f"I8: {before} rows were kept before, {kept} are now: {status.stderr}")
    return kept


@check
def memory(rig):
    """A million rows in less than 200 MiB."""
    rows = rig.size(1_000_000, 50_000)
    path = rig.input("memory.jsonl", rows)
    with Sim(rig.binary, "--ttft", "0", "--itl", "0", "--slots", "1000") as sim:
        with rig.batch(sim, path, "--concurrency", "200") as batch:
            rig.finish(batch)
        report = check_batch(output_of(path), ids(rows), sim.ledger())
    rig.figure("rows answered", report.ok, holds=report.ok == rows)
    rig.figure("peak memory", batch.max_rss_mib, 200, "MiB")
    rig.figure("rows a second", rows / batch.elapsed)


@check
def cpu(rig):
    """User and system time of the batch process per row: 50 ms upstream, concurrency 400."""
    rows = rig.size(20_000, 4_000)
    path = rig.input("cpu.jsonl", rows)
    with Sim(rig.binary, "--ttft", "50ms", "--itl", "0", "--slots", "10000") as sim:
        with rig.batch(sim, path, "--concurrency", "400") as batch:
            rig.finish(batch)
        report = check_batch(output_of(path), ids(rows), sim.ledger())
    rig.figure("rows answered", report.ok, holds=report.ok == rows)
    # A short run is mostly start-up, so it only reports.
    rig.figure("CPU per row", batch.cpu_seconds / rows * 1e3, rig.size(0.1, None), "ms")
    rig.figure("time / ideal", batch.elapsed / (rows / 400 * 0.05))


@check
def cancels(rig):
    """A caller that hangs up, queued, waiting or streaming: the upstream sees it within 500 ms."""
    flags = ("--ttft", "300ms", "--itl", "100ms", "--slots", "1", "--answer-tokens", "200")
    with contextlib.ExitStack() as stack:
        sim = stack.enter_context(Sim(rig.binary, *flags))
        config = CONFIG.format(url=sim.url)
        server = stack.enter_context(Gateway(rig.binary, rig.directory, config))
        for reset in (False, True):
            how = "RST" if reset else "FIN"
            first = ask(server)
            await_totals(sim, "busy_slots", 1)
            second = ask(server)
            await_totals(sim, "queued", 1)
            rig.figure(f"queued, {how}", hang_up(sim, second, "queued", reset), 500, "ms")
            read_events(first, 3)
            rig.figure(f"streaming, {how}", hang_up(sim, first, "answering", reset), 500, "ms")
            third = ask(server)
            await_totals(sim, "busy_slots", 1)
            rig.figure(f"first token, {how}", hang_up(sim, third, "first_token", reset), 500, "ms")
        unary = ask(server, stream=False)
        await_totals(sim, "busy_slots", 1)
        rig.figure("unary, FIN", hang_up(sim, unary, "first_token", False), 500, "ms")
        totals = sim.totals()
        expect(totals["in_flight"] == 0, f"calls are still in flight: {totals}")


CONFIG = """
[upstreams.sim]
base_url = "{url}/v1"
max_concurrency = 100

[models.sim-small]
targets = [ {{ upstream = "sim" }} ]
timeouts = {{ first_token = "60s", idle = "60s", total = "120s" }}
"""


def ask(server, stream=True):
    """A call on a connection of its own, its answer not read yet."""
    body = json.dumps(
        {
            "model": "sim-small",
            "stream": stream,
            "messages": [{"role": "user", "content": f"Count to a hundred, {time.monotonic_ns()}."}],
            "min_tokens": 150,
            "max_tokens": 200,
        }
    )
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {server.key}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    connection = socket.create_connection(server.address, timeout=30)
    connection.sendall((head + body).encode())
    return connection


def read_events(connection, count):
    seen = b""
    while seen.count(b"data: ") < count:
        more = connection.recv(65_536)
        expect(more, f"the stream ended after {seen!r}")
        seen += more
    expect(seen.startswith(b"HTTP/1.1 200"), f"the answer is {seen[:200]!r}")


def await_totals(sim, field, value):
    until = time.monotonic() + 20
    while sim.totals()[field] != value:
        expect(time.monotonic() < until, f"{field} never was {value}: {sim.totals()}")
        time.sleep(0.002)


def hang_up(sim, connection, phase, reset):
    """Milliseconds from closing `connection` until the ledger shows the cancel, asked every 2 ms."""
    before = sim.totals()["cancelled"]
    if reset:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    start = time.monotonic()
    connection.close()
    while sim.totals()["cancelled"] == before:
        expect(time.monotonic() < start + 20, f"{phase}: the upstream never saw it")
        time.sleep(0.002)
    elapsed = (time.monotonic() - start) * 1e3
    *_, entry = (entry for entry in sim.ledger() if entry["cancelled"])
    expect(entry["phase"] == phase, f"cancelled in phase {entry['phase']}, not {phase}")
    return elapsed


GOOD = b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"
STRICT = {
    "no Host": b"GET /livez HTTP/1.1\r\n\r\n",
    "two Hosts": b"GET /livez HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "two equal Hosts": b"GET /livez HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
    "Host: a/b?c": b"GET /livez HTTP/1.1\r\nHost: a/b?c\r\n\r\n",
    "Host: a b": b"GET /livez HTTP/1.1\r\nHost: a b\r\n\r\n",
    "Host: a@b": b"GET /livez HTTP/1.1\r\nHost: a@b\r\n\r\n",
    "CL with TE": b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two CLs": b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n"
    b"Content-Length: 5\r\n\r\nabcde",
    "CL: +4": b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: +4\r\n\r\nabcd",
    "TE: chunked twice": b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n"
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "TE: identity": b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n"
    b"Transfer-Encoding: identity\r\n\r\n",
    "space before colon": b"GET /livez HTTP/1.1\r\nHost : a\r\n\r\n",
    "obs-fold": b"GET /livez HTTP/1.1\r\nHost: a\r\nX-A: b\r\n c\r\n\r\n",
    "NUL in a header": b"GET /livez HTTP/1.1\r\nHost: a\r\nX-A: b\0c\r\n\r\n",
    "bare CR": b"GET /livez HTTP/1.1\r\nHost: a\r\nX-A: b\rc\r\n\r\n",
    "space in the target": b"GET /li vez HTTP/1.1\r\nHost: a\r\n\r\n",
    "65 KiB of header": b"GET /livez HTTP/1.1\r\nHost: a\r\nX-A: " + b"b" * 66_560 + b"\r\n\r\n",
}


@check
def strict(rig):
    """Requests RFC 9112 rejects: refused and closed. A header that never ends: closed in 10 s."""
    with Gateway(rig.binary, rig.directory) as server:
        status, closed, _ = raw(server, GOOD, timeout=2)
        expect(status == 200 and not closed, f"a good request got {status}, closed: {closed}")
        for name, request in STRICT.items():
            status, closed, _ = raw(server, request, timeout=11)
            refused = status in (400, 414, 431) or (status is None and closed)
            rig.figure(name, status or "closed", holds=refused and closed)
        endless = [
            ("header that never ends", b"GET /livez HTTP/1.1\r\nHost: a\r\nX-A: b"),
            ("nothing sent", b""),
        ]
        for name, request in endless[: rig.size(2, 1)]:
            status, closed, elapsed = raw(server, request, timeout=15, trickle=b"b" * len(request[:1]))
            rig.figure(f"{name}: closed after", elapsed, 11, "s", holds=closed and elapsed <= 11)


def raw(server, request, timeout, trickle=b""):
    """Status, whether the other side closed, and after how many seconds. Sends `trickle` each second."""
    start = time.monotonic()
    with socket.create_connection(server.address, timeout=1) as connection:
        answer, closed = b"", False
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(request)
        while not closed and time.monotonic() < start + timeout:
            try:
                more = connection.recv(65_536)
                answer, closed = answer + more, not more
            except TimeoutError:
                if trickle:
                    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                        connection.sendall(trickle)
            except ConnectionResetError:
                closed = True
    match = re.match(rb"HTTP/1\.[01] (\d{3})", answer)
    return int(match.group(1)) if match else None, closed, time.monotonic() - start


def show(value):
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def table(rows):
    lines = [("check", "figure", "value", "bound", "")]
    for name, what, value, unit, bound, good in rows:
        value = f"{show(value)} {unit}".rstrip()
        bound = "" if bound is None else f"≤ {show(bound)} {unit}".rstrip()
        lines.append((name, what, value, bound, "ok" if good else "FAIL"))
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())


def main(checks, about):
    """Runs `checks` as the command line says, and shows their figures."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("checks", nargs="*", help="names of checks; all of them by default")
    parser.add_argument("--bin", default="target/release/tidegate", help="the binary to test")
    parser.add_argument("--short", action="store_true", help="small sizes")
    parser.add_argument("--seed", type=int, help="of the random moments; printed when not given")
    parser.add_argument("--list", action="store_true", help="name the checks and leave")
    options = parser.parse_args()
    if options.list:
        for name, function in checks.items():
            print(f"{name:10} {function.__doc__.strip()}")
        return 0
    unknown = [name for name in options.checks if name not in checks]
    if unknown:
        parser.error(f"no check named {', '.join(unknown)}; there are {', '.join(checks)}")
    binary = os.path.abspath(options.bin)
    if not os.access(binary, os.X_OK):
        parser.error(f"--bin {options.bin} is not there; build it with cargo build --release")
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(2**32)
    print(f"seed {seed}", file=sys.stderr)
    raise_file_limit()

    rows, failed = [], False
    for name in options.checks or checks:
        print(f"{name}: {checks[name].__doc__.strip()}", file=sys.stderr)
        with tempfile.TemporaryDirectory(prefix="tidegate-") as directory:
            rig = Rig(binary, options.short, seed, directory, name)
            try:
                checks[name](rig)
            except Exception as error:
                rig.figure(f"broken: {error}".splitlines()[0], "", holds=False)
                print(error if isinstance(error, Failed) else traceback.format_exc(), file=sys.stderr)
            rows += rig.rows
            failed |= not all(row[5] for row in rig.rows)
    table(rows)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(CHECKS, __doc__))
