"""The commands of the runbooks, as they are written, on a pipeline that runs: each does what it says, and none ends in a traceback."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from running import Running, until
from webhook_receiver import SECRET, WebhookReceiver

from tidemill.cli.main import cli
from tidemill.demo import data
from tidemill.demo.script import script
from tidemill.local.replay import Replay
from tidemill.wire import topics

pytestmark = [pytest.mark.kafka, pytest.mark.long]
PAGE = Path(__file__).parents[2] / "docs/how-to/runbooks.md"
COMMANDS = list(dict.fromkeys(re.findall(r"`tidemill ([^`]+)`", PAGE.read_text(encoding="utf-8"))))
TOKEN = "a-token-for-these-tests-0123456789"
EXPECTED = {
    "doctor PIPELINE": "examined",
    "acl PIPELINE": "kafka-acls.sh",
    "keys rotate SERVICE --until 1s": "learner",
    "models decisions PIPELINE": "promoted",
    "models rebuild PIPELINE --all --missing": "",
    "models reset PIPELINE MODEL --why ...": "reset",
    "models rollback PIPELINE --why ...": "",
    "models prune PIPELINE --keep 100": "",
    "grow": "Missing argument",
    "capacity PIPELINE --rate N --events EVENTS --labels LABELS": "core",
    "dlq stats PIPELINE": "letters",
    "dlq list PIPELINE": "open",
    "dlq redrive PIPELINE": "",
    "forget PIPELINE": "",
    "forget PIPELINE --due --out ...": "",
    "notify test PIPELINE": "taken",
}
"""What each prints; of `grow`, which is named alone, that it needs more."""


@pytest.fixture(scope="module")
def run(module_running) -> Iterator[Running]:
    """A pipeline with dead letters, versions and a decision."""
    with WebhookReceiver() as receiver:
        told = json.dumps({"ops": {"url": receiver.url, "secret": SECRET}})
        forgetting = "forgetting=__import__('tidemill').Forgetting()"
        made: Running = module_running(
            "flights", 2, snapshot_seconds=0.3, status_token=TOKEN, notify=told, changes=forgetting
        )
        made.stack.start_all()
        made.stack.start("status")
        made.stack.wait_ready(120)
        replay = Replay(
            made.broker.servers, script(made.pipeline, data.flights((1,), days=1), corrupt_every=20), speed=1e12
        )
        replay.start()
        until(lambda: bool(replay.ended_at), "the replay stalls", 120, made.stack.check)
        reader = made.reader(topics.MODELS, topics.DLQ)
        seen: dict[str, set[bytes]] = {}

        def has_come() -> bool:
            for record in reader.poll(timeout=0.2):
                seen.setdefault(record.topic(), set()).add(record.key())
            return seen.get(made.name(topics.MODELS), set()) >= {b"logreg", b"slow"} and made.name(topics.DLQ) in seen

        until(has_come, "there is no version or no dead letter", 120, made.stack.check)
        reader.close()
        done = invoke(made, ["models", "promote", made.reference, "slow", "--why", "to see"])
        assert done[0] == 0, done[1]
        yield made


def invoke(run: Running, words: list[str]) -> tuple[int, str]:
    env = {**run.stack.operator_env, "TIDEMILL_STATUS_URL": f"http://127.0.0.1:{run.stack.ports['status']}"}
    done = CliRunner().invoke(cli, words, env=env, catch_exceptions=False)
    return done.exit_code, done.output


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_a_runbook_does_what_it_says(run: Running, tmp_path: Path, command: str) -> None:
    found = data.flights((1,), days=1)
    files = {"EVENTS": [flight.event for flight in found], "LABELS": list(data.labels(found))}
    for name, rows in files.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    given = {"PIPELINE": run.reference, "MODEL": "slow", "SERVICE": "learner", "N": "100"}
    given |= {name: str(tmp_path / f"{name}.jsonl") for name in files}
    words = [given.get(word, word) for word in shlex.split(command)]
    words = [
        str(tmp_path / "out") if word == "..." and words[n - 1] == "--out" else word for n, word in enumerate(words)
    ]
    if words[:2] == ["dlq", "redrive"]:
        words += ["--yes"]  # on a terminal it asks
    if words[0] == "keys":
        words += ["--folder", str(run.stack.folder / "keys")]
    code, output = invoke(run, words)
    assert code == (2 if command == "grow" else 0), output
    assert EXPECTED[command] in output


def test_each_command_is_tried() -> None:
    assert {*COMMANDS} == EXPECTED.keys()
