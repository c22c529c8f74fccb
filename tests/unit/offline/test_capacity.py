"""`tidemill capacity`: what is counted is exact, and what is computed from it follows the formulas of its page."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tidemill import load
from tidemill.cli.capacity import capacity as command
from tidemill.demo import data
from tidemill.errors import SettingsError
from tidemill.offline.capacity import Capacity, capacity, deep_size
from tidemill.offline.history import Message, as_message
from tidemill.wire import topics
from tidemill.wire.records import Records

PIPELINE = load("flights")
FLIGHTS = data.flights((1,), days=1)[:600]
HOUR = 3_600.0


def messages() -> tuple[list[Message], list[Message]]:
    records, events, labels = Records(PIPELINE), [], []
    for flight in FLIGHTS:
        event, label = flight.event, flight.label
        events.append(Message(event["asked_at"], event["flight_id"], as_message(records.sent_event, event)))
        if label is not None:
            sent = as_message(records.sent_label, label)
            labels.append(Message(label["landed_at"], label["flight_id"], sent))
    return events, sorted(labels)


@pytest.fixture(scope="module")
def needed() -> Capacity:
    return capacity(PIPELINE, *messages(), 1_000.0, label_delay=2 * HOUR)


@pytest.mark.slow
def test_bytes_are_those_of_the_records(needed: Capacity) -> None:
    events, labels = messages()
    of = {topic.name: topic for topic in needed.topics}
    assert of["events"].bytes == pytest.approx(sum(len(event.data) for event in events) / len(events))
    due = [label for label in labels if label.time <= events[-1].time]
    assert of["labels"].bytes == pytest.approx(sum(len(label.data) for label in due) / len(events))
    assert {"events.valid", "updates", "features", "predictions", "prediction-log", "examples"} <= set(of)
    for topic in topics.TOPICS:
        if topic.suffix in of:
            kept = topic.retention_ms // 1_000 if topic.retention_ms >= 0 else 365 * 86_400
            one = of[topic.suffix]
            assert (one.kept_seconds, one.gigabytes) == (kept, pytest.approx(one.bytes * 1_000 * kept * 3 / 1e9))


@pytest.mark.slow
def test_every_service_and_every_learner_has_its_share(needed: Capacity) -> None:
    names = [service.name for service in needed.services]
    assert sorted(names) == sorted(
        ["validator", "featurizer", "scorer", "joiner", "materializer", *(f"learner:{m}" for m in PIPELINE.model_names)]
    )
    for service in needed.services:
        assert service.us > 0
        assert service.cores == pytest.approx(1_000 * service.us / 1e6)
        assert service.instances == max(1, math.ceil(service.cores / 0.6))
        assert service.scales != service.name.startswith("learner")
    assert needed.partitions == max(service.instances for service in needed.services if service.scales)
    assert needed.most == pytest.approx(0.6e6 / max(s.us for s in needed.services if not s.scales))
    of = {service.name: service for service in needed.services}
    assert of["scorer"].records == pytest.approx(3), "a vector is read, a prediction and its log are written"


def test_memory_follows_the_time_that_predictions_are_held(needed: Capacity) -> None:
    share, timeout = needed.labelled_share, needed.label_timeout
    assert timeout == 48 * HOUR
    assert needed.waiting == pytest.approx(1_000 * (share * 2 * HOUR + (1 - share) * timeout))
    assert needed.joined == pytest.approx(1_000 * share * 46 * HOUR)
    # A prediction's record is some 400 bytes, and it is held in a few objects.
    assert 400 < needed.waiting_bytes < 3_000
    assert 200 < needed.joined_bytes < 3_000
    assert needed.joiner_bytes == needed.waiting * needed.waiting_bytes + needed.joined * needed.joined_bytes


def test_a_size_is_of_all_that_is_held_once_and_not_of_code() -> None:
    text = "x" * 10_000
    assert 10_000 < deep_size({"a": text, "b": [text, json, Path]}) < 12_000


def test_what_is_never_predicted_is_not_measured() -> None:
    broken = [Message(0, "x", b"{}")] * 10
    with pytest.raises(SettingsError, match="none of these events is predicted"):
        capacity(PIPELINE, broken, [], 10.0)


@pytest.mark.slow
def test_the_command_says_what_is_needed_and_what_is_too_much(tmp_path: Path) -> None:
    files = {name: tmp_path / f"{name}.jsonl" for name in ("events", "labels")}
    files["events"].write_text("\n".join(json.dumps(flight.event) for flight in FLIGHTS))
    files["labels"].write_text("\n".join(json.dumps(flight.label) for flight in FLIGHTS if flight.label))

    def run(*more: str) -> Any:
        arguments = ["flights", "--events", str(files["events"]), "--labels", str(files["labels"]), "--limit", "400"]
        return CliRunner().invoke(command, [*arguments, *more], catch_exceptions=False)

    said = json.loads(run("--rate", "50", "--label-delay", "3h", "--json").output)
    assert (said["events"], said["rate"], said["label_delay"]) == (400, 50.0, 3 * HOUR)
    text = run("--rate", "1000000").output
    assert "TOO MUCH    a model is learned by one process" in text
    assert "learner:logreg" in text
    assert "partitions" in text
    assert "TOO MUCH" not in run("--rate", "1").output
    with pytest.raises(SettingsError, match="--label-delay: 'soon'"):
        run("--rate", "1", "--label-delay", "soon")


@pytest.mark.slow
def test_without_views_nobody_is_asked_for_them() -> None:
    plain = replace(load("plain"), name="flights")
    needed = capacity(plain, *messages(), 10.0)
    assert "materializer" not in {service.name for service in needed.services}
    assert needed.entity_bytes == 0
