"""A pipeline is kept as files, and made again from them where everything was lost: log, offsets, features, artifacts.

cut       services stand still for as long as it takes to note how far each log and each group has come, and to copy
          the progress and Redis; what the logs hold up to there is copied while they run again
offsets   each record has its offset again, for versions, offsets, dead letters and signatures name records by theirs.
          The progress topic alone is written by its newest records: nobody refers to its offsets
topic ids another cluster gives topics other ids: what is committed names the new ones
crash     backup.json is written last, and a folder without it is none; a restore that breaks off is done again after
          `tidemill down --delete`. Services that are started meanwhile refuse: their output has no progress
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fastavro
from fastavro.write import Writer

import tidemill
from tidemill.declare.pipeline import Pipeline
from tidemill.errors import BrokerError, NotAllowed, SettingsError
from tidemill.features.redis import connect, delete_keys, dump_keys, restore_keys, stored_keys
from tidemill.files import write_atomic
from tidemill.offline.offsets import services
from tidemill.registry import pruning
from tidemill.registry.manifests import Registry
from tidemill.registry.store import ArtifactStore
from tidemill.registry.versions import Versions
from tidemill.settings import Settings
from tidemill.stream import restore as positions_of
from tidemill.stream.api import Position, TopicPartition
from tidemill.stream.commit_metadata import CommitMetadata
from tidemill.stream.kafka.broker import KafkaBroker
from tidemill.stream.kafka.exact_log import Kept, runs
from tidemill.stream.ranges import settled_range
from tidemill.stream.topic import Topic
from tidemill.wire import topics
from tidemill.wire.services import group

VERSION = 1
MANIFEST = "backup.json"
#: A member that was stopped leaves its group when its session ends, 6 s later.
STOPPED_SECONDS = 10.0
_RECORD = fastavro.parse_schema(
    {
        "type": "record",
        "name": "tidemill.Kept",
        "fields": [
            {"name": "offset", "type": "long"},
            {"name": "timestamp", "type": "long"},
            {"name": "key", "type": ["null", "bytes"]},
            {"name": "value", "type": ["null", "bytes"]},
            {
                "name": "headers",
                "type": {
                    "type": "array",
                    "items": {
                        "type": "record",
                        "name": "tidemill.Header",
                        "fields": [
                            {"name": "name", "type": "string"},
                            {"name": "value", "type": ["null", "bytes"]},
                        ],
                    },
                },
            },
        ],
    }
)
_KEY = fastavro.parse_schema(
    {
        "type": "record",
        "name": "tidemill.RedisKey",
        "fields": [{"name": "key", "type": "string"}, {"name": "data", "type": "bytes"}],
    }
)


@dataclass
class Log:
    """One partition: its offsets [begin, end), the first that has a record (`end` for none), and how many have one.

    `gaps` is how often offsets without a record follow one that has one: a restore takes as many rounds.
    """

    begin: int
    end: int
    first: int = 0
    records: int = 0
    gaps: int = 0


@dataclass
class Backup:
    """What a backup has, as backup.json has it.

    Logs by topic and partition; settings that topics had of their own; by group and topic, for each partition the
    committed offset and its metadata, or None; keys in Redis by view; artifacts; whether public keys are among it.
    """

    pipeline: str
    created_at: int
    logs: dict[str, list[Log]]
    settings: dict[str, dict[str, str]]
    groups: dict[str, dict[str, list[tuple[int, str] | None]]]
    views: dict[str, int]
    artifacts: list[str] | None
    has_keys: bool = False
    tidemill: str = tidemill.__version__
    version: int = VERSION
    is_done: bool = False
    running: list[str] = field(default_factory=list)

    @property
    def records(self) -> int:
        """How many records there are."""
        return sum(log.records for logs in self.logs.values() for log in logs)

    def as_dict(self) -> dict[str, Any]:
        """Return it for programs."""
        return dataclasses.asdict(self)


def read(folder: Path) -> Backup:
    """Return what a folder has. Raises SettingsError where that is no complete backup."""
    try:
        made = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        raise SettingsError(f"{folder} is no complete backup: it has no {MANIFEST} that can be read") from None
    if not isinstance(made, dict) or made.get("version") != VERSION:
        raise SettingsError(f"{folder}/{MANIFEST} is of another version than {VERSION}: use the Tidemill that wrote it")
    logs = {topic: [Log(**log) for log in one] for topic, one in made.pop("logs").items()}
    return Backup(logs=logs, **made)


def _own(pipeline: Pipeline) -> dict[str, int]:
    return {topic.name(pipeline): topic.partitions or pipeline.partitions for topic in topics.TOPICS}


def _running(pipeline: Pipeline, broker: KafkaBroker) -> list[str]:
    """Return the groups of the pipeline's services that have members."""
    own = {service.group for service in services(pipeline)} | {group("monitor", pipeline.name)}
    return [name for name, members in broker.groups(f"{pipeline.name}.").items() if members and name in own]


def check_stopped(pipeline: Pipeline, broker: KafkaBroker) -> None:
    """Wait until no service is in its group. Raises SettingsError where one runs."""
    deadline = time.monotonic() + STOPPED_SECONDS
    while running := _running(pipeline, broker):
        if time.monotonic() > deadline:
            raise SettingsError(
                f"services of {pipeline.name} run ({', '.join(running)}): stop them first, for as long as it takes to "
                f"note how far they have come"
            )
        time.sleep(0.5)


def plan(pipeline: Pipeline, broker: KafkaBroker, registry: Registry | None, settings: Settings) -> Backup:
    """Return what there is to copy; nothing is stopped or written. Raises a TidemillError where something is away."""
    own = _own(pipeline)
    states = broker.topic_states([*own])
    if missing := [name for name in own if name not in states]:
        raise BrokerError(f"no topic {', '.join(missing)} at {broker.servers}: there is no such pipeline to back up")
    logs = {
        name: [Log(*broker.offset_range(TopicPartition(name, number))) for number in range(states[name].partitions)]
        for name in own
    }
    for log in (log for one in logs.values() for log in one):
        log.records = log.end - log.begin  # as far as is known before it is read
    views: dict[str, int] = {}
    if pipeline.views:  # else there may be no Redis
        with contextlib.closing(connect(settings.redis_address())) as client:
            views = stored_keys(client, pipeline.name, (view.label for view in pipeline.views))
    made = Backup(
        pipeline.name, int(time.time() * 1000), logs, broker.topic_overrides([*own]), {}, views,
        None if registry is None else pruning.everything(Versions(pipeline, broker, registry).read(), registry),
    )  # fmt: skip
    made.groups = {name: {} for name in broker.groups(f"{pipeline.name}.")}
    made.running = _running(pipeline, broker)
    return made


def back_up(
    pipeline: Pipeline,
    broker: KafkaBroker,
    registry: Registry | None,
    settings: Settings,
    folder: Path,
    done: Callable[[str], None],
) -> Backup:
    """Copy a pipeline into a new folder; `done` is told each step.

    Raises SettingsError where services run before the cut is made, or the folder exists.
    """
    if folder.exists():
        raise SettingsError(f"{folder} exists: nothing is overwritten, so name a folder that does not exist")
    check_stopped(pipeline, broker)
    made = plan(pipeline, broker, registry, settings)
    folder.mkdir(parents=True)
    _cut(made, pipeline, broker, settings, folder)
    done(f"the cut is made: services of {pipeline.name} may run again")
    for name, logs in made.logs.items():
        if name != topics.PROGRESS.name(pipeline):
            _copy_topic(broker, name, logs, folder)
            done(f"{name}: {sum(log.records for log in logs):,} records")
    if registry is not None and made.artifacts is not None:
        kept = ArtifactStore(str(folder / "artifacts"))
        made.artifacts = [digest for digest in made.artifacts if registry.store.holds(digest)]
        _copy_artifacts(made.artifacts, registry.store, kept)
        done(f"{len(made.artifacts):,} artifacts")
    made.is_done = True
    write_atomic(str(folder / MANIFEST), json.dumps(made.as_dict(), indent=1).encode())
    return made


def _cut(made: Backup, pipeline: Pipeline, broker: KafkaBroker, settings: Settings, folder: Path) -> None:
    """Note how far logs and groups have come, and copy what may not change meanwhile: progress, Redis, public keys."""
    raw = {topic.name(pipeline) for topic in topics.TOPICS if topic.is_raw}
    for name, logs in made.logs.items():
        for number, log in enumerate(logs):
            partition = TopicPartition(name, number)
            # Producers go on meanwhile: of what they write, what can be read now is in the backup.
            is_others = name in raw
            ranges = broker.offset_range(partition) if is_others else settled_range(broker, partition, lambda: None)
            log.begin, log.end, log.records = *ranges, 0
    partitions = [TopicPartition(name, number) for name, logs in made.logs.items() for number in range(len(logs))]
    for name in made.groups:
        committed = broker.committed(name, partitions)
        for topic, logs in made.logs.items():
            kept = [committed.get(TopicPartition(topic, number)) for number in range(len(logs))]
            if any(kept):
                made.groups[name][topic] = [(one.offset, one.metadata) if one else None for one in kept]
    progress = topics.PROGRESS.name(pipeline)
    _copy_topic(broker, progress, made.logs[progress], folder)
    if made.views:
        with contextlib.closing(connect(settings.redis_address())) as client, (folder / "redis.avro").open("wb") as out:
            dumped = ({"key": key, "data": data} for key, data in dump_keys(client, pipeline.name, made.views))
            fastavro.writer(out, _KEY, dumped, codec="deflate")
    with contextlib.suppress(OSError):
        text = settings.verify_keys
        keys = text.encode() if text.lstrip().startswith("{") else Path(text).read_bytes()
        (folder / "verify.json").write_bytes(keys)
        made.has_keys = True
    if running := _running(pipeline, broker):
        raise SettingsError(f"services were started before the cut was made ({', '.join(running)}): back up again")


def _copy_topic(broker: KafkaBroker, name: str, logs: Sequence[Log], folder: Path) -> None:
    """Write what can be read of a topic, a file for each partition."""
    place = folder / "log" / name
    place.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        writers = []
        for number, log in enumerate(logs):
            file = stack.enter_context((place / f"{number}.avro").open("wb"))
            writers.append(Writer(file, _RECORD, codec="deflate"))
            log.first, log.records, log.gaps = log.end, 0, 0
        ranges = {TopicPartition(name, number): (log.begin, log.end) for number, log in enumerate(logs)}
        nexts = {number: log.begin for number, log in enumerate(logs)}
        for batch in broker.read(ranges, as_stored=True):
            for record in batch:
                log = logs[record.partition()]
                headers = [{"name": key, "value": value} for key, value in record.headers() or ()]
                writers[record.partition()].write(
                    {
                        "offset": record.offset(),
                        "timestamp": record.timestamp()[1],
                        "key": record.key(),
                        "value": record.value(),
                        "headers": headers,
                    }
                )
                following = nexts[record.partition()]
                log.gaps += record.offset() != following
                nexts[record.partition()] = record.offset() + 1
                log.first, log.records = min(log.first, record.offset()), log.records + 1
        for number, writer in enumerate(writers):
            logs[number].gaps += nexts[number] != logs[number].end
            writer.flush()


def _copy_artifacts(digests: Iterable[str], source: ArtifactStore, target: ArtifactStore) -> None:
    for digest in digests:
        target.put(source.get(digest))
        if (note := source.note(digest)) is not None:
            target.put_note(digest, note)


def _rows(path: Path) -> Iterator[Any]:
    """Yield the records of an Avro file. Raises SettingsError where it is missing or damaged."""
    try:
        with path.open("rb") as file:
            yield from fastavro.reader(file)
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise SettingsError(f"{path} can't be read: {error}; the backup is damaged") from error


def _kept(folder: Path, topic: str, partition: int) -> Iterator[Kept]:
    for record in _rows(folder / "log" / topic / f"{partition}.avro"):
        headers = [(one["name"], one["value"]) for one in record["headers"]]
        yield Kept(record["offset"], record["timestamp"], record["key"], record["value"], headers)


def check_restorable(made: Backup, pipeline: Pipeline, broker: KafkaBroker) -> None:
    """Raise SettingsError where a backup is not of this pipeline, or the cluster has something of it."""
    if made.pipeline != pipeline.name:
        raise SettingsError(f"the backup is of {made.pipeline!r}, and the pipeline is {pipeline.name!r}")
    own = _own(pipeline)
    for name, logs in made.logs.items():
        if own.get(name) != len(logs):
            raise SettingsError(
                f"the backup has {len(logs)} partitions of {name}, and the pipeline declares {own.get(name, 0)}: "
                f"restore by the declaration of then, and change it afterwards"
            )
    if missing := own.keys() - made.logs.keys():
        raise SettingsError(f"the backup has no topic {', '.join(sorted(missing))}: it is of an earlier Tidemill")
    for name, state in broker.topic_states([*own]).items():
        if state.partitions != own[name]:
            raise SettingsError(f"topic {name} has {state.partitions} partitions, and {own[name]} are declared")
        ends = [broker.end_offset(TopicPartition(name, number)) for number in range(state.partitions)]
        if any(ends):
            raise SettingsError(
                f"topic {name} at {broker.servers} has, or had, records: a backup is restored where the pipeline has "
                f"none; delete its topics first (`tidemill down {pipeline.name} --delete`)"
            )
    if running := _running(pipeline, broker):
        raise SettingsError(f"services of {pipeline.name} run ({', '.join(running)}): stop them first")


def put_back(
    made: Backup,
    pipeline: Pipeline,
    broker: KafkaBroker,
    settings: Settings,
    folder: Path,
    done: Callable[[str], None],
) -> None:
    """Write a backup into a cluster, a Redis and an artifact store that have nothing of the pipeline.

    `done` is told each step. Raises SettingsError where they have, BrokerError where an offset can't be had again.
    """
    check_restorable(made, pipeline, broker)
    progress = topics.PROGRESS.name(pipeline)
    log = broker.exact_log(f"{pipeline.name}.restore")
    log.prepare({name: len(logs) for name, logs in made.logs.items()}, settings.replication)
    begins = {
        # Offset 0 alone can't be left out, so the log begins after it: nobody could read a record there.
        TopicPartition(name, number): 1 if (one.begin, one.first) == (0, 1) else one.begin
        for name, logs in made.logs.items()
        for number, one in enumerate(logs)
        if name != progress
    }
    shortened = {partition.topic for partition, begin in begins.items() if begin}
    rights = {name: {"Write", "AlterConfigs", *(["Delete"] if name in shortened else [])} for name in made.logs}
    if lacking := broker.lacking(rights, {}):
        raise NotAllowed(f"Kafka does not allow this user what a restore needs: {'; '.join(lacking)}; grant it")
    written = {
        partition: runs(
            _kept(folder, *partition), begin, made.logs[partition.topic][partition.partition].end
        )
        for partition, begin in begins.items()
    }  # fmt: skip
    log.write(written, lambda _: None)
    log.delete_before(begins)
    _check_offsets(made, begins, broker)
    done(f"{made.records:,} records, each at its offset")
    ids = broker.topic_ids([*made.logs])
    log.write(
        {partition: iter(one) for partition, one in _progress(made, folder, progress, ids).items()}, lambda _: None
    )
    _restore_redis(made, pipeline, settings, folder)
    done(f"{sum(made.views.values()):,} keys in Redis")
    if made.artifacts is not None:
        kept, store = ArtifactStore(str(folder / "artifacts")), ArtifactStore(settings.store_url)
        _copy_artifacts(made.artifacts, kept, store)
        done(f"{len(made.artifacts):,} artifacts")
    verify = Path(settings.verify_keys)
    if made.has_keys and not settings.verify_keys.lstrip().startswith("{") and not verify.exists():
        verify.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(str(verify), (folder / "verify.json").read_bytes())
        done(f"public keys in {verify}")
    replicas = broker.replicas(settings.replication)
    log.finish({topic.name(pipeline): _settings(made, topic, pipeline, replicas) for topic in topics.TOPICS})
    for name, by_topic in made.groups.items():
        if positions := dict(_positions(by_topic, ids)):
            broker.set_offsets(name, positions)
    done(f"offsets of {len(made.groups)} groups")


def _settings(made: Backup, topic: Topic, pipeline: Pipeline, replicas: int) -> dict[str, str]:
    """Return a topic's settings: those that it had, but how many replicas acknowledge is the new cluster's."""
    had = {k: v for k, v in made.settings.get(topic.name(pipeline), {}).items() if k != "min.insync.replicas"}
    return topic.config(replicas) | had


def _check_offsets(made: Backup, begins: Mapping[TopicPartition, int], broker: KafkaBroker) -> None:
    """Raise BrokerError where a log has not the offsets that it had."""
    for partition, begin in begins.items():
        expected = begin, made.logs[partition.topic][partition.partition].end
        if (actual := broker.offset_range(partition)) != expected:
            raise BrokerError(
                f"{partition.topic}[{partition.partition}] has the offsets {actual[0]} to {actual[1]} where "
                f"{expected[0]} to {expected[1]} were expected: something else writes there; stop it, delete the "
                f"topics, and restore again"
            )


def _moved(position: Position, topic_id: str) -> Position:
    """Return a committed position as of the topic's new id; what others have committed stays as it was."""
    metadata = positions_of.own_metadata(position)
    return position if metadata is None else positions_of.mark(metadata, position.offset, topic_id)


def _positions(
    by_topic: Mapping[str, Sequence[Any]], ids: Mapping[str, str]
) -> Iterator[tuple[TopicPartition, Position]]:
    for topic, kept in by_topic.items():
        for number, one in enumerate(kept):
            if one is not None:
                yield TopicPartition(topic, number), _moved(Position(*one), ids[topic])


def _progress(made: Backup, folder: Path, topic: str, ids: Mapping[str, str]) -> dict[TopicPartition, Iterable[Any]]:
    """Return the newest record of each key of the progress topic, with the new ids, from offset 0 on."""
    logs: dict[TopicPartition, Iterable[Any]] = {}
    for number in range(len(made.logs[topic])):
        newest = {record.key: record for record in _kept(folder, topic, number)}
        records = [
            record._replace(offset=offset, value=_progress_value(record, ids))
            for offset, record in enumerate(newest.values())
        ]
        logs[TopicPartition(topic, number)] = runs(records, 0, len(records))
    return logs


def _progress_value(record: Kept, ids: Mapping[str, str]) -> bytes | None:
    read_topic = (record.key or b"").decode(errors="replace").partition("/")[2].rpartition("/")[0]
    try:
        text = (record.value or b"").decode()
        offset = CommitMetadata.decode(text).offset
    except ValueError:
        return record.value
    if offset is None or read_topic not in ids:
        return record.value
    return _moved(Position(offset, text), ids[read_topic]).metadata.encode()


def _restore_redis(made: Backup, pipeline: Pipeline, settings: Settings, folder: Path) -> None:
    if not made.views:
        return
    with contextlib.closing(connect(settings.redis_address())) as client:
        for view in stored_keys(client, pipeline.name, made.views):
            delete_keys(client, pipeline.name, view)
        restore_keys(client, ((one["key"], one["data"]) for one in _rows(folder / "redis.avro")))
