"""`tidemill send` and `tidemill tail`: messages in, and records out, from a terminal."""

from __future__ import annotations

import json
import os
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

import tidemill
from tidemill import settings
from tidemill.cli.shared import AS_JSON_LINES, PIPELINE, SHOW_PERSONAL, connected, progress, with_settings
from tidemill.errors import SettingsError
from tidemill.wire import topics

#: Exit codes of `send`: something was refused; of something nothing was heard in time.
REFUSED_CODE, UNKNOWN_CODE = 1, 3
#: Of more messages than this only those that were refused, or are unknown, have a line.
MAX_LINES = 50


@click.command()
@PIPELINE
@click.argument("what", type=click.Choice(["events", "labels"]))
@click.argument("file", required=False, type=click.Path(path_type=Path, allow_dash=True))
@click.option("--json", "texts", multiple=True, metavar="JSON", help="Send this record; may be repeated.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=10.0,
    show_default=True,
    help="Wait for what becomes of them, in seconds; 0 does not wait.",
)
@click.option("--json-lines", "as_json", is_flag=True, help="Print JSON lines.")
@with_settings("brokers")
def send(
    pipeline: str,
    what: Any,
    file: Path | None,
    texts: tuple[str, ...],
    timeout: float,
    *,
    as_json: bool,
    **options: Any,
) -> None:
    """Send events or labels, and print what becomes of each.

    FILE is CSV, JSON, JSON lines or Parquet, or - for standard input. A row of JSON is sent as it stands, any other as
    Avro. The exit code is 0 if all were predicted, joined or corrections, 1 if one became a dead letter or was not
    taken by the broker, 3 if of one nothing was heard in time.
    """
    from tidemill.cli.text.records import outcome_line, outcomes_line
    from tidemill.offline.send import NOT_SENT, REFUSED, UNKNOWN, Sending, messages_of

    if file is None and not texts:
        file = Path("-")
    declared, chosen = tidemill.load(pipeline), settings.load(**options)
    stdin = sys.stdin.buffer.read() if str(file) == "-" else b""
    messages = messages_of(declared, what, file, texts, stdin)
    if not messages:
        raise SettingsError(
            f"{'standard input' if str(file) == '-' else file or '--json'} has no {what}: nothing is sent"
        )
    used = (topics.EVENTS, topics.PREDICTIONS) if what == "events" else (topics.LABELS, topics.EXAMPLES)
    shown = (REFUSED, UNKNOWN, NOT_SENT)
    sending = Sending(declared, connected(declared, chosen, *used, topics.DLQ), what)
    with progress("outcomes", len(messages)) if len(messages) > MAX_LINES else nullcontext() as advance:
        for outcome in sending.run(messages, timeout):
            if as_json:
                click.echo(json.dumps(outcome.as_dict(), default=str))
            elif (len(messages) <= MAX_LINES or outcome.state in shown) and (timeout or outcome.state == NOT_SENT):
                click.echo(outcome_line(outcome, declared.name))
            if advance:
                advance(1)
    if not as_json:
        click.echo(outcomes_line(sending.outcomes, what, waited=timeout > 0))
    states = {outcome.state for outcome in sending.outcomes}
    if states & {REFUSED, NOT_SENT}:
        sys.exit(REFUSED_CODE)
    sys.exit(UNKNOWN_CODE if UNKNOWN in states and timeout else 0)


@click.command()
@PIPELINE
@click.argument("what", type=click.Choice(["predictions", "examples", "dlq", "alerts", "decisions"]))
@click.option("--from-start", is_flag=True, help="From the oldest record on; by default from now on.")
@click.option("--where", "texts", multiple=True, metavar="FIELD=VALUE", help="Only these; may be repeated.")
@click.option("-n", "--count", type=click.IntRange(min=1), help="End after so many records.")
@SHOW_PERSONAL
@AS_JSON_LINES
@with_settings("brokers")
def tail(
    pipeline: str,
    what: str,
    texts: tuple[str, ...],
    count: int | None,
    *,
    from_start: bool,
    show_personal: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Print predictions, dead letters or alerts as they come.

    Also examples and decisions. It ends by Ctrl-C. Headings go to standard error: what is piped or written to a file is
    records alone, one a line.
    """
    from tidemill.cli.text.records import RecordTable
    from tidemill.offline.tail import FOLLOWED, Where, rows

    where, declared, chosen = Where(texts), tidemill.load(pipeline), settings.load(**options)
    broker = connected(declared, chosen, FOLLOWED[what])
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    table, has_headings = RecordTable(what, declared.entity, width), as_json
    try:
        for row in rows(
            declared, broker, what, where, from_start=from_start, count=count, shows_personal=show_personal
        ):
            if row is None:
                click.echo("a record that is none of this topic's", err=True)
                continue
            line = json.dumps(row, default=str) if as_json else table.line(row)
            if not has_headings:
                click.echo(table.headings(), err=True)
                has_headings = True
            click.echo(line)
            sys.stdout.flush()
    except BrokenPipeError:  # as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
