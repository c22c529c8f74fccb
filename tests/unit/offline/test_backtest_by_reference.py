"""A backtest hands records on as they are; that comes to the same as decoding every message, to the last digit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tidemill import load
from tidemill.demo import data
from tidemill.encoding.codec import Carried
from tidemill.offline.backtest import Backtest
from tidemill.stream.api import Record

FLIGHTS = 1_500


class Watched(Backtest):
    """Keeps every message; `by_reference` is False where all are decoded."""

    def __init__(self, pipeline: Any, *, by_reference: bool) -> None:
        super().__init__(pipeline, model_delay_ms=60_000)
        for step in self._processors.values():
            if not by_reference:
                step.records.carries = False  # type: ignore[attr-defined]
        self.messages: list[tuple[str, bytes]] = []
        self.carried: set[str] = set()
        self.emitted = self.keep

    def keep(self, record: Record) -> None:
        value = record.value() or b""
        self.messages.append((record.topic(), value))
        if type(value) is Carried:
            self.carried.add(record.topic())
            codec = getattr(self.records, CODECS[record.topic().removeprefix(f"{self.pipeline.name}.")])
            assert repr(codec.decode(bytes(value))) == repr(as_decoded(value.record)), record.topic()


#: The codec of each topic whose messages carry their records.
CODECS = {
    "events.valid": "event", "features": "features", "prediction-log": "prediction_log", "expired": "prediction_log", "examples": "example",
    "updates": "update",
}  # fmt: skip


def as_decoded(value: Any) -> Any:
    """Return a record in plain dicts and lists, with keys in the order in which they are."""
    if isinstance(value, dict):
        return {name: as_decoded(one) for name, one in value.items()}
    return [as_decoded(one) for one in value] if isinstance(value, list) else value


FLIGHTS_PIPELINE = load("flights")
PIPELINES = {
    "flights": FLIGHTS_PIPELINE,
    # In the vector, features of other entities come before those of the events' own.
    "other order": replace(FLIGHTS_PIPELINE, views=list(reversed(FLIGHTS_PIPELINE.views))),
    "delays": load("delays"),
}


@pytest.mark.slow
@pytest.mark.parametrize("which", PIPELINES)
def test_every_message_and_figure_is_the_same(which: str) -> None:
    pipeline, flights = PIPELINES[which], data.flights(range(1, 2))[:FLIGHTS]
    runs = [Watched(pipeline, by_reference=by_reference) for by_reference in (True, False)]
    unseen = Backtest(pipeline, model_delay_ms=60_000)
    reports = [run.run([flight.event for flight in flights], data.labels(flights)).as_dict() for run in (*runs, unseen)]
    assert runs[0].messages == runs[1].messages
    for report in reports:
        del report["seconds"], report["events_per_second"]
    assert reports[0] == reports[1] == reports[2]
    topics = {topic.removeprefix(f"{pipeline.name}.") for topic in runs[0].carried}
    assert topics - {"expired"} == {"events.valid", "features", "prediction-log", "examples"} | ({"updates"} & topics)
    assert ("updates" in topics) == bool(pipeline.views)
    assert not runs[1].carried
