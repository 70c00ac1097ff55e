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
import os
import signal
import statistics
import subprocess
import sys
import time
from itertools import pairwise

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import battery  # noqa: E402
from postgres import Postgres  # noqa: E402
from rig import Server, expect, get_json  # noqa: E402
from stage import Answer, Stage, ask, cpu, load, post, price, start_load  # noqa: E402

CHECKS = {}
ALGORITHMS = ("token_bucket", "leaky_bucket", "fixed_window", "sliding_window")


def check(function):
    CHECKS[function.__name__] = function
    return function


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
    # Whoever hangs up before the first token is billed an estimate of the prompt, nothing else.
    apart = abs(early[0]["attempts"] - early[1]["attempts"])
    rig.figure("early: attempts, off by", apart, 0)
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
    dear = "price = { input = 10.0, output = 5000.0 }"
    for kind in ("hard", "soft"):
        with contextlib.ExitStack() as stack:
            stage = Stage(rig, stack, sim=("--ttft", "50ms"))
            with open(os.path.join(stage.directory, "tidegate.toml")) as file:
                config = file.read().replace(price(), dear)
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


def make_key(rig, directory, *flags):
    argv = [rig.binary, "keys", "create", "--name", "spender", "--data-dir", os.path.join(directory, "data"), *flags]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=directory)
    expect(done.returncode == 0, f"keys create: {done.stderr}")
    return done.stdout.split()[0]


class Again(Server):
    """The gateway once more on the state of a `Stage`."""

    def __init__(self, binary, directory):
        flags = ["--admin-listen", "127.0.0.1:0", "--access-log", "off"]
        flags += ["--data-dir", os.path.join(directory, "data")]
        flags += ["--config", os.path.join(directory, "tidegate.toml")]
        super().__init__([binary, "serve", "--listen", "127.0.0.1:0", *flags], cwd=directory)


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


@check
def overhead(rig):
    """CPU per call with limits, ledger and access log, beside the same without them."""
    # Both check keys: no configuration goes without.
    limits = (
        "[limits.default]\nrequests_per_minute = 100000000\ntokens_per_minute = 100000000000\n"
        "concurrency = 100000\n"
    )
    no_ledger = "[ledger]\nenabled = false\n"
    # As a gateway lives, and as fast as it can: then it hardly sleeps, and all of a call is cheaper.
    ways = {
        "open loop": (["--ttft", "1ms"], {"rate": rig.size(2_500, 500)}, 1.15),
        "closed loop": (["--ttft", "1ms", "--itl", "0ms"], {"rate": None, "concurrency": 32}, None),
    }
    for way, (sim, how, bound) in ways.items():
        with contextlib.ExitStack() as stack:
            stages = [
                Stage(rig, stack, no_ledger, sim),
                Stage(rig, stack, limits, sim, log=rig.path("access.log")),
            ]
            bare, full = turns(rig, stages, how)
        rig.figure(f"{way}: bare", statistics.median(bare), unit="µs")
        rig.figure(f"{way}: full", statistics.median(full), unit="µs")
        ratios = [one / other for one, other in zip(full, bare, strict=True)]
        rig.figure(f"{way}: full / bare", statistics.median(ratios), rig.size(bound, None))


def turns(rig, stages, how):
    """CPU per call of each stage, in µs, turn by turn: one after the other, on the same machine.

    A turn lasts until the stage's next one: what its load leaves to be stored is part of it.
    """
    marks = [[] for _ in stages]
    for _ in range(rig.size(13, 2)):
        for stage, mark in zip(stages, marks, strict=True):
            mark.append((cpu(stage.server.pid), stage.sim.totals()["requests"]))
            load(rig, stage, rig.size(3, 1), **how)
    return [
        [(after[0] - before[0]) / (after[1] - before[1]) * 1e6 for before, after in pairwise(mark)]
        for mark in marks
    ]


if __name__ == "__main__":
    sys.exit(battery.main(CHECKS, __doc__))
