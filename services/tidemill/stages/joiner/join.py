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
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tidemill.stream.api import Headers
from tidemill.watermark import SLACK_PART, Marks, State, Watermark


class Event:
    """A prediction that has been made; `value` is None once it has been joined or has expired.

    `is_refused`: no example is made of it, because Kafka has refused one.
    """

    __slots__ = (
        "done",
        "entity",
        "id",
        "is_refused",
        "label",
        "later",
        "offset",
        "origin",
        "reach",
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
    ) -> None:
        self.id, self.time, self.offset, self.watermark = event_id, time, offset, watermark
        self.reach = time  # the latest time of anything that was settled by knowing this event
        self.value: bytes | None = value
        self.origin, self.entity, self.trace = origin, entity, trace
        self.label: Label | None = None
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


class Join:
    """The join of one partition.

    Parameters
    ----------
    timeout
        T above, in ms.
    watermark
        Makes the watermarks of the two logs.
    """

    def __init__(
        self, timeout: int, outcomes: Outcomes, watermark: Callable[[int, State], Watermark] = Watermark
    ) -> None:
        self.timeout = timeout
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
    ) -> bool:
        """Take a prediction; returns False where one of this event id is still remembered: it is a duplicate."""
        self.kept_events.note(offset, self.log)
        self.log.add(time)
        watermark = max(self.log.time, time)
        earlier = self.events.get(event_id)
        while earlier is not None:
            if watermark <= earlier.time + self.timeout:
                earlier.reach = max(earlier.reach, time)
                self._advance_log()
                return False
            if earlier.later is None:
                break
            earlier = earlier.later
        event = Event(event_id, time, offset, watermark, value, origin, entity, trace)
        if earlier is None:
            self.events[event_id] = event
        else:
            earlier.later = event
        self.kept_events.append(event)
        self.pending += 1
        heapq.heappush(self._open, (time, offset, event))
        labels = self.waiting.get(event_id)
        if labels:
            self._offer(event, labels)
        self._advance_log()
        self._expire()
        return True

    def add_label(self, event_id: str, time: int, value: Any, offset: int, record: Any = None) -> None:
        """Take a label."""
        self.kept_labels.note(offset, self.labels)
        self.labels.add(time)
        label = Label(event_id, time, value, offset, max(self.labels.time, time), record)
        self.kept_labels.append(label)
        event = self.events.get(event_id)
        while event is not None and not self._belong(event, label):
            event = event.later
        if event is not None:
            self._settle(event, label)
        elif self.log.time > time + self.timeout:
            label.done = True
            self.outcomes.unmatched(label)
        else:
            self.waiting.setdefault(event_id, []).append(label)
            self.waiting_labels += 1
            heapq.heappush(self._queue, (time, offset, label))
        self._expire()

    def waiting_at(self, event_id: str, offset: int, *, label: bool) -> Event | Label | None:
        """Return the prediction or the label of an offset while it has not met the other; None where it has."""
        if label:
            return next((one for one in self.waiting.get(event_id, ()) if one.offset == offset), None)
        event = self.events.get(event_id)
        while event is not None and event.offset != offset:
            event = event.later
        return event if event is not None and event.label is None else None

    def _belong(self, event: Event, label: Label) -> bool:
        return label.watermark <= event.time + self.timeout and event.watermark <= label.time + self.timeout

    def _offer(self, event: Event, labels: list[Label]) -> None:
        """Give an event that has just come the labels that waited for it, in their order."""
        left = []
        for label in labels:
            if self._belong(event, label):
                self.waiting_labels -= 1
                self._settle(event, label)
            else:
                left.append(label)
        if left:
            self.waiting[event.id] = left
        else:
            del self.waiting[event.id]

    def _settle(self, event: Event, label: Label) -> None:
        event.reach = max(event.reach, label.time)
        if event.label is None:
            event.label = label
            self.pending -= 1
            self.outcomes.joined(event, label)
            event.value = event.trace = label.record = None  # the example holds them now
        else:
            label.done = True
            self.outcomes.duplicate(event, label)

    def _expire(self) -> None:
        """Close the events that the labels' watermark has passed."""
        heap, edge = self._open, self.labels.time - self.timeout
        while heap and heap[0][0] < edge:
            entry = heapq.heappop(heap)
            event = entry[2]
            if event.label is None:
                self.pending -= 1
                self.outcomes.expired(event)
                event.value = event.trace = None
            heapq.heappush(self._closed, (event.reach, event.offset, event))
        self._forget()

    def _advance_log(self) -> None:
        """Give up labels, and forget closed events, that the predictions' watermark has passed."""
        heap, edge = self._queue, self.log.time - self.timeout
        while heap and heap[0][0] < edge:
            label = heapq.heappop(heap)[2]
            labels = self.waiting.get(label.id)
            if labels is None or label not in labels:
                continue  # it met its event
            labels.remove(label)
            if not labels:
                del self.waiting[label.id]
            self.waiting_labels -= 1
            label.done = True
            self.outcomes.unmatched(label)
        self._forget()

    def _forget(self) -> None:
        """Let go of events whose records, and whose labels' and duplicates', decide themselves if they are read again.

        A rebuild may begin at a record between them: a label that is read again without its event must not wait for it
        beyond the rebuild's end, nor a duplicate be taken for the first. Both watermarks must have passed all of them.
        """
        heap, edge = self._closed, min(self.log.time, self.labels.time) - self.timeout
        while heap and heap[0][0] < edge:
            reach, offset, event = heapq.heappop(heap)
            later = event.later
            while later is not None:  # what this event settled must not be taken by a later one of its id
                if later.watermark <= event.reach + self.timeout:
                    event.reach = max(event.reach, later.time)
                later = later.later
            if event.reach > reach:
                heapq.heappush(heap, (event.reach, offset, event))
                continue
            event.done = True
            if event.label is not None:
                event.label.done = True
            self._unlink(event)

    def _unlink(self, event: Event) -> None:
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
