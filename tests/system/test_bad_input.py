"""A user's mistake: one clear line, a non-zero exit within 5 seconds, no traceback."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from signing_keys import SETTINGS

from tidemill.cli import main as cli
from tidemill.runtime import worker
from tidemill.settings import Settings

SECRET = "verysecretword"
KEY = SETTINGS["TIDEMILL_SIGNING_KEY"]
NOBODY = "127.0.0.1:1"


def tidemill(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TIDEMILL_")}
    return subprocess.run(
        [sys.executable, "-m", "tidemill.cli", *arguments],
        capture_output=True, text=True, timeout=120, env={**clean, **environment}, check=False,
    )  # fmt: skip


def assert_one_clear_line(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode not in (0, None)
    said = [line for line in done.stderr.splitlines() if line.strip()]
    assert "Traceback" not in done.stderr + done.stdout
    assert len(said) == 1, done.stderr
    for word in words:
        assert word in done.stderr, done.stderr
    assert KEY not in done.stderr
    assert SECRET not in done.stderr + done.stdout


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
        (["run", "validator", "flights", "--max-delay-ms", "soon"], {}, ["max_delay_ms", "soon", "TIDEMILL_MAX_DELAY_MS"]),
        (
            ["run", "learner", "flights"],
            {"TIDEMILL_SNAPSHOT_EXAMPLES": "0"},
            ["snapshot_examples", "TIDEMILL_SNAPSHOT_EXAMPLES"],
        ),
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
    done = tidemill(*arguments, **SETTINGS, **environment)  # 5 s on an idle machine; this one also runs the other tests
    assert_one_clear_line(done, *words)


@contextlib.contextmanager
def own_logging() -> Iterator[None]:
    """Nobody listens to the log, as when the command begins; afterwards it is as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers[:] = []
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


Run = subprocess.CompletedProcess[str]


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """The whole command in this process: a mistake that needs no process of its own costs milliseconds."""

    def run(*arguments: str, **environment: str) -> Run:
        for name in [name for name in os.environ if name.startswith("TIDEMILL_")]:
            monkeypatch.delenv(name)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(worker, "become_worker", lambda: None)  # else the rest of the tests would run in the fork
        monkeypatch.setattr(sys, "argv", ["tidemill", *arguments])
        with own_logging(), pytest.raises(SystemExit) as stopped:
            cli.main()
        said = capsys.readouterr()
        return Run(arguments, stopped.value.code, said.out, said.err)

    return run


WRONG_SETTINGS = [
    ("brokers", "", []),
    ("brokers", "kafka", ["kafka"]),
    ("brokers", "kafka:9092,", ["kafka:9092,"]),
    ("brokers", "http://kafka:9092", ["http"]),
    ("kafka", f'{{"sasl.password": "{SECRET}"', ["JSON"]),
    ("kafka", f'["{SECRET}"]', ["dictionary"]),
    ("kafka", SECRET, ["JSON"]),
    ("kafka_tls", "perhaps", ["perhaps", "boolean"]),
    ("kafka_ca", "/no/such/ca.pem", ["/no/such/ca.pem", "No such file"]),
    ("kafka_certificate", "/no/such.crt", ["/no/such.crt", "PEM"]),
    ("kafka_key", "/no/such.key", ["/no/such.key", "PEM"]),
    ("kafka_user", "", ["TIDEMILL_KAFKA_PASSWORD"]),
    ("kafka_password", "", ["TIDEMILL_KAFKA_USER"]),
    ("kafka_mechanism", "GSSAPI", ["GSSAPI", "SCRAM-SHA-512"]),
    ("kafka_token_url", "idp:8080", ["idp:8080", "http"]),
    ("redis_ca", "/no/such/ca.pem", ["/no/such/ca.pem", "No such file"]),
    ("redis_certificate", "/no/such.crt", ["/no/such.crt", "PEM"]),
    ("redis_key", "/no/such.key", ["/no/such.key", "PEM"]),
    ("redis_password", "", ["TIDEMILL_REDIS_USER"]),
    ("http_certificate", "/no/such.crt", ["/no/such.crt", "PEM"]),
    ("http_key", "/no/such.key", ["/no/such.key", "PEM"]),
    ("http_ca", "/no/such/ca.pem", ["/no/such/ca.pem", "No such file"]),
    ("services", "{", ["JSON", "base URLs"]),
    ("services", '["http://validator:8080"]', ["dictionary"]),
    ("status_pipelines", "{", ["JSON", "base URLs by pipeline"]),
    ("status_pipelines", '{"orders": "javascript:alert(1)"}', ["orders", "https://status.orders.example.org"]),
    ("archive_seconds", "0", ["0"]),
    ("archive_format", "orc", ["orc", "parquet", "delta", "iceberg"]),
    ("fuse", "perhaps", ["perhaps", "boolean"]),
    ("access_log", "perhaps", ["perhaps", "boolean"]),
    ("redis_url", "localhost:6379", ["redis://"]),
    ("redis_url", f"http://:{SECRET}@localhost:6379", ["redis://"]),
    ("redis_url", f"redis://:{SECRET}/0", ["redis://"]),
    ("redis_url", f"redis://user:{SECRET}@host:port/0", ["redis://"]),
    ("redis_url", f"redis://host:6379/0?password={SECRET}", ["redis://"]),
    ("redis_url", f"redis://:{SECRET}@[::1", ["redis://"]),
    ("redis_url", "", ["redis://"]),
    ("redis_url", "redis://localhost:6379/features", ["redis://"]),
    ("redis_url", "redis://localhost:6379/-1", ["redis://"]),
    ("registry_url", "localhost:8081", ["http(s)://"]),
    ("registry_url", f"ftp://user:{SECRET}@host", ["http(s)://"]),
    ("registry_url", f"http://user:{SECRET}@", ["http(s)://"]),
    ("registry_url", f"http://user:{SECRET}@host:port", ["http(s)://"]),
    ("registry_url", "mock://", ["mock://name"]),
    ("registry_seconds", "0", ["0"]),
    ("registry_seconds", "nan", ["nan", "finite"]),
    ("delivery", "at_most_once", ["at_most_once", "exactly_once"]),
    ("instance", "a b", ["a b"]),
    ("instance", "", []),
    ("instance", "../../0", ["../../0"]),
    ("http_port", "99999", ["99999"]),
    ("http_port", "-1", ["-1"]),
    ("http_port", "http", ["http"]),
    ("max_delay_ms", "0", ["0"]),
    ("max_delay_ms", "10001", ["10001"]),
    ("max_delay_ms", "1.5", ["1.5"]),
    ("snapshot_seconds", "0", ["0"]),
    ("snapshot_seconds", "nan", ["nan", "finite"]),
    ("snapshot_seconds", "inf", ["inf", "finite"]),
    ("snapshot_seconds", "10s", ["10s"]),
    ("snapshot_examples", "0", ["0"]),
    ("snapshot_examples", "1e3", ["1e3"]),
    ("status_url", "status:8000", ["status:8000", "http"]),
    ("status_url", "http://status:8000/page", ["/page"]),
    ("gateway_url", "gateway:8001", ["gateway:8001", "http"]),
    ("gateway_bind", "everywhere", ["everywhere"]),
    ("gateway_rate", "-1", ["-1"]),
    ("gateway_rate", "nan", ["nan", "finite"]),
    ("gateway_key", "too-short", ["tidemill tokens new"]),
    ("gateway_keys", "shop:everything:0123", ["NAME:ROLE:HASH", "produce"]),
    ("gateway_keys", f"{SECRET}/keys", []),
    ("notify", f"{SECRET}/receivers.json", ["file"]),
    ("notify", f'{{"ops": {{"url": "https://h/{SECRET}"}}}}', ["receiver ops", "secret"]),
    ("notify_hours", "0", ["0"]),
    ("notify_hours", "inf", ["inf", "finite"]),
    ("replication", "-2", ["-2"]),
    ("replication", "all", ["all"]),
    ("log_level", "LOUD", ["LOUD", "INFO"]),
    ("log_level", "info", ["info", "INFO"]),
]


#: What is wrong only beside another setting.
WITH = {
    "kafka_user": {"TIDEMILL_KAFKA_PASSWORD": SECRET},
    "kafka_password": {"TIDEMILL_KAFKA_USER": "scorer"},
    "redis_password": {"TIDEMILL_REDIS_USER": "scorer"},
}


@pytest.mark.parametrize(("name", "value", "words"), WRONG_SETTINGS)
def test_a_wrong_setting_is_named_and_no_secret_is_shown(inside, name: str, value: str, words: list[str]) -> None:
    variable = f"TIDEMILL_{name.upper()}"
    done = inside("run", "scorer", "flights", **{**SETTINGS, **WITH.get(name, {}), variable: value})
    assert_one_clear_line(done, f"setting {name}", variable, *words)


def test_every_setting_that_can_be_wrong_by_itself_is_tried() -> None:
    """A store and a key are wrong only together with what uses them: on the real broker, below, and in their own tests."""
    elsewhere = {
        "store_url",
        "signing_key",
        "verify_keys",
        "archive_url",
        "state_dir",
        *("kafka_key_password", "kafka_token_scope", "redis_user"),
        *("status_token", "status_tokens", "status_bind", "status_read", "status_hosts"),
    }
    assert {name for name, *_ in WRONG_SETTINGS} == Settings.model_fields.keys() - elsewhere


def test_several_wrong_settings_are_all_named_in_the_one_line(inside) -> None:
    done = inside(
        "run", "scorer", "flights", TIDEMILL_HTTP_PORT="x", TIDEMILL_MAX_DELAY_MS="0", TIDEMILL_REDIS_URL=f"redis://:{SECRET}"
    )  # fmt: skip
    assert_one_clear_line(done, "http_port", "max_delay_ms", "redis_url")


@pytest.mark.parametrize(
    ("properties", "words"),
    [
        (f'{{"no.such.property": "{SECRET}"}}', ["no.such.property"]),
        (f'{{"session.timeout.ms": "{SECRET}"}}', ["session.timeout.ms"]),
        (f'{{"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "NO", "sasl.password": "{SECRET}"}}', ["SASL"]),
        ('{"security.protocol": "SSL", "ssl.ca.location": "/no/such/file"}', ["ssl.ca.location"]),
    ],
)
def test_a_property_that_the_kafka_client_refuses_is_named(inside, properties: str, words: list[str]) -> None:
    done = inside("run", "scorer", "flights", "--brokers", NOBODY, TIDEMILL_KAFKA=properties)
    assert_one_clear_line(done, *words, "TIDEMILL_KAFKA")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "binary.py").write_bytes(b"\0\xff\xfe")
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "syntax.py").write_text("a = 1\nb = (\n")
    (tmp_path / "schema.avsc").write_text('{"type": ')
    declare = "from dataclasses import replace\nfrom tidemill.demo.flights import delays as _d\n"
    declare += "mine = replace(_d, events=replace(_d.events, schema='{}'))\n"
    (tmp_path / "lost.py").write_text(declare.format("nowhere.avsc"))
    (tmp_path / "torn.py").write_text(declare.format("schema.avsc"))
    look_up = "from tidemill import Table\nTABLE = Table('{}', key='{}')\n"
    (tmp_path / "tableless.py").write_text(look_up.format("nowhere.csv", "faa"))
    (tmp_path / "keyless.py").write_text(look_up.format("columns.csv", "faa"))
    (tmp_path / "untuned.py").write_text("from tidemill import tuned\nMODELS = tuned('winners.json', {})\n")
    (tmp_path / "columns.csv").write_text("flight_id,landed_at\na,1\n")
    (tmp_path / "noise.parquet").write_bytes(b"PAR1noise")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["check", "{}/folder.py"], ["folder.py"]),
        (["check", "{}/binary.py"], ["binary.py", "null bytes"]),
        (["check", "{}/empty.py"], ["empty.py", "declares no pipeline"]),
        (["check", "{}/syntax.py"], ["syntax.py line 2", "SyntaxError"]),
        (["check", "{}/lost.py"], ["events.schema", "nowhere.avsc"]),
        (["check", "{}/torn.py"], ["events.schema", "schema.avsc", "not JSON"]),
        (["check", "{}/tableless.py"], ["table 'nowhere.csv'", "no such file in {}"]),
        (["check", "{}/keyless.py"], ["table 'columns.csv'", "no column 'faa'", "flight_id, landed_at"]),
        (
            ["backtest", "delays", "--events", "{}/columns.csv", "--labels", "{}/columns.csv"],
            ["columns.csv", "asked_at"],
        ),
        (["backtest", "delays", "--events", "{}/noise.parquet", "--labels", "{}/columns.csv"], ["noise.parquet"]),
        (["backtest", "delays", "--events", "{}", "--labels", "{}/columns.csv"], ["columns.csv", "asked_at"]),
        (["demo-data", "{}/empty.py"], ["empty.py", "is a file"]),
        (["tune", "delays"], ["'delays' declares nothing to search", "Search(function"]),
        (["tune", "flights", "--brokers", NOBODY], ["no Kafka at", NOBODY]),
        (["tune", "flights", "--archive", "{}/nowhere"], ["nowhere has no examples of the pipeline 'flights'"]),
        (["tune", "flights", "--metric", "MAE"], ["--metric 'MAE'", "Accuracy, ROCAUC, LogLoss"]),
        (["tune", "flights", "--out", "{}/empty.py"], ["empty.py", "expected .json"]),
        (["tune", "flights", "--seconds", "0"], ["--seconds", "0"]),
        (["tune", "{}/untuned.py"], ["winners 'winners.json'", "no such file in {}", "tidemill tune --out"]),
        (["demo-data", "{}/data", "--month", "13"], ["--month", "13"]),
        (["demo", "--days", "0"], ["--days", "0"]),
        (["run", "learner", "flights", "--model"], ["--model"]),
        (["features", "get", "flights", "gate", "7"], ["'gate'", "origin, dest, carrier, tailnum"]),
        (["features", "get", "flights", "dest", "BOS", "--at", "soon"], ["--at", "'soon'", "ISO 8601"]),
        (["features", "get", "flights", "dest", "BOS", "--redis-url", f"redis://{NOBODY}/0"], ["no Redis at", NOBODY]),
        (
            ["features", "backfill", "flights", "--view", "origin"],
            ["--view origin", "dest", "carrier_outcome", "by itself"],
        ),
        (["features", "backfill", "plain"], ["nothing to fill"]),
        (["features", "backfill", "flights", "--brokers", NOBODY], ["no Kafka at", NOBODY]),
        (["features", "materialize", "flights"], ["--events"]),
        (["schema", "check", "flights", "events", "{}/nowhere.avsc"], ["nowhere.avsc", "does not exist"]),
        (["schema", "check", "flights", "events", "{}/schema.avsc"], ["schema.avsc", "not JSON"]),
        (["schema", "check", "flights", "gates", "{}/schema.avsc"], ["'gates'", "labels"]),
        (["schema", "register", "flights"], ["registry_url", "TIDEMILL_REGISTRY_URL"]),
        (
            ["schema", "register", "flights", "--registry-url", f"http://user:{SECRET}@{NOBODY}"],
            ["no schema registry", NOBODY],
        ),
        (["dataset", "delays"], ["--out"]),
        (["dataset", "delays", "--out", "{}/x.csv"], [".csv", "expected .parquet"]),
        (["dataset", "delays", "--out", "{}/noise.parquet"], ["noise.parquet", "there is a file", "--force"]),
        (["dataset", "delays", "--out", "{}/no/x.parquet"], ["{}/no", "does not exist"]),
        (["dataset", "delays", "--out", "{}/x.parquet", "--from", "soon"], ["--from 'soon'", "ISO 8601"]),
        (
            ["dataset", "delays", "--out", "{}/x.parquet", "--from", "2013-02", "--to", "2013-01-31"],
            ["--from '2013-02'"],
        ),
        (
            ["dataset", "delays", "--out", "{}/x.parquet", "--from", "2013-02-01", "--to", "2013-02-01"],
            ["no time is between"],
        ),
        (["dataset", "delays", "--out", "{}/x.parquet", "--events", "a.csv"], ["--events and --labels", "both"]),
        (["dataset", "delays", "--out", "{}/x.parquet", "--events", "a.csv", "--labels", "b.csv"], ["--recompute"]),
        (
            ["dataset", "delays", "--out", "{}/x.parquet", "--archive", "{}", "--recompute"],
            ["--archive", "as they were served"],
        ),
        (
            ["dataset", "delays", "--out", "{}/x.parquet", "--archive", "{}/nowhere"],
            ["nowhere", "has no examples", "'delays'"],
        ),
        (["dataset", "delays", "--out", "{}/x.parquet", "--archive", "nonsense://place"], ["archive_url", "nonsense"]),
        (
            [
                "dataset",
                "delays",
                "--out",
                "{}/x.parquet",
                "--recompute",
                "--events",
                "{}/columns.csv",
                "--labels",
                "{}/columns.csv",
            ],
            ["columns.csv", "asked_at"],
        ),
        (
            ["dataset", "delays", "--out", "{}/x.parquet", "--brokers", NOBODY],
            ["no Kafka at", NOBODY, "TIDEMILL_BROKERS"],
        ),
        (["dataset", "nonsense", "--out", "{}/x.parquet"], ["unknown pipeline"]),
        (["nonsense"], ["nonsense"]),
        (["check"], ["PIPELINE"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_wrong_file_or_option_ends_in_one_clear_line(
    inside, files: Path, arguments: list[str], words: list[str]
) -> None:
    done = inside(*(argument.format(files) for argument in arguments))
    assert_one_clear_line(done, *(word.format(files) for word in words))
    assert not [path for path in files.iterdir() if "x.parquet" in path.name], (
        "nothing was begun, or it was cleared away"
    )


def test_an_exception_in_the_declaration_names_its_line(broken: Path) -> None:
    assert_one_clear_line(tidemill("check", str(broken)), "broken.py line 2", "no_such_thing")


@pytest.mark.parametrize("command", [["run", "validator", "plain"], ["dataset", "plain", "--out", "x.parquet"]])
def test_topics_that_do_not_exist_are_named_with_the_command_that_makes_them(kafka, command: list[str]) -> None:
    done = tidemill(*command, "--brokers", kafka.servers)
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

    def test_no_schema_registry(self, kafka) -> None:
        done = tidemill(
            "run", "validator", "delays", "--brokers", kafka.servers, TIDEMILL_REGISTRY_URL=f"http://user:{SECRET}@{NOBODY}"
        )  # fmt: skip
        assert_one_clear_line(done, f"no schema registry at http://{NOBODY} ", "TIDEMILL_REGISTRY_URL")

    def test_no_public_keys(self, kafka, tmp_path: Path) -> None:
        where = str(tmp_path / "nowhere.json")
        done = tidemill("run", "scorer", "delays", "--brokers", kafka.servers, TIDEMILL_VERIFY_KEYS=where)
        assert_one_clear_line(done, "verify_keys", where, "TIDEMILL_VERIFY_KEYS")

    def test_no_signing_key(self, kafka) -> None:
        public = {"TIDEMILL_VERIFY_KEYS": SETTINGS["TIDEMILL_VERIFY_KEYS"]}
        done = tidemill("run", "learner", "delays", "--brokers", kafka.servers, **public)
        assert_one_clear_line(done, "signing_key", "TIDEMILL_SIGNING_KEY")

    @pytest.mark.parametrize("key", [SECRET, f"ed25519:{SECRET}"])
    def test_a_signing_key_that_is_none(self, kafka, key: str) -> None:
        done = tidemill(
            "run", "learner", "delays", "--brokers", kafka.servers, **{**SETTINGS, "TIDEMILL_SIGNING_KEY": key}
        )
        assert_one_clear_line(done, "signing_key", "TIDEMILL_SIGNING_KEY")

    def test_a_store_of_an_unknown_kind(self, kafka) -> None:
        done = tidemill(
            "run", "scorer", "delays", "--brokers", kafka.servers, "--store-url", "nonsense://place", **SETTINGS
        )  # fmt: skip
        assert_one_clear_line(done, "store_url", "nonsense", "TIDEMILL_STORE_URL")

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
            **SETTINGS,
        )
        assert_one_clear_line(done, "store_url", "TIDEMILL_STORE_URL")

    def test_a_model_that_is_not_declared(self, kafka, tmp_path: Path) -> None:
        done = tidemill(
            "run", "learner", "delays", "--model", "nonsense", "--brokers", kafka.servers, "--store-url", str(tmp_path),
            **SETTINGS,
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
