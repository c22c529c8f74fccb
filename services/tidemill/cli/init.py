"""`tidemill init`: a project of one's own data."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from tidemill.cli.shared import progress, with_settings
from tidemill.errors import SettingsError

#: Columns of a terminal that notes are broken for, at least.
MIN_WIDTH = 20
_FILE = click.Path(path_type=Path)

#: The options that say what is else told from the data, or asked.
CHOICES = {
    "id": ("COLUMN", "The column that names an event; `none`: its row's number does."),
    "label-id": ("COLUMN", "The column of the labels that names the event, where it is called otherwise there."),
    "time": ("COLUMN", "The column with an event's time; `none`: rows come in order, one a minute."),
    "time-unit": ("UNIT", "What a time counts: seconds, millis, micros or nanos since 1970."),
    "time-format": ("FORMAT", "How a time is written, as '%d/%m/%Y %H:%M'."),
    "entity": ("COLUMN", "The column that features of the past are kept of, as a customer; `none`."),
    "label": ("COLUMN", "The column to predict; `none`: what is unusual is looked for."),
    "label-time": ("COLUMN", "The column with the time at which a label is known; `none`."),
    "label-delay": ("DURATION", "How long after its event a label is known, as 2h."),
    "task": ("TASK", "binary, multiclass, regression or anomaly."),
    "positive": ("VALUE", "The label's value that is true, of a binary task."),
}


def _with_choices(command: Any) -> Any:
    for name, (metavar, text) in reversed(CHOICES.items()):
        command = click.option(f"--{name}", name.replace("-", "_"), default="", metavar=metavar, help=text)(command)
    return command


@click.command()
@click.argument("folder", metavar="NAME", type=_FILE)
@click.option(
    "--from", "events_path", type=_FILE, help="Events: CSV, JSON or Parquet, also packed. Labels may be in it."
)
@click.option("--labels", "labels_path", type=_FILE, help="Labels, where they are in a file of their own.")
@click.option(
    "--from-topic", "topic", metavar="TOPIC", help="Events from the newest records of a topic, in JSON or Avro."
)
@click.option("--labels-topic", "labels_topic", metavar="TOPIC", help="Labels from a topic of their own.")
@click.option(
    "--records", default=10_000, show_default=True, type=click.IntRange(1), help="Records to read of a topic."
)
@_with_choices
@click.option("--yes", is_flag=True, help="Ask nothing: what can't be told from the data ends in an error.")
@with_settings("brokers", "registry_url")
def init(
    folder: Path,
    events_path: Path | None,
    labels_path: Path | None,
    topic: str | None,
    labels_topic: str | None,
    records: int,
    *,
    yes: bool,
    brokers: str | None,
    registry_url: str | None,
    **choices: str,
) -> None:
    """Make a pipeline of your own data, in a new folder.

    It looks at the data, asks what it can't know, and writes a declaration with comments, schemas, the data as events
    and labels, a test, a README and a docker-compose.yml. What it writes passes `tidemill check` and can be backtested
    at once. Without data it writes an example that runs.
    """
    from tidemill.offline import scaffold

    if topic and (events_path or labels_path):
        raise SettingsError("--from-topic replaces --from and --labels: name the one, or the others")
    if labels_path and not events_path:
        raise SettingsError("--labels goes with --from: name both, or --from alone")
    if labels_topic and not topic:
        raise SettingsError("--labels-topic goes with --from-topic: name both")
    ask = None if yes or not (sys.stdin.isatty() and sys.stdout.isatty()) else _ask
    options = scaffold.Options(**choices)
    if topic:
        from tidemill import settings
        from tidemill.runtime.run import broker_of

        chosen = settings.load(brokers=brokers, registry_url=registry_url)
        broker = broker_of(chosen)
        broker.connect()
        url = chosen.registry_url.get_secret_value()
        sources = [scaffold.of_topic(broker, name, records, url) for name in (topic, labels_topic) if name]
    else:
        sources = [scaffold.of_file(path) for path in (events_path, labels_path) if path]
    made = scaffold.make(folder, sources, options, ask, lambda: progress("checking", None))
    for note in made.notes:
        click.echo(_fitted(f"- {note}"))
    click.echo(_made(folder, made))


def _fitted(note: str) -> str:
    """Return a note for the terminal, if it is one: broken between words."""
    if not sys.stdout.isatty():
        return note
    width = max(MIN_WIDTH, shutil.get_terminal_size().columns)
    return textwrap.fill(note, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _ask(question: str, choices: Sequence[str]) -> str:
    validated: Callable[[str], str] | None = None
    answer: str = click.prompt(question, type=click.Choice(list(choices)) if choices else str, value_proc=validated)
    return answer


def _made(folder: Path, made: Any) -> str:
    data = f"--events data/events.{made.suffix} --labels data/labels.{made.suffix}"
    what = f"{'an' if made.task == 'anomaly' else 'a'} {made.task} pipeline"
    return (
        f"{folder}: {what} of {made.rows:,} events, with {len(made.labels[0].values):,} labels. Next:\n"
        f"  cd {folder}\n"
        f"  tidemill backtest pipeline.py {data}\n"
        f"  README.md has the rest"
    )
