"""What the join is, by brute force over all pairs: the oracle that the real one is held to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from tidemill.stages.joiner.join import Event, Join
from tidemill.watermark import SLACK_PART, State, Watermark

T = 10
"""The label timeout of all tests of the join, in ms."""


class Asked(NamedTuple):
    """A prediction in the log."""

    id: str
    time: int


class Told(NamedTuple):
    """A label in its log."""

    id: str
    time: int
    value: float


def chained(join: Join) -> Iterator[Event]:
    """Yield every event that the join keeps, also later ones of an id."""
    for event in join.events.values():
        found: Event | None = event
        while found is not None:
            yield found
            found = found.later


Make = Callable[[int, State], Watermark]


def highest(slack: int, state: State = ()) -> Watermark:
    """The watermark that any record moves: with it few records show all that can happen."""
    return Watermark(slack, state, recent=1, quorum=1)


def three_of_four(slack: int, state: State) -> Watermark:
    """A watermark that most records move, of few enough records that small cases meet it."""
    return Watermark(slack, state, recent=4, quorum=3)


def by_definition(
    log: Sequence[Asked], labels: Sequence[Told], make: Make = highest, corrections: int = 0
) -> tuple[Counter[tuple[Any, ...]], set[int], set[int]]:
    """Return the outcomes of two prefixes of the logs, the events that wait for a label, and the labels that wait.

    Records are named by their offsets, an outcome is (kind, offsets). As joiner/join.py says it, over all pairs. A label
    that is no event's first is named with the one that had given the event's label by then.
    """
    same_id = 2 * T + corrections if corrections else T
    out: Counter[tuple[Any, ...]] = Counter()
    log_ends, label_ends = watermarks(log, make), watermarks(labels, make)
    log_marks = [max(mark, event.time) for mark, event in zip(log_ends, log, strict=True)]
    label_marks = [max(mark, label.time) for mark, label in zip(label_ends, labels, strict=True)]
    events: list[int] = []
    for a, event in enumerate(log):
        if any(log[e].id == event.id and log_marks[a] <= log[e].time + same_id for e in events):
            out["repeated", a] += 1
        else:
            events.append(a)
    given_to: dict[int, int] = {}
    current: dict[int, int] = {}
    waiting: set[int] = set()
    for b, label in enumerate(labels):
        belongs = (
            a for a in events
            if log[a].id == label.id and label_marks[b] <= log[a].time + T and log_marks[a] <= label.time + T
        )  # fmt: skip
        corrects = [
            a for a, first in given_to.items()
            if corrections and log[a].id == label.id and log_marks[a] <= label.time + T
            and label_marks[b] <= labels[first].time + corrections
        ]  # fmt: skip
        a = next(belongs, None)
        assert len({*corrects, a} - {None}) <= 1 or not corrections, "no label is of two events"
        a = next(iter(corrects), None) if a is None else a
        if a is None:
            if log and log_ends[-1] > label.time + T:
                out["unmatched", b] += 1
            else:
                waiting.add(b)
        elif a in given_to:
            if a in corrects and label.value != labels[current[a]].value:
                out["corrected", b, a, current[a]] += 1
                current[a] = b
            else:
                out["duplicate", b, current[a]] += 1
        else:
            given_to[a] = current[a] = b
            out["joined", a, b] += 1
    left = [a for a in events if a not in given_to]
    expired = {a for a in left if labels and label_ends[-1] > log[a].time + T}
    out.update(("expired", a) for a in expired)
    return out, set(left) - expired, waiting


def watermarks(records: Sequence[Asked | Told], make: Make = highest) -> list[int]:
    """Return the watermark after each record."""
    mark, found = make(T // SLACK_PART, ()), []
    for record in records:
        mark.add(record.time)
        found.append(mark.time)
    return found


def held(join: Join) -> int:
    """Return how many things the join keeps."""
    join.kept_events.first(), join.kept_labels.first()
    return (
        sum(1 for _ in chained(join)) + len(join._open) + len(join._closed) + len(join._queue)
        + sum(map(len, join.waiting.values())) + len(join.kept_events._queue) + len(join.kept_labels._queue)
    )  # fmt: skip
