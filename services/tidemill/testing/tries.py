"""For those who write rules and aggregates: try one on a few records, without a pipeline."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tidemill.aggregates.base import Aggregate
from tidemill.declare.view import View
from tidemill.durations import milliseconds
from tidemill.features.tiles import Entity, Plan
from tidemill.rules.base import Rule


def try_rule(rule: Rule, *records: Mapping[str, Any], time: str = "time", now: float = 0) -> list[bool]:
    """Return for each of `records`, one after the other, whether it passes `rule`.

    `time` is the field with the event time in ms; only rules that remember read it. `now` is the clock, in ms.
    """
    condition = eval(f"lambda v, record, now: {rule.condition or True}", dict(rule.names))  # noqa: S307  a rule's own
    memory = rule.memory() if rule.memory is not None else None
    passed = []
    for offset, record in enumerate(records):
        value = record[rule.field]
        if value is None:
            passed.append(rule.nullable)
        elif memory is None:
            passed.append(bool(condition(value, record, now)))
        else:
            passed.append(memory.check(value, record, record[time]) is None)
            if passed[-1]:
                memory.add(value, record, record[time], offset)
    return passed


def try_aggregates(
    aggregates: Aggregate | Sequence[Aggregate], events: Iterable[tuple[str, Mapping[str, Any]]], at: str
) -> dict[str, float | None]:
    """Return the features of one entity at `at`, by name, in a view with tiles of a minute.

    `events` and `at` are times since the view began, as in `[("1m", {"delay": 5.0}), ("2m", {"delay": 7.0})]` at "10m".
    """
    plan = Plan(View("entity", every="1m", name="of", aggregates=[aggregates]))
    entity = Entity(plan)
    for time, event in events:
        entity.add(plan, milliseconds(time), event)
    values = plan.read(entity, milliseconds(at))
    return {a.name: value for a, value in zip(plan.view.flat, values, strict=True)}
