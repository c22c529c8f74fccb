"""A rule that was wrong, mended: every event that it had refused goes back once, and is predicted exactly once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from ledger import Ledger
from running import Running, until

from tidemill.demo import data
from tidemill.demo.script import script
from tidemill.local.processes import end
from tidemill.local.replay import Replay
from tidemill.stream.topic import Topic
from tidemill.wire import topics
from tidemill.wire.dead_letters import read_dead_letter

RULES = "rules=[*_base.rules, __import__('tidemill').rules.between('sched_hour', 0, 10)]"
"""As somebody writes it who thinks of a clock with twelve hours, and gets even that wrong."""


def redrive(run: Running, at_once: int = 1) -> list[tuple[int, str]]:
    """Run the command, or several of it at once; returns exit code and output of each."""
    command = [sys.executable, "-m", "tidemill.cli", "dlq", "redrive", run.reference, "--yes"]
    env = {**os.environ, **run.stack.env}
    started = [
        subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for _ in range(at_once)
    ]
    said = [process.communicate(timeout=60)[0] for process in started]
    return [(process.returncode, text) for process, text in zip(started, said, strict=True)]


def mend(run: Running) -> None:
    """Deploy the declaration without the wrong rule."""
    declaration = Path(run.reference)
    text = declaration.read_text()
    assert RULES in text
    declaration.write_text(text.replace(RULES, ""))
    end(run.stack.processes["validator"])
    run.stack.start("validator")
    run.stack.wait_ready()


@pytest.mark.long
def test_a_thousand_events_that_a_wrong_rule_refused_are_each_predicted_once(running) -> None:
    run = running("plain", partitions=4, changes=RULES, snapshot_seconds=1.0, fuse="false")
    messages = script(run.pipeline, data.flights((1,), days=2))
    events = Counter(m.key.decode() for m in messages if m.is_event)
    labels = len(messages) - len(events)
    run.stack.start_all()
    run.stack.wait_ready()
    ledger = Ledger(run)
    ledger.start()
    replay = Replay(run.broker.servers, messages, speed=1e12)
    replay.start()

    def count(*kinds: Topic) -> int:
        return ledger.count(*kinds)

    until(lambda: count(topics.EVENTS_VALID, topics.DLQ) == len(events), "events are missing")
    until(lambda: count(topics.LABELS_VALID) == labels, "labels are missing")
    assert replay.error is None
    dead = [read_dead_letter(record) for record in ledger.of(topics.DLQ)]
    ids = {letter.key for letter in dead}
    assert 1000 <= len(ids) == len(dead) < len(events)
    assert {(letter.reason, letter.field, letter.attempt) for letter in dead} == {("out_of_range", "sched_hour", 1)}
    until(lambda: count(topics.PREDICTIONS) == len(events) - len(dead), "predictions are missing")
    assert not ids & set(ledger.ids(topics.PREDICTIONS)), "a refused event was predicted"

    mend(run)
    two = redrive(run, at_once=2)
    done = [text for code, text in two if code == 0]
    assert done, two
    assert any(" back: " in text for text in done), two
    assert all("another redrive" in text for code, text in two if code), two
    ((code, again),) = redrive(run)
    assert code == 0
    assert f"{len(dead):,} went back already" in again
    assert again.endswith("nothing to send\n")

    until(lambda: count(topics.PREDICTIONS, topics.DLQ) >= len(events) + len(dead), "predictions are missing")
    until(lambda: count(topics.EXAMPLES) >= labels, "examples are missing")
    ledger.end()
    assert Counter(ledger.ids(topics.PREDICTIONS)) == events, "every event has exactly one prediction"
    assert Counter(ledger.ids(topics.PREDICTION_LOG)) == events
    assert count(topics.DLQ) == len(dead), "nothing was refused again"
    joined = Counter(
        run.records.example.decode(record.value())["prediction"]["features"]["event_id"]
        for record in ledger.of(topics.EXAMPLES)
    )
    assert joined == Counter(m.key.decode() for m in messages if not m.is_event), "every label has become one example"
    assert len(ids & joined.keys()) > 900
    assert count(topics.EXPIRED) == 0
