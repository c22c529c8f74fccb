"""A user's mistake: one clear line, a non-zero exit within 5 seconds, no traceback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

KEY = "0123456789abcdef0123456789abcdef"
NOBODY = "127.0.0.1:1"


def tidemill(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TIDEMILL_")}
    return subprocess.run(
        [sys.executable, "-m", "tidemill.cli", *arguments],
        capture_output=True, text=True, timeout=30, env={**clean, **environment}, check=False,
    )  # fmt: skip


def assert_one_clear_line(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode not in (0, None)
    said = [line for line in done.stderr.splitlines() if line.strip()]
    assert "Traceback" not in done.stderr + done.stdout
    assert len(said) == 1, done.stderr
    for word in words:
        assert word in done.stderr, done.stderr
    assert KEY not in done.stderr


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    path = tmp_path / "broken.py"
    path.write_text("from tidemill.demo.flights import flights\nflights = flights.no_such_thing\n")
    return path


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (["check", "nonsense"], {}, ["unknown pipeline 'nonsense'", "flights"]),
        (["check", "no_such_file.py"], {}, ["no_such_file.py", "does not exist"]),
        (["check", "flights:nonsense"], {}, ["nonsense"]),
        (["run", "validator", "nonsense"], {}, ["unknown pipeline"]),
        (["run", "nonsense", "flights"], {}, ["nonsense", "validator"]),
        (["run", "validator", "flights", "--interval-ms", "soon"], {}, ["interval_ms", "soon", "TIDEMILL_INTERVAL_MS"]),
        (["run", "validator", "flights"], {"TIDEMILL_MAX_BATCH": "0"}, ["max_batch", "TIDEMILL_MAX_BATCH"]),
        (["run", "validator", "flights"], {"TIDEMILL_DELIVERY": "twice"}, ["delivery", "exactly_once"]),
        (["run", "validator", "flights"], {"TIDEMILL_BROKERS": "nowhere"}, ["brokers", "nowhere"]),
        (["run", "validator", "flights"], {"TIDEMILL_KAFKA": "{"}, ["kafka", "JSON"]),
        (["run", "validator", "flights", "--no-such-option"], {}, ["--no-such-option"]),
        (["run", "validator", "flights", "--model", "logreg"], {}, ["--model", "learner"]),
        (["run", "validator", "flights", "--brokers", NOBODY], {}, ["no Kafka at", NOBODY, "TIDEMILL_BROKERS"]),
        (["topics", "flights", "--create", "--brokers", NOBODY], {}, ["no Kafka at", NOBODY]),
        (["backtest", "flights", "--events", "a.csv", "--labels", "b.csv"], {}, ["a.csv", "does not exist"]),
        (["backtest", "flights", "--events", "a.txt", "--labels", "b.csv"], {}, ["a.txt", ".csv"]),
        (["backtest", "flights", "--events", "a.csv", "--labels", "b.csv", "--model-delay", "1x"], {}, ["1x", "duration"]),
        (["demo", "--days", "40"], {}, ["--days", "31"]),
        (["demo", "--report", "no/such/folder/r.json"], {}, ["no/such/folder"]),
        (["demo", "--broker", NOBODY, "--headless"], {}, ["no Kafka at", NOBODY]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)  # fmt: skip
def test_a_mistake_ends_in_one_clear_line(arguments: list[str], environment: dict[str, str], words: list[str]) -> None:
    began = time.monotonic()
    done = tidemill(*arguments, TIDEMILL_SIGNING_KEY=KEY, **environment)
    assert_one_clear_line(done, *words)
    assert time.monotonic() - began < 15, "5 s on an idle machine; this one also runs the other tests"


def test_an_exception_in_the_declaration_names_its_line(broken: Path) -> None:
    assert_one_clear_line(tidemill("check", str(broken)), "broken.py line 2", "no_such_thing")


def test_topics_that_do_not_exist_are_named_with_the_command_that_makes_them(kafka) -> None:
    done = tidemill("run", "validator", "plain", "--brokers", kafka.servers)
    assert_one_clear_line(done, "no topic plain.", "tidemill topics plain --create")


@pytest.fixture(scope="module")
def topics(kafka) -> None:
    assert tidemill("topics", "delays", "--create", "--brokers", kafka.servers).returncode == 0


@pytest.mark.usefixtures("topics")
class TestOnARealBroker:
    def test_no_redis(self, kafka, tmp_path: Path) -> None:
        declared = tmp_path / "viewed.py"
        declared.write_text(
            "from dataclasses import replace\nfrom tidemill import View, aggregates\n"
            "from tidemill.demo.flights import delays as _delays\n"
            "delays = replace(_delays, views=[View('origin', every='5m', aggregates=aggregates.count('1h'))])\n"
        )
        done = tidemill(
            "run", "featurizer", str(declared), "--brokers", kafka.servers,
            "--redis-url", "redis://:verysecretword@127.0.0.1:1/0",
        )  # fmt: skip
        assert_one_clear_line(done, "no Redis at 127.0.0.1:1", "TIDEMILL_REDIS_URL")
        assert "verysecretword" not in done.stderr

    def test_no_signing_key(self, kafka) -> None:
        done = tidemill("run", "scorer", "delays", "--brokers", kafka.servers)
        assert_one_clear_line(done, "signing_key", "TIDEMILL_SIGNING_KEY")

    def test_a_store_that_is_no_folder(self, kafka, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        done = tidemill(
            "run",
            "scorer",
            "delays",
            "--brokers",
            kafka.servers,
            "--store-url",
            str(tmp_path / "file"),
            TIDEMILL_SIGNING_KEY=KEY,
        )
        assert_one_clear_line(done, "store_url", "TIDEMILL_STORE_URL")

    def test_a_model_that_is_not_declared(self, kafka, tmp_path: Path) -> None:
        done = tidemill(
            "run", "learner", "delays", "--model", "nonsense", "--brokers", kafka.servers, "--store-url", str(tmp_path),
            TIDEMILL_SIGNING_KEY=KEY,
        )  # fmt: skip
        assert_one_clear_line(done, "nonsense", "linear")

    def test_a_port_that_is_taken(self, kafka) -> None:
        with socket.socket() as taken:
            taken.bind(("0.0.0.0", 0))
            taken.listen()
            port = str(taken.getsockname()[1])
            done = tidemill("run", "validator", "delays", "--brokers", kafka.servers, "--http-port", port)
        assert_one_clear_line(done, "http_port", port, "TIDEMILL_HTTP_PORT")

    def test_another_number_of_partitions(self, kafka, tmp_path: Path) -> None:
        declared = tmp_path / "wider.py"
        declared.write_text(
            "from dataclasses import replace\nfrom tidemill.demo.flights import delays as _delays\n"
            "delays = replace(_delays, partitions=7)\n"
        )
        done = tidemill("topics", str(declared), "--create", "--brokers", kafka.servers)
        assert_one_clear_line(done, "delays.events", "4 partitions", "7")
