"""Who asks for personal fields by a command is in the access log before anything is shown."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tidemill import load
from tidemill.cli.main import cli
from tidemill.errors import BrokerError
from tidemill.runtime.run import topic_table
from tidemill.stream.embedded import EmbeddedBroker
from tidemill.stream.kafka.broker import KafkaBroker
from tidemill.stream.kafka.producer import Sender
from tidemill.stream.ranges import full_range
from tidemill.wire import topics
from tidemill.wire.records import Records

pytestmark = pytest.mark.slow

DECLARATION = """
import dataclasses, small
pipeline = small.make(events=dataclasses.replace(small.EVENTS, personal=("origin",)))
open_ = small.make()
"""


@pytest.fixture
def broker() -> EmbeddedBroker:
    return EmbeddedBroker()


@pytest.fixture
def declared(tmp_path: Path) -> str:
    (tmp_path / "declared.py").write_text(DECLARATION)
    return f"{tmp_path / 'declared.py'}:pipeline"


def noted(declared: str, broker: EmbeddedBroker) -> list[dict[str, Any]]:
    pipeline, kafka = load(declared), KafkaBroker(broker.servers)
    codec = Records(pipeline).access
    batches = kafka.read(full_range(kafka, topics.ACCESS.name(pipeline)))
    return [codec.decode(record.value() or b"") for batch in batches for record in batch]


def test_it_is_noted_by_whom_and_for_what(declared: str, broker: EmbeddedBroker) -> None:
    broker.create([name for _, name, _ in topic_table(load(declared))])

    def run(*arguments: str, **environment: str) -> None:
        CliRunner().invoke(cli, [*arguments, "--brokers", broker.servers], env=environment, catch_exceptions=False)

    run("dlq", "list", declared, "--limit", "7", "--show-personal")
    run("dlq", "list", declared)
    run("dlq", "list", declared, "--show-personal", TIDEMILL_ACCESS_LOG="false")
    run("dlq", "list", declared.replace(":pipeline", ":open_"), "--show-personal")
    (one,) = noted(declared, broker)
    assert (one["service"], one["by"], one["method"]) == ("cli", getpass.getuser(), "--show-personal")
    assert one["route"].endswith("dlq list")
    assert one["subject"] == "limit=7"


def test_what_can_not_be_noted_is_not_shown(
    declared: str, broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker.create([name for _, name, _ in topic_table(load(declared))])

    def refuse(*_: Any) -> None:
        raise BrokerError("not allowed")

    monkeypatch.setattr(Sender, "flush", refuse)
    arguments = ["dlq", "list", declared, "--show-personal", "--brokers", broker.servers]
    done = CliRunner().invoke(cli, arguments)
    assert isinstance(done.exception, BrokerError)
    assert done.stdout == ""
