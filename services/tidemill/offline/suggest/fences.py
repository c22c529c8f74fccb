"""Bounds of a number that a few bad values do not move, and that good values of tomorrow still pass.

As Tukey's fences (Exploratory Data Analysis, 1977) they lie beyond a quantile, by a multiple of the spread there; and
as with the adjusted boxplot (Hubert and Vandervieren, An adjusted boxplot for skewed distributions, Computational
Statistics & Data Analysis 52, 2008) a skewed field has each side's own. Both of those measure in the middle half, to
point at one value in 140 of a normal distribution; here one in 1,000 is already too many, and of a field that is mostly
0 the middle half has no spread. So the spread is that of the tail: from the quantile with 50 times what may be refused
beyond it to that with 5 times. In an exponential tail it is what each further power of ten adds, so three of them leave
out one value in 200,000 (at the default of 0.001); lighter tails, as the normal one, lose less, and a lognormal one
(sigma 1) one in 5,000.
"""

from __future__ import annotations

import math

import numpy as np

from tidemill.offline.suggest.profiles import TYPE_LIMITS, Array, Profile

#: Days of the week, months, hours, days of the month, minutes: integers that fit and reach the end are taken for these.
NATURAL_RANGES = ((0, 6), (1, 7), (1, 12), (0, 23), (1, 31), (0, 59))
#: Where shares and percentages end.
NATURAL_MAXIMA = (1, 100)
#: A value that occurs less often may be a slip.
MIN_OCCURRENCES = 5
#: So many distinct values on the wrong side of 0 stand for "missing" (-1, -99) where they are rare. More are a tail.
MAX_SENTINELS = 3


def bounds(profile: Profile, values: Array, max_share: float) -> tuple[float, float]:
    """Return readable bounds for a field, given a sorted sample of its values and the share that may be refused."""
    is_integer = profile.is_integer
    natural = _natural(values, max_share) if is_integer else None
    if natural:
        return natural
    low, high = _fence(values, -1, max_share), _fence(values, 1, max_share)
    nearly = _at(len(values), 5 * max_share)
    if low < 0 <= values[nearly] and not _tail(values[(values >= low) & (values < 0)], values, max_share):
        low = 0
    if values[-1 - nearly] <= 0 < high and not _tail(values[(values > 0) & (values <= high)], values, max_share):
        high = 0
    for top in NATURAL_MAXIMA:
        inside = values[values <= top]
        if (
            0 <= low < 0.99 * top <= inside[-1:].sum()
            and high > top
            and not _tail(values[(values > top) & (values <= high)], values, max_share)
        ):
            high = top
    return rounded(low, high, is_integer=is_integer, limits=TYPE_LIMITS[profile.kind])


def _at(size: int, share: float) -> int:
    return math.floor(min(share, 0.5) * (size - 1))


def _tail(beyond: Array, values: Array, max_share: float) -> bool:
    """Return whether values beyond a natural end show that it is none."""
    return len(beyond) > max_share * len(values) or len(np.unique(beyond)) > MAX_SENTINELS


def _natural(values: Array, max_share: float) -> tuple[int, int] | None:
    distinct, times = np.unique(values, return_counts=True)
    frequent = {int(value): int(n) for value, n in zip(distinct, times, strict=True) if n >= MIN_OCCURRENCES}
    for low, high in NATURAL_RANGES:
        inside = int(times[(distinct >= low) & (distinct <= high)].sum())
        covered = sum(low <= value <= high for value in frequent)
        # An end is where counts fall all at once, and not as they did before it.
        at_end, after = frequent.get(high, 0), int(times[distinct == high + 1].sum())
        is_end = at_end * at_end > 2 * after * frequent.get(high - 1, 0)
        if inside >= (1 - 2 * max_share) * len(values) and 2 * covered >= high - low + 1 and is_end:
            return low, high
    return None


def _fence(values: Array, sign: int, max_share: float) -> float:
    """Return the fence of one side; +1 is the upper one. Whole numbers are Python's own, which do not overflow."""
    size = len(values)

    def at(share: float) -> float:
        index = _at(size, share)
        value: float = values[size - 1 - index if sign > 0 else index].item()
        return value

    def beyond(bound: float) -> float:
        return len([value for value in outer if (value > bound if sign > 0 else value < bound)]) / size

    base, inner, last = at(min(5 * max_share, 0.02)), at(min(50 * max_share, 0.2)), at(2 * max_share)
    outer = (values[values > base] if sign > 0 else values[values < base]).tolist()
    spread = base - inner
    best = base + 3 * spread
    if spread == 0 and len(outer) >= 100 and len(set(outer)) > MAX_SENTINELS:
        # One value has nearly all of the weight: the tail is that of the others.
        return _fence(np.array(sorted(outer), values.dtype), sign, max_share * size / len(outer))
    # Heavier tails, and then what lies apart from all the rest and is too much to be an error.
    for wider in (base + 6 * spread, last + (last - base)):
        if beyond(best) > max_share / 2 and beyond(wider) <= beyond(best) / 2:
            best = wider
    if beyond(best) > 1.5 * max_share:
        last = at(max_share / 2)
        best = last + (last - base)
    return best


def rounded(low: float, high: float, *, is_integer: bool, limits: tuple[float, float]) -> tuple[float, float]:
    """Return readable bounds, not narrower: in steps of 1, 2 or 5 times a power of ten, a tenth of the width or less.

    >>> rounded(-94, 591.25, is_integer=True, limits=(-1e15, 1e15))
    (-100, 600)
    >>> rounded(0, 0.33, is_integer=False, limits=(-1e15, 1e15))
    (0, 0.34)
    """
    if high - low < 1e-290:  # a power of ten that no double has
        return low, high
    power = math.floor(math.log10((high - low) / 10))
    while 10 * 10**power > (high - low):
        power -= 1
    step = max(n for n in (1, 2, 5) if n * 10 * 10**power <= high - low)
    if power >= 0 or is_integer:
        step = max(step * 10**power, 1) if power >= 0 else 1
        low, high = math.floor(low) // step * step, -(-math.ceil(high) // step) * step
    else:
        per = 10**-power  # divide by a power of ten: 34 / 100 is 0.34, 34 * 0.01 is not
        low = min(low, math.floor(low * per / step) * step / per)  # by a step's own rounding it may lie within
        high = max(high, math.ceil(high * per / step) * step / per)
        low, high = (int(end) if end == int(end) else end for end in (low, high))
    return max(low, limits[0]), min(high, limits[1])
