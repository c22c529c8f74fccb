"""Every model, metric and statistic of River's, in every way that River tests it, is saved, opened and answers as before."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import river_models

from tidemill.registry import snapshots
from tidemill.registry.parts import parts_of

pytestmark = pytest.mark.slow

MAKERS = river_models.makers()
#: What River itself can't open again: it keeps the addresses of its leaves.
NOT_BY_RIVER = "feature_extraction.kernel_approx.RandomTreesEmbedding"
PACKAGES = sorted({name.partition(".")[0] for name in MAKERS})
PREDICT = ("predict_proba_one", "predict_one", "score_one")


def things(package: str) -> Iterator[tuple[str, river_models.Maker]]:
    for name, make in MAKERS.items():
        if name.partition(".")[0] == package and not name.startswith(NOT_BY_RIVER):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    make()
            except Exception:  # a part of something else, that needs what it is a part of
                continue
            yield name, make


def opened(make: river_models.Maker, thing: Any) -> Any:
    """What comes back, where only that is allowed which an untaught one consists of, or makes while it learns."""
    return snapshots.load(snapshots.dump(thing), parts=parts_of(make()))


def answers(thing: Any, count: int) -> list[list[str]]:
    return [river_models.answers(thing, x) for x, _ in river_models.rows(count, seed=7)]


def test_the_sweep_is_of_all_of_river() -> None:
    made = [name for package in PACKAGES for name, _ in things(package)]
    classes = {name.partition("#")[0] for name in made}
    assert len(made) > 400
    assert len(classes) > 260
    for known in ("linear_model.pa.PAClassifier", "ensemble.bagging.LeveragingBaggingClassifier"):
        assert known in classes
    for known in ("feature_extraction.vectorize.TFIDF", "model_selection.bandit.BanditClassifier"):
        assert known in classes
    assert "tree.hoeffding_adaptive_tree_classifier.HoeffdingAdaptiveTreeClassifier" in classes


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.filterwarnings("ignore")
def test_what_was_taught_is_opened_and_answers_as_before(package: str) -> None:
    for name, make in things(package):
        thing, _ = river_models.taught(make, 150)
        again = opened(make, thing)
        assert type(again) is type(thing), name
        assert answers(again, 20) == answers(thing, 20), name


@pytest.mark.parametrize("package", ["anomaly", "ensemble", "forest", "linear_model", "naive_bayes", "tree"])
@pytest.mark.filterwarnings("ignore")
def test_it_goes_on_learning_as_if_it_had_never_been_saved(package: str) -> None:
    for name, make in things(package):
        thing, taken = river_models.taught(make, 60)
        again = opened(make, thing)
        if taken < 60:
            continue
        for one in (thing, again):
            river_models.teach_more(one, 60)
        assert answers(again, 20) == answers(thing, 20), name


@pytest.mark.long
@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.filterwarnings("ignore")
def test_ten_thousand_questions_have_equal_answers(package: str) -> None:
    for name, make in things(package):
        if any(hasattr(make(), method) for method in PREDICT):
            thing, _ = river_models.taught(make, 400)
            again = opened(make, thing)
            assert answers(again, 10_000) == answers(thing, 10_000), name
