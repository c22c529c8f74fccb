"""A model that draws at random is the same each time it is made of a declaration, whether that gives a seed or not."""

from __future__ import annotations

import collections
import contextlib
import random
from typing import Any

import numpy as np
import pytest
import river_models
import small
from river import (
    bandit,
    compose,
    drift,
    ensemble,
    forest,
    linear_model,
    metrics,
    model_selection,
    optim,
    preprocessing,
)
from river.base import Base

from tidemill.cli.text.declaration import pipeline_text
from tidemill.declare.seeding import is_rivers, seed
from tidemill.declare.stable_repr import parameters
from tidemill.registry import snapshots
from tidemill.registry.parts import parts_of

MAKERS = river_models.makers()
#: What River itself can't open again: it keeps the addresses of its leaves. Models of it are refused.
NOT_BY_RIVER = "feature_extraction.kernel_approx.RandomTreesEmbedding"


def made(model: Any, name: str = "m") -> bytes:
    return snapshots.dump(small.make(models={name: model}, champion=name).model(name))


def test_what_draws_without_a_seed_is_made_the_same_each_time() -> None:
    model = preprocessing.StandardScaler() | forest.ARFRegressor()
    assert made(model) == made(model)
    assert made(model) != made(model, "other"), "models draw apart"


def test_parts_within_parts_are_seeded_each_with_its_own() -> None:
    model = ensemble.EWARegressor(
        [linear_model.LinearRegression(initializer=optim.initializers.Normal()) for _ in range(2)]
    )
    pipeline = small.make(models={"m": model}, champion="m")
    assert pipeline.unseeded("m") == ["Normal", "Normal"]
    one, two = pipeline.model("m").models
    assert one.initializer.seed != two.initializer.seed


def test_a_declared_seed_stays_and_the_declaration_too() -> None:
    model = compose.Pipeline(preprocessing.FeatureHasher(seed=7), linear_model.LinearRegression())
    pipeline = small.make(models={"m": model}, champion="m")
    assert (pipeline.unseeded("m"), pipeline.model("m")["FeatureHasher"].seed) == ([], 7)
    drawing = preprocessing.FeatureHasher()
    hashed = small.make(models={"m": drawing | linear_model.LinearRegression()}, champion="m")
    assert drawing.seed is None
    assert "seed=None" in hashed.stable_repr("m")
    assert hashed.model("m").transform_one({"carrier": "UA"}) == hashed.model("m").transform_one({"carrier": "UA"})


def test_check_says_what_is_seeded() -> None:
    text = pipeline_text(small.make(models={"m": forest.ARFRegressor()}, champion="m"))
    assert "model m: ARFRegressor draws at random, and is declared without a seed" in " ".join(text.split())


def test_a_detector_that_is_copied_in_its_own_way_is_seeded() -> None:
    model = forest.ARFRegressor(n_models=2, drift_detector=drift.DummyDriftDetector("random", t_0=20, w=10))
    assert made(model) == made(model)


class Own:
    """A model of the pipeline's own around one of River's."""

    def __init__(self) -> None:
        self.inner = ensemble.BaggingRegressor(linear_model.LinearRegression())

    def learn_one(self, x: Any, y: Any) -> None:
        self.inner.learn_one(x, y)

    def predict_one(self, x: Any) -> Any:
        return self.inner.predict_one(x)


class InADeque(Own):
    def __init__(self) -> None:
        self.inners = collections.deque([ensemble.BaggingRegressor(linear_model.LinearRegression())])


class InSlots:
    __slots__ = ("inner",)
    learn_one, predict_one = Own.learn_one, Own.predict_one

    def __init__(self) -> None:
        self.inner = ensemble.BaggingRegressor(linear_model.LinearRegression())


class InASlot(InSlots):
    __slots__ = "more"  # one, and not four letters

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.more = None, self.inner


@pytest.mark.parametrize("own", [Own, InADeque, InSlots, InASlot])
def test_a_part_within_an_object_of_somebody_elses_is_seeded(own: Any) -> None:
    assert small.make(models={"m": own()}, champion="m").unseeded("m") == ["BaggingRegressor"]


@pytest.mark.filterwarnings("ignore")
def test_whatever_is_rivers_alone_is_known_as_that_and_a_function_of_somebody_elses_is_not() -> None:
    others = set()
    for name, make in MAKERS.items():
        thing = None
        with contextlib.suppress(Exception):  # a part of something else, that needs what it is a part of
            thing = make()
        if not is_rivers(thing):
            others.add(name)
    assert others == {"compose.func.FuncTransformer#1", "compose.target_transform.TargetTransformRegressor#1"}
    assert not is_rivers(Own())
    assert not is_rivers(compose.FuncTransformer(lambda x: x) | linear_model.LinearRegression())


def test_a_policy_that_chooses_among_pipelines_is_the_same_each_time() -> None:
    arms = [compose.SelectType(float, bool) | linear_model.LinearRegression(optim.SGD(rate)) for rate in (0.1, 0.01)]
    model = model_selection.BanditRegressor(arms, metric=metrics.MAE(), policy=bandit.EpsilonGreedy(0.2))
    assert made(model) == made(model)


def drawing() -> list[str]:
    """Return the names of River's classes that take a seed."""
    names = []
    for name, make in MAKERS.items():
        if name.startswith(NOT_BY_RIVER):
            continue
        with contextlib.suppress(Exception):  # a part of something else, that needs what it is a part of
            if isinstance(thing := make(), Base) and "seed" in parameters(thing):
                names.append(name)
    return names


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_everything_of_rivers_that_draws_is_the_same_again_and_is_opened_after_it_was_seeded() -> None:
    names = drawing()
    assert len(names) > 60
    for number, name in enumerate(names):

        def make(name: str = name) -> Any:
            thing = MAKERS[name]()
            thing.__init__(**parameters(thing) | {"seed": None})
            assert seed(thing, "content")
            return thing

        answers = []
        for state in (number, number + 1):  # what draws from somewhere else than its seed is told by this
            random.seed(state)
            np.random.seed(state)
            thing, _ = river_models.taught(make, 30)
            opened = snapshots.load(snapshots.dump(thing), parts=parts_of(make()))
            asked = [x for x, _ in river_models.rows(3, seed=7)]
            answers += [[river_models.answers(one, x) for x in asked] for one in (thing, opened)]
        assert all(one == answers[0] for one in answers), name
