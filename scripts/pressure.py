"""A gateway in front of simulators, under the load of `tidegate bench`."""

import contextlib
import json
import tempfile
import threading
import time

from rig import Gateway, Process, Sim, expect, get_json

SLOTS = 20
KEY = ("--api-key-env", "OPENAI_API_KEY")


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
