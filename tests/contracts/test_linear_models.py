"""January's flights through the demo's models: what learns fast says what River says, to the last digit."""

from __future__ import annotations

from typing import Any

import pytest
from river import linear_model, optim

from tidemill import load
from tidemill.demo import data
from tidemill.models.linear import LinearModel, river_model, specialised
from tidemill.offline.backtest import Backtest, without_models
from tidemill.wire.records import vector_to_x

FLIGHTS = load("flights")
DEPARTURES = load("departures")


@pytest.fixture(scope="module", params=[8, pytest.param(31, marks=pytest.mark.long)])
def january(request: pytest.FixtureRequest) -> list[tuple[dict[str, Any], bool]]:
    """Return the vectors of so many days of January with their labels, in the order of learning."""
    flights, run, examples = data.flights((1,), days=request.param), Backtest(without_models(FLIGHTS)), []
    decode = run.records.example.decode

    def keep(record: Any) -> None:
        example = decode(record.value())
        examples.append((vector_to_x(example["prediction"]["features"]["vector"]), example["label"]))

    run.examples = keep
    run.run([flight.event for flight in flights], data.labels(flights))
    return examples


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "until"), [({}, None), ({"l2": 1e-4}, 2_000), ({"l1": 1e-5}, 2_000), ({"clip_gradient": 0.5}, 2_000)]
)
def test_no_prediction_of_january_differs(
    changes: dict[str, Any], until: int | None, january: list[tuple[dict[str, Any], bool]]
) -> None:
    def make() -> Any:
        model = FLIGHTS.model("logreg")
        model.steps["LogisticRegression"] = linear_model.LogisticRegression(optim.SGD(0.003), **changes)
        return model

    assert len(january) > 3_000
    river, own = make(), specialised(make())
    assert isinstance(own, LinearModel)
    for x, label in january[:until]:
        assert own.predict_proba_one(x) == river.predict_proba_one(x)
        own.learn_one(x, label)
        river.learn_one(x, label)
    assert "learn_one" not in vars(own), "nothing was left to River"
    weights = river["LogisticRegression"].weights
    assert list(river_model(own)["LogisticRegression"].weights.items()) == list(weights.items())


@pytest.mark.slow
def test_no_prediction_of_the_demo_differs(january: list[tuple[dict[str, Any], bool]]) -> None:
    """Its first model is not given a feature that the second has."""
    for name in ("scheduled", "departed"):
        river, own = DEPARTURES.model(name), specialised(DEPARTURES.model(name))
        assert isinstance(own, LinearModel)
        for place, (x, label) in enumerate(january[:2_000]):
            given = {"dep_delay": float(place % 7), **x}
            assert own.predict_proba_one(given) == river.predict_proba_one(given)
            own.learn_one(given, label)
            river.learn_one(given, label)
        assert "learn_one" not in vars(own), "nothing was left to River"
