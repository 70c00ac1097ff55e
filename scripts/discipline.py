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

import asyncio
import contextlib
import json
import os
import sys
import tempfile
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import battery  # noqa: E402
from rig import Gateway, Process, Sim, expect, get_json  # noqa: E402

CHECKS = {}
SLOTS = 20
KEY = ("--api-key-env", "OPENAI_API_KEY")


def check(function):
    CHECKS[function.__name__] = function
    return function


class Stage:
    """One gateway in front of `count` simulators, all of the same speed."""

    def __init__(self, rig, stack, count=1, upstream="", model="", itl="0"):
        self.rig = rig
        # In a short run the machine is busy with other tests: calls are longer and fewer.
        self.service_ms = rig.size(50, 200)
        self.capacity = SLOTS * 1000 // self.service_ms
        flags = ["--ttft", f"{self.service_ms}ms", "--itl", itl, "--slots", 1000]
        self.sims = [stack.enter_context(Sim(rig.binary, *flags)) for _ in range(count)]
        config = ["[limits.default]", "concurrency = 100000"]
        for index, sim in enumerate(self.sims):
            config += [f"[upstreams.u{index}]", f'base_url = "{sim.url}/v1"', upstream]
        targets = ", ".join(f'{{ upstream = "u{index}" }}' for index in range(count))
        config += ["[models.sim-small]", f"targets = [{targets}]", model]
        directory = tempfile.mkdtemp(dir=rig.directory)
        self.server = stack.enter_context(Gateway(rig.binary, directory, "\n".join(config)))
        self.admin = self.server.find(r"admin +(http://\S+)").group(1)

    @property
    def sim(self):
        return self.sims[0]

    def upstreams(self):
        return get_json(self.admin)

    def first(self):
        """The state of the first upstream; before its first call there is none."""
        return next(iter(self.upstreams()), {"concurrency": 0, "breaker": "closed"})

    def load(self, rate, seconds, warmup=2, flags=(), name="load"):
        """Starts an open loop; `Load.report` waits for its end."""
        return Load(self, rate, seconds, warmup, flags, name)

    def unloaded(self, flags=()):
        """p99 of the service time at a tenth of the capacity."""
        with self.load(self.capacity / 10, self.rig.size(10, 4), flags=flags) as load:
            return load.report()["latency"]["service"]["p99_ms"]

    def rss_mib(self):
        with open(f"/proc/{self.server.pid}/status") as status:
            kib = next(line for line in status if line.startswith("VmRSS:"))
        return int(kib.split()[1]) / 1024


class Load(Process):
    def __init__(self, stage, rate, seconds, warmup, flags, name):
        self.path = stage.rig.path(f"{name}-{time.monotonic_ns()}.json")
        argv = [stage.rig.binary, "bench", stage.server.url + "/v1", "--model", "sim-small"]
        argv += ["--rate", rate, "--duration", f"{seconds}s", "--warmup", f"{warmup}s"]
        argv += ["--prompt", f"{name} {{{{number}}}}", "--timeout", "20s", "--json", self.path]
        super().__init__([*argv, "--quiet", *KEY, *flags], env={"OPENAI_API_KEY": stage.server.key})
        self.window = self.started + warmup

    def report(self):
        code = self.wait()
        expect(code in (0, 3), f"bench ended with {code}:\n{self.said()}")
        with open(self.path) as file:
            report = json.load(file)
        expect(not report["classes"].get("4xx"), f"the load is refused itself: {report['samples']}")
        return report

    def sleep_until(self, second):
        """Until `second` of the measured window: the load's own clock, not a wait for anything."""
        time.sleep(max(0, self.window + second - time.monotonic()))


class Watch(threading.Thread):
    """Calls `look` every 50 ms and keeps what it returned and when."""

    def __init__(self, look):
        super().__init__(daemon=True)
        self.look, self.seen, self.over = look, [], threading.Event()

    def run(self):
        while not self.over.wait(0.05):
            with contextlib.suppress(OSError):
                self.seen.append((time.monotonic(), self.look()))

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.join()


def share(part, whole):
    return part / whole if whole else 0.0


def at_least(rig, what, value, bound, unit=""):
    rig.figure(f"{what} (at least {bound})", value, unit=unit, holds=value >= bound)


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


ENDS = ("ok", "refused", "failed", "dropped")


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
        # Of what ends in a second: with some 70 calls in it, the part that is still in flight at its
        # end is a tenth by chance. What does not end is in flight.
        good = [share(second["ok"], sum(second[end] for end in ENDS)) for second in series]
        bound = rig.size(0.95, 0.9)
        back = next((at for at in range(len(good)) if min(good[at:]) >= bound), len(good))
        rig.figure(f"{name}: back for good after", back, 10, "s")
        late = [sum(second[what] for second in series[10:]) for what in ("ok", "offered")]
        at_least(rig, f"{name}: success from 10 s after on", share(*late), bound)
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
def streams(rig):
    """Streams that break: an error event and no clean end; before any content, another target."""
    with contextlib.ExitStack() as stack:
        stage = Stage(rig, stack, count=1, model='timeouts = { idle = "1s" }')
        for fault in ("truncate_rate", "stall_mid_rate", "error_event_rate", "unterminated_rate"):
            stage.sim.faults(**{fault: 1})
            for number in range(3):
                said = asyncio.run(whole(stage.server, call(f"{fault} {number}", stream=True)))
                expect(said.startswith(b"HTTP/1.1 200"), f"{fault}: {said[:200]!r}")
                honest = b'data: {"error"' in said and b"[DONE]" not in said
                rig.figure(f"{fault} {number}: error event, no [DONE]", honest, holds=honest)
            stage.sim.faults(**{fault: 0})
    with contextlib.ExitStack() as stack:
        calls = 20
        stage = Stage(rig, stack, count=2)
        answers = stack.enter_context(ErrorIn200())
        config = f"""
            [upstreams.bad]
            base_url = "{answers.url}/v1"
            [upstreams.good]
            base_url = "{stage.sim.url}/v1"
            [models.sim-small]
            balance = "round-robin"
            targets = [{{ upstream = "bad" }}, {{ upstream = "good" }}]
            [breaker]
            failures = 0
            [retry_budget]
            ratio = 1.0
            floor_per_second = 100.0
        """
        directory = tempfile.mkdtemp(dir=rig.directory)
        server = stack.enter_context(Gateway(rig.binary, directory, config))
        good = 0
        for number in range(calls):
            said = asyncio.run(whole(server, call(f"failover {number}", stream=True)))
            good += said.startswith(b"HTTP/1.1 200") and b"[DONE]" in said and b'"error"' not in said
        rig.figure("error in 200 before content: calls that met it", answers.met, holds=answers.met > 0)
        rig.figure(f"good answers of {calls}", good, holds=good == calls)


class ErrorIn200:
    """An upstream whose every stream is an error event under status 200, before any content."""

    def __init__(self):
        self.met, self.loop = 0, asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)

    def __enter__(self):
        self.thread.start()
        start = asyncio.start_server(self._answer, "127.0.0.1", 0)
        server = asyncio.run_coroutine_threadsafe(start, self.loop).result(10)
        self.url = "http://127.0.0.1:%d" % server.sockets[0].getsockname()[1]
        return self

    async def _answer(self, reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        await reader.readexactly(int(lengths[0].split(b":")[1]))
        self.met += 1
        error = {"error": {"message": "no worker", "type": "server_error", "code": 500}}
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
            b"data: " + json.dumps(error).encode() + b"\n\n"
        )
        await writer.drain()
        writer.close()

    def __exit__(self, *_):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(5)


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


@check
def gauges(rig):
    """Calls ending in every way: every gauge is 0 after, and every slot can be used."""
    with contextlib.ExitStack() as stack:
        stage = Stage(rig, stack, upstream=f"max_concurrency = {SLOTS}", itl="2ms")
        shares = ("error", "truncate", "reset", "error_event", "malformed", "unterminated")
        stage.sim.faults(slowdown=20 / rig.size(50, 200), **{f"{name}_rate": 0.03 for name in shares})
        count = rig.size(10_000, 1_000)
        endings = asyncio.run(end_them_all(stage.server, count, rig.random))
        for name in sorted(endings):
            rig.figure(f"ended: {name}", endings[name])
        until = time.monotonic() + 10
        while left(stage) and time.monotonic() < until:
            time.sleep(0.02)
        rig.figure("attempts still held", left(stage), 0)
        rig.figure("calls in flight at the upstream", stage.sim.totals()["in_flight"], 0)
        stage.sim.faults(slowdown=10, **{f"{name}_rate": 0 for name in shares})
        # The breaker may be open from the faults: a good answer or two first.
        until = time.monotonic() + 30
        while stage.first()["breaker"] != "closed" and time.monotonic() < until:
            asyncio.run(whole(stage.server, call("probe")))
        used = asyncio.run(fill(stage))
        rig.figure(f"slots usable after, of {SLOTS}", used, holds=used == SLOTS)


def left(stage):
    return sum(state["in_flight"] + state["waiting"] for state in stage.upstreams())


async def end_them_all(server, count, chance):
    """`count` calls, forty at once, that end as `chance` says; how many ended how."""
    kinds = ["whole", "whole stream", "refused", "hung up early", "hung up in the stream"]
    plan = [(number, chance.choice(kinds), chance.random()) for number in range(count)]
    endings, queue = {}, iter(plan)

    async def worker():
        for number, kind, at in queue:
            ending = await end_one(server, number, kind, at)
            endings[ending] = endings.get(ending, 0) + 1

    await asyncio.gather(*(worker() for _ in range(40)))
    return endings


async def end_one(server, number, kind, at):
    streamed = "stream" in kind or kind == "hung up early" and number % 2 == 0
    body = b"{" if kind == "refused" else call(f"ending {number}", stream=streamed)
    if not kind.startswith("hung up"):
        said = await whole(server, body)
        status = said[9:12].decode()
        cut = streamed and status == "200" and b"[DONE]" not in said
        return f"{kind}: {status}" + (", cut" if cut else "")
    reader, writer = await send(server, body)
    with contextlib.suppress(TimeoutError, ConnectionError, asyncio.IncompleteReadError):
        if kind == "hung up early":
            await asyncio.wait_for(reader.readexactly(1), at * 0.05)
        else:
            await asyncio.wait_for(reader.readuntil(b"data: "), 5)
    writer.transport.abort() if at < 0.5 else writer.close()
    return kind


async def fill(stage):
    """How many calls one burst of as many as there are slots brings to the upstream at once."""
    calls = [asyncio.ensure_future(whole(stage.server, call(f"fill {n}"))) for n in range(SLOTS)]
    most, loop = 0, asyncio.get_running_loop()
    while not all(task.done() for task in calls):
        totals = await loop.run_in_executor(None, stage.sim.totals)
        most = max(most, totals["in_flight"])
        await asyncio.sleep(0.005)
    return most


def call(text, stream=False):
    message = {"role": "user", "content": text}
    return json.dumps({"model": "sim-small", "stream": stream, "messages": [message]}).encode()


async def send(server, body):
    reader, writer = await asyncio.open_connection(*server.address, limit=1 << 20)
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {server.key}\r\nConnection: close\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    return reader, writer


async def whole(server, body):
    """Everything the gateway says to one call, until it closes."""
    reader, writer = await send(server, body)
    try:
        return await asyncio.wait_for(reader.read(-1), 30)
    finally:
        writer.close()


if __name__ == "__main__":
    sys.exit(battery.main(CHECKS, __doc__))
