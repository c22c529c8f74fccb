"""What of a cluster can eat a pipeline: judged at the start of each service, and by `tidemill doctor`.

`wrong` is what state or output hangs on: a service does not start. `warning` is what can hurt later.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tidemill.declare.pipeline import Pipeline
from tidemill.errors import BrokerError, SettingsError, StoreError, described
from tidemill.features.tiles import Plan
from tidemill.keys import SIGNERS
from tidemill.offline.offsets import all_offsets
from tidemill.settings import Settings, misspelt
from tidemill.stream.commit_metadata import MAX_BYTES
from tidemill.stream.declared import other_partitions_fix
from tidemill.stream.kafka.broker import KafkaBroker
from tidemill.stream.kafka.settings import ClusterSettings, TopicSettings
from tidemill.stream.loop import KEEP_ALIVE_SECONDS
from tidemill.stream.origin import MAX_AHEAD_MS
from tidemill.stream.topic import DAY, Topic
from tidemill.wire import topics

log = logging.getLogger(__name__)

#: Less than this, and a night's standstill loses the groups' offsets.
MIN_OFFSETS_RETENTION_MINUTES = 24 * 60

#: Clocks that are further apart give times that rules refuse.
MAX_CLOCKS_APART_SECONDS = 5.0

#: How far from now timestamps may be, on brokers that know no limit of their own for each side.
_BEFORE_3_6 = "message.timestamp.difference.max.ms"

Level = Literal["ok", "warning", "wrong"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: what it is, its value, what was expected, and what to do."""

    level: Level
    what: str
    value: str
    expected: str
    fix: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.what} is {self.value}, expected {self.expected}: {self.fix}"


def judge(pipeline: Pipeline, cluster: ClusterSettings, chosen: Sequence[Topic]) -> list[Finding]:
    """Return what is to say of a cluster's settings and of these topics."""
    findings = [
        finding for number, settings in cluster.brokers.items() for finding in _broker(f"broker {number}", settings)
    ]
    if cluster.brokers:
        for topic in chosen:
            findings += _topic(pipeline, topic, cluster)
    return findings


def _at_least(name: str, settings: Any, key: str, least: int, level: Level, fix: str) -> Iterator[Finding]:
    """Judge a number that must not be lower; `level` where it is. What the cluster does not tell is not judged."""
    value = _number(settings.get(key))
    if value is not None:
        yield Finding("ok" if value >= least else level, f"{name}: {key}", str(value), f"at least {least}", fix)


def _equal(name: str, settings: Any, key: str, expected: str, level: Level, fix: str) -> Iterator[Finding]:
    """Judge a setting that must be this; `level` where it is not. What the cluster does not tell is not judged."""
    if value := settings.get(key):
        yield Finding("ok" if value == expected else level, f"{name}: {key}", value, expected, fix)


def _broker(name: str, settings: Any) -> Iterator[Finding]:
    yield from _at_least(
        name,
        settings,
        "offsets.retention.minutes",
        MIN_OFFSETS_RETENTION_MINUTES,
        "warning",
        "raise it: services that stand still for longer have to find their place in their progress",
    )
    fix = "raise it: part of the state is kept beside the offsets"
    yield from _at_least(name, settings, "offset.metadata.max.bytes", MAX_BYTES, "wrong", fix)
    fix = "turn it off: a topic that was deleted comes back with other partitions and settings, and nobody is told"
    yield from _equal(name, settings, "auto.create.topics.enable", "false", "warning", fix)


def _topic(pipeline: Pipeline, topic: Topic, cluster: ClusterSettings) -> Iterator[Finding]:
    name, partitions = topic.name(pipeline), topic.partitions or pipeline.partitions
    actual = cluster.topics.get(name)
    if actual is None:
        create = f"`tidemill topics {pipeline.name} --create`"
        yield Finding("wrong", name, "missing", f"{partitions} partitions", f"create it with {create}")
        return
    yield Finding(
        "ok" if actual.partitions == partitions else "wrong",
        f"{name}: partitions",
        str(actual.partitions),
        str(partitions),
        other_partitions_fix(actual.partitions),
    )
    expires = "set it: all records but the last of each key are removed"
    policy, fix = ("compact", "set it: it expires") if topic.compacted else ("delete", expires)
    level: Level = "warning" if pipeline.raw_topics.get(topic.suffix) else "wrong"
    yield from _equal(name, actual.settings, "cleanup.policy", policy, level, fix)
    yield from _retention(name, topic, actual, topic.kept_ms(pipeline), _needed_ms(pipeline, topic))
    if (most := pipeline.kept_ms.get(topic.suffix)) is not None:
        kept = _number(actual.settings.get("retention.ms")) or 0
        level = "ok" if 0 <= kept <= most else "warning"
        fix = "lower it: records are kept for longer than is declared"
        yield Finding(level, f"{name}: retention.ms", str(kept), f"{most} at most", fix)
    fix = "turn it off: a leader that lacks records cuts the log behind what was processed"
    yield from _equal(name, actual.settings, "unclean.leader.election.enable", "false", "warning", fix)
    yield from _replicas(name, actual, len(cluster.brokers))
    if topic.max_message_bytes:
        fix = "raise it: what does not fit becomes a dead letter"
        yield from _at_least(name, actual.settings, "max.message.bytes", topic.max_message_bytes, "wrong", fix)
    if topic.is_raw:
        yield from _raw_times(name, actual)


def _retention(name: str, topic: Topic, actual: TopicSettings, declared: int, needed_ms: int) -> Iterator[Finding]:
    kept = _number(actual.settings.get("retention.ms"))
    if kept is not None and not topic.compacted:
        forever = declared < 0
        is_less = kept >= 0 and (forever or kept < declared)
        level: Level = "ok"
        if is_less:
            level = "wrong" if forever or kept < needed_ms else "warning"
        yield Finding(
            level,
            f"{name}: retention.ms",
            str(kept),
            "-1, for ever" if forever else f"{declared} ({declared // DAY} days)",
            "raise it: models, decisions or their history expire" if forever else "raise it: state is rebuilt from it",
        )
    size = _number(actual.settings.get("retention.bytes"))
    if size is not None and not topic.compacted:
        yield Finding(
            "ok" if size < 0 else "wrong" if topic.retention_ms < 0 else "warning",
            f"{name}: retention.bytes",
            str(size),
            "-1",
            "set it: under load records go before their time",
        )


def _raw_times(name: str, actual: TopicSettings) -> Iterator[Finding]:
    """Judge what becomes of what producers say of their time, where it decides for how long their records are kept."""
    settings = actual.settings
    if settings.get("message.timestamp.type") != "CreateTime":
        return
    kept = _number(settings.get("retention.ms"))
    (after, ahead), (before, back) = (
        _limit(settings, f"message.timestamp.{side}.max.ms") for side in ("after", "before")
    )
    if ahead is not None:
        fix = "lower it: what is dated later keeps its segment until then, and its origin is when it was read"
        level: Level = "ok" if ahead <= MAX_AHEAD_MS else "warning"
        yield Finding(level, f"{name}: {after}", str(ahead), f"at most {MAX_AHEAD_MS}", fix)
    if back is not None and kept is not None and kept >= 0:
        yield Finding(
            "ok" if back <= kept else "warning",
            f"{name}: {before}",
            str(back),
            f"at most retention.ms, {kept}, or message.timestamp.type=LogAppendTime",
            "set either: a record that is dated earlier may be deleted before it is read, and nobody is told",
        )


def _limit(settings: Any, key: str) -> tuple[str, int | None]:
    """Return the setting of how far from now timestamps may be, and that; brokers before 3.6 have another."""
    value = _number(settings.get(key))
    return (key, value) if value is not None else (_BEFORE_3_6, _number(settings.get(_BEFORE_3_6)))


def _replicas(name: str, actual: TopicSettings, brokers: int) -> Iterator[Finding]:
    least, replicas = _number(actual.settings.get("min.insync.replicas")), actual.replicas
    if least is None:
        return
    level: Level = "ok"
    expected, fix = "2 of 3", ""
    if least > replicas:
        level, fix = "wrong", "lower it, or add replicas: nothing can be written"
    elif replicas == 1 and brokers > 1:
        level, fix = "warning", "add replicas: one broker's disk is all there is"
    elif replicas > 1 and least == 1:
        level, fix = "warning", "set it to 2: a record that one broker has is acknowledged, and may be lost"
    elif replicas > 1 and least == replicas:
        level, fix = "warning", "lower it by one: when any broker is away nothing can be written"
    elif brokers == 1:
        expected = "1 of 1, on one broker"
    yield Finding(level, f"{name}: min.insync.replicas of replicas", f"{least} of {replicas}", expected, fix)


def _needed_ms(pipeline: Pipeline, topic: Topic) -> int:
    """Return how far back, in ms, a service may have to read this topic to have its state again."""
    if topic.joined:
        return pipeline.join_memory_ms
    if topic.is_raw:
        rules = pipeline.event_checks if topic is topics.EVENTS else pipeline.label_checks
        return max((getattr(rule.memory(), "horizon", 0) for rule in rules if rule.memory), default=0)
    views = {topics.EVENTS_VALID: pipeline.inline_views, topics.UPDATES: pipeline.remote_views}.get(topic, ())
    return max((Plan(view).longest for view in views), default=0)


def _number(text: str | None) -> int | None:
    try:
        return int(text) if text else None
    except ValueError:
        return None


def keep_alive(cluster: ClusterSettings) -> float:
    """Return after how many seconds an idle group commits its offsets again: well before any broker forgets them."""
    retentions = [_number(settings.get("offsets.retention.minutes")) for settings in cluster.brokers.values()]
    return min([KEEP_ALIVE_SECONDS, *(minutes * 60 / 4 for minutes in retentions if minutes)])


def check_settings(pipeline: Pipeline, broker: KafkaBroker, chosen: Sequence[Topic]) -> ClusterSettings:
    """Log what can hurt, and return what the cluster says. Raises BrokerError for what state or output hangs on."""
    try:
        cluster = broker.settings([topic.name(pipeline) for topic in chosen])
    except BrokerError as error:
        log.warning("the cluster's settings can't be read, so they are not checked", extra={"cause": str(error)})
        return ClusterSettings()
    findings = judge(pipeline, cluster, chosen)
    for finding in findings:
        if finding.level == "warning":
            log.warning("a setting of Kafka can hurt", extra={"setting": finding.what, "cause": str(finding)})
    if wrong := [str(finding) for finding in findings if finding.level == "wrong"]:
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise BrokerError(f"{wrong[0]}{more}; `tidemill doctor {pipeline.name}` lists all")
    return cluster


def differences(pipeline: Pipeline, broker: KafkaBroker) -> list[Finding]:
    """Return how the cluster's topics differ from their declaration. Raises BrokerError where it does not answer."""
    cluster = broker.settings([topic.name(pipeline) for topic in topics.TOPICS])
    return [
        finding
        for topic in topics.TOPICS
        for finding in (_topic(pipeline, topic, cluster) if cluster.brokers else ())
        if finding.level != "ok"
    ]


def examine(pipeline: Pipeline, broker: KafkaBroker) -> list[Finding]:
    """Return all that is to say of a pipeline's cluster, topics and offsets."""
    try:
        broker.connect()
        cluster = broker.settings([topic.name(pipeline) for topic in topics.TOPICS])
        findings = [Finding("ok", "broker", broker.servers, "reached"), *judge(pipeline, cluster, topics.TOPICS)]
        if not [finding for finding in findings if finding.value == "missing"]:
            findings += _offsets(pipeline, broker)
    except BrokerError as error:
        return [Finding("wrong", "broker", broker.servers, "reached", str(error))]
    return findings


def examine_settings(pipeline: Pipeline, settings: Settings, clock: Callable[[], float] = time.time) -> list[Finding]:
    """Return what is to say of the Redis and the keys that are set, and of this machine's clock beside Redis'."""
    given = settings.model_fields_set
    findings = [
        Finding("warning", f"variable {name}", "no setting", meant, f"rename it to {meant}, or remove it")
        for name, meant in misspelt()
    ]
    if "redis_url" in given:
        findings += _redis(settings.redis_address(), clock)
    if "verify_keys" in given or settings.signing_key.get_secret_value():
        try:
            for service in (*SIGNERS, "") if settings.signing_key.get_secret_value() else ("",):
                if service != "gate" or pipeline.gate:
                    settings.keyring(service)
            findings.append(Finding("ok", "keys", settings.verify_keys[:80], "can be read"))
        except SettingsError as error:
            fix = "make keys with `tidemill keys new`, or name them with TIDEMILL_VERIFY_KEYS and TIDEMILL_SIGNING_KEY"
            findings.append(Finding("wrong", "keys", str(error), "public keys, and those of who signs", fix))
    return findings


def _redis(url: str, clock: Callable[[], float]) -> Iterator[Finding]:
    from tidemill.features.redis import connect, shown_url  # services without Redis import this module

    shown = shown_url(url)
    try:
        client = connect(url)
        seconds, micros = client.time()
    except StoreError as error:
        yield Finding("wrong", "redis", shown, "reached", str(error))
        return
    except Exception as error:  # Redis may forbid TIME
        yield Finding("ok", "redis", shown, "reached", described(error))
        return
    yield Finding("ok", "redis", shown, "reached")
    apart = abs(clock() - seconds - micros / 1_000_000)
    fix = "keep both machines' clocks by NTP: rules, timeouts and keys go by them"
    level: Level = "ok" if apart <= MAX_CLOCKS_APART_SECONDS else "warning"
    yield Finding(level, "clock", f"{apart:.1f} s from Redis'", f"at most {MAX_CLOCKS_APART_SECONDS:.0f} s", fix)


def _offsets(pipeline: Pipeline, broker: KafkaBroker) -> Iterator[Finding]:
    for one in all_offsets(broker, pipeline):
        level: Level = "wrong" if one.wrong else "ok" if one.is_well else "warning"
        what = f"{one.service}: offset in {one.partition.topic}[{one.partition.partition}]"
        value = "none" if one.committed is None else str(one.committed.offset)
        expected = "none" if one.progress is None else str(one.progress.offset)
        name, _, model = one.service.partition("-")
        command = f"tidemill offsets set {pipeline.name} {name}" + (f" --model {model}" if model else "")
        fix = f"{one.wrong}; decide with `{command}`" if one.wrong else one.state
        yield Finding(level, what, value, f"{expected}, in {one.begin} to {one.end}", fix)
