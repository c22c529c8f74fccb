"""The programs on the page for producers and consumers run as they stand, against a pipeline in memory."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from tidemill import load, testing
from tidemill.cli.main import cli
from tidemill.stream.memory import MemoryBroker, MemoryRecord

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "producers-and-consumers.md"
DECLARATION, *PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


class Producer:
    """Takes the calls of Confluent's that the page makes."""

    def __init__(self, broker: MemoryBroker) -> None:
        self.broker, self.waiting = broker, []

    def produce(self, topic: str, value: Any, key: str) -> None:
        self.waiting.append((topic, value if isinstance(value, bytes) else value.encode(), key.encode()))

    def flush(self) -> None:
        for record in self.waiting:
            self.broker.append(*record)


class Consumer:
    def __init__(self, broker: MemoryBroker, config: dict[str, Any]) -> None:
        assert config["isolation.level"] == "read_committed"
        self.broker = broker

    def subscribe(self, topics: list[str]) -> None:
        self.records = [record for topic in topics for record in self.broker.records(topic)]

    def poll(self, timeout: float) -> MemoryRecord | None:
        return self.records.pop(0) if self.records else None

    def close(self) -> None: ...


@pytest.mark.slow
def test_the_programs_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("orders.py").write_text(DECLARATION)
    for topic in ("events", "predictions"):
        shown = CliRunner().invoke(cli, ["schema", "show", "orders.py", topic, "--json"], catch_exceptions=False)
        Path(f"{topic}.json").write_text(shown.stdout)
    pipeline = testing.Pipeline("orders.py")
    broker = pipeline.broker
    monkeypatch.setattr(MemoryRecord, "error", lambda _: None, raising=False)
    client = SimpleNamespace(Producer=lambda _: Producer(broker), Consumer=lambda config: Consumer(broker, config))
    monkeypatch.setitem(sys.modules, "confluent_kafka", client)
    by_json, by_avro, label, consumer, json_consumer = PROGRAMS
    exec(by_json, {})
    exec(by_avro, {})
    outcome = pipeline.send()
    assert [p["event_id"] for p in outcome.predictions] == ["a-17", "a-18"]
    assert outcome.dead_letters == []
    exec(label, {})
    assert [example["label"] for example in pipeline.send().examples] == [True]
    namespace: dict[str, Any] = {}
    exec(consumer, namespace)
    assert [(p["event_id"], p["champion"]["score"], p["event_time"].isoformat()) for p in namespace["predictions"]] == [
        (i, 0.5, "2024-11-05T12:00:00+00:00") for i in ("a-17", "a-18")
    ]

    other = testing.Pipeline(replace(load("orders.py"), predictions_encoding="json"))
    other.send({"order_id": "a-19", "ordered_at": "2024-11-05T12:00:00Z", "amount": 1.0})
    (record,) = other.broker.records("orders.predictions")
    exec(json_consumer, namespace)
    prediction = namespace["prediction_of"](record)
    assert (prediction["event_id"], prediction["event_time"]) == ("a-19", 1_730_808_000_000)
