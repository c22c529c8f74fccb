"""The pictures of a report, as SVG that a page holds in itself; drawn by matplotlib."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import dates
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tidemill.declare.monitor import LIMITS
from tidemill.durations import moment
from tidemill.report.recording import Answered, Importance, Recording
from tidemill.watch.monitor.core import EXAMPLES, PREDICTIONS, ClosedWindow
from tidemill.watch.monitor.figures import FigureKey
from tidemill.watch.monitor.performance import CALIBRATION_BINS, WindowMetrics
from tidemill.wire.dead_letters import shorten

#: Told apart in grey as well, for a page that is printed: each series has a line of its own kind.
COLOURS = ("#0b6a87", "#c2571a", "#7a4fc0", "#3b7d23", "#b8327f", "#8a6d00")
DASHES = ("-", "--", "-.", ":", (0, (6, 2, 1, 2, 1, 2)), (0, (1, 3)))
BASELINE_COLOUR = "#6b7785"
WIDTH_INCHES = 8.0
#: Units of a time axis, in seconds, the largest first.
UNITS = (("days", 86_400), ("hours", 3_600), ("minutes", 60), ("seconds", 1), ("milliseconds", 0.001))
DAY_MS = 86_400_000
#: Between these a calendar has a time, in ms since the epoch.
FIRST, LAST = moment("0002-01-01"), moment("9998-01-01")
#: Models, each with a look of its own, values of a segment, and features that one picture has room for; and letters of
#: a name.
MAX_MODELS, MAX_SEGMENT_LINES, MAX_FEATURES, MAX_LETTERS = len(COLOURS), 6, 40, 40

STYLE = {
    "font.family": "sans-serif",
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a97a5",
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e2e7ec",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "tidemill",
}


def svg(figure: Figure) -> str:
    """Return the picture as an SVG document; of the same data it is the same text."""
    out = io.StringIO()
    figure.savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    return out.getvalue()


def pictures(recording: Recording) -> dict[str, str]:
    """Return every picture that the recording has data for, by name."""
    with mpl.rc_context(STYLE):
        drawn = {
            "performance": performance(recording),
            "segments": segments(recording),
            "calibration": calibration(recording),
            "scores": scores(recording),
            "delays": delays(recording),
            "drift": drift(recording),
            "importance": importance(recording.importance),
        }
        return {name: svg(figure) for name, figure in drawn.items() if figure is not None}


def shown_models(recording: Recording) -> list[str]:
    """Return the models that pictures show, as declared: the serving one and the best, and the baseline beside them."""
    values, name = recording.backtest.metrics, recording.backtest.main_metric
    sign = -1 if WindowMetrics(recording.pipeline).bigger_is_better.get(name) else 1
    others = [model for model in recording.pipeline.model_names if model != "baseline"]

    def rank(model: str) -> tuple[bool, bool, float]:
        value = values.get(model, {}).get(name)
        return model != recording.serving, value is None, sign * (value or 0.0)

    best = {*sorted(others, key=rank)[:MAX_MODELS], "baseline"}
    return [model for model in recording.pipeline.model_names if model in best]


def _label(name: str) -> str:
    """Return a name as a legend and an axis have room for it; one with _ in front would be left out of legends."""
    short = shorten(name, MAX_LETTERS)
    return f"\u200b{short}" if short.startswith("_") else short


def _panels(count: int, columns: int, height: float) -> tuple[Figure, list[Axes]]:
    columns = max(1, min(count, columns))
    rows = -(-count // columns)
    figure = Figure(figsize=(WIDTH_INCHES, height * rows), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel().tolist()
    for unused in axes[count:]:
        unused.set_visible(False)
    return figure, axes[:count]


def _look(names: Sequence[str], name: str) -> dict[str, Any]:
    """Return how a series is drawn: the baseline in grey, the others each in a colour and a line of its own."""
    if name == "baseline":
        return {"color": BASELINE_COLOUR, "linestyle": ":"}
    place = [one for one in names if one != "baseline"].index(name)
    return {"color": COLOURS[place % len(COLOURS)], "linestyle": DASHES[place % len(DASHES)]}


def _times(windows: Sequence[ClosedWindow]) -> list[float]:
    """Return when the windows start, in days since the epoch, as matplotlib has times."""
    return [w.window.start / DAY_MS for w in windows]


def _by_time(axes: Axes, windows: Sequence[ClosedWindow]) -> None:
    first, last = _times([windows[0], windows[-1]])
    margin = max(last - first, (windows[0].window.end - windows[0].window.start) / DAY_MS) * 0.02
    axes.set_xlim(first - margin, last + margin)
    axes.xaxis_date()
    locator = dates.AutoDateLocator(minticks=3, maxticks=9)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator))


def _of(recording: Recording, source: str) -> list[ClosedWindow]:
    """Return the windows of a source that have rows, and times that a calendar has."""
    windows = (w for w in recording.windows if w.source == source and w.rows)
    return sorted((w for w in windows if FIRST <= w.window.start < LAST), key=lambda w: w.window.start)


def _line(axes: Axes, windows: Sequence[ClosedWindow], key: FigureKey, label: str, look: Mapping[str, Any]) -> None:
    values = [window.figures.get(key, np.nan) for window in windows]
    if not np.isnan(values).all():
        marker = "o" if np.count_nonzero(~np.isnan(values)) < 3 else ""
        axes.plot(_times(windows), values, label=_label(label), marker=marker, markersize=3, **look)


def performance(recording: Recording) -> Figure | None:
    """Each metric by window and model."""
    windows, models = _of(recording, EXAMPLES), shown_models(recording)
    names = recording.backtest.metric_names
    if not windows or not names:
        return None
    figure, panels = _panels(len(names), 1, 1.75)
    for axes, name in zip(panels, names, strict=True):
        for model in models:
            _line(axes, windows, FigureKey(name, model), model, _look(models, model))
        axes.set_title(name)
        _by_time(axes, windows)
    if panels[0].get_legend_handles_labels()[1]:
        panels[0].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def segments(recording: Recording) -> Figure | None:
    """The main metric of the serving model, by window, in the largest values of each segment.

    A window measures a value from `Monitor(least=...)` rows on; a segment without such values has no panel.
    """
    windows, name, model = _of(recording, EXAMPLES), recording.backtest.main_metric, recording.serving
    measured = {key for window in windows for key in window.figures if key.name == name and key.model == model}
    by_feature: dict[str, dict[str, FigureKey]] = {}
    for line in recording.segments.get(model, ()):
        key = FigureKey(name, model, segment=f"{line['feature']}={line['value']}")
        values = by_feature.setdefault(line["feature"], {})
        if key in measured and len(values) < MAX_SEGMENT_LINES:
            values[line["value"]] = key
    shown = {feature: values for feature, values in by_feature.items() if values}
    if not shown:
        return None
    figure, panels = _panels(len(shown), 1, 1.9)
    for axes, (feature, values) in zip(panels, shown.items(), strict=True):
        for value, key in values.items():
            _line(axes, windows, key, value, _look(list(values), value))
        axes.set_title(_label(f"{name} of {model} by {feature}"))
        _by_time(axes, windows)
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _shown_answers(recording: Recording) -> dict[str, Answered]:
    return {model: recording.answered[model] for model in shown_models(recording) if model in recording.answered}


def _bins(score: Any, hit: Any) -> tuple[Any, Any]:
    """Return mean score and mean outcome of CALIBRATION_BINS equally large groups, by the score."""
    order = np.argsort(score, kind="stable")
    groups = [group for group in np.array_split(order, CALIBRATION_BINS) if len(group)]
    return np.array([score[group].mean() for group in groups]), np.array([hit[group].mean() for group in groups])


def calibration(recording: Recording) -> Figure | None:
    """What came true, by what was predicted; nothing for anomaly scores, which are no probabilities."""
    task, answered = recording.pipeline.task, _shown_answers(recording)
    if task == "anomaly" or not answered:
        return None
    figure, (axes,) = _panels(1, 1, 3.2)
    figure.set_size_inches(4.4, 3.4)
    models = list(answered)
    for model, one in answered.items():
        predicted, came = _bins(one.score, one.hit)
        axes.plot(predicted, came, label=_label(model), marker="o", markersize=3, **_look(models, model))
    low, high = axes.get_xlim() if task == "regression" else (0.0, 1.0)
    axes.plot([low, high], [low, high], color="#c9d1d9", linewidth=0.9, zorder=0)
    axes.set_xlabel({"regression": "predicted", "multiclass": "probability of the likeliest class"}.get(task, "score"))
    axes.set_ylabel({"regression": "label", "multiclass": "share that was right"}.get(task, "share of true labels"))
    axes.legend(loc="upper left")
    return figure


def scores(recording: Recording) -> Figure | None:
    """How the scores lie, by label; of a regression, how far they are off."""
    task, answered = recording.pipeline.task, _shown_answers(recording)
    if not answered:
        return None
    figure, panels = _panels(len(answered), 3, 1.9)
    for axes, (model, one) in zip(panels, answered.items(), strict=True):
        if task == "regression":
            errors = one.score - one.hit
            low, high = np.quantile(errors, (0.005, 0.995))
            if low == high:
                low, high = low - 1, high + 1
            axes.hist(errors, bins=40, range=(low, high), color=COLOURS[0])
            axes.axvline(0.0, color="#17212b", linewidth=0.8)
            axes.set_xlabel("predicted less label")
        else:
            names = ("wrong", "right") if task == "multiclass" else ("false", "true")
            low, high = (0.0, 1.0) if task != "anomaly" else (float(one.score.min()), float(one.score.max()) + 1e-9)
            for value, colour, label in ((0.0, BASELINE_COLOUR, names[0]), (1.0, COLOURS[1], names[1])):
                axes.hist(
                    one.score[one.hit == value], bins=30, range=(low, high), color=colour, alpha=0.65, label=label
                )
            axes.set_xlabel("score")
            axes.legend()
        axes.set_title(_label(model))
        axes.set_ylabel("examples")
    return figure


def delays(recording: Recording) -> Figure | None:
    """How long labels took, as the share that had come."""
    values = np.sort(np.maximum(recording.delays, 0.0))
    if not len(values) or values[-1] == 0.0:
        return None
    timeout = recording.pipeline.label_timeout_ms / 1000
    is_near = timeout <= 20 * values[-1]  # else all labels would be one line at 0
    longest = max(values[-1], timeout) if is_near else values[-1]
    unit, size = next(((name, size) for name, size in UNITS if size <= longest / 3), UNITS[-1])
    figure, (axes,) = _panels(1, 1, 2.2)
    figure.set_size_inches(4.4, 2.4)
    axes.plot(values / size, np.arange(1, len(values) + 1) / len(values), color=COLOURS[0])
    if is_near:
        label = f"label_timeout {recording.pipeline.label_timeout}"
        axes.axvline(timeout / size, color=COLOURS[1], linestyle="--", label=label)
        axes.legend(loc="lower right")
    axes.set_xlabel(f"{unit} from event to label")
    axes.set_ylabel("labels that had come")
    axes.set_ylim(0, 1.02)
    axes.set_xlim(left=0, right=1.05 * longest / size)
    return figure


def drift(recording: Recording) -> Figure | None:
    """How far each feature, the scores and the labels were from the reference, by window, in parts of their limits."""
    windows = _of(recording, PREDICTIONS)
    labelled = {w.window.start: w for w in _of(recording, EXAMPLES)}
    keys = {name: FigureKey("psi", feature=name) for name in recording.pipeline.vector}
    models = [name for name in recording.pipeline.model_names if name != "baseline"]
    keys |= {f"score of {model}": FigureKey("score_psi", model) for model in models}
    table = {name: [_of_limit(recording, w, key) for w in windows] for name, key in keys.items()}
    label = FigureKey("label_psi")
    table["label"] = [_of_limit(recording, labelled.get(w.window.start), label) for w in windows]
    rows = {name: values for name, values in table.items() if not np.isnan(values).all()}
    if not rows:
        return None
    if len(rows) > MAX_FEATURES:  # those that moved most
        most = sorted(rows, key=lambda name: -np.nanmax(rows[name]))[:MAX_FEATURES]
        rows = {name: values for name, values in rows.items() if name in most}
    figure, (axes,) = _panels(1, 1, 0.6 + 0.17 * len(rows))
    times = _times(windows)
    length = (windows[0].window.end - windows[0].window.start) / DAY_MS
    mesh = axes.pcolormesh(
        np.append(times, times[-1] + length),
        np.arange(len(rows) + 1),
        np.array(list(rows.values())),
        cmap="YlOrRd",
        vmin=0.0,
        vmax=2.0,
    )
    axes.set_yticks(np.arange(len(rows)) + 0.5, [_label(name) for name in rows])
    axes.invert_yaxis()
    axes.grid(visible=False)
    _by_time(axes, windows)
    figure.colorbar(mesh, ax=axes, extend="max", label="parts of the limit", pad=0.01)
    return figure


def _of_limit(recording: Recording, window: ClosedWindow | None, key: FigureKey) -> float:
    """Return a window's distance from the reference, as a part of the one that may open an alert."""
    if window is None or key not in window.figures:
        return float("nan")
    declared = recording.pipeline.monitor.limit(key.name, key.feature) or LIMITS[key.name]
    return window.figures[key] / window.figures.get(key._replace(name=f"{key.name}_limit"), declared)


def importance(measured: Sequence[Importance]) -> Figure | None:
    """By how much the loss grows where a feature is mixed up."""
    shown = measured[:MAX_FEATURES]
    if not shown:
        return None
    figure, (axes,) = _panels(1, 1, 0.5 + 0.17 * len(shown))
    figure.set_size_inches(6.0, 0.6 + 0.17 * len(shown))
    places = np.arange(len(shown))
    axes.barh(
        places,
        [one.increase for one in shown],
        xerr=[2 * one.error for one in shown],
        color=COLOURS[0],
        error_kw={"elinewidth": 0.8, "ecolor": "#55626f"},
        height=0.7,
    )
    axes.set_yticks(places, [_label(one.feature) for one in shown])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("increase of the loss")
    return figure
