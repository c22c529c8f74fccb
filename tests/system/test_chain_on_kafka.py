"""Services in one process, on a real Kafka: killed and moved apart, every event is predicted and learned from once."""

from __future__ import annotations

import os
import signal
from collections import Counter

from running import until, worker

from tidemill.demo import data
from tidemill.demo.script import script
from tidemill.stream.kafka.producer import Sender
from tidemill.wire import topics

CHAINS = ("validator+featurizer+scorer", "joiner+learner")
APART = ("validator", "featurizer", "scorer")


def test_chains_lose_and_double_nothing_when_killed_and_moved_apart(running) -> None:
    run = running("plain", partitions=2)
    messages = list(script(run.pipeline, data.flights((1,), days=1)[:300]))
    reader = run.reader(topics.EVENTS_VALID, topics.FEATURES, topics.PREDICTION_LOG, topics.EXAMPLES)
    sender = Sender(run.broker.servers)
    events: dict[tuple[int, int], str] = {}
    places: dict[str, tuple[int, int]] = {}
    predicted, learned = Counter[str](), Counter[str]()
    vectors = 0

    def read() -> None:
        nonlocal vectors
        for record in reader.poll(timeout=0.01):
            value = record.value()
            if record.topic() == run.name(topics.EVENTS_VALID):
                event = run.records.event.decode(value)
                events[record.partition(), record.offset()] = str(event[run.pipeline.events.id])
            elif record.topic() == run.name(topics.PREDICTION_LOG):
                features = run.records.prediction_log.decode(value)["features"]
                predicted[features["event_id"]] += 1
                places[features["event_id"]] = features["partition"], features["offset"]
            elif record.topic() == run.name(topics.EXAMPLES):
                learned[record.key().decode()] += 1
            else:
                vectors += 1

    def send(some: list) -> None:
        for message in some:
            sender.send(message.topic, message.value, message.key)
        sender.flush()

    def settle(done: int) -> None:
        sent = messages[:done]
        labels = sum(not message.is_event for message in sent)

        def is_settled() -> bool:
            read()
            return predicted.total() >= done - labels and learned.total() >= labels

        until(is_settled, "something is still under way", 90, run.stack.check)

    third = len(messages) // 3
    for role in CHAINS:
        run.stack.start(role)
    run.stack.wait_ready()
    send(messages[:third])
    settle(third)
    os.kill(worker(run.stack.processes[CHAINS[0]]), signal.SIGKILL)  # its parent starts it again
    send(messages[third : 2 * third])
    settle(2 * third)
    assert vectors == 0, "a chain writes no vectors by themselves"

    run.stack.processes[CHAINS[0]].terminate()
    assert run.stack.processes.pop(CHAINS[0]).wait(30) == 0
    for role in APART:
        run.stack.start(role)
    run.stack.wait_ready()
    send(messages[2 * third :])
    settle(len(messages))
    reader.close()
    assert set(predicted.values()) == set(learned.values()) == {1}
    assert vectors == sum(message.is_event for message in messages[2 * third :])
    assert {events[place] for place in places.values()} == set(predicted), "each vector names its own event"
    assert all(events[place] == event_id for event_id, place in places.items())
