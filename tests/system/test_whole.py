"""Four partitions at full speed: every record is in exactly one place, also when processes are killed on the way."""

from __future__ import annotations

import time
from collections import Counter

import pytest
import redis

from conftest import until
from tidemill import topics
from tidemill.demo import data
from tidemill.demo.replay import Replay, script
from tidemill.featurizer.service import Featurizer
from tidemill.learner.fold import Fold
from tidemill.records import HEADER, vector_to_x
from tidemill.registry.manifests import Registry
from tidemill.registry.store import ArtifactStore
from tidemill.stream.api import Position, Slot, discard
from tidemill.stream.view import MemoryView

IN_FLIGHT = 400


class Ledger:
    """All that the topics hold under read_committed, by topic."""

    def __init__(self, run) -> None:
        self.run = run
        self.kinds = (
            topics.EVENTS_VALID, topics.LABELS_VALID, topics.DLQ, topics.FEATURES, topics.PREDICTIONS,
            topics.PREDICTION_LOG, topics.EXAMPLES, topics.EXPIRED, topics.MODELS,
        )  # fmt: skip
        self.held = {run.name(kind): [] for kind in self.kinds}
        self.reader = run.reader(*self.kinds)
        self.changed = time.monotonic()

    def read(self) -> None:
        for record in self.reader.poll(timeout=0.01):
            self.held[record.topic()].append(record)
            self.changed = time.monotonic()

    def of(self, kind: topics.Topic) -> list:
        return self.held[self.run.name(kind)]

    def ids(self, kind: topics.Topic) -> list[str]:
        return [self.run.records.head.record(r.value()[HEADER:])["event_id"] for r in self.of(kind)]


@pytest.mark.parametrize("killed", [(), ("featurizer", "scorer", "learner:logreg")], ids=["undisturbed", "killed"])
def test_every_record_ends_in_exactly_one_place(running, redis_server, killed: tuple[str, ...]) -> None:
    run = running("flights", partitions=4, snapshot_seconds=0.3)
    found = data.flights((1,), days=5)
    messages = script(run.pipeline, found, spoil_every=100)
    run.stack.start_all()
    run.stack.wait_ready()
    ledger = Ledger(run)
    replay = Replay(
        run.broker.servers, messages, speed=1e12,
        has_room=lambda: replay.events - len(ledger.of(topics.PREDICTIONS)) - len(ledger.of(topics.DLQ)) < IN_FLIGHT,
    )  # fmt: skip
    replay.start()
    kills = []
    for number, role in enumerate(killed, 1):
        edge = number * len(messages) // (len(killed) + 2)
        until(lambda edge=edge: ledger.read() or replay.events + replay.labels >= edge, "the replay stalls", 120)
        run.stack.kill(role)
        kills.append(role)
        run.stack.start(role)
    assert kills == list(killed), "every planned kill was done"
    until(lambda: ledger.read() or bool(replay.ended_at) or replay.error is not None, "the replay stalls", 120)
    assert replay.error is None
    until(
        lambda: ledger.read() or time.monotonic() - ledger.changed > 3,
        "the topics do not come to rest",
        120,
        run.stack.check,
    )
    run.stack.stop()
    until(lambda: ledger.read() or time.monotonic() - ledger.changed > 1, "the topics do not come to rest", 30)

    check_places(run, ledger, messages)
    check_models(run, ledger)
    check_replay(run, ledger)
    check_store(run, ledger, redis_server.url)


def check_places(run, ledger: Ledger, messages: list) -> None:
    sent_events = [m for m in messages if m.is_event]
    sent_labels = [m for m in messages if not m.is_event]
    valid = [run.records.event.decode(r.value())["flight_id"] for r in ledger.of(topics.EVENTS_VALID)]
    letters = [dict(r.headers()) for r in ledger.of(topics.DLQ)]
    by_stage = Counter(h["__connect.errors.stage"] for h in letters)
    places = Counter(
        (h["__connect.errors.topic"], h["__connect.errors.partition"], h["__connect.errors.offset"]) for h in letters
    )
    assert max(places.values()) == 1, "a record is in the dead letters twice"
    assert max(Counter(valid).values()) == 1, "an event is valid twice"
    assert len(valid) + by_stage[b"validator"] == len(sent_events)
    reasons = Counter(h["tidemill.reason"].decode() for h in letters if h["__connect.errors.stage"] == b"validator")
    assert set(reasons) == {"out_of_range", "wrong_type", "missing_field", "truncated"}
    spoilt = {m.value for m in sent_events} - {r.value() for r in ledger.of(topics.EVENTS_VALID)}
    rejected = {r.value() for r in ledger.of(topics.DLQ) if dict(r.headers())["__connect.errors.stage"] == b"validator"}
    assert rejected == spoilt, "dead letters hold the original bytes"

    for kind in (topics.FEATURES, topics.PREDICTIONS, topics.PREDICTION_LOG):
        assert Counter(ledger.ids(kind)) == Counter(valid), f"{kind.suffix} has each valid event once"

    joined = [
        run.records.example.decode(r.value())["prediction"]["features"]["event_id"] for r in ledger.of(topics.EXAMPLES)
    ]
    expired = ledger.ids(topics.EXPIRED)
    assert max(Counter(joined).values()) == 1, "an event was learned twice"
    assert max(Counter(expired).values(), default=1) == 1
    assert not set(joined) & set(expired)
    pending = set(valid) - set(joined) - set(expired)
    labels = [run.records.label.decode(r.value())["flight_id"] for r in ledger.of(topics.LABELS_VALID)]
    assert sorted(labels) == sorted(m.key.decode() for m in sent_labels), "each label is valid once"
    unmatched = by_stage[b"joiner"]
    assert len(labels) == len(joined) + unmatched, "each label is joined or a dead letter; none waits when all has come"
    assert not pending & set(labels) or unmatched, "a prediction that waits has no label"
    assert len(valid) == len(joined) + len(expired) + len(pending)
    assert len(joined) > 0.9 * len(labels)


def check_models(run, ledger: Ledger) -> None:
    """The learner's last version, resumed after a kill or not, scores as one fold over the whole log does."""
    registry = Registry(
        run.pipeline, ArtifactStore(run.stack.env["TIDEMILL_STORE_URL"]), run.stack.env["TIDEMILL_SIGNING_KEY"].encode()
    )
    last = {}
    for record in ledger.of(topics.MODELS):
        manifest = registry.decode(record.value())
        last[manifest.model] = manifest
    assert set(last) == set(run.pipeline.roster)
    examples = ledger.of(topics.EXAMPLES)
    vectors = [run.records.example.decode(r.value())["prediction"]["features"]["vector"] for r in examples[::50]]
    for name, manifest in last.items():
        fold = Fold(run.pipeline, name)
        for record in examples:
            fold.learn(run.records.example.decode(record.value()), record.offset())
        assert (manifest.version, manifest.examples) == (fold.version, len(examples))
        resumed = registry.open(manifest).model
        for vector in vectors:
            x = vector_to_x(vector)
            assert run.pipeline.kind.predict(resumed, x) == run.pipeline.kind.predict(fold.model, x)
        assert dict(manifest.metrics) == pytest.approx({type(m).__name__: m.get() for m in fold.metrics}, rel=0, abs=0)


def check_replay(run, ledger: Ledger) -> None:
    """Every prediction again, from its log record: its vector, and the version refolded from the examples."""
    examples = iter(ledger.of(topics.EXAMPLES))
    upcoming = next(examples, None)
    log = [run.records.prediction_log.decode(r.value()) for r in ledger.of(topics.PREDICTION_LOG)]
    log.sort(key=lambda prediction: prediction["champion"]["version"])
    fold = Fold(run.pipeline, run.pipeline.champion)
    for prediction in log:
        champion = prediction["champion"]
        while upcoming is not None and upcoming.offset() < champion["version"]:
            fold.learn(run.records.example.decode(upcoming.value()), upcoming.offset())
            upcoming = next(examples, None)
        score, _ = run.pipeline.kind.predict(fold.model, vector_to_x(prediction["features"]["vector"]))
        assert score == champion["score"], f"{prediction['features']['event_id']} at version {champion['version']}"
    assert len({p["champion"]["version"] for p in log}) > 3, "several versions served"


def check_store(run, ledger: Ledger, url: str) -> None:
    """What Redis holds at the end equals a replay of the valid events."""
    (view,) = run.pipeline.views
    replayed = MemoryView()
    step = Featurizer(run.pipeline, {view.label: replayed})
    name = run.name(topics.EVENTS_VALID)
    for partition in range(run.pipeline.partitions):
        step.assign(Slot(name, partition), Position(0))
    step.process(sorted(ledger.of(topics.EVENTS_VALID), key=lambda r: (r.partition(), r.offset())), discard)
    step.committed()
    client = redis.Redis.from_url(url, decode_responses=True)
    for entity in ("EWR", "JFK", "LGA"):
        stored = client.hgetall(f"{run.pipeline.name}:{view.label}:{entity}")
        assert stored == {field: str(value) for field, value in replayed.features[entity].items()}
