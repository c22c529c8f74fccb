"""The mean of a field's values, shrunk towards what is expected of an entity that little is known of."""

from __future__ import annotations

import math

from tidemill.aggregates.base import Aggregate, Count, Window, require_windows
from tidemill.aggregates.sum import Sum


def shrunk_mean(over: str, prior: float, weight: float, *windows: str) -> list[Aggregate]:
    """Mean of `over` with shrinkage, (sum + weight * prior) / (n + weight): as if `weight` values more were `prior`.

    Over "label" it is the target mean of an entity (Micci-Barreca 2001, "A preprocessing scheme for high-cardinality
    categorical attributes", with n / (n + weight) for its lambda), also known as additive smoothing. It is never
    missing for want of values: where the window has none it says `prior`. Raises ValueError unless `prior` is finite
    and `weight` is finite and above 0.

    Examples
    --------
    >>> from tidemill.testing import try_aggregates
    >>> delays = [("1m", {"delay": 4.0}), ("2m", {"delay": None}), ("3m", {"delay": 10.0})]
    >>> try_aggregates(shrunk_mean("delay", 1.0, 2.0, "1h"), delays, at="10m")
    {'shrunk_mean_delay_1h': 4.0}
    """
    for name, value in (("prior", prior), ("weight", weight)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"shrunk_mean: {name} is {value!r} where a finite number was expected")
    if weight <= 0:
        raise ValueError(f"shrunk_mean: weight is {weight!r} where a number above 0 was expected; mean(...) has none")
    columns = Count(over), Sum(over)
    n, s = (column.name for column in columns)
    expected, many = float(prior), float(weight)

    def read(w: Window, _: int) -> float | None:
        total: float = sum(w[n])
        return (sum(w[s]) + many * expected) / (total + many) if total else expected  # exactly, without rounding

    given = require_windows("shrunk_mean", (over, prior, weight), windows)
    return [Aggregate("shrunk_mean", over, window, columns, read, empty=expected) for window in given]
