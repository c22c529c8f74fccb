"""What a change of a declaration does, by part."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small
from click.testing import CliRunner
from river import dummy, metrics, stats

from tidemill import Forgetting, Fuse, Gate, Monitor, Protect, Retention, Training, View, aggregates, rules
from tidemill.cli.main import cli
from tidemill.declare.pipeline import Pipeline
from tidemill.offline.diff import Change, changes, facts

NOW = small.with_category()
REFUSED = {f"model {name}" for name in NOW.model_names}
"""What a change of the vector does to every model."""
VIEW = View("dest", every="1m", aggregates=[aggregates.count("5m")])
LONGER = View("origin", every="1m", aggregates=[aggregates.count("10m")])
EVENTS = replace(small.EVENTS, key="dest")
#: Each field of a declaration, what it is changed to, and the parts that change by that.
CHANGES: list[tuple[str, Any, set[str]]] = [
    ("name", "other", {"name"}),
    ("events", EVENTS, {"events.key", "view origin"}),
    ("labels", replace(small.LABELS, value=lambda label: label["arr_delay"]), {"label", *REFUSED}),
    ("labels", replace(small.LABELS, topic="theirs"), {"labels.topic"}),
    ("request", {"distance": "distance"}, {"vector", *REFUSED}),
    ("models", {"linear": small.linear(0.5), "slow": small.linear(0.0001)}, {"model linear"}),
    ("models", {"linear": small.linear()}, {"model slow"}),
    ("models", {**NOW.models, "more": small.linear(0.1)}, {"model more"}),
    ("champion", "slow", {"champion"}),
    ("rules", [rules.between("sched_hour", 0, 22)], {"rules of events"}),
    ("label_rules", [], {"rules of labels"}),
    ("views", [], {"view origin", "vector", *REFUSED}),
    ("views", [*NOW.views, VIEW], {"view dest", "vector", *REFUSED}),
    ("views", [LONGER], {"view origin", "vector", *REFUSED}),
    ("metrics", [metrics.MAE()], {"metrics"}),
    ("baseline", dummy.StatisticRegressor(stats.Max()), {"model baseline"}),
    ("label_timeout", "5h", {"label timeout"}),
    ("partitions", 8, {"partitions"}),
    ("predictions_encoding", "json", {"predictions"}),
    ("predictions_headers", "cloudevents", {"predictions"}),
    ("monitor", Monitor(window="2h"), {"monitor"}),
    ("fuse", Fuse(run=7), {"fuse"}),
    ("gate", Gate(), {"gate"}),
    ("training", Training("linear"), {"training"}),
    ("retention", Retention(all="2h"), {"retention"}),
    ("forgetting", Forgetting(), {"forgetting"}),
    ("shares", {"slow": 0.1}, {"shares"}),
    ("protect", Protect("carrier", 0.5, 100), {"protect", *REFUSED}),
]


def of(before: Pipeline, now: Pipeline) -> dict[str, Change]:
    return {change.part: change for change in changes(facts(before), facts(now))}


def test_the_same_declaration_changes_nothing() -> None:
    assert of(NOW, small.with_category()) == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("field", "value", "parts"), CHANGES, ids=[f"{n}-{field}" for n, (field, _, _) in enumerate(CHANGES)]
)
def test_each_part_is_named_and_nothing_else(field: str, value: Any, parts: set[str]) -> None:
    assert of(NOW, replace(NOW, **{field: value})).keys() - {"rules of events", "rules of labels"} == parts - {
        "rules of events",
        "rules of labels",
    }
    assert of(replace(NOW, **{field: value}), NOW).keys() >= parts, "and the other way round"
    assert all(change.what and change.effect for change in of(NOW, replace(NOW, **{field: value})).values())


def test_every_field_of_a_declaration_is_tried() -> None:
    declared = {field.name for field in dataclasses.fields(Pipeline) if field.init}
    harmless = {"task", "search"}  # another task is another label, other models and metrics; a search runs nowhere
    assert declared - harmless == {field for field, _, _ in CHANGES}


def test_another_schema_says_who_can_still_read_what(tmp_path: Path) -> None:
    avro = dict(NOW.events.avro)
    grown = {**avro, "fields": [*avro["fields"], {"name": "gate", "type": ["null", "string"], "default": None}]}
    needed = {**avro, "fields": [*avro["fields"], {"name": "gate", "type": "string"}]}
    for number, (schema, words) in enumerate(((grown, "compatible in both directions"), (needed, "backward: gate"))):
        path = tmp_path / f"{number}.avsc"
        path.write_text(json.dumps(schema))
        change = of(NOW, replace(NOW, events=replace(small.EVENTS, schema=str(path))))["events schema"]
        assert words in change.what


@pytest.mark.slow
def test_the_command_prints_what_happens_and_what_to_do(tmp_path: Path) -> None:
    declared = "from small import make\nfrom tidemill import Fuse\npipeline = make()\n"
    (tmp_path / "now.py").write_text(declared.replace("make()", "make(partitions=8, fuse=Fuse(run=7))"))
    (tmp_path / "before.py").write_text(declared)
    result = CliRunner().invoke(cli, ["diff", str(tmp_path / "now.py"), "--against", str(tmp_path / "before.py")])
    assert result.exit_code == 0, result.output
    assert result.output.startswith(f"small against {tmp_path / 'before.py'}: 2 changes\n")
    assert "partitions\n        2 -> 8\n  then  Services do not start" in result.output
    assert "  do    `tidemill grow`" in result.output
