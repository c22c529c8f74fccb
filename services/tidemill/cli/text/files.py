"""What files of history hold."""

from __future__ import annotations

from tidemill.cli.text.shared import format_value, minute, new_table, render
from tidemill.offline.file_check import FilesReport, StreamFiles, delays_text


def files_text(report: FilesReport) -> str:
    """Return what the files hold; first what to know before anything runs on them."""
    text = "".join(f"WARNING: {warning}\n" for warning in report.warnings)
    text += f"pipeline {report.pipeline}: the declaration is right\n"
    for files in report.streams:
        text += f"\n{_head(files)}\n" + _columns(files)
    if report.delays is not None and report.delays.quantiles:
        text += (
            f"\nlabels come after their events: {delays_text(report.delays)}; label_timeout is {report.label_timeout}\n"
        )
    if report.tables:
        table = new_table("table", "by", "values", "in the table", "events", "in the table", numbers=4)
        for match in report.tables:
            counts = (match.values, match.matched, match.events, match.matched_events)
            table.add_row(match.table, match.by, *(f"{count:,}" for count in counts))
        text += "\n" + render(table)
    return text


def _head(files: StreamFiles) -> str:
    if files.error:
        return f"{files.stream} {files.file}\n{files.rows:,} rows"
    span = ""
    if files.first is not None and files.last is not None:
        span = f", from {minute(files.first)} to {minute(files.last)} UTC"
    return f"{files.stream} {files.file}\n{files.rows:,} rows, {files.valid:,} valid{span}, times in {files.unit}"


def _columns(files: StreamFiles) -> str:
    table = new_table("column", "schema", "holds", "missing", "values", "note")
    table.columns[3].justify = "right"
    for column in files.columns:
        table.add_row(
            format_value(column.name),
            column.type,
            column.holds,
            f"{column.missing:,}",
            format_value(column.values),
            column.note,
        )
    return render(table)
