"""A pipeline's records as they come, one dict each, for `tidemill tail`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tidemill.declare.pipeline import Pipeline
from tidemill.errors import SettingsError
from tidemill.keys import RefusedError
from tidemill.registry.alerts import alerts
from tidemill.registry.decisions import decisions
from tidemill.stream.api import Record
from tidemill.stream.kafka.broker import KafkaBroker
from tidemill.stream.kafka.consumer import KafkaFollower
from tidemill.stream.topic import Topic
from tidemill.wire import topics
from tidemill.wire.dead_letters import DeadLetter, read_dead_letter
from tidemill.wire.records import Records

#: What can be followed, by its name.
FOLLOWED: Mapping[str, Topic] = {
    "predictions": topics.PREDICTIONS,
    "examples": topics.EXAMPLES,
    "dlq": topics.DLQ,
    "alerts": topics.ALERTS,
    "decisions": topics.PROMOTIONS,
}

Row = dict[str, Any]


def follow(broker: KafkaBroker, names: Sequence[str], *, from_start: bool = False) -> KafkaFollower:
    """Follow topics from their present ends, or from their beginnings."""
    return broker.follow_topics(names, None if from_start else dict.fromkeys(names, 0))


def reader(pipeline: Pipeline, what: str, *, shows_personal: bool = True) -> Callable[[Record], Row | None]:
    """Return the function that makes a row of a record; None of what is no record of the topic. Times are ms.

    Personal fields are masked unless `shows_personal`.
    """
    read, mask = _reader(pipeline, what), Records(pipeline).mask
    if shows_personal or what not in ("predictions", "examples", "dlq"):
        return read
    if what == "dlq":
        return lambda record: _letter(mask.letter(read_dead_letter(record)))
    return lambda record: None if (row := read(record)) is None else mask.named(row)


def _reader(pipeline: Pipeline, what: str) -> Callable[[Record], Row | None]:
    records = Records(pipeline)
    if what == "dlq":
        return lambda record: _letter(read_dead_letter(record))
    if what == "predictions":
        return lambda record: _row(records.read_prediction(record.value()))
    if what == "examples":
        return lambda record: _example(records.example.of(record.value() or b""))
    if what == "alerts":
        alert_codec = alerts(pipeline, None)
        return lambda record: _parsed(alert_codec.parse, record)
    decision_codec = decisions(pipeline, None)
    return lambda record: _parsed(lambda value: decision_codec.parse(value).as_dict(), record)


def _letter(letter: DeadLetter) -> Row:
    return {**asdict(letter), "place": str(letter.place)}


def _row(prediction: Mapping[str, Any] | None) -> Row | None:
    if prediction is None:
        return None
    champion = prediction["champion"]
    return {**{name: value for name, value in prediction.items() if name != "champion"}, **champion}


def _example(example: Mapping[str, Any] | None) -> Row | None:
    if example is None:
        return None
    features, champion = example["prediction"]["features"], example["prediction"]["champion"]
    return {
        "event_id": features["event_id"],
        "entity_id": features["entity_id"],
        "event_time": features["event_time"],
        "label": example["label"],
        "label_time": example["label_time"],
        **champion,
        "vector": features["vector"],
    }


def _parsed(parse: Callable[[bytes], Row], record: Record) -> Row | None:
    try:
        row = parse(record.value() or b"")
    except (RefusedError, ValueError):
        return None
    return {name: value for name, value in row.items() if name != "signature"}


_KINDS = {bool: "true or false", int: "a number", float: "a number", dict: "an object", list: "a list"}
#: How people who write Python write what JSON has other words for.
_PYTHON = {"True": "true", "False": "false", "None": "null"}


class Where:
    """A filter: fields and the values that they must have, as text."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.wanted: list[tuple[str, str]] = []
        for text in texts:
            name, sign, value = text.partition("=")
            if not sign or not name:
                raise SettingsError(f"--where {text!r}: expected FIELD=VALUE, as in model=logreg")
            self.wanted.append((name, value))

    def takes(self, row: Row) -> bool:
        """Return whether a row has these values. Raises SettingsError where it has no such field, or never has it."""
        return all(self._is(name, self._value(row, name), value) for name, value in self.wanted)

    @staticmethod
    def _is(name: str, value: Any, wanted: str) -> bool:
        if isinstance(value, str):
            return value == wanted
        try:
            given = json.loads(_PYTHON.get(wanted, wanted))
        except ValueError:
            if value is None:  # of a text that may be missing
                return False
            kind = _KINDS.get(type(value), "no text")  # the value itself may be personal
            raise SettingsError(f"--where {name}={wanted}: {name!r} is {kind}, and never {wanted!r}") from None
        return bool(given == value)

    def _value(self, row: Row, name: str) -> Any:
        value: Any = row
        for part in name.split("."):
            if not isinstance(value, dict) or part not in value:
                has = ", ".join(row)
                raise SettingsError(f"--where {name}: records have no such field; they have {has}")
            value = value[part]
        return value


def rows(
    pipeline: Pipeline,
    broker: KafkaBroker,
    what: str,
    where: Where,
    *,
    from_start: bool,
    count: int | None,
    shows_personal: bool = True,
) -> Iterator[Row | None]:
    """Yield rows as they come, `count` of them or without end; None for a record that is none of the topic."""
    follower = follow(broker, [FOLLOWED[what].name(pipeline)], from_start=from_start)
    read, left = reader(pipeline, what, shows_personal=shows_personal), count
    try:
        while left is None or left > 0:
            for record in follower.poll():
                row = read(record)
                if row is not None and not where.takes(row):
                    continue
                yield row
                left = None if left is None else left - 1
                if left == 0:
                    return
    finally:
        follower.close()
