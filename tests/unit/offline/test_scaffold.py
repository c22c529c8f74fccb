"""`tidemill init`: what it writes of any data passes `check` and a backtest at once, or it ends in one clear line."""

from __future__ import annotations

import csv
import dataclasses
import datetime as dt
import gzip
import io
import json
import random
import subprocess
import sys
import tempfile
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import fastavro
import pytest
import river.datasets
import yaml
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from registry_server import RegistryServer
from test_deployment import accepts

from tidemill import load
from tidemill import testing as in_memory
from tidemill.cli.init import init
from tidemill.durations import milliseconds
from tidemill.errors import TidemillError
from tidemill.offline import scaffold
from tidemill.offline.backtest import Backtest, BacktestReport
from tidemill.offline.model_trial import check_models
from tidemill.offline.scaffold import columns
from tidemill.offline.scaffold.columns import columns_of
from tidemill.offline.scaffold.plan import Options, Sample
from tidemill.offline.source import FileSource
from tidemill.stream.api import TopicPartition
from tidemill.stream.memory import MemoryBroker, MemoryRecord

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]


def table(path: Path, rows: list[dict[str, Any]], separator: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, list(rows[0]), delimiter=separator)
        writer.writeheader()
        writer.writerows(rows)
    return path


def shop(number: int = 300, **more: Any) -> list[dict[str, Any]]:
    """Return orders with their answer in one file."""
    draw = random.Random(1)
    return [
        {
            "order_id": f"o{n}",
            "ordered_at": f"2026-01-{1 + n // 24 % 28:02}T{n % 24:02}:00:00Z",
            "amount": round(draw.random() * 100, 2),
            "country": draw.choice(["NO", "DK", "SE"]),
            "fraud": draw.choice(["yes", "no", "no"]),
        }
        | {name: value(n) if callable(value) else value for name, value in more.items()}
        for n in range(number)
    ]


def made(folder: Path, *sources: Path, **options: str) -> tuple[Any, BacktestReport, scaffold.Plan]:
    """Make a project, check it and run its backtest; every row must be accounted for."""
    plan = scaffold.make(folder, [scaffold.of_file(path) for path in sources], Options(**options))
    return *tried(folder, plan), plan


def tried(folder: Path, plan: scaffold.Plan) -> tuple[Any, BacktestReport]:
    pipeline = load(str(folder / "pipeline.py"))
    check_models(pipeline)
    files = FileSource(folder / f"data/events.{plan.suffix}", folder / f"data/labels.{plan.suffix}")
    events, labels = files.rows(pipeline)
    report = Backtest(pipeline).run(events, labels)
    assert report.events == plan.rows
    assert report.labels == len(plan.labels[0].values)
    assert report.valid + sum(report.refused.values()) == report.events
    # A label of 1e14 may throw a model off so far that its next answer is no score, and its event a dead letter.
    assert report.predictions + report.dead_letters.get("not_finite_score", 0) == report.valid
    assert report.joined + report.expired + report.pending == report.predictions
    return pipeline, report


def test_event_and_label_in_one_file_are_told_apart_and_nothing_is_lost(tmp_path: Path) -> None:
    source = table(tmp_path / "orders.csv", shop())
    pipeline, report, plan = made(tmp_path / "shop", source)
    assert (pipeline.task, pipeline.events.id, pipeline.events.time) == ("binary", "order_id", "ordered_at")
    assert report.joined == 300
    events = list(csv.DictReader((tmp_path / "shop/data/events.csv").open()))
    labels = list(csv.DictReader((tmp_path / "shop/data/labels.csv").open()))
    both = [event | {"fraud": label["fraud"]} for event, label in zip(events, labels, strict=True)]
    assert both == list(csv.DictReader(source.open()))
    assert "fraud" not in events[0]
    assert any("--label-time or --label-delay" in note for note in plan.notes)
    assert pipeline.label_value()({"fraud": "yes"}) is True


def test_events_and_labels_in_two_files_meet_by_the_id_that_both_have(tmp_path: Path) -> None:
    rows = shop()
    events = table(tmp_path / "e.csv", [{k: v for k, v in row.items() if k != "fraud"} for row in rows], ";")
    known = [
        {"order_id": r["order_id"], "known_at": r["ordered_at"].replace("T", " "), "fraud": r["fraud"]} for r in rows
    ]
    labels = table(tmp_path / "l.tsv", known[:250], "\t")
    pipeline, report, _ = made(tmp_path / "shop", events, labels)
    assert (report.joined, report.expired + report.pending) == (250, 50)
    assert pipeline.labels.time == "known_at"


@pytest.mark.parametrize("label", [lambda n: n % 3 == 0, lambda n: n * 7 % 40, lambda n: n * 7 % 40 / 4])
@pytest.mark.parametrize("text_first", [True, False])
def test_of_two_files_one_may_hold_texts_and_the_other_types(tmp_path: Path, label: Any, text_first: bool) -> None:
    rows = shop(80, paid=lambda n: n % 2 == 0, answer=label)
    events = [{k: v for k, v in row.items() if k not in ("answer", "fraud")} for row in rows]
    answers = [{"order_id": r["order_id"], "known_at": r["ordered_at"], "answer": r["answer"]} for r in rows]
    in_json = answers if text_first else events
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, in_json)))
    as_text = table(tmp_path / "x.csv", events if text_first else answers)
    files = (as_text, tmp_path / "x.jsonl") if text_first else (tmp_path / "x.jsonl", as_text)
    texts = table(tmp_path / "e.csv", events), table(tmp_path / "l.csv", answers)
    (mixed, report, _), (plain, expected, _) = made(tmp_path / "p", *files), made(tmp_path / "q", *texts)
    assert (mixed.task, mixed.vector, report.metrics) == (plain.task, plain.vector, expected.metrics)


@pytest.mark.parametrize(
    ("labels", "task", "label_of_first"),
    [
        (lambda n: n % 2, "binary", False),
        (lambda n: ["no", "yes"][n % 2], "binary", False),
        (lambda n: ["True", "False"][n % 2], "binary", True),
        (lambda n: ["left", "right", "up"][n % 3], "multiclass", "left"),
        (lambda n: n % 4, "multiclass", "0"),
        (lambda n: n * 1.5, "regression", 0.0),
        (lambda n: n * n, "regression", 0),
    ],
)
def test_the_task_is_told_from_the_label(tmp_path: Path, labels: Any, task: str, label_of_first: Any) -> None:
    source = table(tmp_path / "a.csv", shop(120, target=labels))
    pipeline, report, _ = made(tmp_path / "p", source, label="target")
    assert pipeline.task == task
    assert report.joined == 120
    events, first = FileSource(tmp_path / "p/data/events.csv", tmp_path / "p/data/labels.csv").rows(pipeline)
    del events
    from tidemill.encoding.codec import Codec

    assert pipeline.label_value()(Codec(pipeline.labels.avro).decode(first[0].data)) == label_of_first


def test_without_a_label_anomalies_are_looked_for(tmp_path: Path) -> None:
    source = table(tmp_path / "a.csv", [{k: v for k, v in row.items() if k != "fraud"} for row in shop(80)])
    pipeline, report, plan = made(tmp_path / "p", source, label="none")
    assert (pipeline.task, report.joined, pipeline.gate) == ("anomaly", 80, None)
    assert any("no label" in note for note in plan.notes)


def test_a_column_that_comes_after_its_event_is_the_time_of_the_label(tmp_path: Path) -> None:
    rows = shop(100, checked=lambda n: f"2026-02-{1 + n // 24:02} {n % 24:02}:30")
    pipeline, report, _ = made(tmp_path / "p", table(tmp_path / "a.csv", rows))
    assert (pipeline.labels.time, report.joined) == ("checked", 100)
    assert "checked" not in pipeline.events.types
    assert pipeline.label_timeout_ms > 30 * 86_400_000


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ("unknown 1", "(ISO 8601), and row 151, 'unknown 1', is none of that form"),
        ("31/01/2026 10:00", "(ISO 8601), and row 151, '31/01/2026 10:00', is none of that form"),
        ("", "has no value in 1 rows, row 151 the first: it is not the time of the events"),
    ],
)
@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_one_row_that_keeps_a_column_from_being_the_time_is_named(
    tmp_path: Path, form: str, other: str, words: str
) -> None:
    rows = shop()
    rows[150]["ordered_at"] = other
    path = tmp_path / f"orders.{form}"
    if form == "csv":
        table(path, rows)
    else:
        path.write_text("\n".join(json.dumps(row | {"ordered_at": row["ordered_at"] or None}) for row in rows))
    plan = scaffold.make(tmp_path / "shop", [scaffold.of_file(path)], Options(label="fraud"))
    assert any(words in note for note in plan.notes)
    assert any(f"orders.{form} has no time" in note for note in plan.notes)
    with pytest.raises(TidemillError, match="row 151"):
        scaffold.make(tmp_path / "again", [scaffold.of_file(path)], Options(label="fraud", time="ordered_at"))
    if other:
        told = Options(label="fraud", time="ordered_at", time_unit="iso8601")
        with pytest.raises(TidemillError, match=r"'ordered_at' is not in 'iso8601' in row 151: .* is no time"):
            scaffold.make(tmp_path / "told", [scaffold.of_file(path)], told)


def test_texts_that_are_mixed_forms_of_dates_are_said_and_ids_are_not() -> None:
    mixed = [
        f"{n % 12 + 1:02}/{n % 28 + 1:02}/2024" if n % 2 else f"{n % 28 + 1:02}.{n % 12 + 1:02}.2024" for n in range(84)
    ]
    (column,) = columns_of({"at": mixed}, is_csv=True)
    assert column.kind == "text"
    assert "of 84 different texts are times (" in column.note
    for texts in (["A-1", "B-2"], ["10.0.0.1", "10.0.0.2"], ["1a", "2b"], ["2024 edition", "2025 edition"]):
        (column,) = columns_of({"x": texts}, is_csv=True)
        assert (column.kind, column.note) == ("text", "")


@pytest.mark.parametrize(
    ("time", "told"),
    [
        (lambda n: f"{n % 28 + 1}.1.2013 14:05", "2013-01-01T14:05:00Z"),
        (lambda n: f"{n % 28 + 1}/1/2013", "2013-01-01T00:00:00Z"),
        (lambda n: 20130101 + n % 28, "2013-01-01T00:00:00Z"),
        (lambda n: f"Jan {n % 28 + 1}, 2013", "2013-01-01T00:00:00Z"),
        (lambda n: 1_357_000_000 + n, "1357000000"),
        (lambda n: 1_357_000_000_000 + n, "1357000000000"),
        (lambda n: 1_357_000_000.25 + n, "1357000000.25"),
        (lambda n: f"2013-01-{n % 28 + 1:02}T10:00:00+01:00", "2013-01-01T10:00:00+01:00"),
    ],
)
def test_times_are_read_as_they_are_written(tmp_path: Path, time: Any, told: str) -> None:
    rows = [{"time": time(n), "x": n, "y": n % 2} for n in range(60)]
    _, report, _ = made(tmp_path / "p", table(tmp_path / "a.csv", rows))
    assert report.first_event // 86_400_000 in (15_706, 15_705)
    assert next(csv.DictReader((tmp_path / "p/data/events.csv").open()))["time"] == told
    assert report.joined == 60


def test_a_date_with_two_meanings_is_asked_for(tmp_path: Path) -> None:
    rows = [{"time": f"{n % 12 + 1}/{n % 9 + 1}/2013 14:05", "x": n, "y": n % 2} for n in range(60)]
    source = table(tmp_path / "a.csv", rows)
    with pytest.raises(TidemillError, match="--time-format"):
        made(tmp_path / "p", source)
    assert not (tmp_path / "p").exists()
    asked = []

    def ask(question: str, choices: Any) -> str:
        asked.append((question, choices))
        return "%m/%d/%Y %H:%M"

    scaffold.make(tmp_path / "p", [scaffold.of_file(source)], Options(), ask)
    assert len(asked) == 1
    assert "several ways" in asked[0][0]
    assert "2013-01-01T14:05:00Z" in (tmp_path / "p/data/events.csv").read_text()


def test_awkward_names_are_names_of_avro_and_the_first_file_is_still_read(tmp_path: Path) -> None:
    rows = [
        {
            "Auftrags-Nr.": f"a{n}",
            "Größe (cm)": n,
            "1st": n / 2,
            "class": "ab"[n % 2],
            "温度": n,
            "label": n,
            "y": n % 2,
        }
        for n in range(60)
    ]
    source = table(tmp_path / "a.csv", rows)
    pipeline, report, plan = made(tmp_path / "Über Shop!", source, label="y", id="Auftrags-Nr.", time="none")
    assert pipeline.name == "uber_shop"
    assert {"Grosse_cm", "_1st", "class", "column_5"} <= pipeline.events.types.keys()
    assert any("'Größe (cm)' is Grosse_cm" in note for note in plan.notes)
    assert report.joined == 60
    again = table(tmp_path / "again.csv", [{**row, "at": "2026-01-01"} for row in rows])
    assert FileSource(again).rows(pipeline)[0][0].id == "a0"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no rows"),
        ("a,b,y\n", "has no rows"),
        ("a,a,y\n1,2,3\n", "two columns have the same name"),
        ("a,b\n1\n", "row 1 has 1 values"),
        ("id,y\n1,1\n2,0\n", "nothing to predict from"),
        ("a,y\n1,\n2,\n", "no value in any row"),
        ("a,b\n1,2\n", "--label"),
    ],
)
def test_what_is_no_data_ends_in_one_line_and_writes_nothing(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(TidemillError, match=words) as caught:
        made(tmp_path / "p", tmp_path / "a.csv")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_a_folder_that_exists_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    ended = CliRunner().invoke(init, [str(tmp_path / "p")])
    assert "exists: nothing is overwritten" in str(ended.exception)
    assert list((tmp_path / "p").iterdir()) == []


def test_one_row_constants_gaps_and_huge_numbers_are_taken(tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("a,b,y\n1,x,1\n")
    made(tmp_path / "one", tmp_path / "one.csv")
    rows = shop(70, always=7, never="", huge=lambda n: 10**25 + n, sometimes=lambda n: n if n % 3 else "NaN",
                zip=lambda n: f"00{500 + n}", note=lambda n: f'he said "{n},\n{n}"', comma=lambda n: f"{n},5")  # fmt: skip
    pipeline, report, plan = made(tmp_path / "p", table(tmp_path / "a.csv", rows))
    assert report.joined == 70
    assert {"always", "never", "huge", "zip", "note"} <= plan.left_out.keys()
    (note,) = (note for note in plan.notes if note.startswith("no feature is made of: "))
    assert all(f"{name!r} (" in note for name in plan.left_out)
    assert {"sometimes", "comma", "amount"} <= pipeline.request.keys()


def test_json_lines_parquet_and_packed_files_give_the_same_as_csv(tmp_path: Path) -> None:
    rows = shop(
        60, deep=lambda n: {"a": n}, mixed=lambda n: n if n % 2 else "x", nothing=None, flag=lambda n: n % 2 == 0
    )
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    pipeline, report, plan = made(tmp_path / "p", tmp_path / "a.jsonl.gz")
    assert report.joined == 60
    assert {"deep", "nothing"} <= plan.left_out.keys()
    assert pipeline.vector["flag"] == "flag"
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(shop(60))
    frame["ordered_at"] = pd.to_datetime(frame["ordered_at"])
    frame.to_parquet(tmp_path / "a.parquet")
    assert (
        made(tmp_path / "q", tmp_path / "a.parquet")[1].metrics
        == made(tmp_path / "r", table(tmp_path / "a.csv", shop(60)))[1].metrics
    )


def test_more_than_a_hundred_columns_are_taken(tmp_path: Path) -> None:
    rows = [{f"f{c}": n * c % 7 for c in range(150)} | {"y": n % 2} for n in range(40)]
    pipeline, report, _ = made(tmp_path / "p", table(tmp_path / "a.csv", rows))
    assert (len(pipeline.request), report.joined) == (128, 40)  # of every seventh the values are 0


@pytest.mark.slow
@pytest.mark.parametrize("label", [pytest.param("amount", marks=pytest.mark.long), "none"])
def test_the_project_is_well_formed_and_its_own_test_runs(tmp_path: Path, label: str) -> None:
    """Formatted, without what is not used; compose has the shipped pipeline's services, with its own learners."""
    scaffold.make(tmp_path / "p", [scaffold.of_file(table(tmp_path / "a.csv", shop(80)))], Options(label=label))
    for command in (
        "ruff format --check --line-length 120 .",
        "ruff check --select E,F,I --line-length 200 .",
        "pytest -q",
    ):
        arguments = [
            sys.executable,
            "-m",
            *command.split(),
            *(["-p", "no:cacheprovider"] if "pytest" in command else []),
        ]
        ended = subprocess.run(arguments, cwd=tmp_path / "p", capture_output=True, text=True)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    ours, shipped = (
        yaml.safe_load(path.read_text()) for path in (tmp_path / "p/docker-compose.yml", ROOT / "docker-compose.yml")
    )
    models = load(str(tmp_path / "p/pipeline.py")).model_names
    others = {name for name in shipped["services"] if not name.startswith("learner-")} - {"prometheus", "grafana"}
    assert set(ours["services"]) == others | {f"learner-{model}" for model in models}
    for name, service in ours["services"].items():
        if "command" in service and name not in ("kafka", "redis"):
            assert name == "keys" or "./:/pipeline:ro" in service["volumes"], name
            assert "build" not in service
            accepts([part.replace("/pipeline/pipeline.py", "flights").replace(name.removeprefix("learner-"), "logreg")
                     if name.startswith("learner-") else part.replace("/pipeline/pipeline.py", "flights")
                     for part in service["command"]])  # fmt: skip
            assert name == "keys" or "/pipeline/pipeline.py" in service["command"]
    named = json.loads(ours["services"]["status"]["environment"]["TIDEMILL_SERVICES"])
    assert {name for name in named if name.startswith("learner-")} == {f"learner-{model}" for model in models}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "options", "task", "rows", "metric", "is_bigger_better"),
    [
        ("phishing.csv.gz", {}, "binary", 1_250, "ROCAUC", True),
        ("chick-weights.csv", {"label": "weight", "entity": "chick"}, "regression", 578, "MAE", False),
        ("segment.csv.zip", {"label": "category"}, "multiclass", 2_310, "Accuracy", True),
        ("airline-passengers.csv", {"label": "passengers"}, "regression", 144, "MAE", False),
    ],
)
def test_data_sets_of_river_are_taken_as_they_are_and_learned(
    tmp_path: Path, file: str, options: dict[str, str], task: str, rows: int, metric: str, is_bigger_better: bool
) -> None:
    source = Path(river.datasets.__file__).parent / file
    pipeline, report, _ = made(tmp_path / "p", source, **options)
    assert (pipeline.task, report.events, report.joined) == (task, rows, rows)
    champion, baseline = (report.metrics[name][metric] for name in ("linear", "baseline"))
    assert champion > baseline if is_bigger_better else champion < baseline


NAMES = st.text(st.sampled_from("abyid _-.Ä1%温\"',"), min_size=1, max_size=6)
CELLS = st.one_of(
    st.none(),
    st.integers(-(10**25), 10**25),
    st.integers(0, 3),
    st.floats(),
    st.booleans(),
    st.text(max_size=8),
    st.sampled_from(["yes", "no", "2013-01-01", "1/2/2013 14:05", "NaN", "", "1e5", "007", "x\ny", "0,5", "true"]),
)
COLUMN = st.one_of(
    *(st.just(one) for one in ("int", "few", "float", "flag", "text", "date", "epoch", "mixed", "unique"))
)


def cells(kind: str, count: int, draw: Any) -> list[Any]:
    made = {
        "int": st.integers(-(2**70), 2**70),
        "few": st.sampled_from(["a", "b", "ä b"]),
        "float": st.floats(),
        "flag": st.booleans(),
        "text": st.text(max_size=12),
        "date": st.dates().map(str),
        "epoch": st.integers(1_300_000_000, 1_400_000_000),
        "mixed": CELLS,
    }
    if kind == "unique":
        return list(range(count))
    return draw(st.lists(made[kind] if kind == "mixed" else st.one_of(st.none(), made[kind]) if draw(st.booleans()) else made[kind],
                         min_size=count, max_size=count))  # fmt: skip


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_random_frames_run_or_end_in_one_clear_line(data: Any) -> None:
    names = data.draw(st.lists(NAMES, min_size=2, max_size=6, unique=True))
    count = data.draw(st.sampled_from([70, 17, 3, 2, 1, 0]))
    frame = {name: cells(data.draw(COLUMN), count, data.draw) for name in names}
    column = st.sampled_from([*names, "none"])
    options = {"label": data.draw(column)}
    if data.draw(st.sampled_from([False, False, True])):  # else it decides
        some = {
            **dict.fromkeys(("time", "id", "entity", "label_time"), column),
            "label_delay": st.sampled_from(["2h", "x", "0"]),
            "task": st.sampled_from(["binary", "multiclass", "regression", "anomaly"]),
            "time_unit": st.sampled_from(["seconds", "millis", "days"]),
        }
        options |= data.draw(st.fixed_dictionaries({}, optional=some))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if data.draw(st.booleans()):
            path = folder / "a.csv"
            out = io.StringIO(newline="")
            writer = csv.writer(out)
            writer.writerow(names)
            writer.writerows(zip(*frame.values(), strict=True))
            path.write_bytes(out.getvalue().encode("utf-8", "surrogatepass"))
        else:
            path = folder / "a.jsonl"
            path.write_text(
                "\n".join(json.dumps(dict(zip(names, row, strict=True))) for row in zip(*frame.values(), strict=True))
            )
        try:
            plan = scaffold.make(folder / "p", [scaffold.of_file(path)], Options(**options))
        except TidemillError as error:
            assert "\n" not in str(error)  # noqa: PT017
            assert not (folder / "p").exists()
            return
        tried(folder / "p", plan)


def test_a_project_is_made_of_a_topic_in_avro_whatever_python_makes_of_its_types(tmp_path: Path) -> None:
    kinds: dict[str, Any] = {
        "order_id": {"type": "string", "logicalType": "uuid"},
        "ordered_at": {"type": "long", "logicalType": "timestamp-micros"},
        "due": {"type": "int", "logicalType": "date"},
        "opens": {"type": "int", "logicalType": "time-millis"},
        "amount": {"type": "bytes", "logicalType": "decimal", "precision": 8, "scale": 2},
        "country": {"type": "enum", "name": "Country", "symbols": ["NO", "DK"]},
        "weight": ["null", "float"],
        "proof": "bytes",
        "fraud": "boolean",
    }
    fields = [{"name": name, "type": kind} for name, kind in kinds.items()]
    schema: Any = {"type": "record", "name": "Order", "fields": fields}
    server, broker, draw = RegistryServer(), MemoryBroker({"orders": 1}), random.Random(2)
    try:
        head = b"\0" + server.add("orders-value", json.dumps(schema)).to_bytes(4, "big")
        start = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
        for n in range(200):
            row = {
                "order_id": uuid.UUID(int=draw.getrandbits(128)),
                "ordered_at": start + dt.timedelta(hours=n),
                "due": dt.date(2026, 2, 1 + n % 28),
                "opens": dt.time(8 + n % 3, 30),
                "amount": Decimal(draw.randrange(10_000)) / 100,
                "country": draw.choice(["NO", "DK"]),
                "weight": draw.choice([None, 1.5, 2.25]),
                "proof": b"\xff",
                "fraud": draw.random() < 0.3,
            }
            out = io.BytesIO()
            fastavro.schemaless_writer(out, fastavro.parse_schema(schema), row)
            broker.log[TopicPartition("orders", 0)].append(
                MemoryRecord("orders", head + out.getvalue(), None, n, None, 0, n)
            )
        taken = scaffold.of_topic(broker, "orders", 200, server.url)
        plan = scaffold.make(tmp_path / "p", [taken], Options(label="fraud", label_delay="1h"))
    finally:
        server.stop()
    assert "an event is named by 'order_id' (--id)" in plan.notes
    # A decimal is a number in the files, and bytes on the topic.
    assert any(note.startswith("the pipeline can't read topic orders as it is") for note in plan.notes)
    pipeline, report = tried(tmp_path / "p", plan)
    assert report.joined == 200
    assert {"amount", "weight", "country", "opens"} <= set(pipeline.vector)


def of_json(broker: MemoryBroker, topic: str, rows: list[dict[str, Any]]) -> None:
    for n, row in enumerate(rows):
        at = TopicPartition(topic, n % 3)
        broker.log[at].append(MemoryRecord(topic, json.dumps(row).encode(), None, n, None, n % 3, n // 3))


def readings(number: int = 300) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return JSON as a stranger's topics hold it: seconds, objects, lists, and fields that are not always there."""
    draw = random.Random(4)
    events = [
        {
            "readingId": f"r{n}",
            "ts": 1_790_000_000 + n * 60,
            "pump": f"P{n % 5}",
            "pressure": round(draw.gauss(4, 1), 2),
            "where": {"site": draw.choice(["north", "south"]), "at": [1.5, n]},
            "tags": ["x"] * (n % 3),
            "spare": None,
        }
        | ({"remark": {"by": "me"}} if n % 4 == 0 else {})
        for n in range(number)
    ]
    labels = [
        {"readingId": e["readingId"], "knownAt": e["ts"] + 600, "failed": draw.random() < e["pressure"] / 9}
        for e in events
    ]
    return events, labels


def test_a_pipeline_reads_the_topics_that_it_was_made_of(tmp_path: Path) -> None:
    broker = MemoryBroker({"pumps": 3, "pumps.failed": 3})
    events, labels = readings()
    of_json(broker, "pumps", events)
    of_json(broker, "pumps.failed", labels)
    taken = [scaffold.of_topic(broker, name, 300) for name in ("pumps", "pumps.failed")]
    made = scaffold.make(tmp_path / "p", taken, Options())
    assert made.notes[-2:] == [
        "the pipeline reads its events from topic pumps",
        "the pipeline reads its labels from topic pumps.failed",
    ]
    pipeline, report = tried(tmp_path / "p", made)
    assert report.joined == 300
    assert (pipeline.raw_topics, pipeline.partitions) == ({"events": "pumps", "labels": "pumps.failed"}, 3)
    live = in_memory.Pipeline(pipeline)
    more_events, more_labels = readings(5)
    sent = live.send(*(json.dumps(event).encode() for event in more_events))
    assert sorted(p["event_id"] for p in sent.predictions) == [event["readingId"] for event in more_events]
    answered = live.send_labels(*(json.dumps(label).encode() for label in more_labels))
    answers = {e["prediction"]["features"]["event_id"]: e["label"] for e in answered.examples}
    assert answers == {label["readingId"]: label["failed"] for label in more_labels}
    assert len(live.broker.records("pumps")) == len(live.broker.records("pumps.failed")) == 5


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"readingId": lambda n: f"r{n}", "knownAt": lambda n: f"{n % 28 + 1}.1.2026 14:05"}, "are refused"),
        ({"more": lambda n: n}, "are refused"),
    ],
)
def test_a_topic_that_is_no_stream_as_it_is_is_named_with_the_reason(
    tmp_path: Path, change: dict[str, Any], why: str
) -> None:
    broker = MemoryBroker({"pumps": 3, "failed": 3})
    events, labels = readings()
    of_json(broker, "pumps", events)
    of_json(broker, "failed", [label | {name: of(n) for name, of in change.items()} for n, label in enumerate(labels)])
    taken = [scaffold.of_topic(broker, name, 300) for name in ("pumps", "failed")]
    made = scaffold.make(tmp_path / "p", taken, Options(label="failed", label_time="knownAt"))
    assert made.notes[-2] == "the pipeline reads its events from topic pumps"
    assert made.notes[-1].startswith("the pipeline can't read topic failed as it is, for ")
    assert why in made.notes[-1]
    assert made.notes[-1].endswith("Send its labels to p.labels, as they are in data/labels.jsonl")
    pipeline, _ = tried(tmp_path / "p", made)
    assert pipeline.raw_topics == {"events": "pumps", "labels": ""}


def of_orders(broker: MemoryBroker, values: list[Any], topic: str = "orders") -> None:
    """Put values onto a topic of one partition: bytes, JSON of an object, or None for a record without a value."""
    for n, row in enumerate(values):
        value = json.dumps(row).encode() if isinstance(row, dict) else row
        broker.log[TopicPartition(topic, 0)].append(MemoryRecord(topic, value, None, n, None, 0, n))


def of_topic(values: list[Any], records: int = 10_000, url: str = "") -> scaffold.Data:
    broker = MemoryBroker({"orders": 1})
    of_orders(broker, values)
    return scaffold.of_topic(broker, "orders", records, url)


#: Orders as a registry has their schema, and the time of each in ms.
ORDER: dict[str, Any] = {
    "order_id": "string",
    "at": {"type": "long", "logicalType": "timestamp-millis"},
    "user": "string",
    "amount": "double",
    "fraud": "boolean",
}


def orders(number: int = 200, **more: Any) -> list[dict[str, Any]]:
    draw = random.Random(3)
    return [
        {
            "order_id": f"o{n}",
            "at": 1_760_000_000_000 + n * 60_000,
            "user": f"u{n % 7}",
            "amount": round(draw.random() * 90, 2),
            "fraud": draw.random() < 0.3,
        }
        | {name: value(n) for name, value in more.items()}
        for n in range(number)
    ]


def schema_of(kinds: dict[str, Any], **defaults: Any) -> str:
    fields = [{"name": n, "type": k} | ({"default": defaults[n]} if n in defaults else {}) for n, k in kinds.items()]
    return json.dumps({"type": "record", "name": "Order", "fields": fields})


def avro(schema: str, number: int, rows: list[dict[str, Any]]) -> list[bytes]:
    made = []
    for row in rows:
        out = io.BytesIO()
        fastavro.schemaless_writer(out, fastavro.parse_schema(json.loads(schema)), row)
        made.append(b"\0" + number.to_bytes(4, "big") + out.getvalue())
    return made


@pytest.fixture
def registry() -> Any:
    server = RegistryServer()
    yield server
    server.stop()


@pytest.mark.parametrize("behind", [1, 900])
def test_the_newest_records_are_looked_for_behind_offsets_that_hold_none(tmp_path: Path, behind: int) -> None:
    """Offsets of aborted transactions and tombstones are no records: a topic whose end is full of them is not empty."""
    taken = of_topic([*orders(300), *[None] * behind], 100)
    assert (taken.rows, taken.given["order_id"][0], taken.given["order_id"][-1]) == (100, "o200", "o299")
    with pytest.raises(TidemillError, match="no records that are committed and have a value"):
        of_topic([None] * 50)


def test_records_of_one_partition_of_several_are_taken_where_the_others_have_none() -> None:
    broker = MemoryBroker({"orders": 4})
    of_orders(broker, orders(100))
    assert scaffold.of_topic(broker, "orders", 100).rows == 100


def test_a_pipeline_reads_a_topic_whose_schema_has_grown(tmp_path: Path, registry: RegistryServer) -> None:
    grown = {**ORDER, "items": "double"}
    old, new = schema_of(ORDER), schema_of(grown, items=1.5)
    first, second = registry.add("orders-value", old), registry.add("orders-value", new)
    rows = orders(200, items=lambda n: n % 5 + 0.5)
    values = [*avro(old, first, rows[:100]), *avro(new, second, rows[100:])]
    plan = scaffold.make(tmp_path / "p", [of_topic(values, url=registry.url)], Options())
    assert "the pipeline reads its events from topic orders" in plan.notes
    _, report = tried(tmp_path / "p", plan)
    assert report.joined == 200
    events = [json.loads(line) for line in (tmp_path / "p/data/events.jsonl").open()]
    assert (events[0]["items"], events[199]["items"]) == (1.5, 4.5)


@pytest.mark.parametrize(
    ("kinds", "change"),
    [
        ({name: ["null", kind] for name, kind in ORDER.items()}, lambda row: row),
        ({**ORDER, "at": "string"}, lambda row: row | {"at": f"2026-01-0{1 + int(row['order_id'][1:]) % 9}T10:00:00Z"}),
    ],
)
def test_a_project_is_made_of_avro_as_strangers_write_it(
    tmp_path: Path, registry: RegistryServer, kinds: dict[str, Any], change: Any
) -> None:
    schema = schema_of(kinds)
    values = avro(schema, registry.add("orders-value", schema), [change(row) for row in orders()])
    plan = scaffold.make(tmp_path / "p", [of_topic(values, url=registry.url)], Options())
    pipeline, report = tried(tmp_path / "p", plan)
    assert (report.joined, pipeline.events.key) == (200, "user")


def test_a_topic_of_avro_and_json_is_read_and_a_field_of_both_left_out(
    tmp_path: Path, registry: RegistryServer
) -> None:
    schema = schema_of(ORDER)
    values: list[Any] = avro(schema, registry.add("orders-value", schema), orders())
    values[1::2] = orders()[1::2]
    plan = scaffold.make(tmp_path / "p", [of_topic(values, url=registry.url)], Options())
    assert plan.left_out["at"] == "values of several types; not in the schema"
    assert tried(tmp_path / "p", plan)[1].joined == 200


def test_what_is_no_record_of_its_schema_is_refused_in_one_line_that_says_why(registry: RegistryServer) -> None:
    schema = schema_of(ORDER)
    value = avro(schema, registry.add("orders-value", schema), orders(1))[0]
    protobuf = registry.add("orders-value", 'syntax = "proto3"; message Order { string id = 1; }', "PROTOBUF")
    for data, why in {
        value[:-3]: r"^orders\[0\]@0 can't be decoded by its schema 1: it ends too early$",
        value + b"\0\0": "2 bytes follow the record$",
        b"\0" + protobuf.to_bytes(4, "big") + b"\0\x0a\x01x": "is PROTOBUF by schema 2; JSON and Avro are read",
        b"\0\0\0\0\x63" + value[5:]: "schema 99, which the registry's orders-value has not: register it there",
        b'{"order_id": "a", "order_id": "b"}': "field 'order_id' is in one object twice",
    }.items():
        with pytest.raises(TidemillError, match=why):
            of_topic([data], url=registry.url)


@pytest.mark.parametrize(
    "more",
    [
        {"d": lambda n: json.loads("[" * 400 + "]" * 400)},
        {"a": lambda n: {"b_c": {"x": n}}, "a_b": lambda n: {"c": {"x": "t"}}},
        {"m": lambda n: [1, "a", None, {"z": 1}]},
        {"m": lambda n: [{"q": 1}, [2], 3][n % 3]},
        {"m": lambda n: {"a b": 1, "": 2}},
        {"m": lambda n: [10**25 + n]},
        {"t": lambda n: "\ud800x"},
        {"big": lambda n: 1e300 * (n + 1)},
    ],
)
def test_a_project_is_made_of_json_that_no_schema_has(tmp_path: Path, more: dict[str, Any]) -> None:
    plan = scaffold.make(tmp_path / "p", [of_topic(orders(**more))], Options())
    _, report = tried(tmp_path / "p", plan)
    assert report.joined == (0 if "t" in more else 200)
    assert any("are refused" in note and "surrogates" in note for note in plan.notes) == ("t" in more)


def test_numbers_and_times_that_json_has_as_text_are_noted_and_times_are_read(tmp_path: Path) -> None:
    rows = [row | {name: str(row[name]) for name in ("at", "amount")} for row in orders()]
    plan = scaffold.make(tmp_path / "p", [of_topic(rows)], Options())
    assert "topic orders: 'amount': its numbers are written as text, and taken as text" in plan.notes
    pipeline, report = tried(tmp_path / "p", plan)
    assert (pipeline.events.time, report.joined) == ("at", 200)
    first = json.loads((tmp_path / "p/data/events.jsonl").open().readline())
    assert (first["at"], first["amount"]) == ("2025-10-09T08:53:20Z", rows[0]["amount"])


def test_of_what_is_refused_on_a_topic_the_reason_is_counted_that_most_have(tmp_path: Path) -> None:
    rows = orders(amount=lambda n: float("inf") if n % 20 == 0 else 1.5 + n % 3)
    plan = scaffold.make(tmp_path / "p", [of_topic(rows)], Options())
    (note,) = [note for note in plan.notes if "can't read topic" in note]
    assert "for 200 of its 200 newest records are refused: unexpected_field: field 'fraud'" in note
    some = [row | ({"odd": 1} if n < 30 else {}) for n, row in enumerate(orders()) if row.pop("fraud") in (True, False)]
    labels = [{"order_id": row["order_id"], "at": row["at"] + 1, "fraud": n % 3 == 0} for n, row in enumerate(some)]
    broker = MemoryBroker({"orders": 1, "answers": 1})
    of_orders(broker, [{**row, "more": {"z": 1 if n < 30 else "t"}} for n, row in enumerate(some)])
    of_orders(broker, labels, "answers")
    taken = [scaffold.of_topic(broker, name, 300) for name in ("orders", "answers")]
    plan = scaffold.make(tmp_path / "q", taken, Options())
    assert any("for 200 of its 200 newest records are refused: unexpected_field" in note for note in plan.notes)


def test_topics_of_other_numbers_of_partitions_are_not_read_together(tmp_path: Path) -> None:
    broker = MemoryBroker({"pumps": 3, "failed": 4})
    for topic, rows in zip(("pumps", "failed"), readings(), strict=True):
        of_json(broker, topic, rows)
    taken = [scaffold.of_topic(broker, name, 300) for name in ("pumps", "failed")]
    made = scaffold.make(tmp_path / "p", taken, Options())
    assert "it has 4 partitions, and the topic of the events 3" in made.notes[-1]
    with pytest.raises(TidemillError, match="choose another name"):
        scaffold.make(tmp_path / "x", [dataclasses.replace(taken[0], sample=Sample("x.y", 3, [], "", None))], Options())


def test_a_linear_model_comes_back_from_numbers_far_from_all_before(tmp_path: Path) -> None:
    draw, rows = random.Random(4), []
    for number in range(900):
        z, far = draw.gauss(0, 1), number % 97 == 96
        row = {f"x{k}": 1_000.0 if far else draw.gauss(0, 1) for k in range(5)}
        rows.append({**row, "z": z, "y": 5 + z + draw.gauss(0, 0.1)})
    _, report, _ = made(tmp_path / "p", table(tmp_path / "far.csv", rows), label="y")
    assert report.metrics["linear"]["MAE"] < report.metrics["baseline"]["MAE"] / 2


def test_a_window_of_the_monitor_holds_enough_examples_for_an_alert(tmp_path: Path) -> None:
    days = (dt.date(2012, 1, 1) + dt.timedelta(n) for n in range(1_461))
    source = table(tmp_path / "daily.csv", [{"day": day, "x": n % 7, "y": n % 5 / 2} for n, day in enumerate(days)])
    pipeline, _, _ = made(tmp_path / "p", source, label="y")
    assert (pipeline.monitor.window, pipeline.monitor.least) == ("180d", 100)


@pytest.mark.parametrize(
    ("rows", "step", "window", "reference"),
    [
        (3_000, dt.timedelta(minutes=1), "6h", "1d"),
        (1_461, dt.timedelta(days=1), "180d", "720d"),
        (700, dt.timedelta(days=7), "816d", "2448d"),
        (9_000, dt.timedelta(minutes=10), "7d", "28d"),
        (20_000, dt.timedelta(hours=1), "90d", "360d"),
    ],
)
def test_the_monitor_judges_at_least_half_of_the_data_that_it_was_made_from(
    tmp_path: Path, rows: int, step: dt.timedelta, window: str, reference: str
) -> None:
    day = dt.datetime(2012, 1, 1)
    table(tmp_path / "a.csv", [{"day": day + n * step, "x": n % 7, "y": n % 5 / 2} for n in range(rows)])
    plan = scaffold.make(tmp_path / "p", [scaffold.of_file(tmp_path / "a.csv")], Options(label="y"))
    pipeline = load(str(tmp_path / "p" / "pipeline.py"))
    assert (pipeline.monitor.window, pipeline.monitor.reference) == (window, reference)
    assert milliseconds(reference) <= rows * step / dt.timedelta(milliseconds=1) / 2
    assert plan.reference == reference


def test_codes_are_categories_or_views_and_no_numbers(tmp_path: Path) -> None:
    rows = [
        {
            "zip": 10_000 + n % 7,
            "PostalCode": 90_000 + n % 45,
            "barcode": n,
            "discount code": n * 31,
            "y": n % 9 / 2,
            "x": n % 3,
        }
        for n in range(450)
    ]
    pipeline, _, plan = made(tmp_path / "p", table(tmp_path / "a.csv", rows), label="y")
    assert (plan.numbers, plan.categories, plan.means) == (["barcode", "x"], ["zip"], ["PostalCode"])
    assert pipeline.request_features["zip"].kind == "category"
    assert plan.left_out["discount_code"] == "codes with 450 different values in 450 rows"


def test_a_text_of_each_row_is_not_offered_as_the_label(tmp_path: Path) -> None:
    rows = [{"order": f"o{n}", "note": f"n{n % 7}", "at": f"2026-01-01T00:{n:02}:00Z"} for n in range(60)]
    with pytest.raises(TidemillError, match=r"Say so with --label: 'note', 'none'$"):
        scaffold.make(tmp_path / "p", [scaffold.of_file(table(tmp_path / "a.csv", rows))], Options())


def test_a_project_is_made_of_the_newest_records_of_a_topic(tmp_path: Path) -> None:
    broker = MemoryBroker({"orders": 2})
    for n, row in enumerate(shop(100)):
        at = TopicPartition("orders", n % 2)
        broker.log[at].append(MemoryRecord("orders", json.dumps(row).encode(), None, n, None, n % 2, n // 2))
    plan = scaffold.make(tmp_path / "p", [scaffold.of_topic(broker, "orders", 59)], Options())
    _, report = tried(tmp_path / "p", plan)
    assert report.joined == 59
    assert "o41" in (tmp_path / "p/data/events.jsonl").read_text()
    with pytest.raises(TidemillError, match="does not exist"):
        scaffold.of_topic(broker, "nothing", 60)
    broker.log[at].append(MemoryRecord("orders", b"\xff", None, 200, None, 1, 50))
    with pytest.raises(TidemillError, match="no JSON object and no Avro"):
        scaffold.of_topic(broker, "orders", 60)


@pytest.mark.parametrize(
    ("texts", "kind", "values", "note"),
    [
        (["1,234.50", "999.5", "1,000,000"], "float", ["1234.50", "999.5", "1000000"], "thousands are written without"),
        (["1,234,567", "12"], "int", ["1234567", "12"], "thousands are written without"),
        (["0,123", "7,250"], "float", ["0.123", "7.250"], "decimal commas"),
        (["1,5", "7,250"], "float", ["1.5", "7.250"], "decimal commas"),
        (["1,234", "7,250", None], "text", ["1,234", "7,250", None], "may be thousands or a fraction"),
        (["nil", *map(str, range(40))], "int", [None, *map(str, range(40))], "'nil', which is taken as missing"),
        (["?", " ?", *map("{}.5".format, range(40))], "float", [None, None, *map("{}.5".format, range(40))], "'?'"),
        (["$1,234.50", "-$0.99", "$ 3"], "float", ["1234.50", "-0.99", "3"], "without $; its thousands"),
        (["12 €", "7,5 €", None], "float", ["12", "7.5", None], "without €; its decimal commas"),
        (["5%", "12%"], "int", ["5", "12"], "written without %"),
        (["5%", "12"], "text", ["5%", "12"], ""),  # 12 may be 1200%
        (["$5", "€7"], "text", ["$5", "€7"], ""),
        (["5$3", "7$1"], "text", ["5$3", "7$1"], ""),
        (["%5%", "%7%"], "text", ["%5%", "%7%"], ""),
        (["$a", "$b"], "text", ["$a", "$b"], ""),
        (["$1,234", "$7,250"], "text", ["$1,234", "$7,250"], "may be thousands or a fraction"),
        (["A", *map(str, range(9))], "text", ["A", *map(str, range(9))], ""),  # names of classes, it may be
        (["A", "B", *map(str, range(40))], "text", ["A", "B", *map(str, range(40))], ""),
        (["A7", *map(str, range(40))], "text", ["A7", *map(str, range(40))], ""),
    ],
)
def test_numbers_with_commas_or_a_word_are_what_all_values_allow_and_no_guess_where_they_allow_both(
    texts: list[str | None], kind: str, values: list[str | None], note: str
) -> None:
    (column,) = columns_of({"x": texts}, is_csv=True)
    assert (column.kind, [value and str(value) for value in column.values]) == (kind, values)
    assert note in column.note


def test_forms_of_times_that_a_text_can_t_have_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    strptime = columns._strptime
    monkeypatch.setattr(columns, "_strptime", lambda text, form: tried.append(form) or strptime(text, form))
    (column,) = columns_of({"id": [f"e{number}" for number in range(50)]}, is_csv=True)
    assert (column.kind, tried) == ("text", [])
    for form in columns._FORMATS:
        text = dt.datetime(2013, 12, 31, 22, 58, 59, 123456, tzinfo=dt.UTC).strftime(form)
        assert columns._all_read(form, [text, text.replace(" ", "\t ")]), form
