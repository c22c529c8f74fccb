"""A model that draws at random is the same each time it is made of a declaration, whether that gives a seed or not."""

from __future__ import annotations

from typing import Any

import small
from river import compose, ensemble, forest, linear_model, optim, preprocessing

from tidemill.cli.text.declaration import pipeline_text
from tidemill.registry import snapshots


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
