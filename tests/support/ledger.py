"""A ledger of everything that a pipeline's topics hold, and what it says: lost, doubled, or wrong.

Every record must end in exactly one place: an event is valid or a dead letter; a valid event has one vector, one
prediction and one log record; a prediction is joined, expired or waits; a label is joined, a dead letter or waits.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import redis
from running import Running, until

from tidemill.encoding.codec import HEADER
from tidemill.errors import BrokerError
from tidemill.features.memory import MemoryView
from tidemill.keys import Keyring
from tidemill.local.replay import Message
from tidemill.models.fold import Fold
from tidemill.registry.manifests import Registry
from tidemill.registry.store import ArtifactStore
from tidemill.stages.featurizer.service import Featurizer
from tidemill.stages.gate import service as gate
from tidemill.stages.materializer.service import Materializer
from tidemill.stream.api import Position, TopicPartition, discard
from tidemill.stream.topic import Topic
from tidemill.wire import topics
from tidemill.wire.records import vector_to_x
from tidemill.wire.services import group

KINDS = (
    topics.EVENTS_VALID, topics.LABELS_VALID, topics.DLQ, topics.FEATURES, topics.PREDICTIONS, topics.PREDICTION_LOG,
    topics.EXAMPLES, topics.EXPIRED, topics.MODELS, topics.UPDATES, topics.PROMOTIONS, topics.WINDOWS,
)  # fmt: skip


PATIENCE = 60.0
"""Seconds without anything after which what has not come is lost."""


@dataclass
class Verdict:
    """What a ledger says; good while the lists are empty."""

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def same(self, where: str, expected: Iterable[str], found: Iterable[str]) -> None:
        """Compare two multisets of ids."""
        wanted, had = Counter(expected), Counter(found)
        self.lost += [f"{where}: {name}" for name in (wanted - had).elements()]
        self.doubled += [f"{where}: {name}" for name in (had - wanted).elements()]

    def once(self, where: str, found: Iterable[str]) -> None:
        """Have every id at most once."""
        self.doubled += [f"{where}: {name}" for name, n in Counter(found).items() if n > 1]

    def must(self, holds: bool, otherwise: str) -> None:
        """Note what is wrong unless it holds."""
        if not holds:
            self.wrong.append(otherwise)

    def __str__(self) -> str:
        return "; ".join(
            f"{len(found)} {word} ({', '.join(found[:5])})"
            for word, found in (("lost", self.lost), ("doubled", self.doubled), ("wrong", self.wrong))
            if found
        )


class Ledger(threading.Thread):
    """Reads all topics under read_committed as they grow, and notes when each record came.

    `stored` is when the materializer was seen to have written its views, where the store's place is given.
    """

    def __init__(self, run: Running, redis_url: str = "") -> None:
        super().__init__(name="ledger", daemon=True)
        self.run_ = run
        self.held: dict[str, list] = {run.name(kind): [] for kind in KINDS}
        self.came: dict[str, list[float]] = {run.name(kind): [] for kind in KINDS}
        self.changed = time.monotonic()
        self.error: Exception | None = None
        self.stored: list[float] = []
        self.is_chained = False
        self._store = redis.Redis.from_url(redis_url, socket_timeout=1) if redis_url else None
        self._stands: list[Any] = []
        self._reader = run.reader(*KINDS)
        self._closing = threading.Event()

    def run(self) -> None:
        try:
            while not self._closing.is_set():
                try:
                    found = self._reader.poll(timeout=0.05)
                except BrokerError:
                    continue  # the broker is away; the client finds it again
                self._look_at_views()
                now = time.monotonic()
                for record in found:
                    self.held[record.topic()].append(record)
                    self.came[record.topic()].append(now)
                    self.changed = now
        except Exception as error:  # shown by whoever waits for the ledger
            self.error = error
        finally:
            self._reader.close()

    def _look_at_views(self) -> None:
        if self._store is None:
            return
        view = self.run_.pipeline.remote_views[0].label
        pipe = self._store.pipeline(transaction=False)
        for partition in range(self.run_.pipeline.partitions):
            pipe.hget(f"{self.run_.pipeline.name}:{view}/partition:{partition}", "offset")
        try:
            stands = pipe.execute()
        except redis.RedisError:
            return  # it is away; the next look says more
        if stands != self._stands:
            self._stands = stands
            self.stored.append(time.monotonic())

    def close(self) -> None:
        """Stop reading; what was read stays."""
        self._closing.set()
        self.join(10)

    def of(self, kind: Topic) -> list:
        """Return the records of a topic."""
        return self.held[self.run_.name(kind)]

    def times(self, kind: Topic) -> list[float]:
        """Return when (monotonic s) each record of a topic came."""
        return self.came[self.run_.name(kind)]

    def count(self, *kinds: Topic) -> int:
        """Return how many records these topics hold together."""
        return sum(len(self.of(kind)) for kind in kinds)

    def ids(self, kind: Topic) -> list[str]:
        """Return the event ids of a topic whose records begin with the vector's."""
        head = self.run_.records.head.record
        return [head(r.value(), HEADER)["event_id"] for r in self.of(kind)]

    def dump(self, target: Path) -> None:
        """Write what came, when and where, for whoever asks why: a line for each record, with its key and event id."""
        offset = time.time() - time.monotonic()
        with target.open("w") as out:
            for kind in KINDS:
                found = self.of(kind)
                has_id = kind in (topics.FEATURES, topics.PREDICTIONS, topics.PREDICTION_LOG, topics.EXPIRED)
                ids = self.ids(kind) if has_id else [r.key().decode(errors="replace") for r in found]
                for record, came, event_id in zip(found, self.times(kind), ids, strict=True):
                    at = datetime.fromtimestamp(came + offset, UTC).isoformat(timespec="milliseconds")
                    print(
                        at, kind.suffix, record.partition(), record.offset(), record.timestamp()[1], event_id, file=out
                    )

    def quiet(self, seconds: float) -> bool:
        """Whether nothing came for so long."""
        if self.error:
            raise self.error
        return time.monotonic() - self.changed > seconds

    def behind(self, sent: int) -> str:
        """Return what has not come yet of `sent` messages, or nothing."""
        stages = Counter(dict(r.headers())["__connect.errors.stage"] for r in self.of(topics.DLQ))
        count, examples = self.count, self.of(topics.EXAMPLES)
        learned = {r.key(): r for r in self.of(topics.MODELS)}
        stand = {key: self.run_.records.manifest.decode(r.value())["version"] for key, r in learned.items()}
        gaps = {
            "validator": sent - count(topics.EVENTS_VALID, topics.LABELS_VALID) - stages[b"validator"],
            "scorer": count(topics.EVENTS_VALID)
            - min(count(topics.PREDICTION_LOG), count(topics.PREDICTIONS))
            - stages[b"featurizer"] - stages[b"scorer"],
            "joiner": count(topics.LABELS_VALID) - len(examples) - stages[b"joiner"],
            **{
                f"learner {name}": examples[-1].offset() + 1 - stand.get(name.encode(), 0)
                for name in self.run_.pipeline.model_names
                if examples
            },
        }  # fmt: skip
        return ", ".join(f"{name} by {gap}" for name, gap in gaps.items() if gap > 0)

    def others_behind(self, *names: str) -> str:
        """Return which of gate, archiver and monitor do not come to the end of what they follow; or nothing."""
        run = self.run_
        left = dict.fromkeys(names, "")

        def read_to_the_end() -> bool:
            for name in names:
                left[name] = self._lag_of_monitor() if name == "monitor" else self._not_committed(name)
            return not any(left.values())

        try:
            until(read_to_the_end, "the others are behind", PATIENCE, lambda: run.stack.check(names))
        except AssertionError:
            return ", ".join(f"{name}: {where}" for name, where in left.items() if where)
        return ""

    def _not_committed(self, name: str) -> str:
        run, ends = self.run_, dict[TopicPartition, int]()
        followed = set(topics.consumes(name)) & {topics.EXAMPLES, topics.PREDICTION_LOG}
        for record in (r for kind in followed for r in self.of(kind)):
            at = TopicPartition(record.topic(), record.partition())
            ends[at] = max(ends.get(at, 0), record.offset() + 1)
        committed = run.broker.committed(group(name, run.pipeline.name), list(ends))
        return ", ".join(str(tuple(at)) for at, end in ends.items() if getattr(committed[at], "offset", 0) < end)

    def _lag_of_monitor(self) -> str:
        """Its own word: what it commits is a whole fetch behind."""
        lines = self.run_.stack.fetch("monitor", "/metrics")[1].splitlines()
        lags = [line for line in lines if line.startswith("tidemill_lag_records{")]
        return "; ".join(line for line in lags if float(line.split()[-1]) > 1) if lags else "it says nothing"

    def arrive(self, sent: int) -> None:
        """Wait until all that comes of `sent` messages has come, or no more does."""
        self.changed = time.monotonic()  # nothing may have come for long before they were sent
        while self.behind(sent) and not self.quiet(PATIENCE):
            time.sleep(0.2)

    def end(self) -> None:
        """Stop the processes, read what they still had to say, and close."""
        until(lambda: self.quiet(2), "the topics do not come to rest", PATIENCE)
        self.run_.stack.stop()
        until(lambda: self.quiet(1), "the topics do not come to rest", PATIENCE)
        self.close()


def judge(
    run: Running,
    ledger: Ledger,
    sent: Sequence[Message],
    *,
    redis_url: str,
    models: bool = True,
    watched: bool = False,
) -> Verdict:
    """Compare what was sent with what is held, and with Redis, the models and every prediction done again."""
    verdict = Verdict()
    places(run, ledger, sent, verdict)
    store(run, ledger, redis_url, verdict)
    if models:
        versions(run, ledger, verdict)
        predictions_again(run, ledger, verdict)
    if watched:
        decisions(run, ledger, verdict)
        archive(run, ledger, verdict)
        windows(run, ledger, verdict)
    return verdict


def places(run: Running, ledger: Ledger, sent: Sequence[Message], verdict: Verdict) -> None:
    """Follow each id from where it was sent to where it ended."""
    letters = [(r, {k: v.decode() for k, v in r.headers()}) for r in ledger.of(topics.DLQ)]

    def rejected(stage: str, *from_: Topic) -> list:
        names = {run.name(topic) for topic in from_}
        return [
            r
            for r, h in letters
            if h["__connect.errors.stage"] == stage and (not names or h["__connect.errors.topic"] in names)
        ]

    verdict.once(
        "dead letter of",
        (":".join(h[f"__connect.errors.{part}"] for part in ("topic", "partition", "offset")) for _, h in letters),
    )
    events = [run.records.event.decode(r.value()) for r in ledger.of(topics.EVENTS_VALID)]
    valid = [event[run.pipeline.events.id] for event in events]
    bad_events = rejected("validator", topics.EVENTS)
    keys = [m.key.decode() for m in sent if m.is_event]
    verdict.same("events", keys, valid + [r.key().decode() for r in bad_events])
    verdict.must(
        Counter(m.value for m in sent if m.is_event)
        == Counter([r.value() for r in ledger.of(topics.EVENTS_VALID)] + [r.value() for r in bad_events]),
        "an event's bytes are not what was sent",
    )
    labels = [run.records.label.decode(r.value())[run.pipeline.labels.id] for r in ledger.of(topics.LABELS_VALID)]
    bad_labels = [r.key().decode() for r in rejected("validator", topics.LABELS)]
    verdict.same("labels", [m.key.decode() for m in sent if not m.is_event], labels + bad_labels)
    for kind in (topics.PREDICTIONS, topics.PREDICTION_LOG, *(() if ledger.is_chained else (topics.FEATURES,))):
        verdict.same(kind.suffix, valid, ledger.ids(kind))
    joined = [
        run.records.example.decode(r.value())["prediction"]["features"]["event_id"] for r in ledger.of(topics.EXAMPLES)
    ]
    expired = ledger.ids(topics.EXPIRED)
    verdict.once("outcome", joined + expired)
    verdict.must(not set(joined) - set(valid), "an example has no event")
    unmatched = [r.key().decode() for r in rejected("joiner")]
    verdict.once("label's outcome", joined + unmatched)
    # Of labels whose prediction came in time none may wait once everything has come.
    verdict.same("labels joined", labels, joined + unmatched)
    pending = set(valid) - set(joined) - set(expired)
    verdict.lost += [f"label of a prediction that waits: {name}" for name in pending & set(labels) - set(unmatched)]
    updates = [run.records.update.decode(r.value()) for r in ledger.of(topics.UPDATES)]
    for source, ids in (("events", valid), ("examples", joined)):
        for entity in dict.fromkeys(v.entity for v in run.pipeline.remote_views if v.source == source):
            told = [u["event_id"] for u in updates if (u["source"], u["entity"]) == (source, entity)]
            nobody = {event[run.pipeline.events.id] for event in events if event[entity] is None}
            verdict.same(f"updates of {entity} from {source}", [i for i in ids if i not in nobody], told)
    verdict.counts.update(
        events=len(keys), valid=len(valid), dead_letters=len(letters), predictions=len(ledger.of(topics.PREDICTIONS)),
        labels=len(labels), joined=len(joined), expired=len(expired), pending=len(pending), unmatched=len(unmatched),
        versions=len(ledger.of(topics.MODELS)),
    )  # fmt: skip


def registry_of(run: Running, service: str = "") -> Registry:
    """Return the registry that the run's services use; with the private key of one of them, where it is named."""
    env = run.stack.operator_env
    keys = Keyring(env["TIDEMILL_VERIFY_KEYS"], env["TIDEMILL_SIGNING_KEY"] if service else "", service)
    return Registry(run.pipeline, ArtifactStore(env["TIDEMILL_STORE_URL"]), keys)


def versions(run: Running, ledger: Ledger, verdict: Verdict) -> None:
    """The newest version of each model, resumed after faults or not, is one fold over the whole log."""
    registry = registry_of(run)
    last = {}
    for record in ledger.of(topics.MODELS):
        manifest = registry.decode(record.value())
        last[manifest.model] = manifest
    verdict.must(set(last) == set(run.pipeline.model_names), f"versions of {sorted(last)} only")
    examples = [(run.records.example.decode(r.value()), r.offset()) for r in ledger.of(topics.EXAMPLES)]
    xs = [vector_to_x(example["prediction"]["features"]["vector"]) for example, _ in examples[::50]]
    for name, manifest in last.items():
        fold = Fold(run.pipeline, name)
        for example, offset in examples:
            fold.learn(example, offset)
        verdict.must(
            (manifest.version, manifest.examples) == (fold.version, len(examples)),
            f"model {name} stands at {manifest.version} of {fold.version} with {manifest.examples} of {len(examples)} examples",
        )
        resumed, predict = registry.open(manifest).model, run.pipeline.kind.predict
        verdict.must(
            all(predict(resumed, x) == predict(fold.model, x) for x in xs),
            f"model {name} scores otherwise than one fold",
        )
        metrics = {type(m).__name__: m.get() for m in fold.metrics}
        verdict.must(dict(manifest.metrics) == metrics, f"model {name}: metrics {manifest.metrics} are not {metrics}")


def decisions(run: Running, ledger: Ledger, verdict: Verdict) -> None:
    """The gate, resumed after faults or not, has decided what one gate over all examples decides, each once."""
    decoded = [run.records.decision.decode(r.value()) for r in ledger.of(topics.PROMOTIONS)]
    verdict.once("decision", (one["id"] for one in decoded))
    again: list[dict[str, Any]] = []

    def emit(topic: str, value: bytes, *_: Any) -> None:
        again.append(run.records.decision.decode(value))

    step = gate.build(run.pipeline, registry_of(run, "gate"), run.broker).processor
    step.history = tuple
    step.assign(TopicPartition(run.name(topics.EXAMPLES), 0), Position(0))
    step.process(ledger.of(topics.EXAMPLES), emit)
    fields = ("kind", "subject", "champion", "examples")
    made, wanted = ([tuple(str(one[f]) for f in fields) for one in some] for some in (decoded, again))
    verdict.must(made == wanted, f"decisions {made} where one gate decides {wanted}")
    verdict.counts["decisions"] = len(decoded)


def archive(run: Running, ledger: Ledger, verdict: Verdict) -> None:
    """The archive holds every record of its topics once."""
    root = Path(run.stack.env["TIDEMILL_ARCHIVE_URL"]) / run.pipeline.name
    for kind in (topics.PREDICTION_LOG, topics.EXAMPLES):
        rows = [row for path in root.glob(f"{kind.suffix}/*/*.parquet") for row in _places(path)]
        verdict.same(f"archive of {kind.suffix}", (f"{r.partition()}:{r.offset()}" for r in ledger.of(kind)), rows)
        verdict.counts["archived"] += len(rows)


def _places(path: Path) -> list[str]:
    table = pq.read_table(path, columns=["partition", "offset"], partitioning=None)
    return [f"{p}:{o}" for p, o in zip(*(table[name].to_pylist() for name in ("partition", "offset")), strict=True)]


def windows(run: Running, ledger: Ledger, verdict: Verdict) -> None:
    """No window that the monitor calls complete holds more than is of its time, and some hold all of it.

    One may come twice, where the monitor is killed between writing it and committing what it has read; and lack what
    came so late that it was not waited for.
    """
    closed = [run.records.window.decode(r.value()) for r in ledger.of(topics.WINDOWS)]
    complete = {w["start"]: w for w in closed if w["source"] == "prediction-log" and not w["interrupted"]}
    head = run.records.head.record
    times = sorted(head(r.value(), HEADER)["event_time"] for r in ledger.of(topics.PREDICTION_LOG))
    for window in complete.values():
        within = bisect_left(times, window["end"]) - bisect_left(times, window["start"])
        verdict.must(window["records"] <= within, f"a window has {window['records']} records of {within}")
        verdict.counts["windows"] += window["records"] == within
    verdict.must(verdict.counts["windows"] > 0, f"no window was complete, of {len(closed)}")


def predictions_again(run: Running, ledger: Ledger, verdict: Verdict) -> None:
    """Every prediction again, from its log record: its vector, and the version refolded from the examples."""
    log = [run.records.prediction_log.decode(r.value()) for r in ledger.of(topics.PREDICTION_LOG)]
    log.sort(key=lambda prediction: prediction["champion"]["version"])
    different = []
    for model in sorted({prediction["champion"]["model"] for prediction in log}):
        fold, examples = Fold(run.pipeline, model), iter(ledger.of(topics.EXAMPLES))
        upcoming = next(examples, None)
        for prediction in log:
            champion = prediction["champion"]
            if champion["model"] != model:
                continue
            while upcoming is not None and upcoming.offset() < champion["version"]:
                fold.learn(run.records.example.decode(upcoming.value()), upcoming.offset())
                upcoming = next(examples, None)
            score, *_ = run.pipeline.kind.predict(fold.model, vector_to_x(prediction["features"]["vector"]))
            if score != champion["score"]:
                different.append(prediction["features"]["event_id"])
    verdict.must(not different, f"{len(different)} predictions score otherwise when done again, {different[:3]}")
    versions = sorted({p["champion"]["version"] for p in log})
    verdict.must(len(versions) > 3, f"hardly a version served: {versions}")


def store(run: Running, ledger: Ledger, url: str, verdict: Verdict) -> None:
    """What Redis holds at the end equals a replay of the valid events, and of the updates."""
    replayed = {view.label: MemoryView() for view in run.pipeline.views}
    for step, topic in (
        (Featurizer(run.pipeline, replayed), topics.EVENTS_VALID), (Materializer(run.pipeline, replayed), topics.UPDATES),
    ):  # fmt: skip
        for partition in range(run.pipeline.partitions):
            step.assign(TopicPartition(run.name(topic), partition), Position(0))
        step.process(sorted(ledger.of(topic), key=lambda r: (r.partition(), r.offset())), discard)
        step.committed()
    client = redis.Redis.from_url(url, decode_responses=True)
    for view, memory in replayed.items():
        prefix = f"{run.pipeline.name}:{view}:"
        there = {key.removeprefix(prefix) for key in client.scan_iter(f"{prefix}*", count=10_000)}
        verdict.must(there == memory.features.keys(), f"{view}: other entities in Redis than a replay has")
        for entity, features in memory.features.items():
            held = client.hgetall(f"{prefix}{entity}")
            wanted = {name: str(value) for name, value in features.items()}
            verdict.must(held == wanted, f"Redis holds {held} of {view} {entity} where a replay gives {wanted}")
