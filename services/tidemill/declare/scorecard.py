"""A pipeline's metrics as one: fed with the same predictions, each under a name of its own."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from river.base import Base

from tidemill.declare.counted_metrics import CountedMetric
from tidemill.declare.tasks import Judged
from tidemill.errors import described

_NOT_SAVED = "it is not among the metrics that were saved: it has raised, or was declared later"

#: Of a list or a dict in a metric, so many are looked at: matrices have as many as there are classes, or thresholds.
MAX_PARTS = 50


def metric_names(metrics: Sequence[Any], declared: Sequence[Any] = ()) -> tuple[str, ...]:
    """Return each metric's name: its class, and what differs where several are of one class, as in FBeta(beta=2).

    `declared`: all that the pipeline declares, where these are what is left of them.
    """
    of_class: dict[str, list[dict[str, Any]]] = {}
    for metric in declared or metrics:
        of_class.setdefault(type(metric).__name__, []).append(_parameters(metric))
    return tuple(_name(type(metric).__name__, _parameters(metric), of_class) for metric in metrics)


def _parameters(metric: Any) -> dict[str, Any]:
    return metric._get_params() if isinstance(metric, Base) else {}


def _name(name: str, parameters: dict[str, Any], of_class: dict[str, list[dict[str, Any]]]) -> str:
    alike = of_class.get(name, [])
    differing = [
        f"{key}={value!r}"
        for key, value in parameters.items()
        if any(one.get(key) != alike[0].get(key) for one in alike)
    ]
    return f"{name}({', '.join(differing)})" if differing else name


class Scorecard:
    """Metrics that judge the same predictions. One that raises is left out from then on, and stops nobody.

    Parameters
    ----------
    metrics
        River's, or ones of the same kind; they are updated in place.
    names
        What they are called; by default see `metric_names`, which takes what is `declared`.
    """

    __slots__ = ("_by_name", "failed", "judged")

    def __init__(self, metrics: Sequence[Any], names: Sequence[str] = (), declared: Sequence[Any] = ()) -> None:
        counted = [CountedMetric(metric) for metric in metrics]
        self._by_name = dict(zip(names or metric_names(metrics, declared), counted, strict=True))
        #: How many predictions were judged, and why a metric was left out, by its name.
        self.judged = 0
        self.failed = dict.fromkeys(metric_names(declared), _NOT_SAVED)
        for name in self._by_name:
            self.failed.pop(name, None)

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return iter([(name, counted.add()) for name, counted in self._by_name.items()])

    @property
    def metrics(self) -> list[Any]:
        """The metrics themselves, as they are saved."""
        return [metric for _, metric in self]

    def update(self, label: Any, judged: Judged | None) -> None:
        """Judge one prediction; None was no answer, and is not judged."""
        if judged is None:
            return
        self.judged += 1
        failed = []
        for name, counted in self._by_name.items():
            try:
                counted.take(label, judged)
            except Exception as error:  # a metric's own code: it must not end a learner
                failed.append(name)
                self.failed[name] = f"it raised {described(error)}"
        for name in failed:
            del self._by_name[name]

    @property
    def has_judged(self) -> bool:
        """Whether the metrics have judged anything, also before they were saved; others' metrics are believed.

        River's have a figure before the first prediction as well, and a log loss of 0 would be the best of all.
        """
        counters = list(_counters(self.metrics))
        return any(counters) or not counters

    def values(self) -> dict[str, float]:
        """Return each metric's number, by name; one that has none is left out."""
        return {name: figure for name, figure in self._figures() if not isinstance(figure, str)}

    def without_number(self) -> dict[str, str]:
        """Return why metrics have no number, by name; nothing before the first prediction, when none has one."""
        if not self.has_judged:
            return {}
        return self.failed | {name: why for name, why in self._figures() if isinstance(why, str)}

    def _figures(self) -> Iterator[tuple[str, float | str]]:
        for name, metric in self:
            try:
                figure = float(metric.get()) + 0.0  # -0.0 is 0.0
            except Exception as error:  # such as a division by zero before the first prediction
                yield name, f"its get() raises {described(error)}"
            else:
                yield name, figure if math.isfinite(figure) else f"it is {figure}"


def _counters(part: Any, depth: int = 4) -> Iterator[float]:
    """Yield how many predictions the parts of one of River's metrics have judged; of others' metrics nothing."""
    if isinstance(part, list | dict):
        parts = part if isinstance(part, list) else part.values()
    elif type(part).__module__.startswith("river."):
        own = getattr(part, "__dict__", {})
        yield from (value for name in ("n", "n_samples") if isinstance(value := own.get(name), int | float))
        parts = own.values()
    else:
        return
    if depth:
        for inner in islice(parts, MAX_PARTS):
            yield from _counters(inner, depth - 1)
