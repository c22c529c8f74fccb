"""`tidemill tail --where`: a value is compared as what it is; one that no record can have is refused, not waited for."""

from __future__ import annotations

from typing import Any

import pytest

from tidemill.errors import SettingsError
from tidemill.offline.tail import Where

ROW: dict[str, Any] = {
    "model": "linear",
    "version": 200,
    "score": 0.5,
    "answered": True,
    "note": None,
    "vector": {"user": "7", "price": 1.5},
}


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("model=linear", True),
        ("model=tree", False),
        ("version=200", True),
        ("version=200.0", True),
        ("score=.5", None),
        ("score=0.50", True),
        ("score=5e-1", True),
        ("answered=true", True),
        ("answered=True", True),
        ("answered=False", False),
        ("note=None", True),
        ("note=something", False),
        ("vector.user=7", True),
        ("vector.user=7.0", False),
        ("vector.price=1.5", True),
        ("version=abc", None),
        ("answered=yes", None),
        ("vector.nope=1", None),
        ("nope=1", None),
        ("model.x=1", None),
    ],
)
def test_values_are_compared_as_what_they_are(text: str, taken: bool | None) -> None:
    where = Where([text])
    if taken is not None:
        assert where.takes(ROW) is taken
        return
    with pytest.raises(SettingsError, match=f"--where {text.partition('=')[0]}"):
        where.takes(ROW)
