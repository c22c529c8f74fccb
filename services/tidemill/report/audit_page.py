"""The page of an audit: one HTML file without scripts, which shows what is in its JSON and nothing else."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

from tidemill.report.page import template_environment

#: Told apart in grey as well, where a page is printed: each model has its own.
COLOURS = ("#0b6a87", "#c2571a", "#7a4fc0", "#3b7d23", "#b8327f", "#8a6d00")
MAX_DRIFT_LINES = 20


def render(content: Mapping[str, Any], key_id: str) -> str:
    """Return the page of an audit; `key_id` is of the key that signs it, empty where none does."""
    environment = template_environment()
    environment.filters |= {"second": second, "score": "{:.9g}".format}
    return environment.get_template("audit.html").render(
        audit=content,
        key_id=key_id,
        turns=_turns(content),
        drift=content["drift"][:MAX_DRIFT_LINES],
        wrong=[one["text"] for one in content["findings"] if one["level"] == "wrong"],
        notes=[one["text"] for one in content["findings"] if one["level"] != "wrong"],
        letters=content["dead_letters"]["kinds"],
    )


def second(ms: float | None) -> str:
    """Return a time to the second, in UTC; the number itself where no calendar has such a time."""
    if ms is None:
        return ""
    try:
        return dt.datetime.fromtimestamp(ms / 1000, dt.UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return str(ms)


def _turns(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return who served, each with its share of the period in percent, and its model's colour."""
    period = content["to"] - content["from"]
    models = list(dict.fromkeys(turn["model"] for turn in content["serving"]))
    return [
        {
            **turn,
            "percent": 100 * (turn["to"] - turn["from"]) / period,
            "colour": COLOURS[models.index(turn["model"]) % len(COLOURS)],
        }
        for turn in content["serving"]
    ]
