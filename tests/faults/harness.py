"""A whole pipeline under load, with somebody who starts again what ended, and somebody who does it harm.

A `River` is the load, the services as processes, the supervisor and the ledger. Faults are done through it, so that each
is counted when it is planned and again when it has fired; what it cost (the longest stall, how much passed meanwhile) is
read from the ledger afterwards.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from ledger import Ledger, Verdict, judge
from load import again_and_again, paced
from real_kafka import RealKafka
from running import Running, gone, until, worker

from tidemill.demo import data
from tidemill.local.processes import free_port
from tidemill.local.replay import Message, Replay
from tidemill.local.servers import Redis
from tidemill.local.stack import chained, roles
from tidemill.wire import topics

DATA_PLANE = ("validator", "featurizer", "materializer", "scorer", "joiner", "learner:logreg")
OTHERS = ("gate", *topics.WATCHING)
"""Who hands on no record of the data plane: it goes on without them."""
EVERYBODY = (*DATA_PLANE, *OTHERS)
IN_EVERY_FAULT = ("validator", "featurizer", "scorer", "joiner")
"""Who hands on records all the time, and is looked at where a fault has no one target."""
OUTPUT = {
    "validator": topics.EVENTS_VALID, "featurizer": topics.FEATURES, "scorer": topics.PREDICTIONS,
    "joiner": topics.EXAMPLES, "learner": topics.MODELS,
    "validator+featurizer+scorer": topics.PREDICTIONS, "joiner+learner": topics.EXAMPLES,
}  # fmt: skip
POINTS = {
    role: [f"{name}:{when}" for name in names for when in ("before", "during", "after")]
    for role, names in {
        "validator": ("produce", "offsets", "commit"),
        "featurizer": ("produce", "offsets", "commit", "redis"),
        "materializer": ("offsets", "commit", "redis"),
        "scorer": ("produce", "offsets", "commit"),
        "validator+featurizer+scorer": ("produce", "offsets", "commit", "redis"),
        "joiner+learner": ("produce", "offsets", "commit", "store"),
        "joiner": ("produce", "offsets", "commit"),
        "learner": ("produce", "offsets", "commit", "store"),
        "gate": ("offsets", "commit"),
        "archiver": ("offsets", "commit", "file"),
        "monitor": (),  # Faust has taken the signal that arms the launcher
        "status": (),
    }.items()
}
for _points in POINTS.values():
    if "produce:during" in _points:
        _points.remove("produce:during")  # to hand a record to the client takes no time in which to be stopped
BACK_SECONDS = 90.0
"""How soon one of the others is ready again: the archiver reads the rows of its open chunks first, 100,000 at most."""
FIRES_WITHIN = 60.0
MAX_DELAY_MS = 100
"""With transactions every 10 ms by seven services the broker takes 113% of a core at 150 events/s, with every 50 ms 90%, with
every 100 ms 64%; and on two shared cores what is started again waits for a core. What is measured here is how long a service is
away, not that."""
PASS_SECONDS = 10.0
"""How long after a fault what passes counts as having passed in spite of it, at least."""
LAUNCHER = Path(__file__).with_name("launcher.py")


def service_of(role: str) -> str:
    """Return the service of a process called `learner:logreg#1`."""
    return role.partition("#")[0].partition(":")[0]


@cache
def flights() -> tuple[data.Flight, ...]:
    """Return the year's first quarter."""
    return tuple(data.flights((1, 2, 3)))


@dataclass
class Fault:
    """One fault that was planned: what, to whom, when it began, and whether it fired."""

    what: str
    role: str
    at: float = 0.0
    until: float = 0.0
    fired: bool = False
    stall: float = 0.0
    back: float = 0.0
    """How long one of the others was not ready."""
    tolerated: bool = True
    """Whether events must pass meanwhile."""


@dataclass
class Row:
    """One promise, and what was seen of it."""

    promise: str
    goal: str
    seed: int
    verdict: Verdict
    planned: int = 0
    fired: int = 0
    stall: float = 0.0
    stalls: list[tuple[str, str, float]] = field(default_factory=list)
    """Each fault, its role, and the stall after it."""
    stall_allowed: float | None = None
    passed: int | None = None
    exits: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    max_delay_ms: int = MAX_DELAY_MS

    @property
    def kept(self) -> bool:
        """Whether nothing was lost, doubled or wrong, and every fault fired: no matter how slow the machine."""
        return not str(self.verdict) and self.planned == self.fired

    @property
    def met(self) -> bool:
        """Whether the promise was kept, and things went on soon and meanwhile."""
        return (
            self.kept
            and (self.stall_allowed is None or self.stall <= self.stall_allowed)
            and (self.passed is None or self.passed >= 100)
        )

    def __str__(self) -> str:
        counts = self.verdict.counts
        return (
            f"{'met' if self.met else 'NOT MET'}: {self.promise}: {self.fired} of {self.planned} faults, {counts['events']} events, "
            f"{len(self.verdict.lost)} lost, {len(self.verdict.doubled)} doubled, longest stall {self.stall:.1f} s, "
            f"least passed {self.passed}, exits {dict(self.exits)}, {self.seconds:.0f} s, seed {self.seed}; {dict(counts)}; "
            f"{'; '.join(self.notes)} {self.verdict}"
        )


class Supervisor(threading.Thread):
    """Starts again what ended, at once; as an orchestrator does, a little later each time where it ends at once again."""

    def __init__(self, run: Running) -> None:
        super().__init__(name="supervisor", daemon=True)
        self.stack = run.stack
        self.wanted: set[str] = set()
        self.exits: list[tuple[float, str, int]] = []
        self.started: dict[str, float] = {}
        self.lock = threading.RLock()
        self._ended: dict[str, object] = {}
        self._due: dict[str, float] = {}
        self._closing = threading.Event()

    def begin(self, role: str) -> None:
        """Start a process and keep it running."""
        with self.lock:
            name, _, instance = role.partition("#")
            self.stack.start(name, instance or "0")
            self.started[role] = time.monotonic()
            self.wanted.add(role)

    def let_go(self, role: str):
        """Keep it running no more; returns its process."""
        with self.lock:
            self.wanted.discard(role)
            return self.stack.processes[role]

    def run(self) -> None:
        while not self._closing.wait(0.02):
            with self.lock:
                for role in sorted(self.wanted):
                    self._look_after(role)

    def _look_after(self, role: str) -> None:
        process, now = self.stack.processes[role], time.monotonic()
        code = process.poll()
        if code is None:
            return
        if self._ended.get(role) is not process:
            self._ended[role] = process
            self.exits.append((now, role, code))
            soon = code == -signal.SIGKILL or now - self.started[role] > 6.0
            self._due[role] = now if soon else now + 1.0
        if now >= self._due[role]:
            self.begin(role)

    def close(self) -> None:
        self._closing.set()
        self.join(5)


class River:
    """One pipeline under load; use as a context."""

    def __init__(
        self,
        kafka: RealKafka,
        redis: Redis,
        folder: Path,
        *,
        rate: float,
        seed: int,
        servers: str | None = None,
        redis_url: str | None = None,
        label_timeout: str = "240h",
        watched: bool = False,
        chains: bool = False,
        **settings: object,
    ) -> None:
        self.kafka, self.redis, self.rate, self.seed = kafka, redis, rate, seed
        self.rng = random.Random(seed)
        self.run = Running(
            servers or kafka.servers, redis_url or redis.url, folder, "flights", 4,
            changes=f'label_timeout="{label_timeout}"',
            **{"snapshot_seconds": 0.25, "max_delay_ms": MAX_DELAY_MS, "archive_seconds": 2, "state_dir": str(folder / "state"),
               **settings},
        )  # fmt: skip
        self.run.stack.launcher = [sys.executable, str(LAUNCHER)]
        self.run.stack.env["FAULTS"] = str(folder)
        self.folder, self.watched = folder, watched
        self.sent: list[Message] = []
        self.sent_at: dict[str, float] = {}
        self.ledger = Ledger(self.run, self.redis.url)
        self.roles = chained(roles(self.run.pipeline)) if chains else roles(self.run.pipeline)
        self.ledger.is_chained = chains
        self.supervisor = Supervisor(self.run)
        self.replay = Replay(kafka.servers, self._load(), speed=1.0)
        self.faults: list[Fault] = []
        self.complaints: list[str] = []
        self.began = time.monotonic()

    def __enter__(self) -> River:
        watching = topics.WATCHING if self.watched else ()
        try:
            for role in (*self.roles, *watching):
                self.supervisor.begin(role)
            self.run.stack.wait_ready(120)
        except BaseException:
            self.run.stack.stop()
            self.ledger.close()
            raise
        self.supervisor.start()
        self.ledger.start()
        self.replay.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.supervisor.close()
        self.replay.stop()
        for process in self.run.stack.processes.values():
            if process.poll() is None:
                resume(process)
        self.run.stack.stop()
        self.ledger.close()

    def _load(self) -> Iterator[Message]:
        for message in paced(again_and_again(self.run.pipeline, flights(), corrupt_every=200), self.rate):
            self.sent.append(message)
            if message.is_event:
                self.sent_at.setdefault(message.key.decode(), time.monotonic())
            yield message

    def end_load(self) -> None:
        """Send nothing more, and wait until all that was sent is acknowledged."""
        self.replay.stop()
        until(lambda: not self.replay.is_alive(), "what was sent is not acknowledged", 60)
        if self.replay.error:
            raise self.replay.error
        del self.sent[self.replay.events + self.replay.labels :]  # the last was taken, and perhaps not sent

    def process(self, role: str):
        """Return the process that plays a role now."""
        return self.run.stack.processes[role]

    def ready(self, role: str) -> bool:
        """Whether a process says that it is ready."""
        return self.run.stack.fetch(role, "/readyz")[0] == 200

    def pause(self, low: float, high: float) -> None:
        """Let a random time pass."""
        time.sleep(self.rng.uniform(low, high))

    def plan(self, what: str, role: str = "", *, tolerated: bool = True) -> Fault:
        """Note that a fault is about to be done."""
        fault = Fault(what, role, time.monotonic(), tolerated=tolerated)
        self.faults.append(fault)
        return fault

    def must(self, holds: bool, otherwise: str) -> None:
        """Note what is wrong unless it holds."""
        if not holds:
            self.complaints.append(otherwise)

    def worker(self, role: str) -> int:
        """Return the process id of what does a role's work now."""
        return worker(self.process(role))

    def kill(self, role: str, *, whole: bool = False, wait: bool = True) -> Fault:
        """Kill -9 at this moment, whatever it does; `whole`: the process that would start it again as well.

        `wait`: until one of the others is back.
        """
        fault, process = self.plan("kill of all its processes" if whole else "kill", role), self.process(role)
        pid = self.worker(role)
        fault.at = time.monotonic()
        os.kill(process.pid if whole else pid, signal.SIGKILL)
        until(lambda: gone(pid), f"{role} is not killed", 10)
        fault.fired = True
        if wait:
            self.wait_back(fault)
        return fault

    def wait_back(self, fault: Fault) -> None:
        """Wait until one of the others, of which nothing comes that a stall would show in, is ready again."""
        if fault.role in OTHERS:
            until(lambda: self.ready(fault.role), f"{fault.role} is not back after {fault.what}", BACK_SECONDS)
            fault.back = time.monotonic() - fault.at

    def strike(self, role: str, point: str, action: str = "kill", skip: int | None = None) -> Fault:
        """Have a process kill or stop itself at a point of its code, when it passes there after `skip` times."""
        key = role if "#" in role else f"{role}#0"
        until(lambda: self.ready(role), f"{role} is not ready", 60)
        fault, pid = self.plan(f"{action} at {point}", role), self.worker(role)
        place = self.folder / f"{key}.plan"
        said = place.with_suffix(".fired")
        before = len(said.read_text().splitlines()) if said.is_file() else 0
        if skip is None:
            skip = self.rng.randrange(200) if point.startswith("produce") else self.rng.randrange(3)
        if service_of(role) == "learner":
            skip = 0  # it writes once a version
        place.write_text(json.dumps({"point": point, "skip": skip, "action": action}))
        os.kill(pid, signal.SIGUSR1)

        def fired() -> list[dict[str, Any]]:
            """What it wrote when it was struck; of a write to Redis that a strike fell into it writes a line as well."""
            lines = said.read_text().splitlines()[before:] if said.is_file() else []
            return [one for one in map(json.loads, lines) if "fired" in one]

        until(lambda: bool(fired()), f"{point} was not passed by {role}", FIRES_WITHIN)
        until(lambda: gone(pid) if action == "kill" else stopped(pid), f"{action} of {role} did nothing", 10)
        fault.fired = True
        fault.at = fired()[0]["at"]
        if action == "kill":
            self.wait_back(fault)
        return fault

    def struck(self, role: str) -> list[dict[str, Any]]:
        """Return what the process that plays a role has written when it was struck, and afterwards."""
        key = role if "#" in role else f"{role}#0"
        place = self.folder / f"{key}.fired"
        return [json.loads(line) for line in place.read_text().splitlines()] if place.is_file() else []

    def freeze(self, role: str) -> Fault:
        """SIGSTOP at this moment."""
        fault, pid = self.plan("stop", role), self.worker(role)
        os.kill(pid, signal.SIGSTOP)
        until(lambda: stopped(pid), f"{role} is not stopped", 10)
        fault.fired = True
        return fault

    def replace(self, role: str):
        """Start another process in the place of one, which is left as it is and returned."""
        old = self.supervisor.let_go(role)
        self.run.stack.ports[role] = free_port()  # the old one holds its own
        self.supervisor.begin(role)
        return old

    def stop(self, role: str) -> tuple[float, int]:
        """Stop a process gracefully; returns how long that took and its exit code."""
        process = self.supervisor.let_go(role)
        begin = time.monotonic()
        process.terminate()
        code = process.wait(60)
        return time.monotonic() - begin, code

    def log_of(self, role: str) -> str:
        """Return all that a role's processes have logged."""
        return self.run.stack.log(role.partition("#")[0]).read_text(errors="replace")

    def passed(self, begin: float, end: float) -> int:
        """Return how many predictions came between two moments."""
        return sum(begin <= t < end for t in self.ledger.times(topics.PREDICTIONS))

    def delays(self) -> list[float]:
        """Return how long each prediction took from its event's sending until the ledger had it, in s, the shortest first."""
        came = zip(self.ledger.ids(topics.PREDICTIONS), self.ledger.times(topics.PREDICTIONS), strict=True)
        return sorted(at - self.sent_at[event_id] for event_id, at in came)

    def longest_gap(self, role: str, begin: float, end: float) -> float:
        """Return the longest time in which nothing came out of a role, of those that began between two moments."""
        service, (_, _, model) = service_of(role), role.partition("#")[0].partition(":")
        times = self.ledger.stored if service == "materializer" else self.ledger.times(OUTPUT[service])
        if model:
            wanted, records = model.encode(), self.ledger.of(OUTPUT[service])
            times = [t for t, r in zip(times, records, strict=True) if r.key() == wanted]
        inside = [begin, *(t for t in times if begin < t < end)]
        inside.append(min((t for t in times if t >= end), default=end))
        return max(b - a for a, b in pairwise(inside))

    def judge(self, promise: str, goal: str, *, stall_allowed: float | None = None, window: float = 12.0,
              least_events: int = 0) -> Row:  # fmt: skip
        """End the load, wait until all that was sent has arrived, stop everything, and say what was seen.

        `window`: for how many seconds after a fault a stall counts as its own. `least_events`: the load goes on to there.
        """
        time.sleep(window)
        until(lambda: self.replay.events >= least_events, "the load is not sent", 60 + least_events / self.rate)
        ended = time.monotonic()
        self.end_load()
        self.ledger.arrive(len(self.sent))
        if left := self.ledger.behind(len(self.sent)):
            self.must(False, f"never came: {left}")
            for role in self.supervisor.wanted:
                os.kill(self.worker(role), signal.SIGUSR2)  # where each stands, into its log
            time.sleep(1)
        caught_up = time.monotonic() - ended
        if self.watched and (left := self.ledger.others_behind("gate", "archiver", "monitor")):
            self.must(False, f"not read to the end: {left}")
        self.supervisor.close()
        self.ledger.end()
        verdict = judge(self.run, self.ledger, self.sent, redis_url=self.redis.url, watched=self.watched)
        verdict.wrong += self.complaints
        row = Row(promise, goal, self.seed, verdict, stall_allowed=stall_allowed)
        if str(verdict):
            self.ledger.dump(self.folder / "ledger.log")
        row.planned, row.fired = len(self.faults), sum(fault.fired for fault in self.faults)
        least = []
        for fault in self.faults:
            end = min(max(fault.until, fault.at + window), ended)
            for role in [fault.role] if fault.role else IN_EVERY_FAULT:
                if role in OTHERS or (self.ledger.is_chained and role == "featurizer"):  # a chain writes no vectors
                    continue
                fault.stall = max(fault.stall, self.longest_gap(role, fault.at, end))
            if fault.tolerated:
                least.append(self.passed(fault.at, max(fault.until, fault.at + PASS_SECONDS)))
        row.passed = min(least, default=None)
        row.stall = max((fault.stall for fault in self.faults), default=0.0)
        row.stalls = [(fault.what, fault.role, round(fault.stall, 2)) for fault in self.faults]
        row.exits.update(f"{service_of(role)} {code}" for _, role, code in self.supervisor.exits)
        row.seconds = time.monotonic() - self.began
        row.notes.append(f"everything had arrived {caught_up:.1f} s after the last was sent")
        if back := [fault.back for fault in self.faults if fault.back]:
            row.notes.append(f"gate, archiver, monitor and status were ready again after {max(back):.1f} s at most")
        return row


def stopped(pid: int) -> bool:
    """Whether a process stands still after SIGSTOP."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def resume(process) -> None:
    """Let a stopped process go on."""
    os.kill(worker(process), signal.SIGCONT)


def exit_code(process, patience: float = 30.0) -> int | None:
    """Return the code with which a process ends; None where it does not."""
    try:
        return process.wait(patience)
    except subprocess.TimeoutExpired:
        return None
