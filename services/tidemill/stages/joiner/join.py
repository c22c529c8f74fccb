"""Joining predictions with labels so that the result does not depend on how the two logs were interleaved.

Notation: log(A) and labels(B) are the prefixes read so far; W_log, W_labels are each log's own watermark, the event
time that most of its recent records have reached (`tidemill.watermark`). With timeout T, the prediction e at offset a
and the label l at offset b, of the same event id, belong together exactly if

    max(W_labels(b), l.label_time) <= e.event_time + T    the label came in time, by the labels' clock and its own
    max(W_log(a), e.event_time)    <= l.label_time + T    the prediction came in time, by its log's clock and its own

Both sides are functions of one log alone. Of several labels that belong to e the first (by offset) is its label and
the others are duplicates. e expires when W_labels passes e.event_time + T without its label; l is unmatched when W_log
passes l.label_time + T. So what is pending, joined, expired, duplicate and unmatched after (A, B) depends on A and B
only: after a crash the state is rebuilt by reading both logs again, in any interleaving. No clock of this machine, and
none of another partition, takes part: a partition without traffic waits. A record's own time decides about itself
alone: one that is far ahead of the others ends nothing that waits for them.

With corrections C, a further label l of e, whose first label is f, is a correction where its value differs from e's
label at that moment, and

    max(W_labels(b), l.label_time) <= f.label_time + C    it came in time for a correction
    max(W_log(a), e.event_time)    <= l.label_time + T    as above

That also holds for labels that come after e's timeout. An id that comes again names the same event for 2T + C, so that
no label can be of two: a label of a later event is then too late to correct an earlier one.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tidemill.stream.api import Headers
from tidemill.watermark import SLACK_PART, Marks, State, Watermark, join_memory


class Event:
    """A prediction that has been made; `value` is None once it has been joined or has expired.

    `is_refused`: no example is made of it, because Kafka has refused one. `label` is its first label, `current` the
    value of its last correction, or of the first. `source`: partition and offset of the event that was asked about.
    """

    __slots__ = (
        "current",
        "done",
        "entity",
        "id",
        "is_refused",
        "label",
        "later",
        "offset",
        "origin",
        "reach",
        "source",
        "time",
        "trace",
        "value",
        "watermark",
    )

    def __init__(
        self,
        event_id: str,
        time: int,
        offset: int,
        watermark: int,
        value: bytes,
        origin: int,
        entity: str,
        trace: Headers | None = None,
        source: tuple[int, int] = (0, 0),
    ) -> None:
        self.id, self.time, self.offset, self.watermark = event_id, time, offset, watermark
        self.reach = time  # the latest time of anything that was settled by knowing this event
        self.value: bytes | None = value
        self.origin, self.entity, self.trace = origin, entity, trace
        self.source = source
        self.label: Label | None = None
        self.current: Any = None
        self.later: Event | None = None
        self.done = self.is_refused = False


class Label:
    """A label that has come; `record` is kept while it may still have to go to the dead letters.

    `is_refused`: no example is made of it, because Kafka has refused one.
    """

    __slots__ = ("done", "id", "is_refused", "offset", "record", "time", "value", "watermark")

    def __init__(self, event_id: str, time: int, value: Any, offset: int, watermark: int, record: Any) -> None:
        self.id, self.time, self.value = event_id, time, value
        self.offset, self.watermark, self.record = offset, watermark, record
        self.done = self.is_refused = False


class Retained:
    """Records that a rebuild must read again, in offset order; knows where to begin, and with which watermark."""

    def __init__(self) -> None:
        self._queue: deque[Event | Label] = deque()
        self._marks = Marks()

    def append(self, item: Event | Label) -> None:
        """Add the newest."""
        self.first()  # lets go of what is done
        self._queue.append(item)

    def note(self, offset: int, watermark: Watermark) -> None:
        """Note the watermark before the record at an offset, which may be kept."""
        if not self._queue:
            self._marks.clear()
        self._marks.note(offset, watermark)

    def first(self) -> Event | Label | None:
        """Return the oldest that is not done with."""
        while self._queue and self._queue[0].done:
            self._queue.popleft()
        return self._queue[0] if self._queue else None

    def begin(self, following: int, watermark: Watermark) -> tuple[int, State]:
        """Return where a rebuild begins, and the watermark there: at `following` if nothing is kept.

        It may begin before the first record that is kept. The records between are done with: they decide themselves.
        """
        first = self.first()
        return (following, watermark.state) if first is None else self._marks.before(first.offset)


@dataclass(frozen=True)
class Outcomes:
    """What the join calls when something is decided."""

    joined: Callable[[Event, Label], None]
    expired: Callable[[Event], None]
    duplicate: Callable[[Event, Label], None]
    unmatched: Callable[[Label], None]
    #: Called before the event's `current` label is this one; never where no corrections are declared.
    corrected: Callable[[Event, Label], None] = lambda _event, _label: None


class Join:
    """The join of one partition, in memory.

    Parameters
    ----------
    timeout
        T above, in ms.
    watermark
        Makes the watermarks of the two logs.
    corrections
        C above, in ms; 0: no label is a correction.
    """

    def __init__(
        self,
        timeout: int,
        outcomes: Outcomes,
        watermark: Callable[[int, State], Watermark] = Watermark,
        corrections: int = 0,
    ) -> None:
        self.timeout, self.corrections = timeout, corrections
        self.memory = join_memory(timeout, corrections)
        self.outcomes = outcomes
        self._make = watermark
        self.log, self.labels = self._watermark(()), self._watermark(())
        self.events: dict[str, Event] = {}
        self.waiting: dict[str, list[Label]] = {}
        self.pending = 0
        self.waiting_labels = 0
        self.kept_events = Retained()
        self.kept_labels = Retained()
        self._open: list[tuple[int, int, Event]] = []
        self._closed: list[tuple[int, int, Event]] = []
        self._queue: list[tuple[int, int, Label]] = []
        #: By topic: up to which offset, and of which topic by its id, what is at hand was read before this process.
        self.saved: Mapping[str, tuple[int, str]] = {}

    def save(self, positions: Callable[[], dict[str, tuple[int, str]]], *, now: bool = False) -> None:
        """Keep all of it, which is committed up to these positions, where there is a place for it and it is time."""

    def clear(self) -> None:
        """Drop what was kept."""

    def close(self) -> None:
        """Let go of the place where it is kept."""

    def _watermark(self, state: State) -> Watermark:
        return self._make(self.timeout // SLACK_PART, state)

    def restore_log(self, state: State) -> None:
        """Go on with the log's watermark from what it was before the first record that will be read."""
        self.log = self._watermark(state)

    def restore_labels(self, state: State) -> None:
        """Go on with the labels' watermark likewise."""
        self.labels = self._watermark(state)

    @property
    def log_watermark(self) -> int:
        """The event time, in ms, that the log has reached."""
        return self.log.time

    @property
    def labels_watermark(self) -> int:
        """The event time, in ms, that the labels have reached."""
        return self.labels.time

    def add_event(
        self,
        event_id: str,
        time: int,
        offset: int,
        value: bytes,
        origin: int = 0,
        entity: str = "",
        trace: Headers | None = None,
        source: tuple[int, int] = (0, 0),
    ) -> bool:
        """Take a prediction; returns False where one of this event id is still remembered: it is a duplicate."""
        self.kept_events.note(offset, self.log)
        self.log.add(time)
        watermark = max(self.log.time, time)
        for earlier in self._events_of(event_id):
            if watermark <= earlier.time + self.memory:
                if time > earlier.reach:
                    earlier.reach = time
                    self._changed(earlier)
                self._advance_log()
                return False
        event = Event(event_id, time, offset, watermark, value, origin, entity, trace, source)
        self._remember(event)
        self.pending += 1
        for label in self._labels_of(event_id):  # those that have waited, in their order
            if self._belong(event, label) or self._corrects(event, label):
                self._settle(event, label)
                self._stop_waiting(label)
        self._advance_log()
        self._expire()
        return True

    def add_label(self, event_id: str, time: int, value: Any, offset: int, record: Any = None) -> None:
        """Take a label."""
        self.kept_labels.note(offset, self.labels)
        self.labels.add(time)
        label = Label(event_id, time, value, offset, max(self.labels.time, time), record)
        for event in self._events_of(event_id):
            if self._belong(event, label) or self._corrects(event, label):
                if self._settle(event, label):
                    self._keep_label(label)
                break
        else:
            if self.log.time > time + self.timeout:
                self.outcomes.unmatched(label)
            else:
                self._wait(label)
        self._expire()

    def refuse_at(self, event_id: str, offset: int, *, label: bool) -> None:
        """Make no example of the prediction or the label of an offset, unless one was made."""
        items: Iterable[Event | Label] = self._labels_of(event_id) if label else self._events_of(event_id)
        for item in items:
            if item.offset == offset and (isinstance(item, Label) or item.label is None):
                item.is_refused = True
                self._changed(item)

    def _belong(self, event: Event, label: Label) -> bool:
        return label.watermark <= event.time + self.timeout and event.watermark <= label.time + self.timeout

    def _corrects(self, event: Event, label: Label) -> bool:
        """Whether a label comes in time to correct the one that an event has."""
        first = event.label
        if not self.corrections or first is None:
            return False
        is_prediction_in_time = event.watermark <= label.time + self.timeout
        return is_prediction_in_time and label.watermark <= first.time + self.corrections

    def _settle(self, event: Event, label: Label) -> bool:
        """Give an event a label; returns whether it is its first."""
        event.reach = max(event.reach, label.time)
        if is_first := event.label is None:
            event.label, event.current = label, label.value
            event.is_refused |= label.is_refused
            self.pending -= 1
            self.outcomes.joined(event, label)
            event.value = event.trace = label.record = None  # the example holds them now
        else:
            label.done = True
            # Without its example there is nothing to correct.
            if label.value != event.current and not event.is_refused and self._corrects(event, label):
                self.outcomes.corrected(event, label)
                event.current = label.value
            else:
                self.outcomes.duplicate(event, label)
        self._changed(event)
        return is_first

    def _expire(self) -> None:
        """Close the events that the labels' watermark has passed."""
        edge = self.labels.time - self.timeout
        while (event := self._next_open(edge)) is not None:
            if event.label is None:
                self.pending -= 1
                self.outcomes.expired(event)
                event.value = event.trace = None
                self._changed(event)
            self._close(event)
        self._forget()

    def _advance_log(self) -> None:
        """Give up labels, and forget closed events, that the predictions' watermark has passed."""
        edge = self.log.time - self.timeout
        while (label := self._next_waiting(edge)) is not None:
            label.done = True
            self._stop_waiting(label)
            self.outcomes.unmatched(label)
        self._forget()

    def _forget(self) -> None:
        """Let go of events whose records, and whose labels' and duplicates', decide themselves if they are read again.

        A rebuild may begin at a record between them: a label that is read again without its event must not wait for it
        beyond the rebuild's end, nor a duplicate be taken for the first. Both watermarks must have passed all of them.
        """
        edge = min(self.log.time, self.labels.time) - self.memory
        while (closed := self._next_closed(edge)) is not None:
            reach, event = closed
            for later in self._events_of(
                event.id
            ):  # what this event settled must not be taken by a later one of its id
                if later.offset > event.offset and later.watermark <= event.reach + self.memory:
                    event.reach = max(event.reach, later.time)
            if event.reach > reach:
                self._close(event)
            else:
                self._drop(event)

    # Where it is kept. `StoredJoin` keeps it elsewhere.

    def _events_of(self, event_id: str) -> Sequence[Event]:
        """Return the events of an id that are remembered, in the order in which they came."""
        event = self.events.get(event_id)
        return () if event is None else (event, *self._later_than(event))

    def _later_than(self, event: Event) -> Sequence[Event]:
        """Return the events of the same id that came after an event."""
        if event.later is None:
            return ()
        later = [event.later]
        while (event := later[-1]).later is not None:
            later.append(event.later)
        return later

    def _remember(self, event: Event) -> None:
        if earlier := self._events_of(event.id):
            earlier[-1].later = event
        else:
            self.events[event.id] = event
        self.kept_events.append(event)
        heapq.heappush(self._open, (event.time, event.offset, event))

    def _changed(self, item: Event | Label) -> None:
        """An event, or a label that waits, is another than it was when it was remembered."""

    def _next_open(self, edge: int) -> Event | None:
        heap = self._open
        return heapq.heappop(heap)[2] if heap and heap[0][0] < edge else None

    def _close(self, event: Event) -> None:
        heapq.heappush(self._closed, (event.reach, event.offset, event))

    def _next_closed(self, edge: int) -> tuple[int, Event] | None:
        heap = self._closed
        if not heap or heap[0][0] >= edge:
            return None
        reach, _, event = heapq.heappop(heap)
        return reach, event

    def _drop(self, event: Event) -> None:
        event.done = True
        if event.label is not None:
            event.label.done = True
        first = self.events[event.id]
        if first is event:
            if event.later is None:
                del self.events[event.id]
            else:
                self.events[event.id] = event.later
            return
        while first.later is not event:
            assert first.later is not None  # noqa: S101  an event that is not forgotten is in its chain
            first = first.later
        first.later = event.later

    def _labels_of(self, event_id: str) -> Sequence[Label]:
        """Return the labels of an id that wait, in the order in which they came."""
        labels = self.waiting.get(event_id)
        return tuple(labels) if labels else ()

    def _keep_label(self, label: Label) -> None:
        """Remember a label that has met its event at once, or one that waits."""
        self.kept_labels.append(label)

    def _wait(self, label: Label) -> None:
        self._keep_label(label)
        self.waiting.setdefault(label.id, []).append(label)
        self.waiting_labels += 1
        heapq.heappush(self._queue, (label.time, label.offset, label))

    def _next_waiting(self, edge: int) -> Label | None:
        heap = self._queue
        while heap and heap[0][0] < edge:
            label = heapq.heappop(heap)[2]
            if label in self.waiting.get(label.id, ()):  # else it met its event
                return label
        return None

    def _stop_waiting(self, label: Label) -> None:
        labels = self.waiting[label.id]
        labels.remove(label)
        if not labels:
            del self.waiting[label.id]
        self.waiting_labels -= 1
