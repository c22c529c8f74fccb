"""`tidemill schema`: what a producer's CI is told before a change is sent, and what is registered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from registry_server import RegistryServer

from tidemill import load
from tidemill.cli.main import cli
from tidemill.errors import SettingsError, StoreError, TidemillError

pytestmark = pytest.mark.slow

AVRO = load("plain").events.avro
GATE = {"name": "gate", "type": ["null", "string"], "default": None}


def changed(*more: Any, drop: str = "", **types: Any) -> dict[str, Any]:
    fields = [{**f, "type": types.get(f["name"], f["type"])} for f in AVRO["fields"] if f["name"] != drop]
    return {**AVRO, "fields": [*fields, *more]}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.delenv("TIDEMILL_REGISTRY_URL", raising=False)

    def check(new: Any, *options: str, **earlier: Any) -> Result:
        for name, avro in {"new": new, **earlier}.items():
            (tmp_path / f"{name}.avsc").write_text(json.dumps(avro))
        against = [part for name in earlier for part in ("--against", str(tmp_path / f"{name}.avsc"))]
        return CliRunner().invoke(
            cli, ["schema", "check", "plain", "events", str(tmp_path / "new.avsc"), *against, *options]
        )

    return check


@pytest.fixture
def server() -> Iterator[RegistryServer]:
    made = RegistryServer()
    yield made
    made.stop()


def test_a_change_that_is_compatible_and_can_be_read_may_be_sent(run) -> None:
    done = run(changed(GATE))
    assert done.exit_code == 0
    assert done.output == (
        "new.avsc against 1 earlier version, BACKWARD_TRANSITIVE: compatible\n"
        "the pipeline reads it with flights/departure.v1.avsc: producers may use it now\n"
    )


def test_a_change_that_the_pipeline_can_not_read_yet_says_to_deploy_it_first(run) -> None:
    done = run(changed(drop="distance"))
    assert done.exit_code == 1
    assert ": compatible\n" in done.output
    assert "field 'distance': it is not written" in done.output
    assert (
        "first deploy the pipeline with it: Stream('new.avsc', ..., accepts=['flights/departure.v1.avsc'])"
        in done.output
    )


@pytest.mark.parametrize(
    ("new", "level", "said"),
    [
        (changed({"name": "gate", "type": "string"}), "BACKWARD", ["'gate'", "give it a default in the new schema"]),
        (changed(distance="string"), "BACKWARD", ["'distance'", "double is written where string is read", "keep the type"]),
        (changed(flight="long"), "FORWARD", ["'flight'", "long is written where int is read"]),
        (changed(drop="origin"), "FORWARD", ["'origin'", "keep the field"]),
        (changed(drop="origin"), "FULL_TRANSITIVE", ["'origin'", "can't read what the new schema writes"]),
        ({**AVRO, "name": "Other"}, "BACKWARD", ["an alias"]),
    ],
)  # fmt: skip
def test_what_is_not_compatible_names_the_field_and_the_mend(run, new: Any, level: str, said: list[str]) -> None:
    done = run(new, "--compatibility", level)
    assert done.exit_code == 1
    for word in [": not compatible", *said]:
        assert word in done.output


def test_all_earlier_versions_count_where_the_level_is_transitive(run) -> None:
    one, two = changed({"name": "gate", "type": "int"}), changed(GATE)
    last = changed(
        {"name": "gate", "type": ["null", "string"], "default": None}, {"name": "row", "type": "int", "default": 0}
    )
    assert run(last, "--compatibility", "BACKWARD", one=one, two=two).exit_code == 0
    done = run(last, one=one, two=two)
    assert done.exit_code == 1
    assert "what " in done.output
    assert "one.avsc wrote" in done.output
    assert "two.avsc" not in done.output
    assert run(last, "--compatibility", "none", one=one).exit_code == 0


def test_programs_get_json(run) -> None:
    found = json.loads(run(changed({"name": "gate", "type": "string"}), "--json").output)
    assert (found["safe"], found["level"], found["unreadable"]) == (False, "BACKWARD_TRANSITIVE", "")
    assert [(p["field"], p["direction"]) for p in found["problems"]] == [("gate", "backward")]


def test_the_registrys_versions_and_level_are_taken(run, server: RegistryServer) -> None:
    server.add("plain.events-value", json.dumps(AVRO))
    server.add("plain.events-value", json.dumps(changed({"name": "gate", "type": "int"})))
    done = run(changed(GATE), "--registry-url", server.url)
    assert done.exit_code == 1
    assert "against 2 earlier versions" in done.output
    assert "version 2 of plain.events-value wrote" in done.output
    server.levels["plain.events-value"] = "NONE"
    assert run(changed(GATE), "--registry-url", server.url).exit_code == 0


@pytest.mark.parametrize(
    ("new", "said"),
    [
        ({"type": "enum", "name": "E", "symbols": ["A"]}, "no Avro record schema"),
        ({**AVRO, "fields": [{"name": "a", "type": "nothing"}]}, "no Avro schema"),
    ],
)
def test_a_file_that_is_no_schema_is_named(run, new: Any, said: str) -> None:
    done = run(new)
    assert isinstance(done.exception, SettingsError)
    assert said in str(done.exception)
    assert "new.avsc" in str(done.exception)


def register(server: RegistryServer | None, *options: str) -> Result:
    place = ["--registry-url", server.url] if server else []
    return CliRunner().invoke(cli, ["schema", "register", "plain", *place, *options])


def test_registering_is_done_once_and_keeps_a_level_that_is_there(server: RegistryServer) -> None:
    server.levels["plain.labels-value"] = "FULL"
    for _ in range(2):
        assert register(server).output == (
            "plain.events-value: id 1, version 1, BACKWARD_TRANSITIVE\nplain.labels-value: id 2, version 1, FULL\n"
        )
    assert server.levels == {"plain.events-value": "BACKWARD_TRANSITIVE", "plain.labels-value": "FULL"}


def test_a_file_is_registered_for_the_stream_of_its_record(server: RegistryServer, tmp_path: Path) -> None:
    (tmp_path / "new.avsc").write_text(json.dumps(changed(GATE)))
    (tmp_path / "other.avsc").write_text(json.dumps({**AVRO, "name": "Other"}))
    register(server)
    rows = json.loads(register(server, "--file", str(tmp_path / "new.avsc"), "--json").output)
    assert [(row["subject"], row["version"]) for row in rows] == [("plain.events-value", 2)]
    done = register(server, "--file", str(tmp_path / "other.avsc"))
    assert isinstance(done.exception, SettingsError)
    assert "its record is Other; expected one of tidemill.flights.Departure and" in str(done.exception)


def test_without_a_registry_it_says_how_to_name_one() -> None:
    done: TidemillError = register(None).exception  # type: ignore[assignment]
    assert isinstance(done, SettingsError)
    assert "TIDEMILL_REGISTRY_URL" in str(done)


def test_a_registry_that_refuses_is_told_in_its_words(server: RegistryServer) -> None:
    server.login = "user:password"
    done = register(server)
    assert isinstance(done.exception, StoreError)
    assert "refused: Unauthorized (401)" in str(done.exception)
