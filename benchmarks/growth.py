"""How what an event costs grows: with entities (featurizer), with predictions that wait (joiner), with models (learner).

    make bench-growth                                       all sizes (about ten minutes); into docs/explanation/peers.md
    make bench-growth ARGS="--only joiner --most 100000"    some of them, and nothing is written

Steps run without Kafka, each size in a process of its own, sizes in turns. Before it is measured, each entity has had an
event, and each waiting prediction has come; what is measured goes to entities at random, all in one tile, so that windows
are as full whatever the number of entities. Memory is what the process has grown by until then. Machines are shared and
noisy: compare ratios.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks.declared import bench
from benchmarks.peers import report
from tidemill.demo import data
from tidemill.models.fold import Fold
from tidemill.offline.backtest import Backtest
from tidemill.stages.featurizer.service import Featurizer
from tidemill.stages.joiner.service import Joiner
from tidemill.stream.api import Position, Processor, TopicPartition
from tidemill.stream.commit_metadata import CommitMetadata
from tidemill.stream.lmdb_state import open_in
from tidemill.stream.loop import tune_collector
from tidemill.stream.memory import MemoryRecord
from tidemill.stream.restore import mark
from tidemill.wire import topics
from tidemill.wire.records import Records

SIZES = {
    "featurizer": (1_000, 100_000, 1_000_000),
    "joiner": (0, 100_000, 1_000_000),
    "joiner on disk": (0, 100_000, 1_000_000),
    "learner": (1, 2, 5, 10),
}
WHAT = {
    "featurizer": "entities",
    "joiner": "waiting predictions",
    "joiner on disk": "waiting predictions",
    "learner": "models",
}
MEASURED, BATCH = 20_000, 500
TILE = 300_000
START = 1_357_200_000_000 // TILE * TILE


def nowhere(*_: Any, **__: Any) -> None:
    """Emit nothing, after the step has made it."""


def cpu(step: Processor, records: Sequence[MemoryRecord], per_event: int = 1) -> float:
    """Return µs of CPU an event, in batches."""
    began = time.process_time()
    for at in range(0, len(records), BATCH):
        step.process(records[at : at + BATCH], nowhere)
    return (time.process_time() - began) / (len(records) / per_event) * 1e6


def memory() -> int:
    """Return what this process has resident, in bytes, but for files that the system may let go of."""
    gc.collect()
    info = psutil.Process().memory_info()
    return info.rss - info.shared


def featurizer(entities: int) -> dict[str, float]:
    """Measure events of so many entities."""
    pipeline, topic = replace(bench, rules=[]), topics.EVENTS_VALID.name(bench.name)
    codec, step = Records(pipeline).event, Featurizer(pipeline, None)
    step.assign(TopicPartition(topic, 0), Position(0))
    event, draw, offset = data.flights(days=1)[0].event, random.Random(7), 0

    def records(names: Iterator[int], at: int) -> list[MemoryRecord]:
        nonlocal offset
        made = []
        for number in names:
            value = codec.encode({**event, "origin": f"E{number:07}", "asked_at": at, "flight_id": f"F{offset}"})
            made.append(MemoryRecord(topic, value, None, at, None, 0, offset))
            offset += 1
        return made

    before = memory()
    for first in range(0, entities, 10_000):
        step.process(records(iter(range(first, min(first + 10_000, entities))), START), nowhere)
        step.committed()
    held = memory() - before
    tune_collector()
    measured = records((draw.randrange(entities) for _ in range(MEASURED)), START + TILE)
    return {"us": cpu(step, measured), "bytes": held / entities}


def joiner(waiting: int, folder: Path | None = None) -> dict[str, float]:
    """Measure predictions and their labels while so many other predictions wait, in memory or in a folder."""
    test, kept = Backtest(bench), dict[str, MemoryRecord]()
    test.emitted = lambda record: kept.setdefault(record.topic(), record)  # type: ignore[assignment, return-value]
    flight = next(f for f in data.flights(days=1) if f.label)
    test.run([flight.event], [flight.label or {}])
    records, step = Records(bench), Joiner(bench, open_state=open_in(folder) if folder else None)
    log, labels = topics.PREDICTION_LOG.name(bench.name), topics.LABELS_VALID.name(bench.name)
    for topic in (log, labels):
        step.assign(TopicPartition(topic, 0), Position(0))
    entry, label = records.prediction_log.decode(kept[log].value() or b""), flight.label
    offsets = {log: 0, labels: 0}

    def record(topic: str, value: bytes, at: int) -> MemoryRecord:
        offsets[topic] += 1
        return MemoryRecord(topic, value, None, at, None, 0, offsets[topic] - 1)

    def predicted(id_: str, at: int) -> MemoryRecord:
        features = {**entry["features"], "event_id": id_, "event_time": at}
        return record(log, records.prediction_log.encode({**entry, "features": features}), at)

    before = memory()
    for number in range(waiting):
        step.process([predicted(f"EV{number:07}-JFK-2013-01-03T08:00Z", START + number // 100)], nowhere)
        step.committed()
    held, at = memory() - before, START + TILE
    measured = []
    for number in range(MEASURED):
        id_ = f"UA{number:07}-JFK-2013-01-03T09:00Z"
        measured.append(predicted(id_, at + number))
        measured.append(
            record(labels, records.label.encode({**(label or {}), "flight_id": id_, "landed_at": at + number}), at)
        )
    tune_collector()
    us = cpu(step, measured, per_event=2)
    assert step.gauges()["pending", "0"] == waiting
    figures = {"us": us, "bytes": held / waiting if waiting else 0.0}
    return figures if folder is None else figures | reopened(step, folder, waiting)


def reopened(step: Joiner, folder: Path, waiting: int) -> dict[str, float]:
    """Measure how long a new process takes to go on with what this one has saved."""
    step.joins[0].save(lambda: step._positions(0), now=True)
    ends = dict(step._next)
    step.revoke(list(ends))
    began, step = time.perf_counter(), Joiner(bench, open_state=open_in(folder))
    for partition, end in ends.items():
        start = step.assign(partition, mark(CommitMetadata(0), end, ""))
        assert start.rebuild_from == end, "nothing is read again"
    assert step.gauges()["pending", "0"] == waiting
    size = (folder / "0" / "data.mdb").stat().st_size
    return {"reopened_s": round(time.perf_counter() - began, 3), "disk_bytes": size / waiting if waiting else 0.0}


def joiner_on_disk(waiting: int) -> dict[str, float]:
    """Measure the same with what waits on disk."""
    with tempfile.TemporaryDirectory() as folder:
        return joiner(waiting, Path(folder))


def learner(models: int) -> dict[str, float]:
    """Measure examples that so many models learn in one process, which decodes them once."""
    pipeline = replace(
        bench, models={f"logreg{n}" if n else "logreg": bench.models["logreg"].clone() for n in range(models)}
    )
    found, examples = data.flights(days=14), list[bytes]()
    test = Backtest(pipeline)
    test.examples = lambda record: examples.append(bytes(record.value() or b""))
    test.run([f.event for f in found], data.labels(found))
    folds, decode = [Fold(pipeline, name) for name in pipeline.models], Records(pipeline).example.decode
    tune_collector()
    began = time.process_time()
    for offset, value in enumerate(examples):
        example = decode(value)
        for fold in folds:
            fold.learn(example, offset)
    assert all(fold.examples == len(examples) for fold in folds)
    return {"us": (time.process_time() - began) / len(examples) * 1e6, "bytes": 0.0}


MEASURE: dict[str, Callable[[int], dict[str, float]]] = {"featurizer": featurizer, "joiner": joiner, "learner": learner}
MEASURE["joiner on disk"] = joiner_on_disk


def table(figures: dict[str, dict[int, list[dict[str, float]]]]) -> str:
    """Return the tables as one, as Markdown."""
    lines = ["| | | ratio | µs an event: median | min | max | bytes each |", "|---|---|---|---|---|---|---|"]
    for step, sizes in figures.items():
        base = median(row["us"] for row in next(iter(sizes.values())))
        for size, rows in sizes.items():
            us = sorted(row["us"] for row in rows)
            held = median(row["bytes"] for row in rows)
            lines.append(
                f"| {step} | {size:,} {WHAT[step]} | {median(us) / base:.2f} | {median(us):.1f} | {us[0]:.1f} | {us[-1]:.1f} | "
                f"{f'{held:,.0f}' if held and size >= 100_000 else ''} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        prog="make bench-growth ARGS=...", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=3, help="how often each is run, in turns")
    parser.add_argument("--only", action="append", choices=SIZES, help="only this step; may be given often")
    parser.add_argument("--most", type=int, default=1_000_000, help="leave out larger sizes")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(MEASURE[given.child[0]](int(given.child[1]))))
        return
    loads, figures = psutil.getloadavg(), dict[str, dict[int, list[dict[str, float]]]]()
    for _ in range(given.runs):
        for step in given.only or SIZES:
            for size in (size for size in SIZES[step] if size <= given.most):
                command = [sys.executable, "-m", "benchmarks.growth", "--child", step, str(size)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                figures.setdefault(step, {}).setdefault(size, []).append(json.loads(done.stdout.splitlines()[-1]))
                print(step, size, figures[step][size][-1], file=sys.stderr, flush=True)
    print(table(figures))
    if not given.only and given.most >= max(SIZES["featurizer"]):
        when = f"`make bench-growth`, {time.strftime('%Y-%m-%d')}, {given.runs} runs of each in turns"
        load = f"load of the machine before and after {loads[0]:.1f} and {psutil.getloadavg()[0]:.1f}"
        report.put("growth", f"{when}; {load}.\n\n{table(figures)}")


if __name__ == "__main__":
    main()
