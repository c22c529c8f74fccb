"""The AsyncAPI document fits the specification, and says what is on the topics."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import fastavro
import jsonschema
import pytest
import small
from click.testing import CliRunner

from tidemill import load
from tidemill.cli.main import cli
from tidemill.encoding import schema_files
from tidemill.encoding.json_schema import example
from tidemill.wire import topics
from tidemill.wire.asyncapi import AVRO, AVRO_SCHEMA, JSON_SCHEMA, document
from tidemill.wire.records import Records

with warnings.catch_warnings():  # two of its fields have names that pydantic has as well
    warnings.simplefilter("ignore", UserWarning)
    from asyncapi3.models.asyncapi import AsyncAPI3

OUTSIDE = {"events", "labels", "predictions", "dlq", "redrives"}


def elsewhere() -> Any:
    events = replace(small.EVENTS, topic="shop.orders", encoding="json")
    return small.make(events=events, predictions_encoding="json")


PIPELINES: dict[str, Callable[[], Any]] = {
    "flights": lambda: load("flights"), "departures": lambda: load("departures"), "plain": lambda: load("plain"), "elsewhere": elsewhere,
}  # fmt: skip


def references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        for value in part.values():
            yield from references(value)
    elif isinstance(part, list):
        for value in part:
            yield from references(value)


def resolved(made: Any, reference: str) -> Any:
    part = made
    for name in reference.removeprefix("#/").split("/"):
        part = part[name]
    return part


def payloads(made: Any, schema_format: str) -> Iterator[tuple[Any, Any]]:
    for channel in made["channels"].values():
        for message in channel["messages"].values():
            if message["payload"].get("schemaFormat") == schema_format:
                yield message, message["payload"]["schema"]


@pytest.mark.slow
@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize("name", PIPELINES)
def test_it_fits_the_specification_and_every_reference_leads_somewhere(name: str, inner: bool) -> None:
    made = json.loads(json.dumps(document(PIPELINES[name](), ["kafka:9092", "other:9092"], inner=inner)))
    AsyncAPI3.model_validate(made)
    found = list(references(made["operations"]))
    assert len(found) >= 2 * len(made["operations"])
    for reference in found:
        assert resolved(made, reference)
    avro, as_json = list(payloads(made, AVRO_SCHEMA)), list(payloads(made, JSON_SCHEMA))
    assert avro
    assert as_json
    for message, schema in avro:
        fastavro.parse_schema(copy.deepcopy(schema))
        assert schema_files.fingerprint(schema) == message["x-schema-id"]
    for _, schema in as_json:
        jsonschema.Draft7Validator.check_schema(schema)


@pytest.mark.slow
@pytest.mark.parametrize(
    "spoil",
    [
        lambda made: made["channels"]["events"]["bindings"]["kafka"].update(partitions=0),
        lambda made: made["channels"]["events"].update(colour="red"),
        lambda made: made["operations"]["receive-events"].update(action="publish"),
        lambda made: made["operations"]["receive-events"].pop("channel"),
        lambda made: made["operations"].update({"a.b": made["operations"]["receive-events"]}),
        lambda made: made.update(asyncapi="2.6.0"),
        lambda made: made.pop("info"),
        lambda made: made["servers"]["kafka-0"].pop("protocol"),
    ],
)
def test_what_does_not_fit_is_seen(spoil: Callable[[Any], Any]) -> None:
    made = document(small.make(), ["kafka:9092"])
    spoil(made)
    with pytest.raises(ValueError, match="validation error"):
        AsyncAPI3.model_validate(made)


def test_it_has_the_topics_of_others_with_how_they_are_keyed_and_kept() -> None:
    pipeline = small.make()
    made = document(pipeline, ["kafka:9092"])
    assert made["channels"].keys() == OUTSIDE
    assert document(pipeline, [], inner=True)["channels"].keys() == {t.suffix.replace(".", "-") for t in topics.TOPICS}
    predictions = made["channels"]["predictions"]
    assert predictions["address"] == "small.predictions"
    kafka = predictions["bindings"]["kafka"]
    assert (kafka["partitions"], kafka["topicConfiguration"]["retention.ms"]) == (2, topics.PREDICTIONS.retention_ms)
    (message,) = predictions["messages"].values()
    assert (message["contentType"], message["x-schema-id"]) == (AVRO, Records(pipeline).prediction.id)
    assert [*made["channels"]["events"]["messages"]] == ["Departure-avro", "Departure-json"]
    assert "tidemill.reason" in made["channels"]["dlq"]["messages"]["dlq"]["headers"]["required"]
    actions = {name: one["action"] for name, one in made["operations"].items()}
    assert actions["receive-events"] == "receive"
    assert actions["send-predictions"] == "send"
    assert made["operations"]["receive-events"]["bindings"]["kafka"]["groupId"]["enum"] == ["small.validator"]


def test_a_topic_of_somebody_else_is_named_and_nothing_is_claimed_of_how_it_is_kept() -> None:
    made = document(elsewhere(), ["kafka:9092"])
    events = made["channels"]["events"]
    assert events["address"] == "shop.orders"
    assert events["bindings"]["kafka"] == {"topic": "shop.orders", "bindingVersion": "0.5.0"}
    (message,) = events["messages"].values()
    jsonschema.validate(example(small.EVENTS.avro), message["payload"]["schema"])
    assert [*made["channels"]["predictions"]["messages"]] == ["Prediction-json"]


def test_its_version_is_of_the_contract_alone() -> None:
    def version(pipeline: Any, *brokers: str) -> str:
        return str(document(pipeline, brokers)["info"]["version"])

    assert version(small.make(), "a:1") == version(small.make(), "b:1")
    assert version(small.make(), "a:1") != version(small.make(partitions=3), "a:1")
    assert version(small.make(), "a:1") != version(small.make(predictions_encoding="json"), "a:1")


@pytest.mark.slow
def test_the_command_prints_it_without_the_registry_s_password() -> None:
    given = {"TIDEMILL_REGISTRY_URL": "https://me:topsecret@registry:8081", "TIDEMILL_BROKERS": "a:1,b:2"}
    given["TIDEMILL_KAFKA"] = '{"security.protocol": "SASL_SSL"}'
    done = CliRunner().invoke(cli, ["schema", "asyncapi", "plain"], env=given)
    made = json.loads(done.output)
    registry = {
        "schemaRegistryUrl": "https://registry:8081",
        "schemaRegistryVendor": "confluent",
        "bindingVersion": "0.5.0",
    }
    assert made["servers"]["kafka-1"] == {"host": "b:2", "protocol": "kafka-secure", "bindings": {"kafka": registry}}
    assert "topsecret" not in done.output
