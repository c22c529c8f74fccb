"""What the demo says: a row for each service that the pipeline runs, and what another terminal needs to command it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tidemill import load
from tidemill.demo.screen import flows
from tidemill.demo.show import _exports
from tidemill.local.stack import Stack, roles
from tidemill.registry.decisions import ModelRef

COUNTS = Counter({"events.valid": 9, "features": 7, "updates": 30, "predictions": 6, "examples": 4, "promotions": 2})


def seen(pipeline: str) -> Any:
    """What an observer knows, of which the screen reads nothing else."""
    return SimpleNamespace(
        pipeline=load(pipeline),
        counts=COUNTS,
        latest={"slow": {"examples": 3}},
        champion=ModelRef("slow", 3),
        pending=1,
    )


@pytest.mark.parametrize("pipeline", ["flights", "delays"])  # the second has neither gate nor views of others
def test_there_is_a_row_for_each_service_that_works_on_the_river(pipeline: str) -> None:
    rows = flows(seen(pipeline), SimpleNamespace(events=9, labels=5))  # type: ignore[arg-type]
    assert sorted(row.name for row in rows) == sorted({role.partition(":")[0] for role in roles(load(pipeline))})


def test_rows_say_what_has_come_out_and_what_waits() -> None:
    rows = {row.name: row for row in flows(seen("flights"), SimpleNamespace(events=9, labels=5))}  # type: ignore[arg-type]
    assert (rows["featurizer"].done, rows["featurizer"].waits) == (7, 2)
    assert (rows["materializer"].done, rows["materializer"].waits) == (30, None)
    assert (rows["learner"].done, rows["learner"].waits) == (3, 1)  # by the champion's newest version
    assert (rows["gate"].done, rows["gate"].unit) == (2, "decisions; slow@3 serves")


def test_another_terminal_is_told_what_it_needs_but_no_secret_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TIDEMILL_STATUS_TOKEN", raising=False)
    stack = Stack("flights", load("flights"), tmp_path, {"brokers": "b:1", "status_token": "a token"})
    said = _exports(stack, "http://localhost:1/")
    for name in ("STATUS_URL=http://localhost:1/", "STATUS_TOKEN=a token", "BROKERS=b:1", "STORE_URL=", "VERIFY_KEYS="):
        assert f"export TIDEMILL_{name}" in said
    monkeypatch.setenv("TIDEMILL_STATUS_TOKEN", "a token")
    assert "a token" not in _exports(stack, "http://localhost:1/")
