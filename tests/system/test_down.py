"""A pipeline is retired: nothing of it is left, and everything of others stays."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import redis as redis_client
from running import Running, until

from tidemill.demo import data
from tidemill.demo.script import script
from tidemill.local.replay import Replay
from tidemill.wire import topics


def down(run: Running, *arguments: str, answers: str = "") -> tuple[int, str]:
    command = [sys.executable, "-m", "tidemill.cli", "down", run.reference, *arguments]
    ended = subprocess.run(
        command, env={**os.environ, **run.stack.env}, input=answers, capture_output=True, text=True, timeout=60
    )
    return ended.returncode, ended.stdout + ended.stderr


def test_nothing_of_it_is_left_and_what_is_of_others_stays(running, redis_url: str) -> None:
    run, other = (
        running("flights", partitions=1, snapshot_seconds=0.5),
        running("plain", partitions=1),
    )
    name, messages = run.pipeline.name, script(run.pipeline, data.flights((1,), days=1))
    run.stack.start_all()
    run.stack.wait_ready()
    replay = Replay(run.broker.servers, messages, 1e9)
    replay.start()
    replay.join(60)
    store = Path(run.stack.env["TIDEMILL_STORE_URL"])
    client = redis_client.Redis.from_url(redis_url)

    def artifacts() -> list[Path]:
        return [path for path in store.rglob("*") if path.is_file() and len(path.name) == 64]

    until(lambda: len(artifacts()) >= 3 and client.exists(f"{name}:origin:JFK"), "no version, or no view", 60)
    code, text = down(run, "--delete", "--confirm", name)
    assert (code, "run (" in text, "stop them first" in text) == (1, True, True), text
    run.stack.stop()
    foreign = store / "ff" / ("f" * 64)
    foreign.parent.mkdir(exist_ok=True)
    foreign.write_bytes(b"of somebody else")
    for key in (f"{name}x:origin:JFK", f"{name}:unlike", "origin:JFK"):
        client.set(key, "of somebody else")

    code, text = down(run, "--json")
    plan = json.loads(text)
    assert code == 0
    assert set(plan["topics"]) == {topic.name(name) for topic in topics.TOPICS}
    assert plan["topics"][f"{name}.events"] == sum(message.is_event for message in messages)
    assert plan["views"].keys() == {view.label for view in run.pipeline.views}
    assert plan["views"]["origin"] > 3
    assert len(plan["artifacts"]) == len(artifacts()) - 1
    code, text = down(run, "--delete", answers="another\n")
    assert (code, "that is another name: nothing was deleted" in text) == (1, True)
    code, text = down(run, "--delete", answers=f"{name}\nno\n")
    assert code == 130
    assert json.loads(down(run, "--json")[1]) == plan, "nothing was deleted"

    code, text = down(run, "--delete", answers=f"{name}\nyes\n")
    assert code == 0, text
    assert artifacts() == [foreign]
    assert sorted(key.decode() for key in client.scan_iter("*")) == sorted(
        [f"{name}x:origin:JFK", f"{name}:unlike", "origin:JFK"]
    )
    until(lambda: not run.broker.topic_states([topic.name(name) for topic in topics.TOPICS]), "topics are there", 30)
    assert run.broker.groups(f"{name}.") == {}
    left = run.broker.topic_states([topic.name(other.pipeline.name) for topic in topics.TOPICS])
    assert len(left) == len(topics.TOPICS)
    code, text = down(run, "--delete", "--confirm", name)
    assert (code, "deleted 0 topics" in text) == (0, True), "twice is once"
