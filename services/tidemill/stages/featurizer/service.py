"""The featurizer: valid events in, feature vectors out.

reads   <pipeline>.events.valid, keyed by entity
writes  <pipeline>.features, keyed by entity; <pipeline>.updates, keyed by other entities that views are kept of;
        Redis: the features of views of the events' key, by entity
asks    Redis for the views of other entities, as they are at that moment, once a batch
state   event-time tiles of every entity of the partitions it holds; rebuilt from Redis and the log
order   a vector holds what was known before its event; the event is added afterwards
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from tidemill.declare.feature import Feature
from tidemill.declare.pipeline import Pipeline
from tidemill.errors import Reject
from tidemill.features.lookup import RemoteLookup, RemoteViews
from tidemill.features.ports import ViewStore
from tidemill.features.tiles import Plan
from tidemill.features.views import Views
from tidemill.limits import VECTOR_BYTES
from tidemill.rows import is_missing
from tidemill.rules import LARGEST_NUMBER
from tidemill.stream.api import Emit, Headers, Position, Record, Start, TopicPartition, discard
from tidemill.stream.commit_metadata import CommitMetadata
from tidemill.stream.group import Service
from tidemill.stream.origin import origin_of
from tidemill.tables import Lookup
from tidemill.watermark import NEVER
from tidemill.wire import topics
from tidemill.wire.dead_letters import DeadLetterProcessor
from tidemill.wire.records import Records
from tidemill.wire.services import service
from tidemill.wire.updates import Updates

MAX_VECTOR_BYTES = VECTOR_BYTES.max

Extract = Callable[[Mapping[str, Any]], Any]


def extractor(feature: Feature) -> Extract:
    """Return the function that takes an event and returns the request feature, in its declared kind, or None."""
    source = feature.source
    if feature.kind == "number":
        return _number(source)
    convert: Callable[[Any], Any] = _text if feature.kind == "category" else _truth
    if isinstance(source, str):
        convert = str if feature.kind == "category" else _truth
        return lambda event: None if event[source] is None else convert(event[source])
    take = _reading(source)

    def value(event: Mapping[str, Any]) -> Any:
        raw = take(event)
        return None if is_missing(raw) else convert(raw)

    return value


def _reading(source: Extract) -> Extract:
    """Return a declared function that can't change the event, of which others are made as well."""
    return source if isinstance(source, Lookup) else lambda event: source(MappingProxyType(event))


def _text(raw: Any) -> str:
    """Return what a function says as text, which a container or an object is not: theirs may have an address in it."""
    if not isinstance(raw, str):
        if hasattr(raw, "__len__") or callable(raw) or hex(id(raw)) in repr(raw):
            raise TypeError(f"{type(raw).__name__} where text was expected")
        raw = str(raw)
    raw.encode()  # half a surrogate can't be written
    return str.__str__(raw)  # an enum's member of text is its text, not its name


def _truth(raw: Any) -> bool:
    """Return what a function says is true or false; text is neither: "no" would be true."""
    if raw not in (0, 1):
        raise TypeError(f"{raw!r} where true or false was expected")
    return bool(raw)


def _number(source: Any) -> Extract:
    if isinstance(source, str):

        def field(event: Mapping[str, Any]) -> float | None:
            raw = event[source]
            return None if raw is None else float(raw)

        return field  # an event's own floats are finite and of bounded size: the validator has checked them

    lowest, largest, take = -LARGEST_NUMBER, LARGEST_NUMBER, _reading(source)

    def value(event: Mapping[str, Any]) -> float | None:
        raw = take(event)
        if is_missing(raw):
            return None
        if type(raw) is not float and getattr(raw, "imag", False):  # numpy's float() leaves it out
            raise TypeError(f"{raw!r} where a number was expected")
        try:
            number = float(raw)
        except OverflowError:  # an int of hundreds of digits
            return None
        return number if lowest <= number <= largest else None  # NaN is not between any two numbers

    return value


class Featurizer(DeadLetterProcessor):
    """Turns events into vectors and keeps the views.

    Parameters
    ----------
    stores
        The online store of each view of the events' key, by the view's name; those without one are kept in memory only.
    remote_views
        Where the views of other entities are read.
    """

    def __init__(
        self, pipeline: Pipeline, stores: Mapping[str, ViewStore] | None = None, remote_views: RemoteViews | None = None
    ) -> None:
        super().__init__(pipeline.name, "featurizer")
        self.records = Records(pipeline)
        self.topic = topics.FEATURES.name(pipeline.name)
        self.views = Views([Plan(view) for view in pipeline.inline_views], stores or {}, self.counts)
        self.remote_views = remote_views
        self._decimals = [name for name, kind in pipeline.events.types.items() if kind == "decimal"]
        self.updates = Updates(pipeline, self.records, "events")
        self.extract = [(name, extractor(feature)) for name, feature in pipeline.request_features.items()]
        self._new: dict[int, tuple[str, ...]] = {}
        events = pipeline.events
        self._id, self._time, self._key = events.id, events.time, events.key
        self._takes_empty = events.empty_entities
        self._remote = [(view.label, view.entity, dict.fromkeys(view.features)) for view in pipeline.remote_views]
        self._entities = tuple(dict.fromkeys(view.entity for view in pipeline.remote_views))

    def assign(self, topic_partition: TopicPartition, committed: Position) -> Start:
        self._new[topic_partition.partition] = self.updates.new(committed)
        # Where a person has decided from where it goes on, or records were erased, the log is another than the stores
        # were made from.
        metadata = CommitMetadata.decode(committed.metadata)
        from_log = metadata.rebuild_from is not None or metadata.erased < self.erased
        begin = self.views.assign(topic_partition.partition, committed.offset, from_log=from_log)
        return Start(begin, committed.offset)

    def truncated(self, topic_partition: TopicPartition) -> None:
        self.views.truncated(topic_partition.partition)

    def revoke(self, topic_partitions: Iterable[TopicPartition]) -> None:
        for topic_partition in topic_partitions:
            self.views.revoke(topic_partition.partition)
            self._new.pop(topic_partition.partition, None)

    def commit_metadata(self, topic_partition: TopicPartition) -> CommitMetadata:
        """Return the entities whose updates have started: for a later one, "begins" is written first."""
        return CommitMetadata(entities=self.updates.started(self._new.get(topic_partition.partition, ())))

    def process(self, records: Sequence[Record], emit: Emit) -> bool:
        decode, id_, time_, key = self.records.event.decode, self._id, self._time, self._key
        is_live = emit is not discard
        requests = []
        for record in records:
            try:
                event = decode(record.value())
            except Reject as reject:  # of somebody else: the validator sends no such record
                self.refuse(record, reject, emit)
                continue
            vector = self._request_features(record, event, emit) if is_live else None
            entities = {name: str(event[name]) for name in self._entities if self.names_entity(event[name])}
            request = _Request(record, event, str(event[id_]), str(event[key]), event[time_], entities, vector)
            request.is_nobody = not self.names_entity(event[key])
            requests.append(request)
        lookup = self._lookup(requests) if self.remote_views and is_live else RemoteLookup()
        served, stale_vectors = [], Counter[str]()
        for request in requests:
            self.in_hand = request.record
            trace = self.traces.of(request.record) if is_live else None
            as_of = self._add_to_inline_views(request)
            if request.vector is not None:
                stale = self._add_remote_features(request, lookup, as_of)
                self._serve(request, as_of, stale, trace, emit)
                served.append((request.time, as_of))
                stale_vectors.update(stale)
            if is_live and self.updates:
                if new := self._new.pop(request.record.partition(), ()):
                    self.updates.emit_control("begins", new, request.time, emit)
                self.updates.emit(
                    request.entities, request.event, request.id, request.time, origin_of(request.record), emit, trace
                )
        self._measure(served, stale_vectors)
        return True

    def names_entity(self, value: Any) -> bool:
        """Whether a field's value names an entity."""
        return value is not None and (self._takes_empty or not isinstance(value, str) or not _is_blank(value))

    def _request_features(self, record: Record, event: Mapping[str, Any], emit: Emit) -> dict[str, Any] | None:
        """Return what the vector has from the event alone; None where the declaration's own functions failed."""
        vector: dict[str, Any] = {}
        name = ""
        try:
            for name, take in self.extract:
                vector[name] = take(event)
            return vector
        except Exception as error:  # they may raise anything
            message = f"request feature {name!r} raised {type(error).__name__}: {error}"
            self.refuse(record, Reject("request_feature", message, rule="request"), emit)
            return None

    def _lookup(self, requests: Sequence[_Request]) -> RemoteLookup:
        """Read the views of other entities, for all events at once."""
        assert self.remote_views is not None  # noqa: S101  process() has checked
        wanted: dict[str, set[str]] = {name: set() for name, _, _ in self._remote}
        for request in requests:
            if request.vector is not None:
                for name, key, _ in self._remote:
                    if key in request.entities:
                        wanted[name].add(request.entities[key])
        return self.remote_views.lookup(wanted)

    def _add_to_inline_views(self, request: _Request) -> dict[str, int]:
        """Add an event to the views of its own key, after the vector has what was known before it."""
        offset, partition = request.record.offset(), request.record.partition()
        as_of: dict[str, int] = {}
        event = request.event
        if self._decimals:  # aggregates are of floats, as those over examples and other entities are
            event = {**event, **{name: float(value) for name in self._decimals if (value := event[name]) is not None}}
        for state in self.views.states[partition]:
            if offset < state.offset:
                continue  # this view's store was further on than another's: it has the event already
            state.offset = offset + 1
            plan = state.plan
            if request.is_nobody:
                if request.vector is not None:
                    request.vector.update(dict.fromkeys(plan.names))
                continue
            request.partial |= state.is_partial(request.time)
            entity = state.entities.get(request.entity)
            if request.vector is not None:
                if entity is None:
                    request.vector.update(plan.nothing)
                else:
                    request.vector.update(zip(plan.names, plan.read(entity, request.time), strict=True))
                    as_of[plan.label] = entity.time
            if not state.add(request.entity, request.time, event):
                self.counts["tile_too_old", plan.view.label] += 1
        return as_of

    def _add_remote_features(self, request: _Request, lookup: RemoteLookup, as_of: dict[str, int]) -> list[str]:
        """Put the features of other entities into the vector, as of its event's time; returns the views it lacks."""
        assert request.vector is not None  # noqa: S101  process() has checked
        stale = lookup.stale_at(request.time)
        for name, key, missing in self._remote:
            plan, entity = lookup.plans.get(name), request.entities.get(key)
            known = None if entity is None else lookup.entities.get((name, entity))
            if plan is None or entity is None or name in stale:
                request.vector.update(missing)
            elif known is None:
                request.vector.update(plan.nothing)
            else:
                try:
                    features, as_of[name] = plan.read(known, request.time), known.time
                except Exception:  # cells that no service has written may make any aggregate raise anything
                    request.vector.update(missing)
                    stale.append(name)
                    continue
                request.vector.update(zip(plan.names, features, strict=True))
        return stale

    def _serve(
        self, request: _Request, as_of: dict[str, int], stale: list[str], trace: Headers | None, emit: Emit
    ) -> None:
        record = request.record
        partition = record.partition()
        features = {
            "event_id": request.id,
            "entity_id": request.entity,
            "event_time": request.time,
            "partition": partition,
            "offset": record.offset(),
            "partial": request.partial,
            "entities": request.entities,
            "as_of": as_of,
            "stale": stale,
            "vector": request.vector,
        }
        if self.records.are_seen or not self.records.is_small(request.vector or {}):
            data = self.records.features.encode(features)
            if len(data) > MAX_VECTOR_BYTES:
                self.refuse(record, Reject("too_large", VECTOR_BYTES.excess(len(data)), entity=request.entity), emit)
                return
        else:
            data = self.records.features.header
        if self.records.carries:
            data = self.records.carried_features(data, features)
        emit(self.topic, data, record.key(), origin_of(record), trace)

    def _measure(self, served: Sequence[tuple[int, Mapping[str, int]]], stale: Mapping[str, int]) -> None:
        """Measure by view how old the oldest features of a batch were, and how many vectors it was stale in."""
        oldest: dict[str, int] = {}
        for now, as_of in served:
            for name, at in as_of.items():
                if now - at > oldest.get(name, NEVER):
                    oldest[name] = now - at
        for name, age in oldest.items():
            key = ("feature_age", name)
            self.observed[key] = max(age / 1000, self.observed.get(key, 0.0))  # never below 0: a late event's own age
        for name, vectors in stale.items():
            self.counts["stale_vectors", name] += vectors

    def committed(self) -> None:
        """Bring the stores to what is committed. A store that is away does not stop the vectors."""
        self.views.committed()

    def gauges(self) -> Mapping[tuple[str, str], float]:
        return self.views.gauges()


def _is_blank(text: str) -> bool:
    return not text or text.isspace()


def build(pipeline: Pipeline, stores: Mapping[str, ViewStore], remote_views: RemoteViews | None = None) -> Service:
    """Wire the featurizer to its topics."""
    return service("featurizer", pipeline, Featurizer(pipeline, stores, remote_views))


@dataclass(slots=True)
class _Request:
    """One event on its way to its vector; `vector` is None where a request feature failed."""

    record: Record
    event: Mapping[str, Any]
    id: str
    entity: str
    time: int
    entities: dict[str, str]
    vector: dict[str, Any] | None
    partial: bool = False
    is_nobody: bool = False
