"""A backtest, a data set, and an entity's features."""

from __future__ import annotations

import datetime as dt
import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tidemill.cli.text.shared import WIDTH, minute, new_table, printable, render

if TYPE_CHECKING:
    from tidemill.features.store import Known
    from tidemill.offline.backtest import BacktestReport
    from tidemill.offline.dataset import Summary


def known_text(known: Sequence[Known]) -> str:
    """Return the features of one entity, view by view."""
    table = new_table("feature", "value", "view", "as of", "latest event", "age", numbers=0)
    for view in known:
        for name, value in view.features.items():
            table.add_row(
                name,
                "missing" if value is None else f"{value:g}" if isinstance(value, float) else str(value),
                view.view if view.whole else f"{view.view} (incomplete)",
                "" if view.at is None else minute(view.at),
                "never" if view.event_time is None else minute(view.event_time),
                "" if view.age_seconds is None else f"{dt.timedelta(seconds=round(view.age_seconds))}",
            )
    return render(table)


def backtest_text(report: BacktestReport) -> str:
    """Return a backtest's report."""
    names, main = report.metric_names, report.main_metric
    final = new_table("model", *names, numbers=len(names))
    for model, values in report.metrics.items():
        shown = f"{model} (champion)" if model == report.champion else model
        final.add_row(shown, *(f"{values[name]:z.6f}" if name in values else "" for name in names))
    steps = report.over_time[:: max(1, len(report.over_time) // 12)]
    if report.over_time and steps[-1] is not report.over_time[-1]:
        steps.append(report.over_time[-1])
    course = new_table("event time", "examples", *report.metrics, numbers=len(report.metrics) + 1)
    for row in steps:
        course_values = [row["metrics"][m].get(main) for m in report.metrics]
        course.add_row(
            minute(row["time"]), f"{row['examples']:,}", *("" if v is None else f"{v:z.4f}" for v in course_values)
        )
    dead = ", ".join(f"{reason} {n:,}" for reason, n in sorted(report.dead_letters.items())) or "none"
    no_records = report.events - report.valid - sum(report.refused.values())
    head = (
        f"pipeline {report.pipeline}: {report.task}, {report.events:,} events from {minute(report.first_event)} "
        f"to {minute(report.last_event)} UTC, {report.labels:,} labels\n"
        f"predictions {report.predictions:,} = joined {report.joined:,} + expired {report.expired:,} "
        f"+ pending {report.pending:,}\n"
        + (
            f"corrections of labels {report.corrections:,}: {report.corrected:,} examples have another label in the "
            f"figures than was learned\n"
            if report.corrections
            else ""
        )
        + (f"not learned, for their source had its share: {report.over_share:,}\n" if report.over_share else "")
        + (f"passed over, for they are no records (deletes, tombstones): {no_records:,}\n" if no_records else "")
        + (f"note: {report.note}\n" if report.note else "")
        + f"dead letters: {dead}\n"
        + "".join(f"  {reason}, the first: {printable(why)}\n" for reason, why in sorted(report.first_letters.items()))
        + "".join(
            f"warned of {count:,} {name}, the first: {printable(report.first_warnings[name])}\n"
            for name, count in sorted(report.warned.items())
        )
        + f"{report.seconds:.1f} s, {report.events_per_second:,.0f} events/s\n"
    )
    failed = "".join(
        f"learn_one of {model} raised on {n:,} examples, first {printable(report.learn_errors[model])}\n"
        for model, n in sorted(report.learn_failed.items())
    )
    warned = "".join(f"WARNING: {text}\n" for text in report.warnings)
    if not names:
        return f"{warned}{head}{failed}no model has been judged: there are no figures\n"
    return f"{warned}{head}{failed}\n" + render(final, f"\n{main} so far", course)


def backtest_plot(report: BacktestReport) -> str:
    """Return the main metric so far of each model over event time, drawn in characters."""
    import plotext

    main = report.main_metric
    if not main or len(report.over_time) < 2:
        return "too little time for a plot: choose a shorter --every\n"
    plotext.clear_figure()
    plotext.theme("clear")
    markers = ("hd",) if sys.stdout.isatty() else ("*", "+", "x", "o", "#", "@")  # without colours, by their sign
    plotext.plot_size(min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns), 18)
    for number, model in enumerate(report.metrics):
        rows = [row for row in report.over_time if main in row["metrics"][model]]
        if rows:
            times, values = [row["time"] / 1000 for row in rows], [row["metrics"][model][main] for row in rows]
            plotext.plot(times, values, label=model, marker=markers[number % len(markers)])
    first, last = report.over_time[0]["time"], report.over_time[-1]["time"]
    ticks = [first + (last - first) * part // 4 for part in range(5)]
    plotext.xticks([tick / 1000 for tick in ticks], [minute(tick) for tick in ticks])
    plotext.title(f"{main} so far")
    return f"\n{plotext.build() if sys.stdout.isatty() else plotext.uncolorize(plotext.build())}\n"


def dataset_text(summary: Summary) -> str:
    """Return what a data set holds."""
    if summary.label_mean is None:
        labels = ", ".join(f"{label} {n:,}" for label, n in summary.labels.items())
    elif summary.labels:
        labels = f"{summary.labels.get('true', 0):,} true ({summary.label_mean:.2%})"
    else:
        labels = f"mean {summary.label_mean:.6g}"
    left = [
        (summary.partial, "with windows that reach back before what is known (partial)"),
        (summary.stale, "with views that could not be read when they were served (stale)"),
        (summary.corrected, "with a label that was corrected"),
        (summary.skipped, "records of an earlier declaration were skipped"),
        *((n, f"records were refused: {reason}") for reason, n in sorted(summary.dead_letters.items())),
    ]
    return (
        "".join(f"WARNING: {text}\n" for text in summary.warnings) + f"{summary.file}: {summary.rows:,} rows, "
        f"events from {minute(summary.first_event)} to {minute(summary.last_event)} UTC\n"
        f"labels: {labels}\n"
        + "".join(f"{n:,} {what}\n" for n, what in left if n)
        + f"{summary.seconds:.1f} s, {summary.rows / max(summary.seconds, 1e-9):,.0f} rows/s\n"
    )
