"""Models are tried before they run: asked, taught, saved, opened and asked again, on vectors that are made up."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from typing import Any

from tidemill.declare.load import load
from tidemill.declare.pipeline import Pipeline
from tidemill.declare.seeding import is_rivers
from tidemill.errors import ArtifactError, DeclarationError, ScoreError, described
from tidemill.registry import snapshots
from tidemill.registry.parts import parts_of

#: Examples that a model is taught; some ask for a few before they say anything.
EXAMPLES = 60
_OF_NUMBERS = re.compile(r"number|\b(float|int|str)\b")
#: Features that a hint names.
MAX_SHOWN_TEXTS = 4
#: Up to so many numbers in a vector, each is from 0 to 2.
FULL_SIZE_NUMBERS = 20

_VALUES: Mapping[str, Callable[[int], Any]] = {
    "number": lambda draw: draw % 512 / 256,
    "flag": lambda draw: draw % 3 == 0,
    "category": lambda draw: ("red", "green sea", "blue", "red green")[draw % 4],
}
_LABELS: Mapping[str, Callable[[int], Any]] = {
    "boolean": lambda number: number % 2 == 0,
    "double": lambda number: (number * 7 % 11) / 4,
    "string": lambda number: ("a", "b", "c")[number % 3],
}


def vector(pipeline: Pipeline, number: int) -> dict[str, Any]:
    """Return the made-up vector of this number, with every feature of the pipeline.

    Numbers do not hang together, and the more there are the smaller they are: else what multiplies them diverges, which
    depends on how large real ones are.
    """
    kinds = pipeline.vector
    size = min(1.0, FULL_SIZE_NUMBERS / max(1, [*kinds.values()].count("number")))
    made = {name: _VALUES[kind](_drawn(number, place)) for place, (name, kind) in enumerate(kinds.items())}
    return {name: value * size if kinds[name] == "number" else value for name, value in made.items()}


def _drawn(number: int, place: int) -> int:
    """Return a number of 24 bits that looks like chance, and is the same each time (the finalizer of MurmurHash3)."""
    mixed = number * 65_536 + place + 1
    mixed = (mixed ^ mixed >> 16) * 0x85EBCA6B % 2**32
    mixed = (mixed ^ mixed >> 13) * 0xC2B2AE35 % 2**32
    return (mixed ^ mixed >> 16) >> 8


def check_models(pipeline: Pipeline) -> None:
    """Raise DeclarationError where production would fail with a model: at a question, an example, or a version."""
    for name in pipeline.model_names:
        try:
            _try_model(pipeline, pipeline.model(name))
        except ArtifactError as error:
            where = f"models[{name!r}]" if name in pipeline.models else "baseline"
            hint = _hint(pipeline, pipeline.model(name), error)
            raise DeclarationError(f"pipeline {pipeline.name!r}: {where}: {error}{hint}") from error


def _hint(pipeline: Pipeline, model: Any, error: BaseException) -> str:
    """Return what is likely to be wrong with a model that raised this, where its own words do not say it."""
    while error.__cause__ is not None:
        error = error.__cause__
    kind, texts = pipeline.kind, [repr(name) for name, of in pipeline.vector.items() if of == "category"]
    if isinstance(error, NotImplementedError):
        return f": it gives no probabilities, and task={kind.name!r} needs them"
    if kind.label_type == "string" and not getattr(model, "_multiclass", True):
        return ": it knows two classes, and multiclass.OneVsRestClassifier(...) makes one of several of it"
    if isinstance(error, (TypeError, ValueError)) and texts and _OF_NUMBERS.search(str(error)):
        shown = ", ".join(texts[:MAX_SHOWN_TEXTS]) + (", ..." if len(texts) > MAX_SHOWN_TEXTS else "")
        return (
            f": the vector has text ({shown}): if it takes numbers alone, put compose.SelectType(float) before it, or "
            f"compose.SelectType(str) | preprocessing.OneHotEncoder()"
        )
    return ""


def check_in_other_process(pipeline: Pipeline, reference: str) -> None:
    """Raise DeclarationError where a model that is not River's alone scores something else in another process.

    There `hash` of a text is another number, and what was drawn when the declaration was loaded is drawn again: so it
    would be in a scorer beside its learner, and in a rebuild.
    """
    names = [name for name in pipeline.model_names if not is_rivers(pipeline.model(name))]
    if not names:
        return
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        future = pool.submit(_scores_of, reference, names)
        here = _scores(pipeline, names)
        for name, score, other in zip(names, here, future.result(), strict=True):
            if other != score and not (math.isnan(other) and math.isnan(score)):
                raise DeclarationError(
                    f"pipeline {pipeline.name!r}: models[{name!r}]: it scores {score}, and {other} in another process: "
                    "it draws at random without a seed, or goes by hash(), which is another for a text in each process "
                    "(zlib.crc32 is not)"
                )


def _scores_of(reference: str, names: Sequence[str]) -> list[float]:
    return _scores(load(reference), names)


def _scores(pipeline: Pipeline, names: Sequence[str]) -> list[float]:
    scores = []
    for name in names:
        model = pipeline.model(name)
        for number in range(EXAMPLES):
            _teach(pipeline, model, number)
        scores.append(_ask(pipeline, model, EXAMPLES, f"after {EXAMPLES} examples"))
    return scores


def _try_model(pipeline: Pipeline, untaught: Any) -> None:
    """Raise ArtifactError where a model can't be asked first, taught first, saved and opened, or changes by that.

    Nor may it be another one when it is taught the same again, as every rebuild teaches it.
    """
    (taught, again), parts = (copy.deepcopy(untaught) for _ in range(2)), parts_of(untaught, pipeline.metric())
    _ask(pipeline, untaught, 0, "before its first example")
    asked = untaught
    for number in range(EXAMPLES):
        for model in (taught, again, asked):
            _teach(pipeline, model, number)
        _ask(pipeline, asked, number + 1, f"after {number + 1} examples")
    score = _ask(pipeline, taught, EXAMPLES, f"after {EXAMPLES} examples")
    if not pipeline.kind.predict(taught, vector(pipeline, EXAMPLES))[2]:
        raise ArtifactError(f"its {pipeline.kind.needs[-1]} has no answer after {EXAMPLES} examples")
    opened = snapshots.load(snapshots.dump(taught), parts=parts)
    for model, when in ((opened, "saved and opened"), (again, "taught the same again")):
        other = _ask(pipeline, model, EXAMPLES, f"after it was {when}")
        if other != score and not (math.isnan(other) and math.isnan(score)):
            raise ArtifactError(f"it scores {score}, and {other} when it was {when}: it draws at random, unseeded")


def _ask(pipeline: Pipeline, model: Any, number: int, when: str) -> float:
    kind, x = pipeline.kind, vector(pipeline, number)
    try:
        score = kind.ask(model, x)
    except ArtifactError as error:
        with suppress(Exception):  # what it raises itself says more than what we make of its answer
            answer = getattr(model, kind.needs[-1])(x)
            error = type(error)(f"its {kind.needs[-1]} gives {answer!r}, no answer to task={kind.name!r}")
        diverged = "; if it diverges, lower its learning rates" if isinstance(error, ScoreError) and number else ""
        raise type(error)(f"{error} {when}{diverged}") from error
    _check_vector(pipeline, x, number, kind.needs[-1])
    return score


def _teach(pipeline: Pipeline, model: Any, number: int) -> None:
    label, x = _LABELS[pipeline.kind.label_type](number), vector(pipeline, number)
    try:
        pipeline.kind.learn(model, x, label)
    except Exception as error:  # a model's own code
        raise ArtifactError(f"its learn_one raises {described(error)}, at example {number + 1}") from error
    _check_vector(pipeline, x, number, "learn_one")


def _check_vector(pipeline: Pipeline, x: Mapping[str, Any], number: int, method: str) -> None:
    """Raise ArtifactError where a model has changed the vector that other models are asked with."""
    before = vector(pipeline, number)
    changed = sorted(x.keys() ^ before.keys() or (name for name in x if x[name] != before[name]))
    if changed:
        raise ArtifactError(f"its {method} changes the vector it is given, at {changed[0]!r}: give it a copy, dict(x)")
