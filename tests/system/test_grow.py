"""A pipeline moves to new topics under load: nothing is lost or doubled, and its views and joins are a replay's."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest
from ledger import Ledger, judge
from real_kafka import RealKafka
from running import Running, until

from tidemill.demo import data
from tidemill.demo.script import script
from tidemill.local.processes import spawn
from tidemill.local.replay import Replay
from tidemill.local.servers import Redis
from tidemill.wire import topics

pytestmark = [pytest.mark.kafka, pytest.mark.long]
IN_FLIGHT = 300


def test_a_pipeline_that_grows_while_its_producers_go_on(kafka: RealKafka, redis_server: Redis, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("old", "new")]
    for folder in folders:
        folder.mkdir()
    old = Running(kafka.servers, redis_server.url, folders[0], "flights", 2)
    new = Running(kafka.servers, redis_server.url, folders[1], "flights", 5, snapshot_seconds=0.3)
    messages = script(old.pipeline, data.flights((1,), days=2))
    moved = {old.name(topic): new.name(topic) for topic in (topics.EVENTS, topics.LABELS)}
    half, ledger = len(messages) // 2, Ledger(new)
    ledger.start()

    def copy(*words: str) -> subprocess.Popen[bytes]:
        command = [*new.stack.launcher, "grow", old.reference, new.reference, *words]
        return spawn(command, tmp_path / "grow.log", old.stack.env)

    def send(some: list) -> Replay:
        part = Replay(
            kafka.servers, some, speed=1e12,
            has_room=lambda: part.events + before - ledger.count(topics.PREDICTIONS, topics.DLQ) < IN_FLIGHT,
        )  # fmt: skip
        before = ledger.count(topics.PREDICTIONS, topics.DLQ)
        part.start()
        return part

    try:
        old.stack.start("validator")
        new.stack.start_all()
        copying = copy()
        old.stack.wait_ready()
        new.stack.wait_ready()
        part = send(messages[:half])
        until(lambda: ledger.count(topics.PREDICTIONS) > 200, "nothing comes", 120, new.stack.check)
        copying.send_signal(signal.SIGKILL)
        copying.wait()
        copying = copy()
        until(lambda: bool(part.ended_at) or part.error is not None, "the first half stalls", 240, new.stack.check)
        assert part.error is None
        # The producers switch, while some of what went the old way is still to be copied.
        part = send([message._replace(topic=moved[message.topic]) for message in messages[half:]])
        copying.terminate()
        assert copying.wait(30) == 0
        copying = copy("--finish")
        until(lambda: copying.poll() is not None, "the copy does not end", 120)
        assert copying.returncode == 0
        until(lambda: bool(part.ended_at) or part.error is not None, "the second half stalls", 240, new.stack.check)
        assert part.error is None
        ledger.arrive(len(messages))
        ledger.end()
    finally:
        old.stack.stop()
        new.stack.stop()
    verdict = judge(new, ledger, messages, redis_url=redis_server.url)
    assert not str(verdict)
    assert verdict.counts["joined"] > 100
