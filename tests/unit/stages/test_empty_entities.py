"""What is empty is no entity, unless that is declared: nothing is known of it, and nothing remembered."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import small

from tidemill import View, aggregates
from tidemill.offline.backtest import Backtest

VIEWS = [
    View("origin", every="1m", aggregates=[aggregates.count("1h")]),
    View("carrier", every="1m", aggregates=[aggregates.count("1h")]),
    View("carrier", every="1m", aggregates=[aggregates.count("1h")], source="examples"),
]


def vectors(value: str, **more: Any) -> list[dict[str, Any]]:
    """The vectors of three events whose entities are all called this."""
    pipeline = small.make(views=VIEWS, events=replace(small.EVENTS, **more))
    run, seen = Backtest(pipeline), []
    run.predictions = lambda log: seen.append(log["features"])
    times = [n * small.MINUTE for n in range(3)]
    events = [small.event(f"f{n}", at, origin=value, carrier=value) for n, at in enumerate(times)]
    run.run(events, [small.label(f"f{n}", at) for n, at in enumerate(times)])
    return [features["vector"] for features in seen]


@pytest.mark.parametrize("value", ["", " ", "\t\n"])
def test_an_empty_text_is_no_entity(value: str) -> None:
    names = [name for view in VIEWS for name in view.features]
    assert [[vector[name] for name in names] for vector in vectors(value)] == [[None] * 3] * 3


def test_an_empty_text_is_an_entity_where_that_is_declared() -> None:
    names = [name for view in VIEWS[:2] for name in view.features]
    assert [[vector[name] for name in names] for vector in vectors("", empty_entities=True)] == [[0, 0], [1, 1], [2, 2]]
    assert vectors("", empty_entities=True) == vectors("UA")
