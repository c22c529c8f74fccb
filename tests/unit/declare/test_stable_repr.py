"""The text of a model, of which its versions' identity is made: it has every parameter, and no address."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import river_models
import small
from river import bandit, compose, ensemble, forest, linear_model, metrics, model_selection, neighbors, optim, utils
from river.base import Base

from tidemill.declare.stable_repr import parameters, stable_repr

#: Parameters that River does not keep as they were given.
NOT_KEPT = frozenset({"split_criterion", "leaf_prediction"})


def linear(rate: float = 0.01) -> Any:
    return compose.SelectType(float, bool) | linear_model.LinearRegression(optim.SGD(rate))


def chosen(policy: Any) -> Any:
    return model_selection.BanditRegressor([linear(), linear(0.1)], metric=metrics.MAE(), policy=policy)


class Own:
    """A model of the pipeline's own, as a beginner writes it."""

    def __init__(self, rate: float) -> None:
        self.rate, self.inner = rate, chosen(bandit.UCB(1.0))
        self.own = self


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda: forest.ARFClassifier(n_models=3), lambda: forest.ARFClassifier(n_models=4)),
        (
            lambda: compose.SelectType(float) | ensemble.BaggingRegressor(linear(), seed=1),
            lambda: compose.SelectType(float) | ensemble.BaggingRegressor(linear(), seed=2),
        ),
        (lambda: chosen(bandit.EpsilonGreedy(0.1)), lambda: chosen(bandit.EpsilonGreedy(0.2))),
        (lambda: chosen(bandit.UCB(1.0)), lambda: chosen(bandit.BayesUCB())),
        (
            lambda: neighbors.KNNRegressor(
                engine=neighbors.SWINN(dist_func=functools.partial(utils.math.minkowski_distance, p=1))
            ),
            lambda: neighbors.KNNRegressor(
                engine=neighbors.SWINN(dist_func=functools.partial(utils.math.minkowski_distance, p=2))
            ),
        ),
        (lambda: linear(1.2e-5), lambda: linear(1.4e-5)),
        (lambda: Own(0.1), lambda: Own(0.2)),
    ],
)
def test_models_that_differ_have_different_texts_and_the_same_one_has_the_same(one: Any, other: Any) -> None:
    assert stable_repr(one()) == stable_repr(one()) != stable_repr(other())
    assert " at 0x" not in stable_repr(one())


def test_a_change_of_a_forest_is_another_declaration() -> None:
    """River prints `[]` for a forest that has learned nothing: its learner went on with the versions of another one."""
    hashes = {
        small.make(models={"m": forest.ARFRegressor(n_models=n)}, champion="m").declaration_hash("m") for n in (3, 4)
    }
    assert len(hashes) == 2


def things() -> Iterator[tuple[str, Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, make in river_models.makers().items():
            try:
                thing = make()
            except Exception:  # a part of something else, that needs what it is a part of
                continue
            if isinstance(thing, Base):
                yield name, thing


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_parameter_of_every_class_of_rivers_is_in_its_text() -> None:
    tried, lost = 0, []
    for name, thing in things():
        text = stable_repr(thing)
        assert " at 0x" not in text, name
        for parameter, value in parameters(thing).items():
            if parameter in NOT_KEPT or value is not getattr(thing, parameter, None):
                continue
            changed = copy.deepcopy(thing)
            try:
                setattr(changed, parameter, 12345.678)
            except AttributeError:  # it is computed
                continue
            tried += 1
            if stable_repr(changed) == text:
                lost.append((name, parameter))
    assert tried > 1_000
    assert lost == []
