#!/usr/bin/env python3
"""Traffic discipline, measured: overload, changing capacity, outages, sick targets, broken streams.

    discipline.py --bin target/release/tidegate               # everything, about eight minutes
    discipline.py --bin target/release/tidegate --short       # everything, small, about two minutes
    discipline.py --bin target/release/tidegate outage target # by name
    discipline.py --list

`tidegate bench` puts the load on `tidegate serve`, which stands in front of one to three
`tidegate sim`. The simulator's capacity is what it is told (20 slots of 50 ms are 400 calls a
second), so the machine is not the bottleneck. Every check starts its own processes on free ports.
The exit code is 1 when a bound is broken; --short loosens bounds on times, never on logic.
"""

import contextlib
import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import battery  # noqa: E402
from endings import gauges, streams  # noqa: E402
from pressure import SLOTS, Stage, Watch, at_least, share  # noqa: E402
from rig import expect  # noqa: E402

CHECKS = {}


def check(function):
    CHECKS[function.__name__] = function
    return function


def success(report):
    return share(report["requests"]["ok"], report["requests"]["measured"])


def resets(report):
    return sum(report["classes"].get(name, 0) for name in ("reset", "connect", "truncated"))


@check
def overload(rig):
    """5 x capacity: goodput, admitted p99, fast refusals with Retry-After, no resets, memory."""
    for name, upstream in [("told", f"max_concurrency = {SLOTS}"), ("learned", "")]:
        with contextlib.ExitStack() as stack:
            stage = Stage(rig, stack, upstream=upstream)
            stage.sim.faults(max_concurrency=SLOTS, retry_after_form="none")
            base = stage.unloaded()
            rss = stage.rss_mib()
            load = stack.enter_context(
                stage.load(stage.capacity * 5, rig.size(30, 8), warmup=rig.size(5, 4))
            )
            with Watch(stage.rss_mib) as watch:
                report = load.report()
        latency, refused = report["latency"], report["refusals"]
        goodput = report["rates"]["ok"] / stage.capacity
        at_least(rig, f"{name}: goodput / capacity", goodput, rig.size(0.9, 0.8))
        p99 = latency["service"]["p99_ms"] / base
        rig.figure(f"{name}: admitted p99 / unloaded", p99, rig.size(1.5, 2.5))
        rig.figure(f"{name}: refusal p50", latency["refusal"]["p50_ms"], 20, "ms")
        # In a short run everything shares the machine, and a refusal is the machine's pace.
        bound = rig.size(20, None)
        rig.figure(f"{name}: refusal p99", latency["refusal"]["p99_ms"], bound, "ms")
        silent = refused["count"] - refused["with_retry_after"]
        rig.figure(f"{name}: refusals without Retry-After", silent, 0)
        rig.figure(f"{name}: connections reset", resets(report), 0)
        peak = max(mib for _, mib in watch.seen) - rss
        rig.figure(f"{name}: memory above unloaded", peak, 64, "MiB")


@check
def capacity(rig):
    """Capacity 400 -> 100 -> 400, as concurrency and as rate: the limit follows within 10 s."""
    for name in ("concurrency", "rate"):
        with contextlib.ExitStack() as stack:
            stage = Stage(rig, stack)
            full, quarter = stage.capacity, stage.capacity / 4
            faults = {
                "concurrency": lambda part: {"max_concurrency": int(SLOTS * part)},
                "rate": lambda part: {"rate": full * part, "burst": max(1, int(full * part / 10))},
            }[name]
            stage.sim.faults(retry_after_form="none", **faults(1))
            phase = 15
            load = stack.enter_context(stage.load(full * 1.5, 3 * phase, warmup=6))
            load.sleep_until(phase)
            stage.sim.faults(**faults(0.25))
            load.sleep_until(phase * 2)
            stage.sim.faults(**faults(1))
            load.sleep_until(phase * 3 - 1)
            state = stage.first()
            report = load.report()
        ok = [second["ok"] for second in report["series"]]
        down, up = ok[phase + 10 : phase * 2 - 1], ok[phase * 2 + 10 : phase * 3 - 1]
        bound = rig.size(0.9, 0.75)
        at_least(rig, f"{name}: goodput 10 s after the fall", share(mean(down), quarter), bound)
        at_least(rig, f"{name}: goodput 10 s after the rise", share(mean(up), full), bound)
        rig.figure(f"{name}: limit at the end", state["concurrency"])


def mean(values):
    return sum(values) / max(1, len(values))


@check
def long_answers(rig):
    """A tenth of the answers takes 5 s: the learned limit does not shrink, nothing is refused."""
    with contextlib.ExitStack() as stack:
        stage = Stage(rig, stack)
        rate = rig.size(200, 60)
        with stage.load(rate, rig.size(10, 4)) as load:
            load.report()
        before = stage.first()["concurrency"]
        stage.sim.faults(slow_headers="5s", slow_headers_rate=0.1)
        load = stack.enter_context(stage.load(rate, rig.size(25, 12), name="long"))
        with Watch(lambda: stage.first()["concurrency"]) as watch:
            report = load.report()
    least = min(limit for _, limit in watch.seen)
    rig.figure("limit before", before)
    at_least(rig, "least limit", least, before)
    rig.figure("limit at the end", watch.seen[-1][1])
    at_least(rig, "success", success(report), rig.size(0.99, 0.95))


@check
def storm(rig):
    """All 503: calls sent per call asked, and how soon the breaker opens."""
    with contextlib.ExitStack() as stack:
        stage = Stage(rig, stack, upstream=f"max_concurrency = {SLOTS}")
        seconds = rig.size(30, 8)
        load = stack.enter_context(stage.load(stage.capacity * 0.5, seconds))
        load.sleep_until(0)
        before = stage.sim.totals()["requests"]
        stage.sim.faults(error_rate=1, error_status=503, retry_after_form="none")
        start = time.monotonic()
        with Watch(lambda: (stage.first()["breaker"], stage.sim.totals()["requests"])) as watch:
            report = load.report()
    opened = next(((at, sent) for at, (breaker, sent) in watch.seen if breaker != "closed"), None)
    expect(opened, "the breaker never opened")
    sent = watch.seen[-1][1][1] - before
    rig.figure("breaker open after", opened[0] - start, rig.size(2, 5), "s")
    rig.figure("calls sent / asked", share(sent, report["requests"]["measured"]), 1.1)
    rig.figure("calls sent before it opened", opened[1] - before)
    rig.figure("calls sent after it opened", sent - (opened[1] - before), seconds)


@check
def outage(rig):
    """An outage of 10 s at 0.8 of the capacity: at least 95 % again within 10 s after it."""
    for name, fault in [("503", {"error_status": 503}), ("500", {"error_status": 500})]:
        with contextlib.ExitStack() as stack:
            stage = Stage(rig, stack)
            stage.sim.faults(max_concurrency=SLOTS, retry_after_form="none")
            start, lasts, after = 3, rig.size(10, 5), rig.size(20, 15)
            length = start + lasts + after
            load = stack.enter_context(stage.load(stage.capacity * 0.8, length, warmup=4))
            load.sleep_until(start)
            stage.sim.faults(error_rate=1, **fault)
            load.sleep_until(start + lasts)
            stage.sim.faults(error_rate=0)
            report = load.report()
        series = report["series"][start + lasts :][:after]
        # Of the calls due in a second, those answered well, in whichever second that was.
        good = [share(second["kept"], second["offered"]) for second in series]
        bound = rig.size(0.95, 0.9)
        back = next((at for at in range(len(good)) if min(good[at:]) >= bound), len(good))
        rig.figure(f"{name}: back for good after", back, 10, "s")
        at_least(rig, f"{name}: success from 10 s after on", mean(good[10:]), bound)
        in_flight = max(second["in_flight"] for second in series[10:])
        rig.figure(f"{name}: most in flight from 10 s after on", in_flight, SLOTS * rig.size(4, 2))


@check
def target(rig):
    """One of three targets hangs, is ten times slower, or answers 500 at once."""
    faults = [
        ("hangs", {"stall_rate": 1}, 0.05),
        ("10 x slower", {"slowdown": 10}, 0.15),
        ("500 at once", {"error_rate": 1, "error_status": 500}, 0.05),
    ]
    for name, fault, bound in faults:
        with contextlib.ExitStack() as stack:
            timeouts = 'timeouts = { first_token = "1s" }' if name == "hangs" else ""
            stage = Stage(rig, stack, count=3, model=timeouts)
            settle, seconds = 4, rig.size(24, 12)
            rate = rig.size(200, 60)
            load = stack.enter_context(
                stage.load(rate, seconds, warmup=4, flags=["--stream", "--max-tokens", 8])
            )
            load.sleep_until(0)
            stage.sim.faults(**fault)
            load.sleep_until(settle)
            before = requests(stage)
            load.sleep_until(seconds)
            sent = [now - then for now, then in zip(requests(stage), before)]
            report = load.report()
        rig.figure(f"{name}: its share", share(sent[0], sum(sent)), bound)
        at_least(rig, f"{name}: success", success(report), rig.size(0.995, 0.99))


def requests(stage):
    # One that hangs has not ended, and is counted when it began.
    return [sim.totals()["requests"] for sim in stage.sims]


@check
def priority(rig):
    """Interactive calls at 0.3 of the capacity beside bulk at ten times of it."""
    with contextlib.ExitStack() as stack:
        stage = Stage(rig, stack, upstream=f"max_concurrency = {SLOTS}")
        stage.service_ms, stage.capacity = 200, SLOTS * 5
        stage.sim.faults(slowdown=200 / rig.size(50, 200))
        seconds = rig.size(30, 10)
        flags = ["--priority", "interactive"]
        with stage.load(stage.capacity * 0.3, rig.size(20, 5), flags=flags) as load:
            base = load.report()["latency"]["service"]["p99_ms"]
        bulk = stage.load(
            stage.capacity * 10, seconds + 4, warmup=1, flags=["--priority", "bulk"], name="bulk"
        )
        stack.enter_context(bulk)
        people = stage.load(stage.capacity * 0.3, seconds, warmup=3, flags=flags, name="people")
        stack.enter_context(people)
        report, rows = people.report(), bulk.report()
    p99 = report["latency"]["service"]["p99_ms"] / base
    rig.figure("interactive p99 / alone", p99, rig.size(1.2, 1.6))
    at_least(rig, "interactive success", success(report), rig.size(0.995, 0.97))
    at_least(rig, "bulk / capacity", rows["rates"]["ok"] / stage.capacity, 0.1)


check(streams)
check(gauges)


if __name__ == "__main__":
    sys.exit(battery.main(CHECKS, __doc__))
