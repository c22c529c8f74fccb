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
from tidemill import Pipeline, Stream, View, aggregates
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


def test_a_replay_is_asked_for_ids_or_a_sample(orders: Pipeline) -> None:
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
