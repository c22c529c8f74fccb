"""Protection: one source has a limited share of what a model learns, so that its flood of labels does not decide all.

Whether an example is learned is a function of the examples before it alone, as the model is; it is the same for every
model of the pipeline. An example that is not learned is still judged: it was a question, and has its answer.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tidemill.declare.protect import Protect

#: Characters of a source's name that count: the names go into every snapshot, and anybody may send some.
MAX_SOURCE_CHARACTERS = 64

#: A category's value, or an entity's id; None where it is missing, which counts as one source.
Source = str | None


def source_of(name: str, vector: Mapping[str, str]) -> Callable[[Mapping[str, Any]], Source]:
    """Return the function that finds an example's source: a category of the vector, or else the entity."""
    if vector.get(name) == "category":
        return lambda features: features["vector"][name]
    return lambda features: features["entity_id"]


class Shares:
    """The sources of the last examples that were learned, in their order."""

    def __init__(self, protect: Protect) -> None:
        self._of = protect.of
        self._most = math.ceil(protect.share * protect.of - 1e-9)  # 0.07 * 100 is a little more than 7
        self._last: deque[Source] = deque()
        self._counts: Counter[Source] = Counter()

    def take(self, source: Source) -> bool:
        """Whether the next example, of this source, is to be learned; if so, it is counted."""
        if source is not None:
            source = source[:MAX_SOURCE_CHARACTERS]
        counts, last = self._counts, self._last
        if counts[source] >= self._most:
            return False
        counts[source] += 1
        last.append(source)
        if len(last) > self._of:
            oldest = last.popleft()
            counts[oldest] -= 1
            if not counts[oldest]:
                del counts[oldest]
        return True

    def saved(self) -> list[Source]:
        """Return the sources for a snapshot; equal names are one object, which a pickle holds once."""
        names: dict[Source, Source] = {}
        return [names.setdefault(source, source) for source in self._last]

    def restore(self, saved: Sequence[Source]) -> None:
        """Go on from a snapshot's sources."""
        self._last, self._counts = deque(saved), Counter(saved)
