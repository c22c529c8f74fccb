"""The topic of versions is deleted and created again while all runs: none goes back, and what comes then is served."""

from __future__ import annotations

import contextlib
import time
from itertools import pairwise

import pytest
from confluent_kafka.admin import AdminClient
from ledger import Ledger
from running import Running, until

from tidemill.demo import data
from tidemill.demo.script import script
from tidemill.errors import BrokerError
from tidemill.local.replay import Replay
from tidemill.runtime.run import topic_table
from tidemill.stream.kafka.broker import KafkaBroker
from tidemill.wire import topics

pytestmark = [pytest.mark.kafka, pytest.mark.long]


def served(run: Running, ledger: Ledger) -> dict[int, list[int]]:
    """Return the champion's versions that answered, by partition of the prediction log."""
    versions: dict[int, list[int]] = {}
    for record in ledger.of(topics.PREDICTION_LOG):
        champion = run.records.prediction_log.decode(record.value())["champion"]
        versions.setdefault(record.partition(), []).append(champion["version"])
    return versions


def newest(run: Running, ledger: Ledger) -> int:
    return max((version for own in served(run, ledger).values() for version in own), default=0)


def test_no_version_goes_back_and_those_that_come_then_are_served(running) -> None:
    run = running("flights", partitions=2, snapshot_seconds=0.3)
    run.stack.start_all()
    run.stack.wait_ready(120)
    ledger = Ledger(run)
    ledger.start()
    messages = script(run.pipeline, data.flights((1,), days=2))
    limit = [len(messages) // 5]
    replay = Replay(run.broker.servers, messages, speed=1e12, has_room=lambda: replay.events + replay.labels < limit[0])
    replay.start()

    def go_on_to(end: int) -> None:
        limit[0] = end
        until(lambda: replay.events + replay.labels >= end or replay.error is not None, "the replay stalls", 120)

    def serves_newer_than(version: int) -> bool:
        if newest(run, ledger) > version:
            return True
        if replay.events + replay.labels >= limit[0] and limit[0] < len(messages) - 200:
            limit[0] += 10  # only what is asked shows who answers
        time.sleep(0.3)
        return False

    until(lambda: serves_newer_than(0), "no version serves", 120, run.stack.check)
    name, admin = run.name(topics.MODELS), AdminClient({"bootstrap.servers": run.broker.servers})
    admin.delete_topics([name])[name].result(30)
    until(lambda: name not in admin.list_topics(timeout=5).topics, "the topic stays", 30)
    until(lambda: created(run), "the topic does not come back", 30)
    until(lambda: "are read again" in run.stack.log("scorer").read_text(), "the scorer does not see it", 60)
    before = newest(run, ledger)
    until(lambda: serves_newer_than(before), "what was published since does not serve", 120, run.stack.check)
    go_on_to(len(messages))
    ledger.arrive(len(messages))
    ledger.close()
    assert all(one <= other for own in served(run, ledger).values() for one, other in pairwise(own))


def created(run: Running) -> bool:
    with contextlib.suppress(BrokerError):  # the name is still being deleted
        return bool(KafkaBroker(run.broker.servers).create(topic_table(run.pipeline)))
    return False
