"""A run on real Kafka with a promotion, a rollback and a forgery: the audit names each, and proves the rest."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from click.testing import CliRunner, Result
from ledger import registry_of
from running import Running, until

from tidemill.cli.main import cli
from tidemill.demo import data
from tidemill.demo.script import script
from tidemill.errors import SettingsError
from tidemill.keys import Keyring
from tidemill.local.replay import Replay
from tidemill.offline.audit import COUNTED
from tidemill.registry.decisions import all_decisions, decisions
from tidemill.registry.latest import latest
from tidemill.stream.api import TopicPartition
from tidemill.stream.kafka.producer import Sender
from tidemill.wire import topics

TOKEN = "a-token-for-these-tests-0123456789"


def command(run: Running, *arguments: str) -> Result:
    env = {**run.stack.operator_env, "TIDEMILL_STATUS_URL": f"http://127.0.0.1:{run.stack.ports['status']}"}
    return CliRunner().invoke(cli, arguments, env=env)


def decided(run: Running, kind: str, *target: str) -> None:
    done = command(run, "models", kind, run.reference, *target, "--why", "to see")
    assert done.exit_code == 0, done.output


def keyring(run: Running, signing: str = "") -> Keyring:
    return Keyring(run.stack.env["TIDEMILL_VERIFY_KEYS"], signing)


def forge(run: Running) -> None:
    """Write what somebody may who can write to the topic and has no key: a decision that "mallory" serves "slow"."""
    codec = decisions(run.pipeline, keyring(run))
    last = all_decisions(run.pipeline, run.broker, codec)[-1]
    record = codec.codec.decode(codec.encode(last))
    record |= {"id": "forged-1", "by": "mallory", "kind": "promoted", "champion": {"model": "slow", "version": 0}}
    sender = Sender(run.broker.servers)
    sender.send(run.name(topics.PROMOTIONS), codec.codec.encode(record), b"forged-1")
    sender.flush()


@pytest.mark.long
def test_a_promotion_a_rollback_and_a_forgery_are_in_the_audit(running, tmp_path) -> None:
    run = running("flights", partitions=2, snapshot_seconds=0.3, status_token=TOKEN)
    began = datetime.now(UTC) - timedelta(minutes=1)
    messages = script(run.pipeline, data.flights((1,), days=1)[::3], corrupt_every=50)
    run.stack.start_all()
    run.stack.start("status")
    run.stack.wait_ready()
    end = [len(messages) // 3]
    replay = Replay(run.broker.servers, messages, speed=1e12, has_room=lambda: replay.events + replay.labels < end[0])
    replay.start()

    def held(topic: Any) -> int:
        name = run.name(topic)
        slots = [TopicPartition(name, number) for number in range(run.broker.partitions(name))]
        return sum(run.broker.offset_range(slot)[1] for slot in slots)

    def have_versions() -> bool:
        newest, _ = latest(run.broker, registry_of(run), dict.fromkeys(run.pipeline.models, 1))
        return all(newest.values())

    until(have_versions, "there are no versions", 120, run.stack.check)
    decided(run, "promote", "slow")
    end[0] = 2 * len(messages) // 3
    until(lambda: replay.events + replay.labels >= end[0], "the replay stalls", 120, run.stack.check)
    decided(run, "rollback")
    end[0] = len(messages) + 1
    until(lambda: bool(replay.ended_at) or replay.error is not None, "the replay stalls", 120, run.stack.check)
    assert replay.error is None
    forge(run)
    before = [-1]

    def is_quiet() -> bool:
        now = sum(held(topic) for topic in COUNTED)
        before[0], last = now, before[0]
        return now == last

    until(is_quiet, "records are still written", 60)

    out = tmp_path / "audit"
    arguments = (
        "audit",
        run.reference,
        "--from",
        began.isoformat(),
        "--out",
        str(out),
        "--sample",
        "50",
        "--seed",
        "3",
    )
    done = command(run, *arguments)
    assert done.exit_code == 1, f"the forgery is not in order: {done.output} {done.exception!r}"
    assert "promotions: 1 signed record is refused: forged" in done.output
    content = json.loads((out / "audit.json").read_bytes())
    assert [(turn["model"], turn["by"]) for turn in content["serving"]] == [
        ("logreg", "declaration"), ("slow", "admin"), ("logreg", "admin"),
    ]  # fmt: skip
    assert [(one["kind"], one["by"], one["outcome"]) for one in content["commands"]] == [
        ("promote", "admin", "promoted"), ("rollback", "admin", "rolled_back"),
    ]  # fmt: skip
    (forged,) = content["refused"]
    assert (forged["reason"], forged["topic"]) == ("forged", run.name(topics.PROMOTIONS))
    assert "by mallory" in forged["claims"]
    asked = {(one["by"], one["method"], one["route"], one["status"]) for one in content["access"]["counts"]}
    assert ("admin", "POST", "/api/commands", 202) in asked
    assert content["access"]["dropped"] == 0
    assert content["answers"]["otherwise"] == 0
    assert [line["model"] for line in content["answers"]["models"]] == ["logreg", "slow"]
    replayed = content["replay"]
    assert (len(replayed["predictions"]), replayed["seed"]) == (50, 3)
    assert replayed["equal"] == replayed["scores"] > 0
    counted = {one["topic"]: one["records"] for one in content["coverage"]}
    assert counted["events"] + counted["labels"] == len(messages)
    assert counted["prediction-log"] == counted["events.valid"] > 0
    assert sum(kind["letters"] for kind in content["dead_letters"]["kinds"]) == counted["dlq"] > 0
    assert "mallory" in (out / "audit.html").read_text()

    assert isinstance(command(run, *arguments).exception, SettingsError), "it holds an audit already"
    assert "it is as it was written" in command(run, "audit", "--verify", str(out)).output
    page = (out / "audit.html").read_text()
    (out / "audit.html").write_text(page.replace("mallory", "nobody"))
    assert "audit.html was changed" in str(command(run, "audit", "--verify", str(out)).exception)
    data_ = (out / "audit.json").read_text()
    (out / "audit.json").write_text(data_.replace("mallory", "nobody"))
    assert "audit.json was changed" in str(command(run, "audit", "--verify", str(out)).exception)
