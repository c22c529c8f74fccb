"""What keeps the design as it is: pure steps, one table of topics, settings that never show a secret, records with ids for all."""

from __future__ import annotations

import ast
import json
import logging
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from signing_keys import SETTINGS as KEYS

from tidemill import aggregates, durations, load
from tidemill.durations import milliseconds
from tidemill.encoding import schema_files
from tidemill.encoding.codec import HEADER
from tidemill.errors import SettingsError
from tidemill.keys import Keyring
from tidemill.logs import JsonFormatter
from tidemill.offline.history import read, write
from tidemill.runtime import run as running
from tidemill.settings import Settings
from tidemill.settings import load as load_settings
from tidemill.wire import topics
from tidemill.wire.records import Records
from tidemill.wire.topics import ALL, SERVICES

PACKAGE = Path(durations.__file__).parent
PURE = [
    path for room in ("rules", "aggregates", "declare", "models", "stages") for path in (PACKAGE / room).rglob("*.py")
]
PURE += [PACKAGE / "offline" / "backtest.py", PACKAGE / "offline" / "compare.py"]


@pytest.mark.parametrize("path", PURE, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_steps_import_no_client_library(path: Path) -> None:
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            imported.add(node.module or "")
    banned = ("confluent_kafka", "redis", "tidemill.stream.kafka", "requests", "socket")
    assert not [name for name in imported if name.startswith(banned)]


def test_no_two_test_modules_have_one_name() -> None:
    """Pytest collects the first alone: tests are imported by their bare names."""
    names = Counter(path.name for path in (Path(__file__).parents[1]).rglob("*.py") if path.name != "__init__.py")
    assert not [name for name, times in names.items() if times > 1]


#: What a `threading.Thread` of Python 3.11 to 3.14 has inside; `_handle` and others came later than 3.11.
OF_THREADS = frozenset(
    [
        "_after_fork",
        "_args",
        "_bootstrap",
        "_bootstrap_inner",
        "_context",
        "_daemonic",
        "_delete",
        "_handle",
        "_ident",
        "_initialized",
        "_invoke_excepthook",
        "_is_stopped",
        "_kwargs",
        "_name",
        "_native_id",
        "_os_thread_handle",
        "_reset_internal_locks",
        "_set_ident",
        "_set_native_id",
        "_set_os_name",
        "_set_tstate_lock",
        "_started",
        "_stderr",
        "_stop",
        "_target",
        "_tstate_lock",
        "_wait_for_tstate_lock",
    ]
)


@pytest.mark.slow
def test_no_thread_has_a_name_that_a_later_python_has_for_itself() -> None:
    threads = 0
    for path in [*PACKAGE.rglob("*.py"), *(PACKAGE.parents[1] / "tests").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ClassDef) or not any("Thread" in ast.unparse(base) for base in node.bases):
                continue
            threads += 1
            names = {one.name for one in node.body if isinstance(one, ast.FunctionDef)}
            names |= {
                one.attr
                for one in ast.walk(node)
                if isinstance(one, ast.Attribute)
                and isinstance(one.ctx, ast.Store)
                and ast.unparse(one.value) == "self"
            }
            assert not names & OF_THREADS, f"{path}: {node.name}"
    assert threads >= 5


def test_every_topic_has_a_writer_and_a_reader_and_services_exist() -> None:
    for topic in topics.TOPICS:
        assert topic.writers
        assert topic.readers
        assert set(topic.writers + topic.readers) <= {*ALL, *topics.OUTSIDE}
        assert topic.doc
    assert len({t.suffix for t in topics.TOPICS}) == len(topics.TOPICS)
    for service in SERVICES:
        assert topics.reads(service)
        assert topics.writes(service) or service == "materializer", "which writes Redis"


def test_the_composition_root_has_the_services_of_the_topics() -> None:
    assert tuple(running.SERVICES) == ALL


@pytest.mark.slow
@pytest.mark.parametrize("name", running.SERVICES)
def test_a_service_imports_its_own_stage_and_no_library_of_another_service(name: str) -> None:
    code = f"import sys; from tidemill.runtime.run import load; load({name!r}); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout.split()
    stages = {module.split(".")[2] for module in loaded if module.startswith(("tidemill.stages.", "tidemill.watch."))}
    used = {"validator", "featurizer"} if name == "gateway" else {name}  # it checks and makes vectors as they do
    assert stages == used
    libraries = {
        "redis": ("featurizer", "materializer", "status", "gateway"),
        "pyarrow": ("archiver", "monitor"),
        "pandas": ("monitor",),
        "faust": ("monitor",),
        "fastapi": ("status", "gateway"),
        "mlflow": (),
    }
    assert [library for library, users in libraries.items() if library in loaded and name not in users] == []


def test_the_joiner_reads_topics_with_the_same_key_and_partitions() -> None:
    one, other = topics.consumes("joiner")
    assert (one.key, one.partitions) == (other.key, other.partitions) == ("event_id", 0)


@pytest.mark.slow
def test_schema_ids_are_the_same_in_every_process() -> None:
    code = (
        "import json; from tidemill import load; from tidemill.offline.check import CheckReport; "
        "print(json.dumps(CheckReport(load('flights')).as_dict()['schema_ids']))"
    )
    ids = [
        json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
        for _ in range(2)
    ]
    assert ids[0] == ids[1]
    assert ids[0]["event"] == Records(load("flights")).event.id
    assert len(set(ids[0].values())) == len(ids[0])
    assert all(0 <= number < 2**31 for number in ids[0].values())


def test_an_id_is_about_the_data_not_about_its_description() -> None:
    avro = load("flights").events.avro
    assert schema_files.fingerprint(avro) == schema_files.fingerprint(schema_files.plain(avro))
    changed = {**avro, "fields": [*avro["fields"], {"name": "more", "type": "int"}]}
    assert schema_files.fingerprint(avro) != schema_files.fingerprint(changed)


def test_what_the_scorer_and_the_joiner_append_is_what_the_whole_record_would_be() -> None:
    records = Records(load("flights"))
    features = {
        "event_id": "a", "entity_id": "b", "event_time": 5, "partition": 1, "offset": 2, "partial": True,
        "entities": {}, "as_of": {}, "stale": [],
        "vector": dict.fromkeys(load("flights").vector) | {"carrier": "UA", "distance": 1.5},
    }  # fmt: skip
    score = {"model": "logreg", "version": 7, "epoch": 0, "score": 0.25, "probabilities": {}, "answered": True}
    rest = {"champion": score, "challengers": [score, score]}
    log = records.prediction_log.header + records.features.encode(features)[HEADER:] + records.scores.body(rest)
    assert log == records.prediction_log.encode({"features": features, **rest})
    outcome = {"label": True, "label_time": 9}
    example = records.example.header + log[HEADER:] + records.outcome.body(outcome)
    assert example == records.example.encode({"prediction": {"features": features, **rest}, **outcome})
    for data in (records.features.encode(features), log, example):
        assert records.head.record(data, HEADER) == {"event_id": "a", "entity_id": "b", "event_time": 5}


def test_aggregates_are_all_exported_and_ask_for_a_window() -> None:
    assert sorted(aggregates.__all__) == aggregates.__all__
    with pytest.raises(ValueError, match="at least one window"):
        aggregates.mean("x")
    assert milliseconds("2d") == 172_800_000


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"brokers": "nowhere"}, ["brokers", "nowhere"]),
        ({"http_port": "99999"}, ["http_port", "99999"]),
        ({"delivery": "twice"}, ["delivery", "exactly_once"]),
        ({"snapshot_seconds": "0"}, ["snapshot_seconds"]),
        ({"instance": "a b"}, ["instance", "a b"]),
        ({"log_level": "LOUD"}, ["log_level", "LOUD"]),
        ({"http_port": "x", "max_delay_ms": "y"}, ["http_port", "max_delay_ms"]),
    ],
)
def test_a_wrong_setting_is_named_with_its_variable(options: dict, words: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(**options)
    for word in [*words, "TIDEMILL_"]:
        assert word in str(caught.value)


def test_no_secret_is_ever_shown() -> None:
    settings = Settings(
        signing_key="verysecretword",
        redis_url="redis://:verysecretword@h:1/0",
        kafka={"sasl.password": "verysecretword"},
    )
    assert "verysecretword" not in repr(settings) + str(settings)
    with pytest.raises(SettingsError) as caught:
        Keyring(KEYS["TIDEMILL_VERIFY_KEYS"], settings.signing_key.get_secret_value())
    assert "verysecretword" not in str(caught.value)
    assert "signing_key" in str(caught.value)


def test_a_log_line_is_one_line_of_json_whatever_is_in_it() -> None:
    record = logging.makeLogRecord({"msg": 'a\n"b"\x00 %s', "args": ("c\n",), "levelname": "INFO", "thing": {1, 2}})
    line = JsonFormatter("test").format(record)
    assert "\n" not in line
    assert json.loads(line)["message"] == 'a\n"b"\x00 c\n'


EVENTS = load("flights").events
ROW = {
    "flight_id": "b", "asked_at": 2, "carrier": "NA", "flight": 5, "tailnum": None, "origin": "JFK", "dest": "LAX", "distance": 0.1 + 0.2,
    "sched_hour": 5, "flight_date": 15_706, "sched_minutes": 1e-17, "dep_delay": None, "temp": None, "dewp": 1.0, "wind_speed": 12.65858,
    "precip": 0.0, "visib": 1 / 3,
}  # fmt: skip


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_history_comes_back_exactly_in_order_of_time(tmp_path: Path, form: str) -> None:
    rows = [ROW, {**ROW, "flight_id": "a", "asked_at": 1, "tailnum": "N1"}, {**ROW, "flight_id": "c"}]
    path = tmp_path / f"x.{form}"
    write(path, rows)
    assert read(path, EVENTS) == [rows[1], rows[0], rows[2]]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("flight_id,asked_at\na,1\n", ["no column", "carrier"]),
        (f"{','.join(name for name, value in ROW.items() if value is not None)}\na{',x' * 13}\n", ["row 1", "asked_at", "'x'"]),
    ],
)  # fmt: skip
def test_history_that_does_not_fit_is_named(tmp_path: Path, content: str, words: list[str]) -> None:
    (tmp_path / "x.csv").write_text(content)
    with pytest.raises(SettingsError) as caught:
        read(tmp_path / "x.csv", EVENTS)
    for word in ["x.csv", *words]:
        assert word in str(caught.value)
