"""Things of the wrong type in a declaration are said to be so, by the same error that names the field."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import small
from river import compose, linear_model, metrics

import tidemill
from tidemill import (
    Forgetting,
    Fuse,
    Gate,
    Monitor,
    Pipeline,
    Protect,
    Retention,
    Search,
    Training,
    View,
    aggregates,
    load,
    number,
    ranges,
)
from tidemill.declare.feature import Feature
from tidemill.errors import DeclarationError

WRONG: dict[str, dict[str, Any]] = {
    "models: a class": {"models": {"linear": linear_model.LinearRegression}},
    "models: a list": {"models": [small.linear()]},
    "models: none": {"models": {}},
    "request: a list": {"request": ["distance"]},
    "request: a number as name": {"request": {5: number("distance")}},
    "views: an aggregate": {"views": aggregates.count("5m")},
    "views: the name of an aggregate": {"views": [View("origin", every="1m", aggregates=["count"])]},
    "views: none of a view": {"views": [None]},
    "rules: None": {"rules": None},
    "metrics: a class": {"metrics": [metrics.MAE]},
    "metrics: a name": {"metrics": ["MAE"]},
    "baseline: cannot predict": {"baseline": object()},
    "task: a list": {"task": ["regression"]},
    "champion: a list": {"champion": ["linear"]},
    "labels.value: a number": {
        "labels": type(small.LABELS)(small.LABELS.schema, small.LABELS.id, small.LABELS.time, value=5)
    },
    "label_timeout: a number": {"label_timeout": 3600},
    "name: longer than a topic's may be": {"name": "a" * 101},
    "models: a long name": {"models": {"a" * 101: small.linear()}},
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_type_is_a_declaration_error_that_names_its_field(what: str) -> None:
    with pytest.raises(DeclarationError) as caught:
        small.make(**WRONG[what])
    assert what.partition(":")[0] in str(caught.value)
    assert "\n" not in str(caught.value)


#: Each kind of declaration: a good one, and what a pipeline with it is made of. Their fields are found by themselves.
DECLARATIONS: list[tuple[Any, Callable[[Any], dict[str, Any]]]] = [
    (Feature("number", "distance"), lambda feature: {"request": {"distance": feature}}),
    (Fuse(), lambda fuse: {"fuse": fuse}),
    (Gate(), lambda gate: {"gate": gate}),
    (Monitor(), lambda monitor: {"monitor": monitor}),
    (small.make(), lambda pipeline: {}),
    (Protect("origin"), lambda protect: {"protect": protect}),
    (Forgetting(), lambda forgetting: {"forgetting": forgetting}),
    (Retention(), lambda retention: {"retention": retention}),
    (Search(small.linear, {"rate": ranges.uniform(0, 1)}), lambda search: {"search": {"linear": search}}),
    (small.EVENTS, lambda events: {"events": events}),
    (Training("linear"), lambda training: {"training": training}),
    (View("origin", every="1m", aggregates=aggregates.count("5m")), lambda view: {"views": [view]}),
]
FIELDS = [
    pytest.param(good, field.name, of, id=f"{type(good).__name__}.{field.name}")
    for good, of in DECLARATIONS
    for field in fields(good)
    if field.init
]


def test_every_public_declaration_is_held_to_its_fields() -> None:
    public = {getattr(tidemill, name) for name in tidemill.__all__}
    assert {part for part in public if is_dataclass(part)} | {Feature} == {type(good) for good, _ in DECLARATIONS}


def refusal(good: Any, field: str, value: Any, of: Callable[[Any], dict[str, Any]]) -> str:
    """Return the message with which a value of one field is refused."""
    changes = {field: value} if isinstance(good, Pipeline) else of(replace(good, **{field: value}))
    with pytest.raises(DeclarationError) as caught:
        small.make(**changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(("good", "field", "of"), FIELDS)
def test_a_field_of_the_wrong_type_is_named_whatever_its_declaration(
    good: Any, field: str, of: Callable[[Any], dict[str, Any]]
) -> None:
    assert isinstance(good, Pipeline) or small.make(**of(good))
    wrong = [object()]
    if type(getattr(good, field)) in (int, float):
        wrong += [True, "5", None, float("nan")]
    for value in wrong:
        message = refusal(good, field, value, of)
        assert field in message
        assert repr(value) in message or "<object object" in message or "object has no" in message


@pytest.mark.parametrize(
    "code",
    [
        "raise ValueError('one\\ntwo')",
        "import no_such_module_of_anybody",
        "raise SystemExit(3)",
        "x = (",
        "x = 1\n\ty = 2",
        "from tidemill.demo.flights import flights\nflights.x = 1",
        "assert False, 'a\\nb'",
        "1/0",
        "from tidemill import load\nload('nothing.py')",
        "def f(): return f()\nf()",
    ],
)
def test_a_file_that_fails_is_one_line_with_its_name(tmp_path: Path, code: str) -> None:
    path = tmp_path / "broken_file.py"
    path.write_text(code)
    with pytest.raises(DeclarationError) as caught:
        load(str(path))
    assert "\n" not in str(caught.value)
    assert "nothing.py" in str(caught.value) or "broken_file.py" in str(caught.value)


@pytest.mark.parametrize(
    "reference", ["", ":", ".", "..", "a b", "/", ".py", "flights:", "tidemill.nothing:x", "\0", "é.py", ":flights"]
)
def test_any_reference_is_a_pipeline_or_a_declaration_error(reference: str) -> None:
    assert "\n" not in said_of(reference)


def said_of(reference: str) -> str:
    try:
        return load(reference).name
    except DeclarationError as error:
        return str(error)


MODELS = """
import small
from river import compose, linear_model, preprocessing
def named(x): return x
models = {
    "select": compose.Select("a", "bb", "ccc", "dddd") | linear_model.LinearRegression(),
    "discard": compose.Discard("a", "bb", "ccc", "dddd") | linear_model.LinearRegression(),
    "function": compose.FuncTransformer(named) | linear_model.LinearRegression(),
    "union": (compose.Select("a", "b") + compose.Select("c", "d")) | linear_model.LinearRegression(),
    "linear": small.linear(),
}
pipeline = small.make(models=models)
print([pipeline.declaration_hash(name) for name in models])
"""


@pytest.mark.slow
def test_a_declaration_has_the_same_hash_in_every_process() -> None:
    def said(seed: str) -> str:
        path = os.pathsep.join([str(Path(small.__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path}
        return subprocess.run(
            [sys.executable, "-c", MODELS], env=environment, capture_output=True, text=True, check=True
        ).stdout

    assert said("0") == said("1")


def test_any_model_that_is_accepted_has_a_hash() -> None:
    """River's own repr of a selection of two types raises TypeError: a learner would never publish a version."""
    model = compose.SelectType(str, float) | linear_model.LinearRegression()
    assert small.make(models={"linear": model}).declaration_hash("linear")
