"""What watching costs, and whether the monitor's memory stays flat: January's predictions and examples, month after month.

    python -m benchmarks.monitor --laps 20

Each lap is January once more, 31 days later; all of it lies on a real Kafka before the monitor starts. Prints, about once a
second, records handled, CPU per record and resident memory; two records, a prediction and an example, are one event.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from real_kafka import RealKafka
from running import Running, until, worker

from tidemill import load
from tidemill.demo import data
from tidemill.offline.backtest import Backtest
from tidemill.stream.api import Record
from tidemill.stream.kafka.producer import Sender
from tidemill.wire import topics

MONTH = 31 * 24 * 3_600_000


def january() -> tuple[list[dict], list[dict]]:
    """Return January's prediction log and examples, as a backtest makes them."""
    found, backtest = data.flights((1,)), Backtest(load("flights"))
    logs: list[dict] = []
    examples: list[dict] = []

    def example(record: Record) -> None:
        examples.append(backtest.records.example.decode(record.value() or b""))

    backtest.predictions, backtest.examples = logs.append, example  # type: ignore[assignment]
    backtest.run([flight.event for flight in found], data.labels(found))
    return logs, examples


def moved(log: dict, lap: int) -> dict:
    """Return a prediction, so many months later, with an id of its own."""
    of = log["features"]
    as_of = {view: then + lap * MONTH for view, then in of["as_of"].items()}
    return {
        **log,
        "features": {
            **of,
            "event_id": f"{of['event_id']}+{lap}",
            "event_time": of["event_time"] + lap * MONTH,
            "as_of": as_of,
        },
    }


def send(run: Running, laps: int) -> int:
    """Put all laps into the topics; returns how many records that is."""
    logs, examples = january()
    sender, sent = Sender(run.broker.servers), 0
    encode_log, encode_example = run.records.prediction_log.encode, run.records.example.encode
    for lap in range(laps):
        for log in logs:
            later = moved(log, lap)
            sender.send(run.name(topics.PREDICTION_LOG), encode_log(later), later["features"]["event_id"].encode())
        for example in examples:
            later = {
                **example,
                "prediction": moved(example["prediction"], lap),
                "label_time": example["label_time"] + lap * MONTH,
            }
            name = later["prediction"]["features"]["event_id"].encode()
            sender.send(run.name(topics.EXAMPLES), encode_example(later), name)
        sent += len(logs) + len(examples)
        sender.flush()
        print(f"sent {sent:,} records", end="\r", flush=True)
    print()
    return sent


def watch(run: Running, records: int) -> None:
    """Start the monitor, and print what it takes until it has seen all."""
    process = run.stack.start("monitor")
    until(lambda: run.stack.fetch("monitor", "/readyz")[0] == 200, "the monitor is not ready", 60)
    child = psutil.Process(worker(process))
    began, before, got = time.monotonic(), sum(child.cpu_times()[:2]), 0
    print(f"{'seconds':>8}{'records':>12}{'us a record':>13}{'MB':>7}")
    while got < records:
        time.sleep(1)
        said = re.search(
            r"^tidemill_records_total\{.*\} (\S+)$", run.stack.fetch("monitor", "/metrics")[1], re.MULTILINE
        )
        got = int(float(said[1])) if said else 0
        cpu = sum(child.cpu_times()[:2]) - before
        seconds = time.monotonic() - began
        print(
            f"{seconds:>8.0f}{got:>12,}{cpu / max(1, got) * 1e6:>13.1f}{child.memory_info().rss >> 20:>7}", flush=True
        )
        run.stack.check(["monitor"])


def main() -> None:
    """Run it once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--laps", type=int, default=6, help="months; one has 53,402 records")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        kafka = RealKafka(Path(place))
        try:
            run = Running(kafka.servers, "redis://localhost:1/0", Path(place), "flights", 4)
            try:
                watch(run, send(run, options.laps))
            finally:
                run.stack.stop()
        finally:
            kafka.stop()


if __name__ == "__main__":
    main()
