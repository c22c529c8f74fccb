"""Forgets entities: their records go from the log, Redis and the archive, and models are folded again without them.

order     what names the entity only by its events' ids goes first, then what names both: a search after a crash finds
          the same. Models and artifacts are last: their test vectors are known again by hashes that the request has
state     a mark on <pipeline>.forgotten has every service go back to what is committed, and make its state, in memory,
          on disk and in Redis, again from the log; what it commits says that it has
offsets   stay: Kafka's compaction takes records out, and moves none. A version is still the fold of what lies before it
crash     everything is done again, from the search on; only a last search that finds nothing ends a request
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tidemill.declare.pipeline import Pipeline
from tidemill.declare.scorecard import Scorecard
from tidemill.declare.stream import Stream
from tidemill.encoding.codec import HEADER, Codec
from tidemill.errors import ArtifactError, BrokerError, SettingsError, StoreError, TidemillError
from tidemill.features.redis import Redis
from tidemill.files import Files
from tidemill.models.linear import specialised
from tidemill.offline.byte_search import ByteSearch, VectorSearch
from tidemill.offline.offsets import services
from tidemill.registry.decisions import all_decisions, decisions
from tidemill.registry.forgetting import (
    CHAIN,
    Entity,
    Forgetting,
    Hashes,
    Requests,
    Waiting,
    check_entities,
    forgetting_codec,
    refold_at,
    split,
)
from tidemill.registry.manifests import Manifest, Registry
from tidemill.registry.signing import LogWriter, backwards
from tidemill.runtime.archived import Archived
from tidemill.stream.api import TopicPartition
from tidemill.stream.kafka.broker import KafkaBroker
from tidemill.stream.kafka.erasing import Eraser, by_partition, stored
from tidemill.stream.kafka.producer import Sender
from tidemill.stream.ranges import full_range
from tidemill.stream.restore import own_metadata
from tidemill.stream.topic import Topic
from tidemill.stream.unique_keys import is_unique, natural
from tidemill.wire import topics
from tidemill.wire.records import Example, Records, newness, vector_to_x

#: By what names the entity only by its events, then by what names both.
_BY_EVENT = (topics.LABELS, topics.LABELS_VALID, topics.DLQ, topics.UPDATES, topics.PREDICTIONS, topics.FEATURES)
_BY_ENTITY = (topics.EVENTS, topics.EXPIRED, topics.EVENTS_VALID, topics.PREDICTION_LOG, topics.EXAMPLES)
#: Rounds of search and erasing: what services still held in one is found in the next.
MAX_ROUNDS = 5
#: Most events of one request, whose hashes are one record.
MAX_EVENTS = 80_000
#: So many latest examples are answered again by both models.
MAX_COMPARED = 1_000
#: Of so many latest requests what the artifact store may still have is deleted.
MAX_LEFT_BEHIND = 100
#: How often brokers look what they may delete.
_CHECK_MS = "log.retention.check.interval.ms"

Say = Callable[[str], None]


@dataclass
class Findings:
    """What a search has found: records by topic, Redis' keys, the archive's files with rows, artifacts.

    `mentions` are records of others that hold an id elsewhere; they are among the records as well. `vectors`: how many
    of the vectors each store has that are not also those of others.
    """

    records: dict[str, list[Any]] = field(default_factory=dict)
    mentions: list[Any] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    files: dict[str, int] = field(default_factory=dict)
    artifacts: list[str] = field(default_factory=list)
    vectors: Counter[str] = field(default_factory=Counter)

    def counts(self) -> dict[str, int]:
        """Return how many there are in each store."""
        counts = {topic: len(some) for topic, some in self.records.items() if some}
        rest = {"Redis": len(self.keys), "archive": sum(self.files.values()), "artifacts": len(self.artifacts)}
        rest |= {f"{store} (vectors)": count for store, count in self.vectors.items()}
        return counts | {name: count for name, count in rest.items() if count}


@dataclass
class Subject:
    """Who is to be forgotten: entities by field and id, and what the log knows of them."""

    entities: Sequence[Entity]
    events: set[str] = field(default_factory=set)
    vectors: set[bytes] = field(default_factory=set)
    first_example: int | None = None

    @cached_property
    def search(self) -> ByteSearch:
        """Looks for all ids."""
        return ByteSearch([*(id_ for _, id_ in self.entities), *self.events])


class Forget:
    """Forgets entities of one pipeline.

    Parameters
    ----------
    kept
        Suffixes of topics whose records are left to their retention, which the certificate says.
    reset
        Begins another life of a model: takes its name, an id of the command and why; None: there is no gate to ask.
    mentions_too
        Whether records of others that hold an id elsewhere are erased as well; else nothing is where there are some.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        broker: KafkaBroker,
        registry: Registry,
        redis: Redis | None,
        archive: Files | None,
        *,
        kept: Collection[str] = (),
        reset: Callable[[str, str, str], Any] | None = None,
        say: Say = lambda _: None,
        patience: float = 300.0,
        mentions_too: bool = False,
    ) -> None:
        if pipeline.forgetting is None:
            raise SettingsError(
                f"pipeline {pipeline.name!r} does not declare forgetting, so records have keys by which Kafka can't "
                f"erase single ones: declare Pipeline(..., forgetting=Forgetting()) before the first record"
            )
        self.pipeline, self.broker, self.registry, self.redis, self.archive = pipeline, broker, registry, redis, archive
        self.kept, self.reset, self.say, self.patience = frozenset(kept), reset, say, patience
        self.archived = Archived(archive, pipeline.name) if archive else None
        self.mentions_too = mentions_too
        self.records = Records(pipeline)
        self.hashes = Hashes(pipeline.name, registry.keys)
        self.writer = LogWriter(forgetting_codec(pipeline, registry.keys), broker, CHAIN)
        self.sender = Sender(broker.servers, broker.common)

    # Searching --------------------------------------------------------------------------------------------------------

    def subject(self, entities: Sequence[Entity]) -> Subject:
        """Return what the log knows of entities. Raises SettingsError for a field that names none."""
        check_entities(self.pipeline, entities)
        subject = Subject(entities)
        wanted = set(entities)
        ids = {id_.encode() for _, id_ in entities}
        events = self.pipeline.events
        for topic in (topics.EVENTS, topics.EVENTS_VALID):
            codec = self.records.of_topic(topic)
            for batch in stored(self.broker, topic.name(self.pipeline)):
                for record in batch:
                    event = codec.of(record.value()) if codec else None
                    if event is None:
                        event = _json(record.value())
                    if event and any((name, str(event.get(name))) in wanted for name in self.pipeline.forgettable):
                        subject.events.add(str(event.get(events.id)))
        for topic in (topics.PREDICTION_LOG, topics.EXPIRED, topics.EXAMPLES):
            codec = self.records.of_topic(topic)
            assert codec is not None  # noqa: S101  they are Avro
            for batch in stored(self.broker, topic.name(self.pipeline)):
                for record in batch:
                    value = record.value() or b""
                    if any(id_ in value for id_ in ids) and (decoded := codec.of(value)) is not None:
                        self._learn_of(decoded, record, wanted, subject, is_example=topic is topics.EXAMPLES)
        return subject

    def _learn_of(
        self, decoded: Any, record: Any, wanted: Collection[Entity], subject: Subject, *, is_example: bool
    ) -> None:
        features = (decoded["prediction"] if is_example else decoded)["features"]
        named = {(self.pipeline.entity, features["entity_id"]), *features["entities"].items()}
        for feature, one in self.pipeline.request_features.items():
            if isinstance(one.source, str):
                named.add((one.source, str(features["vector"].get(feature))))
        if named & set(wanted):
            subject.events.add(features["event_id"])
            subject.vectors.add(self.records.vector.body(features["vector"]))
            if is_example:
                first = subject.first_example
                subject.first_example = record.offset() if first is None else min(first, record.offset())

    def find(self, subject: Subject, asked: Forgetting | None = None, *, everywhere: bool = False) -> Findings:
        """Search the log, Redis and the archive; `everywhere`: also the topics that nothing is erased from."""
        findings, search = Findings(), subject.search
        events = split(asked.events) if asked else frozenset()
        erasable = (*_BY_EVENT, *_BY_ENTITY)
        for topic in topics.TOPICS if everywhere else erasable:
            name = topic.name(self.pipeline)
            if topic.suffix in self.kept or topic is topics.MODELS or not self.broker.partitions(name):
                continue
            some = findings.records.setdefault(name, [])
            for batch in stored(self.broker, name):
                # What a run that broke off has written to erase a record has the record's key, and has to go as well.
                hits = set(search.among([_bytes(record) for record in batch]))
                if topic in erasable:
                    own, others = self._by_id(topic, batch, hits, subject, events)
                    hits |= own
                    findings.mentions += [batch[index] for index in sorted(others)]
                some += [batch[index] for index in sorted(hits)]
        findings.keys = list(self._keys(search))
        findings.files = dict(self.archived.found(search)) if self.archived else {}
        return findings

    def _by_id(
        self, topic: Topic, batch: Sequence[Any], hits: Collection[int], subject: Subject, events: Collection[bytes]
    ) -> tuple[set[int], set[int]]:
        """Return the records of the subject's events, and those among the hits that are of other events.

        The former are looked for where ids are no text, or only their hashes are known.
        """
        stream = self._stream(topic)
        is_text = stream is None or stream.types.get(stream.id) == "string"
        is_asked = not is_text or bool(events) or bool(subject.search.too_short)
        own, others = set[int](), set[int]()
        for index, record in enumerate(batch):
            if (index in hits or is_asked) and (id_ := self._event_id(topic, record)) is not None:
                if id_ in subject.events or (events and self.hashes.short(id_.encode()) in events):
                    own.add(index)
                elif index in hits:
                    others.add(index)
        return own, others

    def _stream(self, topic: Topic) -> Stream | None:
        return {"event": self.pipeline.events, "label": self.pipeline.labels}.get(topic.record)

    def _event_id(self, topic: Topic, record: Any) -> str | None:
        """Return the id of the event that a record is of; None where it can't be read."""
        stream = self._stream(topic)
        if topic is topics.DLQ:  # as it was sent, of either stream
            sent = (self.pipeline.events, self.records.sent_event), (self.pipeline.labels, self.records.sent_label)
            for stream, sent_codec in sent:
                content = _content(sent_codec, record.value()) or _json(record.value()) or {}
                if content.get(stream.id) is not None:
                    return str(content[stream.id])
            return None
        codec = self.records.of_topic(topic) if topic in (topics.UPDATES, topics.PREDICTIONS) or stream else None
        content = _content(codec or self.records.head, record.value())
        if content is None and topic.is_raw:
            content = _json(record.value())
        id_ = None if content is None else content.get(stream.id if stream else "event_id")
        return None if id_ is None else str(id_)

    def check_mentions(self, findings: Findings) -> None:
        """Raise SettingsError where records of others would be erased as well."""
        if findings.mentions and not self.mentions_too:
            first = findings.mentions[0]
            raise SettingsError(
                f"{len(findings.mentions):,} records of other events hold one of these ids, the first is "
                f"{first.topic()}[{first.partition()}]@{first.offset()}: nothing was erased; --mentions-too erases "
                f"those as well"
            )

    def _keys(self, search: ByteSearch) -> Iterator[str]:
        """Yield the keys of the pipeline's views that hold an id, in their name or value."""
        return (key for key, text in self._values() if search.holds(text))

    def _values(self) -> Iterator[tuple[str, bytes]]:
        """Yield the keys of the pipeline's views, each with its name and value as text."""
        if (client := self.redis) is None:
            return
        for view in self.pipeline.views:
            for between in (":", "/"):
                for key in client.scan_iter(f"{self.pipeline.name}:{view.label}{between}*", 1000):
                    kind = client.type(key)
                    value: Any = client.get(key) if kind == "string" else ""
                    value = client.hgetall(key) if kind == "hash" else value
                    value = sorted(map(str, client.smembers(key))) if kind == "set" else value
                    yield str(key), f"{key}\n{value}".encode()

    # Erasing ----------------------------------------------------------------------------------------------------------

    def check_keys(self, names: Iterable[str]) -> None:
        """Raise SettingsError where two records of a topic have one key: compaction would take the older one."""
        for name in names:
            seen: set[tuple[int, bytes]] = set()
            for batch in stored(self.broker, name):
                for record in batch:
                    key = record.key()
                    if record.value() is None or is_unique(key):
                        continue
                    place = record.partition(), key
                    if key is None or place in seen:
                        until = "never" if name.endswith(topics.EXAMPLES.suffix) else "when their retention ends"
                        raise SettingsError(
                            f"{name}[{record.partition()}]@{record.offset()} was written before forgetting was "
                            f"declared, under a key that others have: compaction would take those, too. They go "
                            f"{until}; `tidemill grow` moves a pipeline to new topics"
                        )
                    seen.add(place)

    def erase(self, findings: Findings, overrides: Mapping[str, Mapping[str, str]]) -> None:
        """Erase records that were found, and give the topics their settings back."""
        eraser = Eraser(self.broker, self.patience)
        for group in (_BY_EVENT, _BY_ENTITY, (topics.MODELS,)):
            names = [topic.name(self.pipeline) for topic in group if topic.erasable]
            names = [name for name in names if findings.records.get(name)]
            self.check_keys(names)
            if names:
                self.say(f"erasing from {', '.join(names)}")
                eraser.prepare(names)
                eraser.erase(by_partition(record for name in names for record in findings.records[name]))
                eraser.restore({name: overrides[name] for name in names})
            ends: dict[TopicPartition, int] = {}
            for topic in group:
                if not topic.erasable:
                    if (
                        topic.is_raw
                        and self.pipeline.raw_topics.get(topic.suffix)
                        and findings.records.get(topic.name(self.pipeline))
                    ):
                        raise SettingsError(
                            f"{topic.name(self.pipeline)} was there before the pipeline, and others may read it: have "
                            f"its owner delete the records, and run it with --keep {topic.suffix}"
                        )
                    for record in findings.records.get(topic.name(self.pipeline), ()):
                        place = TopicPartition(record.topic(), record.partition())
                        ends[place] = max(ends.get(place, 0), record.offset() + 1)
            if ends:
                self.say(f"deleting the beginning of {', '.join(sorted({place.topic for place in ends}))}")
                eraser.delete_before(ends)

    def renew_states(self, request: str) -> None:
        """Have all services make their state again, and wait until they say that they have. Raises BrokerError."""
        mark = TopicPartition(topics.FORGOTTEN.name(self.pipeline), 1)
        self.sender.send(mark.topic, request.encode(), request.encode(), None, mark.partition)
        self.sender.flush()
        wanted = self.broker.end_offset(mark)
        self.say("waiting until services have made their state again")
        deadline = time.monotonic() + self.patience
        while behind := self._states_behind(wanted):
            if time.monotonic() > deadline:
                raise BrokerError(
                    f"{', '.join(behind)} still have the state of before: start them, and run it again; nothing is "
                    f"called done meanwhile"
                )
            time.sleep(1.0)

    def _is_renewed(self, request: str) -> bool:
        """Whether all services have made their state again since a mark of this request."""
        mark = TopicPartition(topics.FORGOTTEN.name(self.pipeline), 1)
        end = self.broker.end_offset(mark)
        last = [record for batch in self.broker.read({mark: (max(0, end - 1), end)}) for record in batch]
        return any(record.value() == request.encode() for record in last) and not self._states_behind(end)

    def _states_behind(self, wanted: int) -> list[str]:
        behind = []
        for one in services(self.pipeline):
            partitions = [TopicPartition(t, n) for t in one.topics for n in range(self.broker.partitions(t))]
            for position in self.broker.committed(one.group, partitions).values():
                metadata = own_metadata(position) if position else None
                if metadata and metadata.erased < wanted:
                    behind.append(one.group)
                    break
        return behind

    def erase_elsewhere(self, subject: Subject) -> None:
        """Delete Redis' keys of the entities, and the archive's rows."""
        for key in list(self._keys(subject.search)):
            assert self.redis is not None  # noqa: S101  found there
            if self.redis.type(key) != "set":
                self.redis.delete(key)
                continue
            for _, id_ in subject.entities:
                self.redis.srem(key, id_)
        if self.archived:
            self.archived.erase(subject.search)

    # The request ------------------------------------------------------------------------------------------------------

    def wait(self, entities: Sequence[Entity], by: str, why: str) -> Forgetting:
        """Write a request that `due` carries out."""
        waiting = Waiting(self.pipeline, self.broker, self.registry.store, self.registry.keys, self._write)
        return waiting.ask(entities, by, why)

    def due(self, by: str) -> dict[str, Any] | None:
        """Carry out all requests that wait once the first has waited for `every`, or go on with that; else None."""
        requests, store = Requests(self.pipeline, self.broker, self.registry.keys), self.registry.store
        self._delete_sealed(requests)
        begun = [json.loads(one.content).get("requests") for one in requests.open if one.state == "asked"]
        ids = next(filter(None, begun), None)
        waiting = [one for one in requests.open if one.state == "waiting" and (ids is None or one.id in ids)]
        if not waiting or (ids is None and refold_at(self.pipeline, waiting[0]) > time.time() * 1000):
            return None
        sealed = [json.loads(one.content)["ids"] for one in waiting]
        entities = {(name, id_) for one in sealed for name, id_ in json.loads(self.hashes.unseal(store.get(one)))}
        certificate = self.run(sorted(entities), by, "requests that waited", [one.id for one in waiting])
        for one in sealed:
            store.delete(one)
        return certificate

    def _delete_sealed(self, requests: Requests) -> None:
        """Delete what the artifact store has of requests that are done, where a run broke off before it did."""
        for one in requests.records[-MAX_LEFT_BEHIND:]:
            is_over = one.state in ("asked", "waiting") and one.id in requests.done
            if is_over and (digest := json.loads(one.content).get("ids")):
                self.registry.store.delete(digest)

    def _learn_again(self, subject: Subject, asked: Forgetting) -> None:
        """Take what a run that broke off knew: it may have erased where it is from."""
        try:
            sealed = self.registry.store.get(json.loads(asked.content).get("ids", ""))
        except ArtifactError:
            return  # then hashes say what is the entity's, and the certificate how many vectors were searched
        known = json.loads(self.hashes.unseal(sealed))
        subject.events |= set(known["events"])
        subject.vectors |= set(map(bytes.fromhex, known["vectors"]))

    def run(self, entities: Sequence[Entity], by: str, why: str, carried: Sequence[str] = ()) -> dict[str, Any]:
        """Forget entities, and return the certificate's content. Raises a TidemillError where something is left.

        `carried`: those that waited, and are done with this one.
        """
        entities = sorted(set(entities))
        check_entities(self.pipeline, entities, "" if carried else why)
        hashed = [self.hashes.entity(*entity) for entity in entities]
        subject = self.subject(entities)
        requests = Requests(self.pipeline, self.broker, self.registry.keys)
        own = [one for one in requests.records if one.state == "asked" and set(hashed) <= set(one.entities)]
        asked = next((one for one in own if one.id not in requests.done and _is_of(one, hashed, carried)), None)
        self._delete_sealed(requests)
        # Else what a run that broke off had begun would be done again, and a shadow end that it waited for.
        is_renewed = asked is not None and self._is_renewed(asked.id)
        if asked is not None:
            self._learn_again(subject, asked)
        findings = self.find(subject, asked)
        if asked is None and not findings.counts() and not carried:
            if before := next((requests.done[one.id] for one in reversed(own) if one.id in requests.done), None):
                return {**json.loads(before.content), "again": True}
            raise SettingsError(f"nothing is known of {', '.join(f'{name}=...' for name, _ in entities)}")
        self.check_mentions(findings)
        asked = asked or self._ask(subject, hashed, by, why, findings, carried)
        content = json.loads(asked.content)
        self.say(f"request {asked.id}: {len(subject.events):,} events")
        erased: Counter[str] = Counter()
        for number in range(MAX_ROUNDS):
            counts = findings.counts()
            if (number or is_renewed) and not counts:
                break
            erased.update({name: count for name, count in counts.items() if name not in ("Redis", "archive")})
            self.erase(findings, content["overrides"])
            self.renew_states(asked.id)
            self.erase_elsewhere(subject)
            findings = self.find(subject, asked)
            self.check_mentions(findings)
        else:
            raise BrokerError(
                f"records of it come again and again ({findings.counts()}): who sends them? Stop it there"
            )
        models = self._models(asked, content, subject)
        Eraser(self.broker, self.patience).restore(content["overrides"])  # a run that broke off may not have
        return self._finish(asked, content, subject, models, erased)

    def _ask(
        self,
        subject: Subject,
        hashed: Sequence[str],
        by: str,
        why: str,
        findings: Findings,
        carried: Sequence[str],
    ) -> Forgetting:
        if len(subject.events) > MAX_EVENTS:
            raise SettingsError(
                f"{len(subject.events):,} events where {MAX_EVENTS:,} fit a request: name fewer entities"
            )
        erasable = sorted(topics.erasable(self.pipeline, is_declared=True))
        self.check_keys(name for name in erasable if findings.records.get(name))
        known = {"events": sorted(subject.events), "vectors": [vector.hex() for vector in subject.vectors]}
        overrides = self.broker.topic_overrides([*erasable, *self._cut()])
        before = self._newest()
        content = {
            "overrides": overrides,
            "found": findings.counts(),
            "first_example": subject.first_example,
            "requests": list(carried),
            "ids": self.registry.store.put(self.hashes.seal(json.dumps(known).encode())),
            "models": {name: [one.epoch, one.version] for name, one in before.items()},
        }
        events, vectors = (self.hashes.joined(x) for x in ((e.encode() for e in subject.events), subject.vectors))
        now = int(time.time() * 1000)
        request = Forgetting(uuid.uuid4().hex[:12], "asked", by, why, now, hashed, events, vectors, json.dumps(content))
        self._write(request)
        return request

    def _write(self, request: Forgetting) -> None:
        self.writer.begin()
        self.sender.send(self.writer.topic, self.writer.sign(request), request.id.encode(), None, 0)
        self.sender.flush()

    # Models -----------------------------------------------------------------------------------------------------------

    def _manifests(self, *, verified: bool = True) -> list[tuple[Any, Manifest]]:
        """Return the manifests that count, or all that can be read, with their records as Kafka has them."""
        manifests, read = [], self.registry.decode if verified else self.registry.codec.parse
        for batch in stored(self.broker, topics.MODELS.name(self.pipeline)):
            for record in batch:
                try:
                    manifest = read(record.value() or b"")
                except ArtifactError:
                    continue
                if manifest.model.encode() == natural(record.key()):
                    manifests.append((record, manifest))
        return manifests

    def _newest(self) -> dict[str, Manifest]:
        newest: dict[str, Manifest] = {}
        for _, one in self._manifests():
            if one.model not in newest or one.newness > newest[one.model].newness:
                newest[one.model] = one
        return newest

    def _models(self, asked: Forgetting, content: Mapping[str, Any], subject: Subject) -> list[dict[str, Any]]:
        """Have the models folded again that have learned from the forgotten; return what came of each."""
        if content["first_example"] is None:
            return []
        learned = {name: epoch for name, (epoch, at) in content["models"].items() if at > content["first_example"]}
        if not learned:
            return []
        if self.reset is None or self.pipeline.gate is None:
            raise SettingsError(
                f"{', '.join(learned)} have learned from the forgotten, and only a gate has them folded again: declare "
                f"gate=Gate(...), run gate and status service, and run it again; nothing is called done meanwhile"
            )
        if others := [name for name in learned if "~" in name]:
            decided = all_decisions(self.pipeline, self.broker, decisions(self.pipeline, self.registry.keys))
            if decided and decided[-1].candidate in others:
                raise SettingsError(
                    f"{decided[-1].candidate} is trained on them: promote or replace it, and run it again"
                )
        own = [name for name in learned if "~" not in name]
        for name in own:
            self.say(f"folding {name} again")
            self.reset(name, f"forget-{asked.id}-{name}", f"forgetting, request {asked.id}")
        deadline = time.monotonic() + self.patience
        while waiting := [name for name in own if self._newest()[name].epoch <= learned[name]]:
            if time.monotonic() > deadline:
                raise BrokerError(f"{', '.join(waiting)}: no version without the forgotten yet; run it again later")
            time.sleep(1.0)
        return self._replace(asked, content, learned, subject)

    def _shadow(self, names: Sequence[str], learned: Mapping[str, int]) -> dict[str, dict[str, Any]]:
        """Return by how much models answer otherwise in the shadow, once enough was asked or patience is over."""
        wanted = self.pipeline.forgetting.shadow if self.pipeline.forgetting else 0
        if wanted:
            self.say(f"comparing {', '.join(names)} with what they were, in the shadow of {wanted:,} predictions")
        differences: dict[str, list[float]] = {name: [] for name in names}
        place, at = topics.PREDICTION_LOG.name(self.pipeline), dict[TopicPartition, int]()
        deadline = time.monotonic() + self.patience
        while min(map(len, differences.values()), default=wanted) < wanted:
            ranges = {one: (at.get(one, low), high) for one, (low, high) in full_range(self.broker, place).items()}
            at = {one: high for one, (_, high) in ranges.items()}
            for record in (record for batch in self.broker.read(ranges) for record in batch):
                if (logged := self.records.prediction_log.of(record.value())) is not None:
                    scores = sorted((logged["champion"], *logged["challengers"]), key=newness)
                    for name in names:
                        lives = {one["epoch"] > learned[name]: one["score"] for one in scores if one["model"] == name}
                        if len(lives) == 2:
                            differences[name].append(abs(lives[True] - lives[False]))
            if time.monotonic() > deadline:
                break
            time.sleep(0.5)
        return {
            name: {"predictions": len(some), "largest": max(some, default=None), "mean": sum(some) / max(1, len(some))}
            for name, some in differences.items()
        }

    def _replace(
        self, asked: Forgetting, content: Mapping[str, Any], learned: Mapping[str, int], subject: Subject
    ) -> list[dict[str, Any]]:
        """Compare models before and after, and delete what holds vectors of the forgotten."""
        newest, with_vectors = self._newest(), self._with_vectors(asked)
        old = [m for _, m in self._manifests() if m.model in learned and m.epoch <= learned[m.model]]
        old = [m for m in old if m.version > content["first_example"]]
        requests = Requests(self.pipeline, self.broker, self.registry.keys).records
        known = [json.loads(one.content) for one in requests if (one.id, one.state) == (asked.id, "erasing")]
        reports: list[dict[str, Any]] = known[0]["models"] if known else []
        if not known:
            shadow, newest = self._shadow([name for name in learned if "~" not in name], learned), self._newest()
            again = [m for _, m in self._manifests() if m.model in learned and m.epoch > learned[m.model]]
            for name in learned:
                before = max((m for m in old if m.model == name), key=lambda m: m.newness, default=None)
                # The first of the new life has learned what the last of the old one had, but the forgotten.
                after = min((m for m in again if m.model == name), key=lambda m: m.newness, default=newest[name])
                reports.append(self._compared(name, before, after) | {"shadow": shadow.get(name)})
            # Whoever still answers by a model of before goes on with its newest life, as after a start.
            self.renew_states(asked.id)
        # Before anything goes: it could not be compared then, and gaps in chains would look as if somebody made them.
        going = [self.registry.codec.parse(record.value()) for record in with_vectors]
        if going or not known:
            places = [[one.model, one.signature.sequence] for one in going]
            erasing = json.dumps({"manifests": places, "models": reports})
            self._write(dataclasses.replace(asked, state="erasing", events=b"", vectors=b"", content=erasing))
        shown = {record.offset() for record in with_vectors}
        # What is not verified must not have an artifact deleted.
        gone = {m.sha256 for record, m in self._manifests() if record.offset() in shown}
        gone |= {m.sha256 for m in old if not self._is_weights(m.model)}
        # Sums over one example are that example.
        old_ones, vectors = {m.sha256 for m in old}, self._vector_search(subject)
        gone |= {digest for digest, data in self._artifacts() if digest in old_ones and vectors.among([data])}
        for digest in gone - {m.sha256 for m in newest.values()}:
            self.registry.store.delete(digest)
        self.erase(Findings({topics.MODELS.name(self.pipeline): with_vectors}), content["overrides"])
        return reports

    def _with_vectors(self, asked: Forgetting) -> list[Any]:
        """Return the manifests of before, verified or not, whose test vectors are the forgotten's."""
        vectors, before = split(asked.vectors), json.loads(asked.content)["models"]
        return [
            record
            for record, one in self._manifests(verified=False)
            if one.model in before
            and one.epoch <= before[one.model][0]
            and any(self.hashes.short(golden["vector"]) in vectors for golden in one.golden)
        ]

    def _is_weights(self, model: str) -> bool:
        """Whether a model's state is weights and sums of many examples, which no single one can be read from."""
        declared = self.pipeline.model(model)
        return specialised(declared) is not declared

    def _latest(self, end: int) -> list[Example]:
        """Return the latest examples before an offset that are left."""
        place, codec = TopicPartition(topics.EXAMPLES.name(self.pipeline), 0), self.records.example
        latest = list[Example]()
        for low, high in backwards(self.broker.offset_range(place)[0], end, MAX_COMPARED, growth=4):
            batches = self.broker.read({place: (low, high)})
            some = [codec.of(record.value()) for batch in batches for record in batch]
            latest = [*(one for one in some if one is not None), *latest]
            if len(latest) >= MAX_COMPARED:
                break
        return latest[-MAX_COMPARED:]

    def _compared(self, name: str, before: Manifest | None, after: Manifest) -> dict[str, Any]:
        """Return what both versions answer to the latest examples that both have learned, and to test vectors."""
        examples = self._latest((before or after).version)
        report: dict[str, Any] = {
            "model": name,
            "version_before": [before.epoch, before.version] if before else None,
            "version_after": [after.epoch, after.version],
            "examples": len(examples),
            "metrics_before": None,
            "metrics_after": None,
            "largest_change": None,
        }
        kind = self.pipeline.kind
        try:
            models = [specialised(self.registry.open(one).model) for one in (before, after) if one is not None]
            for when, model in zip(("before", "after")[-len(models) :], models, strict=True):
                report[f"metrics_{when}"] = self._metrics(model, examples)
            if before is not None and after.golden:
                xs = [vector_to_x(self.records.vector.record(golden["vector"])) for golden in after.golden]
                scores = [[kind.ask(model, x) for x in xs] for model in models]
                report["largest_change"] = max(abs(one - other) for one, other in zip(*scores, strict=True))
        except TidemillError:
            pass  # deleted already, by a run that broke off
        return report

    def _metrics(self, model: Any, examples: Iterable[Example]) -> dict[str, float]:
        """Return the metrics of what a model answers to examples; where it fails it has not answered."""
        scorecard, kind = Scorecard(self.pipeline.metric()), self.pipeline.kind
        for one in examples:
            try:
                judged = kind.judged(*kind.predict(model, vector_to_x(one["prediction"]["features"]["vector"])))
            except Exception:  # noqa: S112  a model's own code
                continue
            if judged is not None:
                scorecard.update(one["label"], judged)
        return dict(scorecard.values())

    # The end ----------------------------------------------------------------------------------------------------------

    def everywhere(self, subject: Subject, asked: Forgetting) -> Findings:
        """Search every byte of topics, Redis, archive and artifacts."""
        findings = self.find(subject, asked, everywhere=True)
        findings.vectors = self._vectors_left(subject)
        name = topics.MODELS.name(self.pipeline)
        findings.records[name] = self._with_vectors(asked)
        for batch in stored(self.broker, name):
            values = [record.value() or b"" for record in batch]
            findings.records[name] += [batch[index] for index in subject.search.among(values)]
        findings.artifacts = [digest for digest, data in self._artifacts() if subject.search.holds(data)]
        return findings

    def _vector_search(self, subject: Subject) -> VectorSearch:
        bodies = sorted(subject.vectors)
        vectors = map(self.records.vector.record, bodies)
        return VectorSearch(([x for x in vector.values() if type(x) is float] for vector in vectors), bodies)

    def _vectors_left(self, subject: Subject) -> Counter[str]:
        """Count the forgotten's vectors by store; others may have had the same vector, which is theirs and stays."""
        search, shared = self._vector_search(subject), set[int]()
        left: dict[str, set[int]] = {}
        for topic in topics.TOPICS:
            name = topic.name(self.pipeline)
            if topic.suffix in self.kept or not self.broker.partitions(name):
                continue
            for batch in stored(self.broker, name):
                for index, vector in search.among([_bytes(record) for record in batch]):
                    is_of_event = topic in (*_BY_EVENT, *_BY_ENTITY)
                    id_ = self._event_id(topic, batch[index]) if is_of_event else None
                    is_others = id_ is not None and id_ not in subject.events
                    (shared if is_others else left.setdefault(name, set())).add(vector)
        left["Redis"] = {vector for _, vector in search.among([text for _, text in self._values()])}
        for ids, rows in self.archived.rows() if self.archived else ():
            for index, vector in search.among(rows):
                (left.setdefault("archive", set()) if ids[index] in subject.events else shared).add(vector)
        left["artifacts"] = {vector for _, data in self._artifacts() for _, vector in search.among([data])}
        return Counter({store: len(own - shared) for store, own in left.items() if own - shared})

    def _artifacts(self) -> Iterator[tuple[str, bytes]]:
        """Yield the artifacts that manifests name and the store has, by their hash."""
        for digest in {manifest.sha256 for _, manifest in self._manifests()}:
            try:
                yield digest, self.registry.store.get(digest)
            except (ArtifactError, StoreError):
                continue

    def check_again(self, entities: Sequence[Entity], request: str) -> Findings:
        """Return what there is of entities that were forgotten with a request. Raises SettingsError for no request."""
        requests = Requests(self.pipeline, self.broker, self.registry.keys)
        asked = next((one for one in requests.records if one.id == request and one.state == "asked"), None)
        if asked is None:
            raise SettingsError(f"{self.writer.topic} has no request {request}")
        return self.everywhere(self.subject(entities), asked)

    def _finish(
        self,
        asked: Forgetting,
        content: Mapping[str, Any],
        subject: Subject,
        models: list[dict[str, Any]],
        erased: Mapping[str, int],
    ) -> dict[str, Any]:
        """Search everything once more, and write the end of the request. Raises BrokerError where something is left."""
        files = self._close_files({*content["found"], *erased}, content["overrides"])
        self.say("searching every byte")
        left = self.everywhere(subject, asked)
        if counts := left.counts():
            listed = ", ".join(f"{count:,} in {name}" for name, count in counts.items())
            raise BrokerError(f"request {asked.id} is not done, something is left: {listed}; see docs, or run it again")
        now = int(time.time() * 1000)
        certificate = {
            "pipeline": self.pipeline.name,
            "request": asked.id,
            "requests": content.get("requests", []),
            "waited": [
                {"request": one.id, "asked_at": one.time, "by": one.by, "why": one.why}
                for one in Requests(self.pipeline, self.broker, self.registry.keys).records
                if one.state == "waiting" and one.id in content.get("requests", [])
            ],
            "asked_at": asked.time,
            "done_at": now,
            "by": asked.by,
            "why": asked.why,
            "entities": list(asked.entities),
            "events": len(split(asked.events)),
            "found": content["found"],
            "erased": dict(erased),
            "left": 0,
            "kept": self._kept(),
            "files": files,
            "models": models,
            "examples": self.fold_input(),
            "searched": {
                "topics": [t.name(self.pipeline) for t in topics.TOPICS if t.suffix not in self.kept],
                "redis": self.redis is not None,
                "archive": self.archive.url if self.archive else None,
                "ids_too_short_to_search": len(subject.search.too_short),
                "vectors": len(subject.vectors),
                "vectors_of_request": len(split(asked.vectors)),
                "vectors_too_plain_to_search": self._vector_search(subject).too_plain,
            },
            "in_memory": ["monitor", "status", "gateway"],
        }
        done = dataclasses.replace(
            asked, state="done", time=now, events=b"", vectors=b"", content=json.dumps(certificate)
        )
        self._write(done)
        self._delete_sealed(Requests(self.pipeline, self.broker, self.registry.keys))
        return certificate

    def _cut(self) -> list[str]:
        """Return the topics of which a beginning is deleted, and not single records."""
        owned = [one for one in topics.TOPICS if one is topics.PREDICTIONS or one.is_raw]
        return [one.name(self.pipeline) for one in owned if not self.pipeline.raw_topics.get(one.suffix)]

    def _close_files(self, erased: Collection[str], overrides: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
        """Return until when brokers have files of what was deleted, ms since the epoch; None: until more is written."""
        names = [name for name in self._cut() if name in erased]
        if not names:
            return {}
        self.say(f"closing the files of {', '.join(names)}")
        eraser = Eraser(self.broker, self.patience)
        partitions = [TopicPartition(name, number) for name in names for number in range(self.broker.partitions(name))]
        behind = eraser.close_files(partitions, f"{self.pipeline.name}.forget")
        eraser.restore({name: overrides.get(name, {}) for name in names})
        cluster = self.broker.settings(names)
        looks = max((int(one.get(_CHECK_MS, 300_000)) for one in cluster.brokers.values()), default=300_000)
        now, open_ = int(time.time() * 1000), {one.topic for one in behind}
        delays = {
            name: looks + int(cluster.topics[name].settings.get("file.delete.delay.ms", 60_000)) for name in names
        }
        return {name: None if name in open_ else now + delays[name] for name in names}

    def _kept(self) -> dict[str, Any]:
        """Return until when topics that were left keep what they hold, ms since the epoch."""
        now = int(time.time() * 1000)
        kept = {t.suffix: t.of(self.pipeline).retention_ms for t in topics.TOPICS if t.suffix in self.kept}
        return {suffix: None if ms < 0 else now + ms for suffix, ms in kept.items()}

    def fold_input(self) -> dict[str, Any]:
        """Return a hash of all that models are folded from, and up to which offset."""
        digest, end = hashlib.sha256(), 0
        place = TopicPartition(topics.EXAMPLES.name(self.pipeline), 0)
        for batch in self.broker.read({place: self.broker.offset_range(place)}):
            for record in batch:
                end = record.offset() + 1
                digest.update(b"%d:%d:" % (record.offset(), len(record.value() or b"")) + (record.value() or b""))
        return {"end": end, "sha256": digest.hexdigest()}


def _is_of(asked: Forgetting, hashed: Sequence[str], carried: Sequence[str]) -> bool:
    """Whether a request is of exactly these entities, and carries out these that waited."""
    is_same = sorted(asked.entities) == sorted(hashed)
    return is_same and json.loads(asked.content).get("requests", []) == list(carried)


def _content(codec: Codec, value: bytes) -> Any:
    """Return what a record holds, or its first fields; None for what is of another schema."""
    try:
        return codec.record(value, HEADER) if codec.avro["name"].endswith("Head") else codec.of(value)
    except Exception:  # bytes of somebody else may make a decoder raise anything
        return None


def _json(value: bytes | None) -> dict[str, Any] | None:
    try:
        content = json.loads(value or b"")
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


def _bytes(record: Any) -> bytes:
    """Return a record's key, value and headers, apart from each other."""
    headers = (part for name, data in record.headers() or () for part in (name.encode(), data or b""))
    return b"\0".join((natural(record.key()) or b"", record.value() or b"", *headers))
