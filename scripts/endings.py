"""How calls end: broken streams are told to be broken, and whatever ends gives back what it held."""

import asyncio
import contextlib
import json
import tempfile
import threading
import time

from pressure import SLOTS, Stage
from rig import Gateway, expect


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
