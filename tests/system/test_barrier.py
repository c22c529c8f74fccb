"""With a barrier after each hop, production says exactly what the backtest says."""

from __future__ import annotations

import re

from running import until

from tidemill import topics
from tidemill.backtest import Backtest
from tidemill.demo import data
from tidemill.demo.replay import script
from tidemill.stream.kafka import Sender


def test_one_day_through_kafka_equals_the_backtest_one_by_one(running) -> None:
    found = data.flights((1,), days=1)
    run = running("flights", partitions=1, snapshot_examples=1, interval_ms=1)
    expected: dict[str, float] = {}
    backtest = Backtest(run.pipeline)
    backtest.predictions = lambda log: expected.update({log["features"]["event_id"]: log["champion"]["score"]})
    backtest.run([f.event for f in found], data.labels(found))

    for role in ("validator", "featurizer", "scorer", "joiner", "learner:logreg"):
        run.stack.start(role)
    run.stack.wait_ready()
    sender = Sender(run.broker.servers)
    reader = run.reader(topics.PREDICTIONS, topics.EXAMPLES)
    predicted: dict[str, float] = {}
    learned_to = 0

    def read() -> None:
        nonlocal learned_to
        for record in reader.poll(timeout=0.01):
            if record.topic() == run.name(topics.PREDICTIONS):
                prediction = run.records.prediction.decode(record.value())
                assert prediction["event_id"] not in predicted, "predicted twice"
                predicted[prediction["event_id"]] = prediction["champion"]["score"]
            else:
                learned_to = record.offset() + 1
                seen.append(record)

    seen: list[object] = []

    def predicted_so_far() -> bool:
        read()
        return len(predicted) == events

    def served() -> bool:
        """Whether the scorer uses the version that has learned every label sent so far."""
        read()
        if len(seen) < labels:
            return False
        _, body = run.stack.fetch("scorer", "/metrics")
        version = re.search(r'tidemill_model_version\{model="logreg",service="scorer"\} (\S+)', body)
        return version is not None and float(version[1]) >= learned_to

    events = labels = 0
    was_event: bool | None = None
    for message in script(run.pipeline, found):
        if was_event is True and not message.is_event:
            sender.flush()
            until(predicted_so_far, "an event was not predicted", check=run.stack.check)
        if was_event is False and message.is_event:
            sender.flush()
            until(served, "the scorer did not get the version that learned the last label", check=run.stack.check)
        sender.send(message.topic, message.value, message.key)
        events, labels, was_event = events + message.is_event, labels + (not message.is_event), message.is_event
    sender.flush()
    until(predicted_so_far, "an event was not predicted", check=run.stack.check)
    reader.close()
    assert len(expected) == events > 800
    assert labels > 800
    assert predicted == expected
