"""The join of one partition with what it must remember in tables on disk: its memory does not grow with that.

events      offset -> prediction; what is there no more is done with
event_ids   hash of an id -> offsets of its events
open        (time, offset) of the events whose timeout has not passed
closed      (reach, offset) of those that are remembered for what they have settled
labels      offset -> label that waits; empty where it met its event, which is remembered
label_ids   hash of an id -> offsets of the labels that wait
queue       (time, offset) of the labels that wait
marks       offset -> watermark before it, of each log; see `Marks`
state       how far the state has come

Rows lie by offset, so those that come and go together lie together; only 16 bytes an id lie anywhere.
"""

from __future__ import annotations

import functools
import hashlib
import math
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec

from tidemill.errors import Retry
from tidemill.stages.joiner.join import Event, Join, Label, Outcomes
from tidemill.stream.local_state import LocalState, Table
from tidemill.stream.memory import MemoryRecord
from tidemill.watermark import RECENT_RECORDS, State, Watermark

#: How it is in the tables.
FORMAT = 2
#: How often the state is saved. A process that starts reads again what came since.
SAVE_SECONDS = 1.0

_OFFSET = struct.Struct(">Q")
_QUEUED = struct.Struct(">QQ")
_BIAS = 2**63  # times may lie before 1970, and keys are compared as unsigned numbers

encode = msgspec.msgpack.Encoder().encode


class Saved(NamedTuple):
    """What the tables hold: up to where the topics were read, and what is not in a table.

    `made_for`: format, timeout, time of corrections, and schemas. Tables of others are made again from the log.
    """

    made_for: tuple[int, int, int, bytes]
    positions: dict[str, tuple[int, str]]
    log: tuple[int, ...]
    labels: tuple[int, ...]
    pending: int
    waiting_labels: int


class _EventRow(NamedTuple):
    id: str
    time: int
    watermark: int
    reach: int
    origin: int
    entity: str
    trace: list[tuple[str, bytes]] | None
    is_refused: bool
    value: bytes | None
    source: tuple[int, int]
    label: tuple[int, int, Any, Any] | None  # of the first its offset, time and value, and the current value


class _LabelRow(NamedTuple):
    id: str
    time: int
    watermark: int
    value: Any
    is_refused: bool
    topic: str
    partition: int
    key: bytes | None
    message: bytes | None
    timestamp: int
    headers: list[tuple[str, bytes]] | None


Row = TypeVar("Row")

_read_saved = msgspec.msgpack.Decoder(Saved).decode
_read_event = msgspec.msgpack.Decoder(_EventRow).decode
_read_label = msgspec.msgpack.Decoder(_LabelRow).decode
_read_state = msgspec.msgpack.Decoder(State).decode


class StoredJoin(Join):
    """The same join; see there.

    Parameters
    ----------
    state
        The partition's tables, which belong to this join.
    schemas
        Names the schemas of the messages that are kept: they become examples of the schemas of today.
    """

    def __init__(
        self,
        timeout: int,
        outcomes: Outcomes,
        state: LocalState,
        watermark: Callable[[int, State], Watermark] = Watermark,
        schemas: bytes = b"",
        corrections: int = 0,
    ) -> None:
        super().__init__(timeout, outcomes, watermark, corrections)
        self._state, self._last_save = state, time.monotonic()
        self._made_for = (FORMAT, timeout, corrections, schemas)
        self._meta = state.table("state")
        self._events, self._event_ids = state.table("events"), _Ids(state.table("event_ids"))
        self._waiting, self._label_ids = state.table("labels"), _Ids(state.table("label_ids"))
        self._opened, self._done = _Queue(state.table("open")), _Queue(state.table("closed"))
        self._expected = _Queue(state.table("queue"))
        self.kept_events = _Kept(self._events, state.table("event_marks"), self._row)  # type: ignore[assignment]
        self.kept_labels = _Kept(self._waiting, state.table("label_marks"), self._row)  # type: ignore[assignment]
        self._restore()

    def _restore(self) -> None:
        if (data := self._meta.get(b"saved")) is None:
            return
        try:
            saved = _read_saved(data)
        except msgspec.MsgspecError:
            saved = None
        if saved is None or saved.made_for != self._made_for:
            error = self._made_again("is of another declaration or version")
            self._state.close()
            raise error
        self.saved = saved.positions
        self.log, self.labels = self._watermark(saved.log), self._watermark(saved.labels)
        self.pending, self.waiting_labels = saved.pending, saved.waiting_labels

    def _made_again(self, why: str) -> Retry:
        """Drop the tables, which can't be gone on with; returns what is raised then."""
        self._state.clear()
        return Retry(f"the joiner's local state {why}: it is made again from the log")

    def save(self, positions: Callable[[], dict[str, tuple[int, str]]], *, now: bool = False) -> None:
        if not now and time.monotonic() - self._last_save < SAVE_SECONDS:
            return
        self._last_save = time.monotonic()
        saved = Saved(self._made_for, positions(), self.log.state, self.labels.state, self.pending, self.waiting_labels)
        self._meta.put(b"saved", encode(saved))
        self._state.save()

    def clear(self) -> None:
        self._state.clear()
        self.saved = {}

    def close(self) -> None:
        self._state.close()

    def _events_of(self, event_id: str) -> Sequence[Event]:
        events = [self._event(key) for key in self._event_ids.of(event_id)]
        return [event for event in events if event.id == event_id]

    def _later_than(self, event: Event) -> Sequence[Event]:
        own = _OFFSET.pack(event.offset)
        later = [self._event(key) for key in self._event_ids.of(event.id) if key > own]
        return [one for one in later if one.id == event.id]

    def _event(self, key: bytes) -> Event:
        row = self._row(self._events, key, _read_event)
        offset = _OFFSET.unpack(key)[0]
        event = Event(row.id, row.time, offset, row.watermark, row.value, row.origin, row.entity, row.trace, row.source)  # type: ignore[arg-type]
        event.reach, event.is_refused = row.reach, row.is_refused
        if row.label is not None:
            label_offset, label_time, value, event.current = row.label
            event.label = Label(row.id, label_time, value, label_offset, 0, None)
        return event

    def _row(self, table: Table, key: bytes, read: Callable[[bytes], Row]) -> Row:
        try:
            return read(table.get(key) or b"")
        except msgspec.MsgspecError as error:
            raise self._made_again(f"lacks the row {key.hex()}, or has another there") from error

    def _remember(self, event: Event) -> None:
        self._changed(event)
        self._event_ids.add(event.id, event.offset)
        self._opened.push(event.time, event.offset)

    def _changed(self, item: Event | Label) -> None:
        if isinstance(item, Event):
            first = item.label
            label = None if first is None else (first.offset, first.time, first.value, item.current)
            value = None if item.value is None else bytes(item.value)
            row: tuple[Any, ...] = (
                item.id, item.time, item.watermark, item.reach, item.origin, item.entity, item.trace, item.is_refused,
                value, item.source, label,
            )  # fmt: skip
            self._events.put(_OFFSET.pack(item.offset), encode(row))
            return
        record = item.record
        row = (
            item.id, item.time, item.watermark, item.value, item.is_refused, record.topic(), record.partition(),
            record.key(), record.value(), record.timestamp()[1], record.headers(),
        )  # fmt: skip
        self._waiting.put(_OFFSET.pack(item.offset), encode(row))

    def _next_open(self, edge: int) -> Event | None:
        return self._event(entry[8:]) if (entry := self._opened.pop(edge)) else None

    def _close(self, event: Event) -> None:
        self._done.push(event.reach, event.offset)

    def _next_closed(self, edge: int) -> tuple[int, Event] | None:
        if (entry := self._done.pop(edge)) is None:
            return None
        return _QUEUED.unpack(entry)[0] - _BIAS, self._event(entry[8:])

    def _drop(self, event: Event) -> None:
        self._events.delete(_OFFSET.pack(event.offset))
        self._event_ids.remove(event.id, event.offset)
        if event.label is not None:
            self._waiting.delete(_OFFSET.pack(event.label.offset))

    def _labels_of(self, event_id: str) -> Sequence[Label]:
        labels = [self._label(key) for key in self._label_ids.of(event_id)]
        return [label for label in labels if label.id == event_id]

    def _label(self, key: bytes) -> Label:
        row, offset = self._row(self._waiting, key, _read_label), _OFFSET.unpack(key)[0]
        record = MemoryRecord(
            row.topic,
            row.message,
            row.key,
            row.timestamp,
            row.headers,
            row.partition,
            offset,
        )
        label = Label(row.id, row.time, row.value, offset, row.watermark, record)
        label.is_refused = row.is_refused
        return label

    def _wait(self, label: Label) -> None:
        self._changed(label)
        self._label_ids.add(label.id, label.offset)
        self._expected.push(label.time, label.offset)
        self.waiting_labels += 1

    def _keep_label(self, label: Label) -> None:
        self._waiting.put(_OFFSET.pack(label.offset), b"")

    def _next_waiting(self, edge: int) -> Label | None:
        return self._label(entry[8:]) if (entry := self._expected.pop(edge)) else None

    def _stop_waiting(self, label: Label) -> None:
        self._label_ids.remove(label.id, label.offset)
        self._expected.remove(label.time, label.offset)
        self.waiting_labels -= 1
        if label.done:
            self._waiting.delete(_OFFSET.pack(label.offset))
        else:
            self._keep_label(label)


class _Ids:
    """Offsets by the hash of an id; others may share it. What was asked for last is not looked up again."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._last_id, self._key, self._offsets = "", _hash(""), b""
        self._look("")

    def _look(self, id_: str) -> None:
        self._last_id, self._key = id_, _hash(id_)
        self._offsets = self._table.get(self._key) or b""

    def of(self, id_: str) -> Sequence[bytes]:
        """Return the offsets as keys, in their order."""
        if id_ != self._last_id:
            self._look(id_)
        offsets = self._offsets
        if len(offsets) <= 8:
            return (offsets,) if offsets else ()
        return [offsets[at : at + 8] for at in range(0, len(offsets), 8)]

    def add(self, id_: str, offset: int) -> None:
        self._set([*self.of(id_), _OFFSET.pack(offset)])

    def remove(self, id_: str, offset: int) -> None:
        gone = _OFFSET.pack(offset)
        self._set([one for one in self.of(id_) if one != gone])

    def _set(self, offsets: Sequence[bytes]) -> None:
        self._offsets = b"".join(offsets)
        if offsets:
            self._table.put(self._key, self._offsets)
        else:
            self._table.delete(self._key)


@functools.lru_cache(maxsize=1024)
def _hash(id_: str) -> bytes:
    return hashlib.blake2b(id_.encode(errors="surrogatepass"), digest_size=8).digest()


class _Queue:
    """Offsets by a time; knows the first time, so that most looks cost nothing."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._look()

    def _look(self) -> None:
        self._first = self._table.first()
        self._time: float = math.inf if self._first is None else _QUEUED.unpack(self._first)[0] - _BIAS

    def push(self, time: int, offset: int) -> None:
        key = _QUEUED.pack(time + _BIAS, offset)
        self._table.put(key, b"")
        if self._first is None or key < self._first:
            self._first, self._time = key, time

    def pop(self, edge: int) -> bytes | None:
        """Remove and return the first key, where its time is before `edge`."""
        if self._time >= edge or (first := self._first) is None:
            return None
        self._table.delete(first)
        self._look()
        return first

    def remove(self, time: int, offset: int) -> None:
        """Remove one, where it is there."""
        key = _QUEUED.pack(time + _BIAS, offset)
        self._table.delete(key)
        if key == self._first:
            self._look()


class _Kept:
    """Where a rebuild begins, as `Retained` says it: at the first row, which is the oldest."""

    def __init__(self, rows: Table, marks: Table, read: Callable[..., State]) -> None:
        self._rows, self._marks, self._read = rows, marks, read
        self._since = RECENT_RECORDS

    def note(self, offset: int, watermark: Watermark) -> None:
        """Note the watermark before the record at an offset; of most records nothing is kept."""
        if self._since >= RECENT_RECORDS:
            self._marks.put(_OFFSET.pack(offset), encode(watermark.state))
            self._since = 0
        self._since += 1

    def begin(self, following: int, watermark: Watermark) -> tuple[int, State]:
        """Return where a rebuild begins, and the watermark there: at `following` if nothing is kept."""
        first = self._rows.first()
        mark = self._marks.last_until(_OFFSET.pack(following) if first is None else first)
        if mark is None:
            return following, watermark.state
        while (oldest := self._marks.first()) is not None and oldest < mark:
            self._marks.delete(oldest)
        if first is None:
            return following, watermark.state
        return _OFFSET.unpack(mark)[0], self._read(self._marks, mark, _read_state)
