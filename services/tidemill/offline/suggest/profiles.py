"""Profiles of history, field by field, in bounded memory: rules are suggested from them.

A profile does not depend on the order and the batches in which records are read: a sample has the records with the
smallest hashes of partition and offset.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tidemill.declare.pipeline import Pipeline
from tidemill.declare.stream import Stream
from tidemill.encoding import schema_files
from tidemill.encoding.envelopes import SkippedError
from tidemill.errors import Reject, SettingsError
from tidemill.offline import history
from tidemill.offline.source import FileSource, KafkaSource
from tidemill.rules import LARGEST_NUMBER, Rule
from tidemill.stages.validator.decode import stream_decoder
from tidemill.stream.api import Broker, Progress
from tidemill.stream.origin import origin_of
from tidemill.stream.ranges import full_range
from tidemill.wire import topics
from tidemill.wire.records import Records

#: Values of a field that are sampled for its quantiles: at 0.999 that is the 50 largest of them.
MAX_SAMPLE_VALUES = 50_000
#: Smallest and largest values of a field that are all kept, so that what a bound refuses is counted, not estimated.
MAX_TAIL_VALUES = 1_000
#: A field with more distinct values has no count of each.
MAX_DISTINCT_VALUES = 10_000
#: Distinct ids that are kept. Of more, those of every second hash are kept, then of every fourth, and so on.
MAX_IDS = 500_000
#: Entities whose last value of a field is kept.
MAX_ENTITIES = 100_000

#: Rows of a file that are profiled at once.
BATCH_ROWS = 10_000

#: Rules that give the same answer for a value at any time: history shows what they would have refused.
VALUE_RULES = ("between", "one_of", "matches", "not_null", "finite", "not_before")

NUMBER_TYPES: Mapping[str, Any] = {"int": np.int64, "long": np.int64} | dict.fromkeys(
    ("float", "double", "decimal"), np.float64
)
#: The smallest and the largest value of a type that pass without any rule.
TYPE_LIMITS: Mapping[str, tuple[float, float]] = {
    "int": (-(2**31), 2**31 - 1),
    "long": (-(2**63), 2**63 - 1),
    "float": (-LARGEST_NUMBER, LARGEST_NUMBER),
    "double": (-LARGEST_NUMBER, LARGEST_NUMBER),
    "decimal": (-LARGEST_NUMBER, LARGEST_NUMBER),
}

Array = npt.NDArray[Any]


def hashed(numbers: Array) -> Array:
    """Return a hash of each of these integers, no two alike (the finalizer of SplitMix64, Steele et al. 2014)."""
    mixed = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


class Sample:
    """A uniform sample: of all values that it was given, those of the smallest hashes, each with its record's time."""

    def __init__(self, kind: Any, size: int) -> None:
        self.size = size
        self.values: Array = np.empty(0, kind)
        self.times: Array = np.empty(0, np.int64)
        self._hashes: Array = np.empty(0, np.uint64)

    def __len__(self) -> int:
        return len(self.values)

    def take(self, values: Array, times: Array, hashes: Array) -> None:
        """Take some values."""
        if len(self) >= self.size:
            near = hashes < self._hashes[-1]
            values, times, hashes = values[near], times[near], hashes[near]
        hashes = np.concatenate([self._hashes, hashes])
        kept = np.argsort(hashes)[: self.size]
        self._hashes = hashes[kept]
        self.values = np.concatenate([self.values, values])[kept]
        self.times = np.concatenate([self.times, times])[kept]


class Tails:
    """The smallest and the largest of all values, sorted; all of them where there are no more than `size`."""

    def __init__(self, kind: Any, size: int) -> None:
        self.size = size
        self.lowest: Array = np.empty(0, kind)
        self.highest: Array = np.empty(0, kind)

    def take(self, values: Array) -> None:
        """Take some values."""
        self.lowest = np.sort(np.concatenate([self.lowest, values]))[: self.size]
        self.highest = np.sort(np.concatenate([self.highest, values]))[-self.size :]


class RepeatedIds:
    """Which share of ids came before: exact up to `limit` of them, then that of a sample by hash."""

    def __init__(self, limit: int) -> None:
        self.limit, self.every = limit, 1
        self._times: dict[int, int] = {}

    def take(self, values: Sequence[Any]) -> None:
        """Take some ids."""
        times = self._times
        for value in values:
            key = int.from_bytes(blake2b(str(value).encode(), digest_size=8).digest())
            if key % self.every == 0:
                times[key] = times.get(key, 0) + 1
        while len(times) > self.limit:
            self.every *= 2
            times = self._times = {key: n for key, n in times.items() if key % self.every == 0}

    @property
    def repeated(self) -> float:
        """The share of records whose id came before."""
        total = sum(self._times.values())
        return (total - len(self._times)) / total if total else 0.0


class Rising:
    """Whether a field ever falls within an entity, in the order in which records come."""

    def __init__(self) -> None:
        self.falls, self.steps = False, 0
        self._last: dict[Any, Any] = {}

    def take(self, entities: Sequence[Any], values: Sequence[Any]) -> None:
        """Take some values, each of its entity."""
        last = self._last
        for entity, value in zip(entities, values, strict=True):
            if value is None:
                continue
            before = last.get(entity)
            if before is None:
                if len(last) < MAX_ENTITIES:
                    last[entity] = value
                continue
            if value < before:
                self.falls = True
                last.clear()
                return
            self.steps += value > before
            last[entity] = value


@dataclass
class RuleTally:
    """A declared rule, how many values of history it refuses, and some of them with how often each came."""

    rule: Rule
    refused: int = 0
    values: Counter[Any] = field(default_factory=Counter)

    def take(self, counts: Mapping[Any, int]) -> None:
        """Take values, each with how often it came."""
        for value, times in counts.items():
            if (not self.rule.nullable) if value is None else not self.rule.passes(value):
                self.refused += times
                if value in self.values or len(self.values) < MAX_TAIL_VALUES:
                    self.values[value] += times


class Profile:
    """The profile of one field: counts of values and nulls, how often each value came, a sample, and the tails."""

    def __init__(self, avro: Mapping[str, Any], kind: str, declared: Sequence[Rule] = ()) -> None:
        self.name: str = avro["name"]
        self.kind, self.nullable = kind, schema_files.nullable(avro["type"])
        self.logical, self.symbols = (
            _type_attribute(avro["type"], "logicalType"),
            _type_attribute(avro["type"], "symbols"),
        )
        self.count = self.nulls = self.unusable = 0
        self.is_integer = True
        self.counts: Counter[Any] | None = Counter()
        stored = NUMBER_TYPES.get(kind, object)
        self.sample, self.tails = Sample(stored, MAX_SAMPLE_VALUES), Tails(stored, MAX_TAIL_VALUES)
        self.declared = [RuleTally(rule) for rule in declared if rule.name in VALUE_RULES]

    @property
    def is_number(self) -> bool:
        """Whether its values are numbers."""
        return self.kind in NUMBER_TYPES

    @property
    def is_text(self) -> bool:
        """Whether its values are text."""
        return self.kind in ("string", "enum")

    def take(self, values: Sequence[Any], times: Array, hashes: Array) -> None:
        """Take the field's values of some records."""
        self.count += len(values)
        if not self.is_number and not self.is_text and self.kind != "boolean":
            self.nulls += sum(value is None for value in values)
            return
        counts = Counter(values)
        for tally in self.declared:
            tally.take(counts)
        self.nulls += counts.pop(None, 0)
        if self.counts is not None:
            self.counts.update(counts)
            if len(self.counts) > MAX_DISTINCT_VALUES:
                self.counts = None
        if self.kind == "boolean":
            return
        is_present = np.fromiter((value is not None for value in values), bool, len(values))
        present = np.array([value for value in values if value is not None], self.sample.values.dtype)
        times, hashes = times[is_present], hashes[is_present]
        if self.kind in ("float", "double"):
            usable = (
                np.abs(present) <= LARGEST_NUMBER
            )  # all others are refused without any rule; NaN is not <= anything
            self.unusable += int((~usable).sum())
            present, times, hashes = present[usable], times[usable], hashes[usable]
            self.is_integer = self.is_integer and bool((present == np.floor(present)).all())
        self.sample.take(present, times, hashes)
        if self.is_number:
            self.tails.take(present)

    @property
    def values(self) -> int:
        """How many values there are that a rule may look at."""
        return self.count - self.nulls - self.unusable

    @property
    def ends(self) -> tuple[float | None, float | None]:
        """The smallest and the largest of all values; None where there is no number."""
        tails = self.tails
        return (tails.lowest[0].item(), tails.highest[-1].item()) if len(tails.lowest) else (None, None)

    def outside(self, low: float, high: float) -> tuple[int, bool]:
        """Return how many values are not from `low` to `high`, and whether that is counted or estimated."""
        lowest, highest, sample = self.tails.lowest, self.tails.highest, self.sample.values
        below, above = int((lowest < low).sum()), int((highest > high).sum())
        if self.values <= len(lowest) or (below < len(lowest) and above < len(highest)):
            return below + above, True
        return round(float(((sample < low) | (sample > high)).mean()) * self.values), False

    def refused(self, passes: Callable[[Any], Any]) -> tuple[int, bool, list[tuple[Any, int]]]:
        """Return how many values do not pass, whether that was counted or estimated, and which, most frequent first."""
        counts = Counter(self.sample.values.tolist()) if self.counts is None else self.counts
        bad = [(value, times) for value, times in counts.items() if not passes(value)]
        bad.sort(key=lambda pair: (-pair[1], str(pair[0])))
        total = sum(times for _, times in bad)
        if self.counts is not None:
            return total, True, bad
        return round(total / max(len(self.sample), 1) * self.values), len(self.sample) == self.values, bad


def _type_attribute(avro: Any, what: str) -> Any:
    """Return an attribute of a field's type, also where that is one branch of a union."""
    branches = avro if isinstance(avro, list) else [avro]
    return next((branch[what] for branch in branches if isinstance(branch, dict) and what in branch), None)


class StreamProfile:
    """The profile of one stream.

    Parameters
    ----------
    stream
        The stream, events or labels.
    declared
        Its declared rules, which are judged on the way.
    is_sorted
        Whether the records were sorted by time: then their order shows nothing.
    """

    def __init__(self, stream: Stream, declared: Sequence[Rule] = (), *, is_sorted: bool = True) -> None:
        self.stream, self.rules = stream, tuple(declared)
        self.records = self.skipped = 0
        self.refused: dict[str, int] = {}
        """Rows of a file that can't be decoded, or are no records, by reason."""
        self.fields = {
            avro["name"]: Profile(
                avro,
                kind := stream.types[avro["name"]],
                [r.of_decimals() if kind == "decimal" else r for r in declared if r.field == avro["name"]],
            )
            for avro in stream.valid_avro["fields"]
        }
        self.ids = RepeatedIds(MAX_IDS)
        self.delay = Profile({"name": stream.time, "type": "long"}, "long")
        """How long after its own time a record came, in ms, by its origin; empty where history is a file."""
        self.rising = {
            name: Rising()
            for name, profile in self.fields.items()
            if stream.key and profile.is_number and name not in (stream.key, stream.id)
        }
        if is_sorted:
            self.rising.pop(stream.time, None)

    def take(self, rows: Sequence[Mapping[str, Any]], numbers: Array, arrivals: Array | None = None) -> None:
        """Take some records: their numbers (no two alike), and when each came, in ms, where that is known."""
        if not rows:
            return
        stream = self.stream
        times, hashes = np.array([row[stream.time] for row in rows], np.int64), hashed(numbers)
        self.records += len(rows)
        for name, profile in self.fields.items():
            profile.take([row[name] for row in rows], times, hashes)
        self.ids.take([row[stream.id] for row in rows])
        if arrivals is not None:
            self.delay.take((arrivals - times).tolist(), times, hashes)
        for name in [name for name, rising in self.rising.items() if not rising.falls]:
            self.rising[name].take([row[stream.key] for row in rows], [row[name] for row in rows])


def of_rows(
    stream: Stream,
    declared: Sequence[Rule],
    rows: Sequence[Mapping[str, Any]],
    progress: Progress | None = None,
) -> StreamProfile:
    """Return the profile of rows, which are in order of their time."""
    profile = StreamProfile(stream, declared)
    for begin in range(0, len(rows), BATCH_ROWS):
        batch = rows[begin : begin + BATCH_ROWS]
        profile.take(batch, np.arange(begin, begin + len(batch)))
        if progress:
            progress(len(batch))
    return profile


def of_kafka(pipeline: Pipeline, broker: Broker, progress: Progress | None = None) -> dict[str, StreamProfile]:
    """Return the profiles of the valid events and labels in Kafka at this moment, as "rules" and "label_rules".

    Records of an earlier schema are counted and passed over.
    """
    records, profiles = Records(pipeline), {}
    for argument, topic, stream, declared, codec in (
        ("rules", topics.EVENTS_VALID, pipeline.events, pipeline.rules, records.event),
        ("label_rules", topics.LABELS_VALID, pipeline.labels, pipeline.label_rules, records.label),
    ):
        profile = profiles[argument] = StreamProfile(stream, declared, is_sorted=False)
        for batch in broker.read(full_range(broker, topic.name(pipeline))):
            decoded = [(record, row) for record in batch if (row := codec.of(record.value())) is not None]
            profile.skipped += len(batch) - len(decoded)
            numbers = np.array([(r.partition() << 48) + r.offset() for r, _ in decoded], np.int64)
            arrivals = np.array([origin_of(r) for r, _ in decoded], np.int64)
            profile.take([row for _, row in decoded], numbers, arrivals)
            if progress:
                progress(len(batch))
    return profiles


def read(
    pipeline: Pipeline, source: KafkaSource | FileSource, progress: Progress | None = None
) -> dict[str, StreamProfile]:
    """Return the profiles of a source's events and labels, as "rules" and "label_rules".

    Raises SettingsError where a source, or a file of it, holds nothing.
    """
    if isinstance(source, KafkaSource):
        profiles = of_kafka(pipeline, source.broker, progress)
        if not any(profile.records for profile in profiles.values()):
            raise SettingsError(
                f"the log holds no valid events or labels of {pipeline.name!r}: run its validator first, or name files "
                f"of history with --events and --labels"
            )
        return profiles
    profiles = {}
    for argument, path, stream, declared in (
        ("rules", source.events, pipeline.events, pipeline.rules),
        ("label_rules", source.labels, pipeline.labels, pipeline.label_rules),
    ):
        if path is not None:
            refused: Counter[str] = Counter()
            rows = list(_decoded(pipeline, path, stream, refused))
            profiles[argument] = of_rows(stream, declared, rows, progress)
            profiles[argument].refused = dict(refused)
            if not rows:
                why = f" that can be decoded ({', '.join(refused)})" if refused else ""
                raise SettingsError(f"{path} has no rows{why}: give a file with history")
    return profiles


def _decoded(pipeline: Pipeline, path: Path, stream: Stream, refused: Counter[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows that the validator decodes, whatever its rules say of them; `refused` counts the others."""
    records = Records(pipeline)
    is_event = stream is pipeline.events
    codecs = (records.sent_event, records.event) if is_event else (records.sent_label, records.label)
    decoder = stream_decoder(stream, *codecs, bare=True)
    for message in history.messages(path, stream):
        try:
            yield decoder.decode(message.data)[0]
        except SkippedError as skipped:
            refused[skipped.kind] += 1
        except Reject as reject:
            refused[reject.reason] += 1
