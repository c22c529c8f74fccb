"""Shared by the commands: the argument PIPELINE, options for settings, reports, the broker, progress."""

from __future__ import annotations

import contextlib
import functools
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tidemill.durations import moment
from tidemill.errors import SettingsError, printable

if TYPE_CHECKING:
    from tidemill import settings
    from tidemill.declare.pipeline import Pipeline
    from tidemill.keys import Keyring
    from tidemill.stream.kafka.broker import KafkaBroker
    from tidemill.stream.topic import Topic

PIPELINE = click.argument("pipeline")
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
AS_JSON_LINES = click.option("--json", "as_json", is_flag=True, help="Print JSON lines.")

#: A progress bar is drawn at most so often.
DRAW_SECONDS = 0.1


def with_settings(*names: str) -> Callable[[Any], Any]:
    """Add an option for each of these settings; unset ones are left to TIDEMILL_*, `.env` and the defaults."""

    from tidemill import settings  # pydantic takes 0.1 s: only commands with settings wait for it

    def decorate(command: Any) -> Any:
        for name in reversed(names):
            field = settings.Settings.model_fields[name]
            default = f"; default: {text}" if (text := settings.default_text(name)) else ""
            text = f"{field.description} [TIDEMILL_{name.upper()}{default}]"
            command = click.option(f"--{name.replace('_', '-')}", name, default=None, help=text)(command)
        return command

    return decorate


def SHOW_PERSONAL(command: Any) -> Any:  # noqa: N802  an option like the others
    """Add --show-personal; that it was given is written to the access log before anything is shown."""

    @functools.wraps(command)
    def run(*arguments: Any, show_personal: bool, **more: Any) -> Any:
        if show_personal:
            _note_access(more)
        return command(*arguments, show_personal=show_personal, **more)

    text = "Show the fields that are declared personal; it is written to the access log."
    return click.option("--show-personal", is_flag=True, help=text)(run)


def _note_access(options: dict[str, Any]) -> None:
    """Write who asks for which personal fields. Raises BrokerError where it can't; then nothing is shown."""
    import getpass
    import secrets
    import socket

    import tidemill
    from tidemill import settings
    from tidemill.stream.kafka.producer import Sender
    from tidemill.wire import topics
    from tidemill.wire.access_log import access_record
    from tidemill.wire.personal import Mask
    from tidemill.wire.records import Records

    declared, chosen = tidemill.load(options["pipeline"]), settings.load(brokers=options.get("brokers"))
    if not chosen.access_log or not Mask(declared).is_on:
        return
    context = click.get_current_context()
    given = {
        name: value for name, value in context.params.items() if name in options and value not in (None, (), False)
    }
    own = {"pipeline", *settings.Settings.model_fields}
    by = getpass.getuser()
    access = {
        "time": int(time.time() * 1000),
        "request_id": secrets.token_hex(8),
        "by": by,
        "role": "",
        "method": "--show-personal",
        "route": context.command_path,
        "subject": " ".join(f"{name}={value}" for name, value in given.items() if name not in own),
        "status": 200,
    }
    broker = connected(declared, chosen, topics.ACCESS)
    sender = Sender(broker.servers, broker.common)
    record = access_record(Records(declared).access, access, "cli", socket.gethostname())
    sender.send(topics.ACCESS.name(declared), record, by.encode())
    sender.flush()


def keys_to_verify(chosen: settings.Settings) -> Keyring | None:
    """Return the public keys; None where the default file of them does not exist: then nothing is verified."""
    from tidemill.keys import Keyring

    is_default = "verify_keys" not in chosen.model_fields_set
    return None if is_default and not Path(chosen.verify_keys).exists() else Keyring(chosen.verify_keys)


def with_source(
    *, kafka: bool = True, archive: bool = True, required: bool = False, may_lack_labels: bool = False
) -> Callable[[Any], Any]:
    """Add --events, --labels and --archive. The command is called with the `source` that they name; None is Kafka.

    Parameters
    ----------
    kafka
        Whether the command can read Kafka, which the options replace.
    archive
        Whether it can read an archive.
    required
        Whether the files must be named.
    may_lack_labels
        Whether --events may be given alone.
    """
    instead = " instead of Kafka" if kafka else ""
    file = click.Path(path_type=Path)
    options = [click.option("--archive", "archive_url", metavar="URL", help=f"Read an archive{instead}.")] * archive
    events_help, labels_help = (
        f"Read events from a file{instead}: CSV, JSON or Parquet, a folder of them, or a pattern as '*.csv'.",
        "Read labels from a file, a folder, or a pattern.",
    )
    options += [click.option("--events", "events_path", type=file, required=required, help=events_help)]
    options += [click.option("--labels", "labels_path", type=file, required=required, help=labels_help)]

    def decorate(command: Any) -> Any:
        @functools.wraps(command)
        def run(
            *arguments: Any,
            events_path: Path | None,
            labels_path: Path | None,
            archive_url: str | None = None,
            **more: Any,
        ) -> Any:
            source = None
            if (archive_url, events_path, labels_path) != (None, None, None):
                from tidemill.offline.source import source_of

                source = source_of(archive_url, events_path, labels_path, may_lack_labels=may_lack_labels)
            return command(*arguments, source=source, **more)

        for option in reversed(options):
            run = option(run)
        return run

    return decorate


def moment_of(option: str, text: str) -> int:
    """Return the time in an option's text, in ms. Raises SettingsError that names the option."""
    try:
        return moment(text)
    except ValueError as error:
        raise SettingsError(f"{option} {error}") from None


def print_report(report: Any, as_text: Callable[[Any], str], *, as_json: bool) -> None:
    """Print a report, or a list of reports: as JSON from `as_dict`, else the text that `as_text` returns."""
    if not as_json:
        click.echo(printable(as_text(report), keeps="\n"), nl=False)
        return
    data = [one.as_dict() for one in report] if isinstance(report, list) else report.as_dict()
    click.echo(json.dumps(data, indent=2, default=str))


def connected(pipeline: Pipeline, chosen: settings.Settings, *used: Topic) -> KafkaBroker:
    """Return the broker. Raises BrokerError where it can't be reached, or lacks one of these topics."""
    from tidemill.runtime import run as running

    return running.connected(pipeline, chosen, *used)


@contextlib.contextmanager
def progress(what: str, total: int | None) -> Iterator[Callable[[int], None] | None]:
    """Show a progress bar on a terminal's standard error; nothing where that is no terminal.

    `total` None: how many there will be is not known yet; `stream.api.expect` adds to it.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # It draws when it is told, without a thread of its own: a backtest forks.
    with Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=False) as bar:
        task, done, drawn = bar.add_task(what, total=total), 0, 0.0

        def advance(n: int) -> None:
            nonlocal done, drawn
            done += n
            if done // 100 != (done - n) // 100 or done == total:
                bar.update(task, completed=done)
                if (now := time.monotonic()) - drawn >= DRAW_SECONDS:
                    bar.refresh()
                    drawn = now

        def expect(count: int) -> None:
            nonlocal total
            total = count if total is None else total + count
            bar.update(task, total=total, refresh=True)

        advance.expect = expect  # type: ignore[attr-defined]
        yield advance
