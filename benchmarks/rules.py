"""What the validator costs: µs of CPU an event, by the number of rules, and by how the event is written.

    make bench-rules

The step runs in this process without Kafka, on flights that are encoded beforehand; runs of all cases take turns, and the best
of each counts. Machines are shared and noisy: compare ratios within one run.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tidemill import Pipeline, load, rules
from tidemill.demo import data
from tidemill.encoding.codec import HEADER
from tidemill.rules import Rule
from tidemill.stages.validator.service import Validator
from tidemill.stream.api import Position, Record, TopicPartition
from tidemill.stream.loop import tune_collector
from tidemill.stream.memory import MemoryRecord
from tidemill.wire import topics
from tidemill.wire.records import Records

FLIGHTS = load("flights")
EVENTS = [flight.event for flight in data.flights((1,), days=10)][:6000]
TOPIC = topics.EVENTS.name(FLIGHTS.name)


def twenty() -> list[Rule]:
    """Return the flights' own five rules, and fifteen of every kind that looks at one record."""
    numbers = ("temp", "dewp", "wind_speed", "precip", "visib", "sched_minutes", "dep_delay")
    return [
        *FLIGHTS.rules,
        *(rules.between(name, -1e5, 1e5) for name in numbers),
        rules.between("flight", 0, 9999),
        rules.between("flight_date", 0, 10**6),
        rules.matches("origin", "[A-Z]{3}"),
        rules.matches("dest", "[A-Z]{3}"),
        rules.not_null("flight"),
        rules.not_before("asked_at", "2012-01-01"),
        rules.one_of("tailnum", {e["tailnum"] for e in EVENTS if e["tailnum"]}),
        rules.holds(lambda e: e["origin"] != e["dest"], "origin", "dest", that="it goes elsewhere"),
    ]


def records_of(values: Sequence[bytes]) -> list[MemoryRecord]:
    """Return messages as the validator reads them."""
    return [MemoryRecord(TOPIC, value, b"k", 1, None, 0, offset) for offset, value in enumerate(values)]


def case(declared: Pipeline, values: Sequence[bytes]) -> tuple[Validator, list[MemoryRecord]]:
    """Return a validator that begins, and what it is given."""
    step = Validator(declared)
    step.assign(TopicPartition(TOPIC, 0), Position(0))
    return step, records_of(values)


def cases() -> Mapping[str, tuple[Validator, list[MemoryRecord]]]:
    """Return what is measured, by what it is called."""
    avro = [Records(FLIGHTS).event.encode(event) for event in EVENTS]
    as_json = [json.dumps(event).encode() for event in EVENTS]
    remembers = [*FLIGHTS.rules, rules.unique("flight_id", within="1d")]
    warns = [replace(rule, warn=True) for rule in FLIGHTS.rules]
    return {
        "no rule": case(replace(FLIGHTS, rules=[]), avro),
        "1 rule": case(replace(FLIGHTS, rules=FLIGHTS.rules[:1]), avro),
        "5 rules": case(FLIGHTS, avro),
        "20 rules": case(replace(FLIGHTS, rules=twenty()), avro),
        "5 rules that warn": case(replace(FLIGHTS, rules=warns), avro),
        "5 rules and unique": case(replace(FLIGHTS, rules=remembers), avro),
        "5 rules, JSON": case(FLIGHTS, as_json),
    }


def nowhere(*_: Any, **__: Any) -> None:
    """Emit nothing, after the step has made it."""


def timed(step: Validator, records: Sequence[Record]) -> float:
    """Return µs of CPU a record, of a step that remembers nothing yet."""
    step.revoke([TopicPartition(TOPIC, 0)])
    step.assign(TopicPartition(TOPIC, 0), Position(0))
    gc.collect()
    began = time.process_time()
    step.process(records, nowhere)  # type: ignore[arg-type]
    return (time.process_time() - began) / len(records) * 1e6


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="make bench-rules ARGS=...", description=__doc__,
                                     formatter_class=argparse.RawTextHelpFormatter)  # fmt: skip
    parser.add_argument("--runs", type=int, default=15, help="runs of each case, the best of which counts")
    given = parser.parse_args()
    tune_collector()
    made, found = cases(), dict[str, list[float]]()
    read, values = Records(FLIGHTS).event.read, [record.value() or b"" for record in made["no rule"][1]]
    for _ in range(given.runs):
        began = time.process_time()
        for value in values:
            read(value, HEADER)
        found.setdefault("decoding alone", []).append((time.process_time() - began) / len(values) * 1e6)
        for name, (step, records) in made.items():
            found.setdefault(name, []).append(timed(step, records))
    least = {name: min(times) for name, times in found.items()}
    print(f"{'':<22}{'µs an event':>12}{'x no rule':>12}")
    for name, cost in least.items():
        print(f"{name:<22}{cost:>12.2f}{cost / least['no rule']:>12.2f}")


if __name__ == "__main__":
    main()
