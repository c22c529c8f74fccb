"""A loop by hand: confluent-kafka, fastavro, plain dicts. Exactly once to the outside; after a crash its state is gone.

As confluent-kafka's example of a consume, process, produce loop (examples/eos_transactions.py), with batches of 5,000.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from confluent_kafka import Consumer, Message, Producer, TopicPartition

from benchmarks.peers import work

BATCH = 5_000


def main() -> None:
    """Run until all events and labels are done."""
    watch, model = work.Stopwatch(), work.Model()
    consumer = Consumer(
        {
            "bootstrap.servers": watch.servers,
            "group.id": watch.name,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "isolation.level": "read_committed",
        }
    )
    producer = Producer({"bootstrap.servers": watch.servers, "transactional.id": watch.name})
    producer.init_transactions()
    consumer.subscribe(["events", "labels"])
    tiles: dict[str, list[Any]] = {}
    pending: dict[str, tuple[dict[str, float], float]] = {}
    queues: dict[str, deque[Message]] = {"events": deque(), "labels": deque()}
    left, done = {"events": watch.events, "labels": watch.labels}, {"events": 0, "labels": 0}

    while sum(left.values()):
        for message in consumer.consume(BATCH, timeout=0.1):
            if message.error():
                raise SystemExit(str(message.error()))
            queues[message.topic()].append(message)
            watch.start()
        batch = []
        while all(queues[topic] or not left[topic] for topic in queues) and sum(left.values()):
            # Both topics in order of time: a label that is older than the next event is learned first.
            topic = min((t for t in queues if queues[t]), key=lambda t: (queues[t][0].timestamp()[1], t == "events"))
            batch.append(queues[topic].popleft())
            left[topic] -= 1
        if not batch:
            continue
        producer.begin_transaction()
        for message in batch:
            done[message.topic()] = message.offset() + 1
            if message.topic() == "events":
                event = work.decode_event(message.value())
                if not work.is_valid(event):
                    continue
                origin = event["origin"]
                x = work.ask(event, tiles.setdefault(origin, []))
                work.add(event, tiles[origin])
                score = model.predict(x)
                prediction = {
                    "event_id": event["flight_id"],
                    "entity_id": origin,
                    "event_time": event["asked_at"],
                    "score": score,
                }
                producer.produce(watch.topic, work.encode_prediction(prediction), origin)
                producer.poll(0)
                pending[event["flight_id"]] = x, score
            else:
                label = work.decode_label(message.value())
                if found := pending.pop(label["flight_id"], None):
                    model.learn(*found, label["arr_delay"])
        offsets = [TopicPartition(topic, 0, offset) for topic, offset in done.items()]
        producer.send_offsets_to_transaction(offsets, consumer.consumer_group_metadata())
        producer.commit_transaction()
    watch.report(model)
    consumer.close()


if __name__ == "__main__":
    main()
