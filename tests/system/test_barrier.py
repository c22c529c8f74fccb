"""With a barrier after each hop, production serves exactly the vectors and the scores that the backtest does."""

from __future__ import annotations

import re

import redis
from running import Running, until

from tidemill.demo import data
from tidemill.demo.script import script
from tidemill.offline.backtest import Backtest
from tidemill.stream.kafka.producer import Sender
from tidemill.wire import topics
from tidemill.wire.records import PredictionLog


def answer(log: PredictionLog) -> tuple:
    """Return what a prediction was made of, and what it says."""
    features = log["features"]
    return (
        features["vector"],
        features["entities"],
        features["as_of"],
        features["stale"],
        log["champion"]["score"],
    )


class Barrier:
    """Follows what the services have done, to wait until nothing of what was sent is under way any more."""

    def __init__(self, run: Running, redis_url: str) -> None:
        self.run = run
        self.store = redis.Redis.from_url(redis_url, decode_responses=True)
        self.reader = run.reader(topics.PREDICTION_LOG, topics.EXAMPLES, topics.UPDATES)
        self.answers: dict[str, tuple] = {}
        self.examples = self.learned_to = self.updates = self.updates_to = self.due = 0
        routes = {(view.source, view.entity) for view in run.pipeline.remote_views}
        self.of = {source: [entity for s, entity in routes if s == source] for source in ("events", "examples")}

    def read(self) -> None:
        for record in self.reader.poll(timeout=0.01):
            if record.topic() == self.run.name(topics.PREDICTION_LOG):
                log = self.run.records.prediction_log.decode(record.value())
                event_id, entities = log["features"]["event_id"], log["features"]["entities"]
                assert event_id not in self.answers, "predicted twice"
                self.answers[event_id] = answer(log)
                self.due += sum(entity in entities for entity in self.of["events"])
            elif record.topic() == self.run.name(topics.EXAMPLES):
                example = self.run.records.example.decode(record.value())
                self.learned_to, self.examples = record.offset() + 1, self.examples + 1
                entities = example["prediction"]["features"]["entities"]
                self.due += sum(entity in entities for entity in self.of["examples"])
            else:
                self.updates, self.updates_to = self.updates + 1, record.offset() + 1

    def is_settled(self, events: int, labels: int) -> bool:
        """Whether every event was predicted, every label learned and served, and all views stand at the last update."""
        self.read()
        if len(self.answers) < events or self.examples < labels or self.updates < self.due:
            return False
        assert self.updates == self.due, "told twice"
        prefix = self.run.pipeline.name
        places = [f"{prefix}:{view.label}/partition:0" for view in self.run.pipeline.remote_views]
        if any(int(self.store.hget(place, "offset") or 0) < self.updates_to for place in places):
            return False
        _, body = self.run.stack.fetch("scorer", "/metrics")
        version = re.search(r'tidemill_model_version\{model="logreg",service="scorer"\} (\S+)', body)
        return version is not None and float(version[1]) >= self.learned_to


def test_a_morning_through_kafka_equals_the_backtest_one_by_one(running, redis_server) -> None:
    found = data.flights((1,), days=1)[:300]
    run = running("flights", partitions=1, snapshot_examples=1, max_delay_ms=1)
    expected: dict[str, tuple] = {}
    backtest = Backtest(run.pipeline)
    backtest.predictions = lambda log: expected.update({log["features"]["event_id"]: answer(log)})
    backtest.run([f.event for f in found], data.labels(found))

    for role in ("validator", "featurizer", "materializer", "scorer", "joiner", "learner:logreg"):
        run.stack.start(role)
    run.stack.wait_ready()
    sender, barrier = Sender(run.broker.servers), Barrier(run, redis_server.url)
    events = labels = 0

    def settle() -> None:
        sender.flush()
        until(lambda: barrier.is_settled(events, labels), "something is still under way", check=run.stack.check)

    was_event = False
    for message in script(run.pipeline, found):
        if message.is_event or was_event:  # labels may go together: no question lies between them
            settle()
        sender.send(message.topic, message.value, message.key)
        events, labels, was_event = events + message.is_event, labels + (not message.is_event), message.is_event
    settle()
    barrier.reader.close()
    assert len(expected) == events == 300
    assert labels > 260
    assert barrier.updates > 1300
    different = [name for name in expected if barrier.answers[name] != expected[name]]
    assert not different, f"{len(different)} differ, as {different[0]}: {barrier.answers[different[0]]}"
    assert not any(stale for *_, stale, _ in expected.values())
