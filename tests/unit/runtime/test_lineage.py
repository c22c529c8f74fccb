"""OPENLINEAGE_* variables say whether runs are told of; what is sent is what OpenLineage's own client takes and writes."""

from __future__ import annotations

import builtins
import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from openlineage.client import OpenLineageClient
from openlineage.client.event_v2 import RunEvent
from openlineage.client.transport import Config, Transport
from small import declaration

from tidemill import Pipeline, View, aggregates, settings
from tidemill.errors import BrokerError, SettingsError
from tidemill.runtime import lineage as lineages

VIEW = View("dest", every="1m", aggregates=[aggregates.count("5m")])
CHOSEN = settings.load(
    brokers="kafka-1:9092,kafka-2:9092", redis_url="redis://:secret@redis:6379/0", store_url="s3://models/ours",
    archive_url="archive",
)  # fmt: skip


@pytest.fixture
def pipeline() -> Pipeline:
    return Pipeline(**declaration(views=[VIEW]))


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [name for name in os.environ if name.startswith("OPENLINEAGE")]:
        monkeypatch.delenv(name)


@pytest.fixture
def file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT__TYPE", "file")
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT__LOG_FILE_PATH", str(tmp_path / "events.jsonl"))
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT__APPEND", "true")
    return tmp_path / "events.jsonl"


def events(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def names(datasets: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(one["namespace"], one["name"]) for one in datasets]


@pytest.mark.parametrize(
    ("variables", "asked"),
    [
        ({}, False),
        ({"OPENLINEAGE_URL": "http://marquez:5000"}, True),
        ({"OPENLINEAGE_CONFIG": "openlineage.yml"}, True),
        ({"OPENLINEAGE__TRANSPORT__TYPE": "kafka"}, True),
        ({"OPENLINEAGE_NAMESPACE": "x"}, False),
        ({"OPENLINEAGE_URL": "http://marquez:5000", "OPENLINEAGE_DISABLED": "True"}, False),
    ],
)
def test_they_are_openlineages_own(variables: dict[str, str], asked: bool) -> None:
    assert lineages.is_asked_for(variables) is asked


def test_without_them_nothing_of_openlineage_is_imported(monkeypatch: pytest.MonkeyPatch, pipeline: Pipeline) -> None:
    real = builtins.__import__

    def refusing(name: str, *rest: object, **more: object) -> object:
        assert not name.startswith("openlineage")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refusing)
    with lineages.lineage(pipeline, ["scorer"], CHOSEN, None) as published:
        published("linear", 7)


def test_a_chain_is_a_job_of_each_service_with_what_it_reads_and_writes(file: Path, pipeline: Pipeline) -> None:
    with lineages.lineage(pipeline, ["validator", "featurizer", "scorer"], CHOSEN, None):
        pass
    sent = events(file)
    assert [(one["job"]["name"], one["eventType"]) for one in sent] == [
        (f"small.{name}", state) for state in ("START", "COMPLETE") for name in ("validator", "featurizer", "scorer")
    ]
    assert len({one["run"]["runId"] for one in sent}) == 3
    assert all(uuid.UUID(one["run"]["runId"]) and one["job"]["namespace"] == "tidemill" for one in sent)
    validator, featurizer, scorer = sent[:3]
    kafka = "kafka://kafka-1:9092"
    assert names(validator["inputs"]) == [(kafka, "small.events"), (kafka, "small.labels")]
    assert (kafka, "small.events.valid") in names(validator["outputs"])
    assert ("redis://redis:6379", "small:dest") in names(featurizer["outputs"] + _of("materializer", pipeline))
    assert ("s3://models", "ours/small/linear") in names(scorer["inputs"])
    assert (kafka, "small.predictions") in names(scorer["outputs"])
    fields = validator["inputs"][0]["facets"]["schema"]["fields"]
    assert [one["name"] for one in fields] == [one["name"] for one in pipeline.events.avro["fields"]]
    assert {one["name"]: one["type"] for one in fields}["dep_delay"] == "null | double"
    assert "secret" not in file.read_text()
    assert validator["job"]["facets"]["jobType"]["processingType"] == "STREAMING"


def _of(service: str, pipeline: Pipeline) -> list[dict[str, Any]]:
    written = lineages.Datasets(pipeline, CHOSEN).outputs(service)
    return [{"namespace": one.namespace, "name": one.name} for one in written]


def test_a_version_that_is_published_is_an_event_of_its_learners_run(file: Path, pipeline: Pipeline) -> None:
    with lineages.lineage(pipeline, ["joiner", "learner"], CHOSEN, None) as published:
        published("slow", 12)
        published("linear~40", 90)
    sent = events(file)
    runs = {one["job"]["name"]: one["run"]["runId"] for one in sent if one["eventType"] == "START"}
    assert runs.keys() == {"small.joiner", "small.learner.linear", "small.learner.slow", "small.learner.baseline"}
    versions = [one for one in sent if one["eventType"] == "RUNNING"]
    assert [(one["run"]["runId"], *names(one["outputs"])) for one in versions] == [
        (runs["small.learner.slow"], ("s3://models", "ours/small/slow")),
        (runs["small.learner.linear"], ("s3://models", "ours/small/linear~40")),
    ]
    assert [one["outputs"][0]["facets"]["version"]["datasetVersion"] for one in versions] == ["12", "90"]
    learner = next(one for one in sent if one["job"]["name"] == "small.learner.slow")
    assert ("s3://models", "ours/small/slow") in names(learner["outputs"])


def test_one_that_ends_by_an_error_has_failed(file: Path, pipeline: Pipeline) -> None:
    for error in (BrokerError("no Kafka at kafka-1"), ValueError("of a secret")):
        with pytest.raises(type(error)), lineages.lineage(pipeline, ["archiver"], CHOSEN, None):
            raise error
    failed = [one["run"]["facets"]["errorMessage"] for one in events(file) if one["eventType"] == "FAIL"]
    assert [one["message"] for one in failed] == ["no Kafka at kafka-1", "ValueError"]
    assert ("file", str(Path("archive").absolute() / "small")) in names(events(file)[0]["outputs"])


def test_one_that_ends_its_process_when_it_is_asked_to_has_completed(file: Path, pipeline: Pipeline) -> None:
    for code in (0, 1):
        with pytest.raises(SystemExit), lineages.lineage(pipeline, ["monitor"], CHOSEN, None):
            raise SystemExit(code)
    assert [one["eventType"] for one in events(file)] == ["START", "COMPLETE", "START", "FAIL"]


class Refusing(Transport):
    """Takes no event."""

    kind = "refusing"
    config_class = Config

    def __init__(self) -> None:
        self.asked: list[RunEvent] = []

    def emit(self, event: Any) -> Any:
        self.asked.append(event)
        raise ConnectionError("nobody is here")


def test_no_service_ends_where_nobody_takes_its_events(
    monkeypatch: pytest.MonkeyPatch, pipeline: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    transport = Refusing()
    monkeypatch.setenv("OPENLINEAGE_URL", "http://nobody:1")
    monkeypatch.setattr("openlineage.client.OpenLineageClient", lambda: OpenLineageClient(transport=transport))
    with lineages.lineage(pipeline, ["scorer"], CHOSEN, None):
        pass
    assert [event.eventType.name for event in transport.asked] == ["START", "COMPLETE"]
    assert [record.message for record in caplog.records].count("events of lineage can't be sent, and are dropped") == 1


def test_what_is_wrong_with_a_variable_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch, pipeline: Pipeline) -> None:
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT__TYPE", "pigeon")
    with (
        pytest.raises(SettingsError, match=r"OPENLINEAGE_.*pigeon"),
        lineages.lineage(pipeline, ["scorer"], CHOSEN, None),
    ):
        pass
