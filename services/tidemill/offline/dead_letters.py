"""Dead letters, for people: listed, shown and counted by kind, in bounded memory however many they are.

A letter is open until it went back to its source topic; which did is in <pipeline>.redrives (see `redrive`).
"""

from __future__ import annotations

import dataclasses
import heapq
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tidemill.declare.pipeline import Pipeline
from tidemill.encoding.codec import Codec
from tidemill.errors import BrokerError, SettingsError
from tidemill.stages.validator.decode import stream_decoder
from tidemill.stream.api import Broker, Progress, Record, TopicPartition
from tidemill.stream.ranges import full_range
from tidemill.stream.topic import Topic
from tidemill.wire import topics
from tidemill.wire.dead_letters import DeadLetter, Place, parse_place, read_dead_letter, shorten
from tidemill.wire.personal import Mask
from tidemill.wire.records import Records

#: Kinds of letter that are counted apart. Producers' own field names are among them, so there may be any number.
MAX_KINDS = 200
MAX_DUMP_BYTES = 256
MAX_TEXT_CHARACTERS = 4000
Source = Literal["events", "labels"]
State = Literal["open", "redriven"]

#: By stream, the topics whose records the validator can take again: as they were sent, or as it had let them pass.
_SOURCES: Mapping[Source, tuple[Topic, ...]] = {
    "events": (topics.EVENTS, topics.EVENTS_VALID),
    "labels": (topics.LABELS, topics.LABELS_VALID),
}


def sources(pipeline: Pipeline) -> dict[str, Source]:
    """Return the stream, by the name of each topic that a letter may have come from."""
    return {topic.name(pipeline): source for source, origins in _SOURCES.items() for topic in origins}


class PlaceSet:
    """A set of letters: a bit for each offset of each partition, so that millions of them take less than a megabyte."""

    def __init__(self) -> None:
        self._bits: dict[int, bytearray] = {}

    def add(self, place: Place) -> None:
        """Put a letter in."""
        bits = self._bits.setdefault(place.partition, bytearray())
        byte, bit = divmod(place.offset, 8)
        if byte >= len(bits):
            bits.extend(bytes(byte + 1 - len(bits)))
        bits[byte] |= 1 << bit

    def __contains__(self, place: Place) -> bool:
        bits = self._bits.get(place.partition, b"")
        byte, bit = divmod(place.offset, 8)
        return byte < len(bits) and bool(bits[byte] >> bit & 1)


@dataclass(frozen=True)
class LetterFilter:
    """Which letters are meant; what is None may be anything. `since` <= when it was refused < `until`, in ms."""

    reason: str | None = None
    rule: str | None = None
    field: str | None = None
    stage: str | None = None
    source: Source | None = None
    value: str | None = None
    since: int | None = None
    until: int | None = None
    state: State | None = None
    places: frozenset[Place] = frozenset()

    def takes(self, letter: DeadLetter, source: Source | None, state: State) -> bool:
        """Whether a letter is meant, given its stream and whether it went back."""
        pairs = (
            (self.reason, letter.reason),
            (self.rule, letter.rule),
            (self.field, letter.field),
            (self.stage, letter.stage),
            (self.source, source),
            (self.state, state),
            (None if self.value is None else shorten(self.value), letter.value),  # a header has no more of a long one
        )
        return (
            all(wanted is None or wanted == given for wanted, given in pairs)
            and (self.since is None or letter.refused_at >= self.since)
            and (self.until is None or letter.refused_at < self.until)
            and (not self.places or letter.place in self.places)
        )


class DeadLetters:
    """The dead letters of a pipeline, as they are when this is made. Reads, and writes nothing.

    `shows_personal`: whether who asks may see personal fields; `read` is for programs, and masks nothing. `seen`: how
    many letters were read, whether they were wanted or not.
    """

    def __init__(self, pipeline: Pipeline, broker: Broker, *, shows_personal: bool = False) -> None:
        self.pipeline, self.broker = pipeline, broker
        self.mask = None if shows_personal else Mask(pipeline)
        self.topic = topics.DLQ.name(pipeline.name)
        self.sources = sources(pipeline)
        self._redrives = full_range(broker, topics.REDRIVES.name(pipeline.name))
        self.ranges = full_range(broker, self.topic)  # asked for later: it holds every letter that went back
        self.redriven, self.seen = PlaceSet(), 0
        for place, _ in self.redrives():
            self._check(place)
            self.redriven.add(place)

    def redrives(self) -> Iterator[tuple[Place, Record]]:
        """Yield which letters went back, each with its record; some maybe more than once."""
        for batch in self.broker.read(self._redrives):
            for record in batch:
                try:
                    place = parse_place((record.key() or b"").decode(errors="replace"))
                except ValueError as error:
                    where = f"{record.topic()}[{record.partition()}]@{record.offset()}"
                    raise BrokerError(
                        f"{where}: the key {error}; only `tidemill dlq redrive` may write there"
                    ) from None
                yield place, record

    def only_before(self, ends: Mapping[TopicPartition, int]) -> None:
        """Leave out what came to a partition from its end on, as it was known to somebody."""
        for slot, (begin, end) in self.ranges.items():
            self.ranges[slot] = begin, max(begin, min(end, ends.get(slot, end)))

    def _check(self, place: Place) -> None:
        """Raise BrokerError where a letter went back that never was: places would name others' letters."""
        _, end = self.ranges.get(TopicPartition(self.topic, place.partition), (0, 0))
        if place.offset >= end:
            redrives = topics.REDRIVES.name(self.pipeline.name)
            raise BrokerError(
                f"{redrives} says that letter {place} went back, and {self.topic}[{place.partition}] ends at {end}: it "
                f"was deleted and created again; delete {redrives} as well, and create both with `tidemill topics "
                f"{self.pipeline.name} --create`"
            )

    def state(self, letter: DeadLetter) -> State:
        """Return whether a letter went back."""
        return "redriven" if letter.place in self.redriven else "open"

    def as_dict(self, letter: DeadLetter) -> dict[str, Any]:
        """Return a letter and its state for programs. Times are ms since the epoch."""
        fields = dataclasses.asdict(letter)
        del fields["place"]
        return {"letter": str(letter.place), "state": self.state(letter)} | fields

    def count(self, wanted: LetterFilter) -> int:
        """Return how many records must be read to find what is wanted, at most."""
        return sum(end - begin for begin, end in self._ranges(wanted).values())

    def _ranges(self, wanted: LetterFilter) -> dict[TopicPartition, tuple[int, int]]:
        if not wanted.places:
            return self.ranges
        ranges: dict[TopicPartition, tuple[int, int]] = {}
        for place in wanted.places:
            slot = TopicPartition(self.topic, place.partition)
            first, end = self.ranges.get(slot, (0, 0))
            if not first <= place.offset < end:
                raise self.missing(place)
            begin, last = ranges.get(slot, (place.offset, place.offset + 1))
            ranges[slot] = min(begin, place.offset), max(last, place.offset + 1)
        return ranges

    def missing(self, place: Place) -> SettingsError:
        """Return the error for a letter that does not exist; it names those that do."""
        held = sorted((slot.partition, begin, end - 1) for slot, (begin, end) in self.ranges.items() if begin < end)
        offsets = ", ".join(f"{partition}:{begin} to {partition}:{last}" for partition, begin, last in held)
        return SettingsError(
            f"no letter {place} in {self.topic}: it holds {offsets or 'none'}; `tidemill dlq list "
            f"{self.pipeline.name}` shows them"
        )

    def read(self, wanted: LetterFilter, progress: Progress | None = None) -> Iterator[tuple[DeadLetter, Record]]:
        """Yield the letters that are wanted, in order within a partition.

        Raises SettingsError for a place without a letter.
        """
        left = set(wanted.places)
        for batch in self.broker.read(self._ranges(wanted)):
            self.seen += len(batch)
            for record in batch:
                letter = read_dead_letter(record)
                left.discard(letter.place)
                if wanted.takes(letter, self.sources.get(letter.topic), self.state(letter)):
                    yield letter, record
            if progress:
                progress(len(batch))
        if left:  # where a transaction ended there is an offset without a record
            raise self.missing(min(left))

    def last(self, wanted: LetterFilter, most: int, progress: Progress | None = None) -> list[DeadLetter]:
        """Return the letters that were refused last, at most so many, the newest at the end."""
        letters = (letter for letter, _ in self.read(wanted, progress))
        newest = heapq.nlargest(most, letters, key=lambda letter: (letter.refused_at, letter.place))[::-1]
        return [self.shown(letter) for letter in newest]

    def shown(self, letter: DeadLetter) -> DeadLetter:
        """Return a letter as who asks may see it."""
        return self.mask.letter(letter) if self.mask else letter

    def one(self, place: Place) -> tuple[DeadLetter, Record]:
        """Return one letter with its record. Raises SettingsError where it does not exist."""
        return next(self.read(LetterFilter(places=frozenset([place]))))

    def history(self, place: Place) -> list[Mapping[str, Any]]:
        """Return the redrives of one letter."""
        codec = Records(self.pipeline).redrive
        redrives = [codec.of(record.value()) for letter, record in self.redrives() if letter == place]
        return [redrive for redrive in redrives if redrive]

    def stats(self, wanted: LetterFilter, progress: Progress | None = None, *, by_entity: bool = False) -> LetterStats:
        """Return how many letters there are of each kind; `by_entity`: and of each entity."""
        stats = LetterStats(by_entity)
        for letter, _ in self.read(wanted, progress):
            stats.add(self.shown(letter), self.state(letter))
        return stats


@dataclass
class Kind:
    """Letters of one reason, rule, field and, if asked for, entity. `again`: those refused again after a redrive."""

    reason: str
    rule: str
    field: str
    entity: str = ""
    letters: int = 0
    redriven: int = 0
    again: int = 0
    first: int = 0
    last: int = 0

    @property
    def open(self) -> int:
        """How many did not go back."""
        return self.letters - self.redriven

    def add(self, letter: DeadLetter, state: State) -> None:
        """Count a letter."""
        self.first = min(self.first, letter.refused_at) if self.letters else letter.refused_at
        self.last = max(self.last, letter.refused_at) if self.letters else letter.refused_at
        self.letters += 1
        self.redriven += state == "redriven"
        self.again += letter.attempt > 1


@dataclass
class LetterStats:
    """Letters by kind, and all of them together."""

    by_entity: bool = False
    total: Kind = field(default_factory=lambda: Kind("all", "", ""))
    kinds: dict[tuple[str, str, str, str], Kind] = field(default_factory=dict)

    def add(self, letter: DeadLetter, state: State) -> None:
        """Count a letter."""
        name = (letter.reason, letter.rule, letter.field, letter.entity if self.by_entity else "")
        if name not in self.kinds and len(self.kinds) >= MAX_KINDS:
            name = ("others", "", "", "")
        self.kinds.setdefault(name, Kind(*name)).add(letter, state)
        self.total.add(letter, state)

    def most(self) -> list[Kind]:
        """Return the kinds, those with the most letters first."""
        return sorted(self.kinds.values(), key=lambda k: (-k.letters, k.reason, k.rule, k.field, k.entity))

    def as_dict(self) -> dict[str, Any]:
        """Return the counts for programs."""
        total, *kinds = [dataclasses.asdict(kind) | {"open": kind.open} for kind in (self.total, *self.most())]
        return {"total": total, "kinds": kinds}


@dataclass(frozen=True)
class Content:
    """What is in a letter's bytes: "record", "text", "bytes" or "nothing", and that as text or as a record's values."""

    form: str
    record: Mapping[str, Any] | None = None
    text: str = ""


def content(pipeline: Pipeline, letter: DeadLetter, data: bytes, *, shows_personal: bool = False) -> Content:
    """Return a letter's bytes in the most readable form: the record, else text, else a dump of the first bytes.

    Where personal fields are not to be shown, nor are bytes that are no event and no label.
    """
    if not data:
        return Content("nothing")
    record, mask = _record(pipeline, letter, data), Mask(pipeline)
    if mask.is_on and not shows_personal:
        source = sources(pipeline).get(letter.topic)
        if record is None or source is None:
            return Content("hidden", text=f"{len(data):,} bytes, which may hold what is personal")
        record = mask.event(record) if source == "events" else mask.label(record)
    if record is not None:
        return Content("record", record)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = "\0"
    if all(c.isprintable() or c in "\r\n\t" for c in text):
        return Content("text", text=shorten(_laid_out(text), MAX_TEXT_CHARACTERS))
    return Content("bytes", text=dump(data[:MAX_DUMP_BYTES]))


def _laid_out(text: str) -> str:
    """Return JSON in lines; other text as it is."""
    try:
        return json.dumps(json.loads(text), indent=2)
    except (ValueError, RecursionError):
        return text


def _record(pipeline: Pipeline, letter: DeadLetter, data: bytes) -> Mapping[str, Any] | None:
    """Return the record in a letter's bytes; None where they are none, or of a topic that letters do not come from."""
    records, source = Records(pipeline), sources(pipeline).get(letter.topic)
    ours: Mapping[str, Codec] = {
        topics.FEATURES.name(pipeline.name): records.features,
        topics.PREDICTION_LOG.name(pipeline.name): records.prediction_log,
    }
    try:
        if source is not None:
            stream, codecs = (
                (pipeline.events, (records.sent_event, records.event))
                if source == "events"
                else (pipeline.labels, (records.sent_label, records.label))
            )
            return stream_decoder(stream, *codecs, bare=True).decode(data)[0]
        return ours[letter.topic].of(data) if letter.topic in ours else None
    except Exception:  # whatever hostile bytes make a decoder raise: then they are shown as bytes
        return None


def dump(data: bytes) -> str:
    """Return bytes as lines of sixteen: where, in hex, as text."""
    lines = []
    for at in range(0, len(data), 16):
        some = data[at : at + 16]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in some)
        lines.append(f"{at:04x}  {some.hex(' '):<47}  {text}")
    return "\n".join(lines)
