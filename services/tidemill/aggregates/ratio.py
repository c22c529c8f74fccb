"""One aggregate by another."""

from __future__ import annotations

from collections.abc import Sequence

from tidemill.aggregates.base import Aggregate, Window


def _divided(above: float | None, below: float | None) -> float | None:
    if above is None or not below or below - below != 0:  # a sum that overflowed is missing, and no number is 0 of it
        return None
    return above / below


def _one(given: Aggregate | Sequence[Aggregate]) -> Aggregate:
    many = [given] if isinstance(given, Aggregate) else given
    if not isinstance(many, (list, tuple)) or len(many) != 1 or not isinstance(many[0], Aggregate):
        raise ValueError(f"ratio: {given!r} where one aggregate with one window was expected, as in count('1h')")
    return many[0]


def ratio(above: Aggregate | Sequence[Aggregate], below: Aggregate | Sequence[Aggregate]) -> list[Aggregate]:
    """The aggregate `above` divided by the aggregate `below`, both of the same window.

    As in `ratio(sum("a", "1h"), count("1h"))`, which is called `sum_a_1h_per_count_1h`. Missing where either is, or
    `below` is 0. Raises ValueError where the windows differ, or where one of the two is not one aggregate (or the list
    of one that the functions return).

    Examples
    --------
    >>> from tidemill.testing import try_aggregates
    >>> delays = [("1m", {"delay": 4.0}), ("2m", {"delay": None}), ("3m", {"delay": 10.0})]
    >>> from tidemill.aggregates import count, sum
    >>> try_aggregates(ratio(sum("delay", "1h"), count("1h")), delays, at="10m")
    {'sum_delay_1h_per_count_1h': 4.666666666666667}
    """
    a, b = _one(above), _one(below)
    if a.window_ms != b.window_ms:
        raise ValueError(f"ratio: {a.name} and {b.name} have different windows; both need the same")

    def read(w: Window, now: int) -> float | None:
        return _divided(a.read(w, now), b.read(w, now))

    return [
        Aggregate(
            "ratio",
            "",
            a.window,
            tuple(dict.fromkeys(a.columns + b.columns)),
            read,
            empty=_divided(a.empty, b.empty),
            title=f"{a.name}_per_{b.name}",
            parts=(*(a.parts or (a,)), *(b.parts or (b,))),
        )
    ]
