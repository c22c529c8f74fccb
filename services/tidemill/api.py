"""What commands do, from Python: for notebooks and tests. Data frames of pandas, polars and others are taken.

A result's data frames are of the same library as the events; of pandas, where those were files.
"""

from __future__ import annotations

import datetime as dt
import functools
import html
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import narwhals as nw

from tidemill.declare.load import load
from tidemill.declare.pipeline import Pipeline
from tidemill.durations import milliseconds
from tidemill.encoding.python_schemas import as_plain, is_declaration
from tidemill.errors import SettingsError
from tidemill.offline.backtest import Backtest, BacktestReport
from tidemill.offline.history import Frame
from tidemill.offline.source import ArchiveSource, KafkaSource, RowSource, past_of
from tidemill.stream.api import Progress, Record
from tidemill.wire import topics
from tidemill.wire.records import PredictionLog, Records

if TYPE_CHECKING:
    from tidemill.offline.dataset import Summary
    from tidemill.offline.replay import ReplayReport

#: What events and labels may be: the path of files, a data frame, or rows.
Data = Any
Given = ParamSpec("Given")
Result = TypeVar("Result")


#: What commands call options, and functions here call otherwise.
_ARGUMENTS = {"--from": "begin", "--to": "end", "--force": "force=True", "--recompute": "recompute=True"}
_ARGUMENTS |= {"--rebuild": "rebuild=True"}
_OPTION = re.compile(r"`[^`]*`|--[a-z]+")  # or a command, which stays as it is


def _named_as_here(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """Have a function's errors name its arguments, where those of commands name options."""

    @functools.wraps(function)
    def call(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        try:
            return function(*args, **kwargs)
        except SettingsError as error:
            text = _OPTION.sub(lambda option: _ARGUMENTS.get(option[0], option[0].removeprefix("--")), str(error))
            raise SettingsError(text) from error.__cause__

    return call


@_named_as_here
def backtest(
    pipeline: Pipeline | str,
    events: Data = None,
    labels: Data = None,
    *,
    archive: str | None = None,
    model_delay: str = "",
    every: str = "",
    progress: Progress | None = None,
) -> BacktestResult:
    """Run a pipeline over history in this process, as `tidemill backtest` does.

    Parameters
    ----------
    pipeline
        A pipeline, or what names one: a file, a module, or a shipped pipeline.
    events, labels
        Each a data frame, a list of rows (mappings, or instances of the stream's class), or a path: a file, a folder,
        or a pattern as `*.csv`.
    archive
        Instead of the two, the URL of an archive.
    model_delay
        How long a learned label takes to reach the scorer, as "5m".
    every
        Event time between two rows of `over_time`; by default a day, less where that would be fewer than a dozen rows.
    progress
        Is called with the number of events that were handled since it was last called.

    Raises SettingsError where the history can't be read, DeclarationError where the pipeline can't.
    """
    declared, source = _declared(pipeline), _source(events, labels, archive)
    try:
        delay, _ = milliseconds(model_delay) if model_delay else 0, milliseconds(every or "1d")
    except ValueError as error:
        raise SettingsError(f"model_delay or every: {error}") from None
    if source is None:
        raise SettingsError("a backtest runs over events and labels, or over an archive: give the two, or the one")
    past = past_of(source, declared)
    run = Backtest(declared, model_delay_ms=delay, checkpoint_every_ms=past.step_ms(every))
    rows = _Predictions(declared)
    run.predictions, run.examples = rows.take, rows.joined
    report = past.run(run, progress)
    return BacktestResult(report, rows.columns, _backend(events))


@_named_as_here
def dataset(
    pipeline: Pipeline | str,
    events: Data = None,
    labels: Data = None,
    *,
    archive: str | None = None,
    recompute: bool = False,
    begin: str | dt.datetime | None = None,
    end: str | dt.datetime | None = None,
    out: str | Path | None = None,
    force: bool = False,
    **settings: Any,
) -> Any:
    """Return labelled vectors, each as of its event's time, as `tidemill dataset` writes them.

    They come from events and labels, from an archive, or from Kafka.

    Parameters
    ----------
    pipeline, events, labels, archive
        As `backtest` takes them.
    recompute
        From Kafka: vectors computed again under this declaration, instead of those that were served.
    begin, end
        Event times from the one, and before the other: times, or text in ISO 8601.
    out
        A Parquet file to write; a summary is returned then.
    force
        Write over a file of that name.
    settings
        Of what comes from Kafka: settings by name, as brokers="localhost:9092".

    Raises SettingsError where there is nothing, or it can't be read or written.
    """
    try:
        import pyarrow.parquet as pq

        from tidemill.offline import dataset as sets
    except ModuleNotFoundError as error:
        raise SettingsError(f"a data set needs {error.name}: pip install 'tidemill[parquet]'") from None
    import io

    declared = _declared(pipeline)
    source: KafkaSource | ArchiveSource | RowSource | None = _source(events, labels, archive)
    if isinstance(source, ArchiveSource) and recompute:
        raise SettingsError("an archive holds vectors as they were served; recompute takes events and labels, or Kafka")
    form = sets.Form(declared, is_served=not (recompute or isinstance(source, RowSource)))
    span = sets.span_of(*(None if time is None else str(time) for time in (begin, end)))
    if source is not None and settings:
        raise SettingsError(f"{', '.join(settings)}: settings are for what comes from Kafka, and history is given here")
    if source is None:
        source = _kafka(
            declared, (topics.EVENTS_VALID, topics.LABELS_VALID) if recompute else (topics.EXAMPLES,), settings
        )
    if out is not None:
        sets.check_out(Path(out), force=force)
        with sets.written(Path(out), form, span) as writer:
            _fill(declared, source, writer, recompute=recompute)
        return writer.summary
    buffer = io.BytesIO()
    writer = sets.Writer(buffer, form, span, sets.Summary(""))
    _fill(declared, source, writer, recompute=recompute)
    writer.finish()
    writer.close()
    if not writer.summary.rows:
        why = "".join(f"; {text}" for text in writer.summary.warnings)
        raise SettingsError(f"there is no labelled example in these event times{why}")
    for text in writer.summary.warnings:
        warnings.warn(text, stacklevel=3)  # of who has called `dataset`
    return nw.from_arrow(pq.read_table(buffer), backend=_backend(events)).to_native()


@_named_as_here
def replay(
    pipeline: Pipeline | str,
    *ids: str,
    rebuild: bool = False,
    sample: int | None = None,
    seed: int | None = None,
    **settings: Any,
) -> ReplayReport:
    """Repeat predictions of these ids from Kafka's log, or a sample of them, as `tidemill replay` does.

    Parameters
    ----------
    pipeline
        A pipeline, or what names one.
    *ids
        Ids of events.
    rebuild
        Fold the models again from the examples, instead of loading their artifacts.
    sample, seed
        Instead of ids: how many predictions to draw at random, and from where the drawing starts.
    settings
        Settings by name, as brokers="localhost:9092", store_url="artifacts".

    Raises SettingsError, BrokerError or StoreError where they can't be read.
    """
    from tidemill import settings as settings_
    from tidemill.offline.replay import Replay, check_choice
    from tidemill.runtime import run as running

    check_choice(ids, sample, seed)
    declared, chosen = _declared(pipeline), settings_.load(**settings)
    registry = running.registry_of(declared, chosen)
    used = (topics.PREDICTION_LOG, topics.MODELS, topics.EXAMPLES, topics.EVENTS_VALID, topics.EXPIRED)
    replaying = Replay(declared, running.connected(declared, chosen, *used), registry)
    return replaying.report(ids, sample=sample, seed=seed, rebuild=rebuild)


class BacktestResult:
    """The result of a backtest; a notebook shows its figures.

    `report` is all of it: counts, dead letters, warnings, decisions of the gate. `metrics` has the final figures, by
    model and metric.
    """

    def __init__(self, report: BacktestReport, columns: Mapping[str, Sequence[Any]], backend: Any) -> None:
        self.report, self._columns, self._backend = report, columns, backend

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """The figures at the end, by model and by metric."""
        return self.report.metrics

    @property
    def warnings(self) -> list[str]:
        """What to know before the figures: what they leave out, and the setting to change."""
        return self.report.warnings

    @cached_property
    def predictions(self) -> Any:
        """A data frame with a row for each prediction, in the order in which they were made.

        Columns: event_id, entity_id, event_time; the features as x_<name>; model, version, score of the champion and
        probabilities where there are several classes; score_<model> of every model; label and label_time, where the
        label came in time.
        """
        return nw.from_dict(self._columns, backend=self._backend).to_native()

    @cached_property
    def over_time(self) -> Any:
        """A data frame with a row for each checkpoint and model: time, model, examples so far, and each metric."""
        steps = [(step, model, values) for step in self.report.over_time for model, values in step["metrics"].items()]
        names = list(dict.fromkeys(name for _, _, values in steps for name in values))
        columns: dict[str, list[Any]] = {
            "time": [_moment(step["time"]) for step, _, _ in steps],
            "model": [model for _, model, _ in steps],
            "examples": [step["examples"] for step, _, _ in steps],
        }
        columns |= {name: [values.get(name) for _, _, values in steps] for name in names}
        return nw.from_dict(columns, backend=self._backend).to_native()

    def plot(self, metric: str = "", ax: Any = None) -> Any:
        """Draw a metric over time, a line for each model, by default the first metric; returns matplotlib's axes.

        Raises SettingsError where matplotlib is not installed, or no model has this metric.
        """
        try:
            import matplotlib.pyplot as plt
        except ModuleNotFoundError as error:
            raise SettingsError(f"plot() needs {error.name}: pip install 'tidemill[plot]'") from None
        names = self.report.metric_names
        metric = metric or next(iter(names), "")
        if not names:
            raise SettingsError("there is nothing to draw: no model was judged, for no label came in time")
        if metric not in names:
            raise SettingsError(f"metric={metric!r} is not one of {', '.join(names)}")
        ax = ax or plt.subplots(figsize=(9, 4))[1]
        for model in self.metrics:
            points = [
                (_moment(step["time"]), step["metrics"][model][metric])
                for step in self.report.over_time
                if metric in step["metrics"].get(model, {})
            ]
            is_champion = model == self.report.champion
            label = f"{model} (champion)" if is_champion else model
            times, values = zip(*points, strict=True) if points else ((), ())
            ax.plot(times, values, label=label, linewidth=2.2 if is_champion else 1.2)
        ax.set(title=f"{self.report.pipeline}: {metric} so far", ylabel=metric)
        ax.legend()
        ax.grid(visible=True, alpha=0.3)
        ax.figure.autofmt_xdate()
        return ax

    def __repr__(self) -> str:
        report = self.report
        figures = ", ".join(f"{name} {value:.4f}" for name, value in self.metrics.get(report.champion, {}).items())
        warned = f", {len(self.warnings)} warnings" if self.warnings else ""
        return (
            f"<BacktestResult of {report.pipeline}: {report.events:,} events, {report.joined:,} learned; "
            f"{report.champion}: {figures or 'no figures'}{warned}>"
        )

    def _repr_html_(self) -> str:
        report, names = self.report, self.report.metric_names

        def row(tag: str, *cells: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        lines = [
            row(
                "td",
                f"{model} (champion)" if model == report.champion else model,
                *(f"{values[name]:.6f}" if name in values else "" for name in names),
            )
            for model, values in self.metrics.items()
        ]
        dead = ", ".join(f"{reason} {n:,}" for reason, n in sorted(report.dead_letters.items())) or "none"
        text = (
            f"{report.pipeline} ({report.task}): {report.events:,} events, {report.predictions:,} predictions, "
            f"{report.joined:,} learned, {report.expired:,} expired, {report.pending:,} pending; dead letters: {dead}"
        )
        warned = "".join(f"<p><b>Warning:</b> {html.escape(warning)}</p>" for warning in self.warnings)
        return f"{warned}<p>{html.escape(text)}</p><table>{row('th', 'model', *names)}{''.join(lines)}</table>"


class _Predictions:
    """The columns of `BacktestResult.predictions`, as predictions are made and labels join them."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._records, self._models = Records(pipeline), pipeline.model_names
        self._by_class = pipeline.task == "multiclass"
        names = ["event_id", "entity_id", "event_time", *(f"x_{name}" for name in pipeline.vector)]
        names += ["model", "version", "score", *["probabilities"] * self._by_class]
        names += [*(f"score_{name}" for name in self._models), "label", "label_time"]
        self.columns: dict[str, list[Any]] = {name: [] for name in names}
        self._rows: dict[tuple[int, int], int] = {}

    def take(self, prediction: PredictionLog) -> None:
        """Add a prediction."""
        features, champion = prediction["features"], prediction["champion"]
        scores = {score["model"]: score["score"] for score in (champion, *prediction["challengers"])}
        row = {
            "event_id": features["event_id"],
            "entity_id": features["entity_id"],
            "event_time": _moment(features["event_time"]),
            **{f"x_{name}": value for name, value in features["vector"].items()},
            "model": champion["model"],
            "version": champion["version"],
            "score": champion["score"],
            **{f"score_{name}": scores.get(name) for name in self._models},
        }
        if self._by_class:
            row["probabilities"] = dict(champion["probabilities"])
        self._rows[features["partition"], features["offset"]] = len(self.columns["label"])
        for name, column in self.columns.items():
            column.append(row.get(name))

    def joined(self, record: Record) -> None:
        """Add the label of a prediction."""
        example = self._records.example.decode(record.value() or b"")
        features = example["prediction"]["features"]
        row = self._rows.get((features["partition"], features["offset"]))
        if row is not None:
            self.columns["label"][row] = example["label"]
            self.columns["label_time"][row] = _moment(example["label_time"])


def _declared(pipeline: Pipeline | str) -> Pipeline:
    return pipeline if isinstance(pipeline, Pipeline) else load(str(pipeline))


def _source(events: Data, labels: Data, archive: str | None) -> ArchiveSource | RowSource | None:
    if archive is not None:
        if events is not None or labels is not None:
            raise SettingsError("history comes from archive, or from events and labels: give the one, or the two")
        return ArchiveSource(archive)
    if (events is None) != (labels is None):
        raise SettingsError("events and labels go together: give both, or neither")
    return None if events is None else RowSource(_data(events, "events"), _data(labels, "labels"))


def _data(given: Data, name: str) -> Path | Frame:
    """Return the path, or the columns of a data frame or of rows. Raises SettingsError for anything else."""
    if isinstance(given, (str, Path)):
        return Path(given)
    if isinstance(given, (list, tuple)) and all(map(_is_row, given)):
        rows = [as_plain(row) for row in given]
        names = dict.fromkeys(column for row in rows for column in row)
        return Frame(name, {str(column): [row.get(column) for row in rows] for column in names})
    try:
        frame: Any = nw.from_native(_with_index(given))
        if isinstance(frame, nw.LazyFrame):
            frame = frame.collect()
        return Frame(name, {str(series.name): _values(series) for series in frame.iter_columns()})
    except Exception as error:  # narwhals', and those of the library that the frame is of
        kind = type(given).__name__
        why = f": {error}" if hasattr(given, "columns") else ""
        raise SettingsError(
            f"{name} is a {kind} where a data frame, a list of rows or a path was expected{why}"
        ) from None


def _is_row(given: Any) -> bool:
    return isinstance(given, Mapping) or (is_declaration(type(given)) and not isinstance(given, type))


def _with_index(frame: Any) -> Any:
    """Return a data frame of pandas with the levels of its index that have a name as columns."""
    named = [name for name in getattr(getattr(frame, "index", None), "names", ()) if name is not None]
    levels = [name for name in named if name not in getattr(frame, "columns", named)]
    return frame.reset_index(level=levels) if levels else frame


def _values(series: Any) -> list[Any]:
    """Return a column as Python's values."""
    values: list[Any] = series.to_list()
    if series.dtype.is_nested() or series.dtype == nw.Object:
        return [value.tolist() if type(value).__module__ == "numpy" else value for value in values]
    return values


def _backend(given: Data) -> Any:
    """Return the library that a data frame is of; pandas for anything else."""
    if given is None or isinstance(given, (str, Path, list, tuple)):
        return "pandas"
    name = str(nw.get_native_namespace(given).__name__)
    return name if name in ("pandas", "polars", "pyarrow", "modin", "cudf") else "pandas"


def _moment(ms: int) -> dt.datetime | None:
    try:
        return dt.datetime.fromtimestamp(0, dt.UTC) + dt.timedelta(milliseconds=ms)
    except OverflowError:  # no calendar has such a time
        return None


def _kafka(pipeline: Pipeline, used: Sequence[Any], settings: Mapping[str, Any]) -> KafkaSource:
    from tidemill import settings as settings_
    from tidemill.runtime import run as running

    return KafkaSource(running.connected(pipeline, settings_.load(**settings), *used))


def _fill(pipeline: Pipeline, source: Any, writer: Any, *, recompute: bool) -> Summary:
    from tidemill.offline.dataset import served
    from tidemill.offline.recompute import recompute as recompute_vectors

    if isinstance(source, RowSource) or recompute:
        recompute_vectors(pipeline, source, writer)
    else:
        served(pipeline, source, writer)
    summary: Summary = writer.summary
    return summary
