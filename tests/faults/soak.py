"""The soak: millions of events through the whole river, and what each process grows by.

    make soak                          3 million events
    make soak ARGS="--events 200000"   fewer
    make soak ARGS="--report FOLDER"   where soak.md and soak.svg go; docs/ by default

As many events are kept in flight as the services can take, so that they are never idle. Memory (resident), file
descriptors and threads of every process are read every few seconds. Growth is the slope of a straight line through what
was read after the warm-up.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from load import again_and_again
from real_kafka import RealKafka
from running import Running, worker

from tidemill.demo import data
from tidemill.local.replay import Replay
from tidemill.local.servers import Redis

IN_FLIGHT = 1500
"""Less than the label timeout of flights: partitions read side by side come apart by no more than that."""
SAMPLE_SECONDS = 5.0
WARM_UP = 500_000
GROWTH_ALLOWED = 5.0
"""MB a million events."""
MEGABYTE = 2**20


@dataclass
class Samples:
    """What was read of one process."""

    events: list[int] = field(default_factory=list)
    megabytes: list[float] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)

    def add(self, events: int, process: psutil.Process) -> None:
        with process.oneshot():
            self.events.append(events)
            self.megabytes.append(process.memory_info().rss / MEGABYTE)
            self.descriptors.append(process.num_fds())
            self.threads.append(process.num_threads())

    def after(self, warm_up: int) -> np.ndarray:
        return np.array(self.events) >= warm_up

    def growth(self, warm_up: int) -> float:
        """Return the slope of memory over events, in MB a million events."""
        chosen = self.after(warm_up)
        slope, _ = np.polyfit(np.array(self.events)[chosen] / 1e6, np.array(self.megabytes)[chosen], 1)
        return float(slope)

    def span(self, values: list[int], warm_up: int) -> str:
        chosen = np.array(values)[self.after(warm_up)]
        return f"{chosen.min()}" if chosen.min() == chosen.max() else f"{chosen.min()} to {chosen.max()}"


class Handled:
    """How many records each process has handled, from its own /metrics."""

    def __init__(self, run: Running) -> None:
        self.run = run
        self.counts: dict[str, int] = {}

    def read(self) -> None:
        for role in self.run.stack.processes:
            status, text = self.run.stack.fetch(role, "/metrics")
            found = re.search(r"^tidemill_records_total\{.*\} (\S+)$", text, re.MULTILINE)
            if status == 200 and found:
                self.counts[role] = int(float(found[1]))
            if role == "joiner":
                joined = re.search(r"^tidemill_joined_total\{.*\} (\S+)$", text, re.MULTILINE)
                self.counts["joined"] = int(float(joined[1])) if joined else 0

    def room(self, events: int, labels: int) -> bool:
        """Whether no service is more than IN_FLIGHT records behind what comes to it."""
        count = self.counts.get
        behind = [
            events + labels - count("validator", 0),
            events - count("scorer", 0),
            count("scorer", 0) + labels - count("joiner", 0),
            *(count("joined", 0) - n for role, n in self.counts.items() if role.startswith("learner")),
        ]
        return max(behind) < IN_FLIGHT


def soak(events: int, report: Path) -> bool:
    samples: dict[str, Samples] = {}
    with ExitStack() as cleanup:
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="tidemill-soak-")))
        say("starting Kafka, Redis and the services")
        kafka, redis = RealKafka(folder), Redis(folder)
        cleanup.callback(kafka.stop)
        cleanup.callback(redis.stop)
        run = Running(kafka.servers, redis.url, folder, "flights", 4, max_delay_ms=50)
        cleanup.callback(run.stack.stop)
        run.stack.start_all()
        run.stack.wait_ready(120)
        watched = {role: psutil.Process(worker(p)) for role, p in run.stack.processes.items()}
        watched |= {"(redis)": psutil.Process(redis.process.pid), "(broker)": psutil.Process(kafka.process.pid)}
        handled = Handled(run)
        handled.read()
        replay = Replay(
            kafka.servers, again_and_again(run.pipeline, data.flights(range(1, 13)), events), speed=1e12,
            has_room=lambda: handled.room(replay.events, replay.labels),
        )  # fmt: skip
        cleanup.callback(replay.stop)
        replay.start()
        began = next_sample = time.monotonic()
        next_word = began + 30
        while handled.counts.get("scorer", 0) < events:
            time.sleep(0.25)
            handled.read()
            run.stack.check()
            if replay.error:
                raise replay.error
            now = time.monotonic()
            if now >= next_sample:
                next_sample = now + SAMPLE_SECONDS
                for role, process in watched.items():
                    samples.setdefault(role, Samples()).add(handled.counts.get("scorer", 0), process)
            if now >= next_word:
                next_word = now + 30
                done = handled.counts.get("scorer", 0)
                say(f"{done:,} of {events:,} events, {done / (now - began):,.0f} a second; behind: "
                    f"joiner {done + replay.labels - handled.counts['joiner']:,}")  # fmt: skip
        seconds = time.monotonic() - began
        letters = [
            f"{role}: {float(n):,.0f} {reason}"
            for role in run.stack.processes
            for reason, n in re.findall(
                r'^tidemill_dead_letters_total\{reason="(\w+)".*\} (\S+)$', run.stack.fetch(role, "/metrics")[1], re.M
            )
        ]
    warm_up = min(WARM_UP, events // 3)
    return write(report, samples, events, seconds, warm_up, letters)


def write(
    report: Path, samples: dict[str, Samples], events: int, seconds: float, warm_up: int, letters: list[str]
) -> bool:
    """Write the table and the plot; returns whether everything stayed within what is allowed."""
    ours = {role: held for role, held in samples.items() if not role.startswith("(")}
    good = all(held.growth(warm_up) <= GROWTH_ALLOWED for held in ours.values())
    lines = [
        "# Soak",
        "",
        f"`make soak`, {time.strftime('%Y-%m-%d')}: {events:,} events and their labels through all services as processes, exactly once, "
        f"on a real Kafka and a real Redis, four partitions, as fast as they can take them: {seconds / 60:.0f} minutes, "
        f"{events / seconds:,.0f} events a second on {os.cpu_count()} cores, confluent-kafka {version('confluent-kafka')}, dead letters: "
        f"{', '.join(letters) or 'none'}.",
        "",
        f"Read every {SAMPLE_SECONDS:.0f} s. Growth is the slope of resident memory after the first {warm_up:,} events; at most "
        f"{GROWTH_ALLOWED:.0f} MB a million events are allowed in a process of ours.",
        "",
        "| process | MB after warm-up | MB at the end | growth, MB a million events | file descriptors | threads |",
        "|---|---|---|---|---|---|",
    ]
    for role, held in samples.items():
        first = held.megabytes[int(np.argmax(held.after(warm_up)))]
        lines.append(
            f"| {role} | {first:.1f} | {held.megabytes[-1]:.1f} | {held.growth(warm_up):+.2f} | "
            f"{held.span(held.descriptors, warm_up)} | {held.span(held.threads, warm_up)} |"
        )
    lines += ["", "![resident memory of each process since the warm-up](soak.svg)", ""]
    (report / "soak.md").write_text("\n".join(lines))

    plot(report / "soak.svg", ours, warm_up)
    print("\n".join(lines))
    return good


def plot(path: Path, samples: dict[str, Samples], warm_up: int) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "tidemill"
    figure, axes = pyplot.subplots(figsize=(9, 4.5), layout="constrained")
    last = 0.0
    for role, held in samples.items():
        first = held.megabytes[int(np.argmax(held.after(warm_up)))]
        axes.plot(np.array(held.events) / 1e6, np.array(held.megabytes) - first, label=role, linewidth=1.6)
        last = max(last, held.events[-1] / 1e6)
    allowed = GROWTH_ALLOWED * (last - warm_up / 1e6)
    axes.plot([warm_up / 1e6, last], [0, allowed], color="0.4", linestyle="--", linewidth=1.2)
    axes.text(last, allowed, "allowed ", ha="right", va="bottom", color="0.4")
    axes.axvspan(0, warm_up / 1e6, color="0.93", zorder=0)
    axes.text(warm_up / 2e6, 0.02, "warm-up", ha="center", color="0.45", transform=axes.get_xaxis_transform())
    axes.set(xlabel="million events", ylabel="resident memory since the warm-up, MB", xlim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9")
    axes.legend(frameon=False, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    figure.savefig(path, metadata={"Date": None})


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=3_000_000)
    parser.add_argument("--report", type=Path, default=Path(__file__).parents[2] / "docs")
    chosen = parser.parse_args()
    sys.exit(0 if soak(chosen.events, chosen.report) else 1)


if __name__ == "__main__":
    main()
