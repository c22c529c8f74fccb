"""Backtests and data sets from Python: data frames of any library give what files give; a notebook shows the result."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import pyarrow as pa
import pytest
from river import linear_model, preprocessing

import tidemill
from tidemill import Pipeline, Stream, View, aggregates, api
from tidemill.errors import SettingsError

pytestmark = pytest.mark.slow


@dataclass
class Asked:
    order_id: str
    asked_at: dt.datetime
    day: dt.date
    amount: float
    price: Annotated[Decimal, (10, 2)]
    items: int | None
    channel: str | None = None
    express: bool = False


@dataclass
class Paid:
    order_id: str
    paid_at: dt.datetime
    late: bool


START = dt.datetime(2024, 3, 1, tzinfo=dt.UTC)


@pytest.fixture(scope="module")
def rows() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    events, labels = [], []
    for i in range(120):
        at = START + dt.timedelta(minutes=37 * i, milliseconds=i)
        amount = float(i * 7919 % 113)
        events.append(
            {
                "order_id": f"o{i}",
                "asked_at": at,
                "day": at.date(),
                "amount": amount,
                "price": Decimal(i * 31 % 700) / 100,
                "items": None if i % 11 == 0 else i % 9,
                "channel": None if i % 5 == 0 else ("web", "shop")[i % 2],
                "express": i % 3 == 0,
            }
        )
        if i % 20:
            late = dt.timedelta(hours=5 if i % 7 else 60)
            labels.append({"order_id": f"o{i}", "paid_at": at + late, "late": amount > 55})
    return events, sorted(labels, key=lambda label: label["paid_at"])


@pytest.fixture(scope="module")
def orders() -> Pipeline:
    return Pipeline(
        name="orders",
        events=Stream(Asked),
        labels=Stream(Paid, value="late"),
        task="binary",
        request={"amount": "amount", "items": "items", "express": "express"},
        views=[View("channel", every="1h", aggregates=[aggregates.count("24h")])],
        models={"logreg": preprocessing.StandardScaler() | linear_model.LogisticRegression()},
        champion="logreg",
        label_timeout="24h",
    )


def frames(rows: Any, kind: str) -> tuple[Any, Any]:
    events, labels = rows
    if kind == "pandas":
        return pd.DataFrame(events), pd.DataFrame(labels)
    if kind.startswith("polars"):
        import polars as pl  # here: `make unit` collects this file too, and runs none of it

    if kind == "polars":
        return pl.DataFrame(events), pl.DataFrame(labels)
    if kind == "polars, lazy":
        return pl.LazyFrame(events), pl.LazyFrame(labels)
    if kind == "pyarrow":
        return pa.Table.from_pylist(events), pa.Table.from_pylist(labels)
    return events, labels


def files(rows: Any, folder: Path) -> tuple[Path, str]:
    events, labels = frames(rows, "pandas")
    events.to_csv(folder / "events.csv", index=False)
    labels.to_parquet(folder / "labels.parquet")
    return folder / "events.csv", str(folder / "labels.parquet")


def figures(result: Any) -> dict[str, Any]:
    report = result.report.as_dict()
    return {name: value for name, value in report.items() if name not in ("seconds", "events_per_second")}


@pytest.fixture(scope="module")
def from_files(rows: Any, orders: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tidemill.backtest(orders, *files(rows, tmp_path_factory.mktemp("files")))


@pytest.mark.parametrize("kind", ["pandas", "polars", "polars, lazy", "pyarrow", "rows"])
def test_the_same_rows_give_the_same_report_from_files_and_from_any_data_frame(
    rows: Any, orders: Pipeline, from_files: Any, kind: str
) -> None:
    result = tidemill.backtest(orders, *frames(rows, kind))
    assert from_files.report.joined > 80
    assert from_files.report.learn_failed == {}
    assert figures(result) == figures(from_files)
    library = {"polars, lazy": "polars", "rows": "pandas"}.get(kind, kind)
    assert type(result.predictions).__module__.startswith(library)
    assert type(result.over_time).__module__.startswith(library)


def test_predictions_are_rows_with_features_scores_and_labels(from_files: Any, rows: Any) -> None:
    predictions = from_files.predictions
    assert len(predictions) == from_files.report.predictions == 120
    assert predictions["label"].notna().sum() == from_files.report.joined
    third = predictions.iloc[3]
    assert (third.event_id, third.x_amount, third.model) == ("o3", rows[0][3]["amount"], "logreg")
    assert third.event_time == pd.Timestamp(rows[0][3]["asked_at"])
    assert third.label_time - third.event_time == pd.Timedelta(hours=5)
    assert third.score == third.score_logreg
    assert pd.isna(predictions.iloc[20].label)
    assert predictions.iloc[-1].version > 0
    assert set(from_files.over_time.model) == {"logreg", "baseline"}
    assert from_files.over_time.iloc[-1]["ROCAUC"] == from_files.metrics["baseline"]["ROCAUC"]


def test_a_notebook_and_a_terminal_show_the_figures(from_files: Any) -> None:
    text = repr(from_files)
    assert len(text) < 250
    assert "orders: 120 events" in text
    assert f"Accuracy {from_files.metrics['logreg']['Accuracy']:.4f}" in text
    page = from_files._repr_html_()
    assert "logreg (champion)" in page
    assert page.count("<tr>") == 3
    assert "Warning" in page


def test_a_plot_has_a_line_for_each_model(from_files: Any) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    axes = from_files.plot()
    assert [line.get_label() for line in axes.get_lines()] == ["logreg (champion)", "baseline"]
    assert len(axes.get_lines()[0].get_xdata()) == len(from_files.report.over_time)
    assert from_files.plot("LogLoss", ax=axes) is axes
    with pytest.raises(SettingsError, match=r"metric='F1' is not one of Accuracy"):
        from_files.plot("F1")


def test_without_matplotlib_the_extra_is_named(from_files: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(SettingsError, match=r"pip install 'tidemill\[plot\]'"):
        from_files.plot()


@pytest.mark.parametrize("kind", ["pandas", "polars"])
def test_a_data_set_has_the_labelled_vectors(
    rows: Any, orders: Pipeline, from_files: Any, kind: str, tmp_path: Path
) -> None:
    frame = tidemill.dataset(orders, *frames(rows, kind))
    assert type(frame).__module__.startswith(kind)
    assert len(frame) == from_files.report.joined
    summary = tidemill.dataset(orders, *files(rows, tmp_path), out=tmp_path / "set.parquet")
    written = pd.read_parquet(tmp_path / "set.parquet")
    assert summary.rows == len(written)
    as_pandas = frame if kind == "pandas" else frame.to_pandas()
    assert list(as_pandas["event_id"]) == list(written["event_id"])
    assert list(as_pandas["x_channel_count_24h"].dropna()) == list(written["x_channel_count_24h"].dropna())
    span = tidemill.dataset(orders, *frames(rows, kind), begin="2024-03-02", end="2024-03-03")
    assert 0 < len(span) < len(frame)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, ["events and labels, or over an archive"]),
        ({"events": []}, ["go together"]),
        ({"events": 5, "labels": 5}, ["events is a int", "data frame"]),
        (
            {"events": pd.DataFrame({"order_id": ["a"]}), "labels": []},
            ["events has no column 'asked_at'", "'order_id'"],
        ),
        ({"events": [], "labels": []}, ["events"]),
        ({"events": "nothing.csv", "labels": "nothing.csv"}, ["nothing.csv", "does not exist"]),
        ({"archive": "x", "events": []}, ["archive"]),
        ({"events": [], "labels": [], "every": "soon"}, ["every"]),
        ({"events": pd.DataFrame([["a", 1]], columns=["x", "x"]), "labels": []}, ["events", "x"]),
    ],
)
def test_a_mistake_is_one_line(orders: Pipeline, arguments: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        tidemill.backtest(orders, **arguments)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_numbers_where_text_was_declared_say_how_to_read_them(orders: Pipeline, rows: Any) -> None:
    events, labels = frames(rows, "pandas")
    events["order_id"] = range(len(events))
    with pytest.raises(SettingsError, match=r"events row 1: column 'order_id' is 0 .*dtype=\{'order_id': str\}"):
        tidemill.backtest(orders, events, labels)


@pytest.mark.parametrize("index", ["order_id", "asked_at", ["order_id", "asked_at"]])
def test_an_index_with_a_name_is_a_column(rows: Any, orders: Pipeline, from_files: Any, index: Any) -> None:
    events, labels = frames(rows, "pandas")
    result = tidemill.backtest(orders, events.set_index(index), labels.set_index("order_id"))
    assert figures(result) == figures(from_files)
    assert list(events.columns)[:2] == ["order_id", "asked_at"]


def test_columns_with_names_that_are_no_text_are_further_ones(rows: Any, orders: Pipeline, from_files: Any) -> None:
    events, labels = frames(rows, "pandas")
    assert figures(tidemill.backtest(orders, events.assign(x=1).rename(columns={"x": 3}), labels)) == figures(
        from_files
    )
    with pytest.raises(
        SettingsError, match=r"events has no column 'order_id'; Asked needs it. It has \"\('x'"
    ) as caught:
        tidemill.backtest(orders, pd.concat({"x": events}, axis=1), labels)
    assert "\n" not in str(caught.value)


def test_rows_are_instances_of_the_stream_s_class_too(rows: Any, orders: Pipeline, from_files: Any) -> None:
    events, labels = ([cls(**row) for row in given] for cls, given in zip((Asked, Paid), rows, strict=True))
    assert figures(tidemill.backtest(orders, events, labels)) == figures(from_files)
    with pytest.raises(SettingsError, match="events is a list where a data frame, a list of rows or a path"):
        tidemill.backtest(orders, [Asked, Paid], labels)


def test_a_data_set_s_span_is_given_by_times_as_well(rows: Any, orders: Pipeline) -> None:
    given, times = frames(rows, "pandas"), (dt.datetime(2024, 3, 2), pd.Timestamp("2024-03-03T02", tz="Europe/Berlin"))
    by_times = tidemill.dataset(orders, *given, begin=times[0], end=times[1])
    by_text = tidemill.dataset(orders, *given, begin="2024-03-02", end="2024-03-03T01:00Z")
    assert list(by_times["event_id"]) == list(by_text["event_id"])
    assert len(by_text)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"begin": "soon"}, "begin 'soon' is no time"),
        ({"begin": "2024-03-03", "end": "2024-03-02"}, "begin 2024-03-03 end 2024-03-02: no time is between"),
        ({"out": "set.csv"}, "out set.csv: its name ends in '.csv'"),
        ({"recomputed": True}, "recomputed: settings are for what comes from Kafka"),
        ({"brokers": "localhost:1"}, "brokers: settings are for what comes from Kafka"),
    ],
)
def test_a_data_set_s_mistakes_name_arguments(rows: Any, orders: Pipeline, arguments: Any, words: str) -> None:
    with pytest.raises(SettingsError, match=rf"^{words}"):
        tidemill.dataset(orders, *frames(rows, "rows"), **arguments)


def test_a_command_in_an_error_keeps_its_options() -> None:
    @api._named_as_here
    def fail() -> None:
        raise SettingsError("--from: `tidemill topics orders --create` makes them; --seed and --recompute go together")

    with pytest.raises(SettingsError) as caught:
        fail()
    assert (
        str(caught.value) == "begin: `tidemill topics orders --create` makes them; seed and recompute=True go together"
    )


def test_where_no_label_came_there_is_nothing_to_draw(rows: Any, orders: Pipeline) -> None:
    with pytest.raises(SettingsError, match="nothing to draw: no model was judged"):
        tidemill.backtest(orders, rows[0], pd.DataFrame(rows[1])[:0]).plot()


def test_a_metric_of_one_row_is_no_negative_zero(rows: Any, orders: Pipeline) -> None:
    assert "-0.0" not in repr(tidemill.backtest(orders, rows[0][1:2], rows[1][:1]))


def test_a_replay_is_asked_for_ids_or_a_sample(orders: Pipeline) -> None:
    with pytest.raises(SettingsError, match="sample -1: expected 1 or more"):
        tidemill.replay(orders, sample=-1)
    with pytest.raises(SettingsError, match="name the predictions"):
        tidemill.replay(orders)
    with pytest.raises(SettingsError, match="goes with"):
        tidemill.replay(orders, "o1", seed=3)


@pytest.mark.slow
def test_importing_tidemill_imports_no_library() -> None:
    code = "import sys, tidemill; print(*sys.modules)"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert (
        loaded & {"river", "pydantic", "numpy", "pandas", "narwhals", "fastavro", "confluent_kafka", "click"} == set()
    )
