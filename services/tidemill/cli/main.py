"""The command `tidemill`."""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import click

from tidemill import __version__, logs, settings
from tidemill.cli import champion  # noqa: F401  its commands are among those of `models`
from tidemill.cli.dead_letters import dlq
from tidemill.cli.features import features
from tidemill.cli.models import models
from tidemill.cli.replay import replay
from tidemill.cli.rules import rules
from tidemill.cli.schema import schema
from tidemill.cli.shared import PIPELINE, progress, with_settings
from tidemill.cli.tune import tune
from tidemill.declare.load import load
from tidemill.errors import SettingsError, TidemillError
from tidemill.wire.topics import SERVICES, WATCHING


def _fail(message: str) -> NoReturn:
    click.echo(f"tidemill: {message}", err=True)
    sys.exit(1)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="tidemill")
def cli() -> None:
    """Online machine learning on Kafka.

    PIPELINE is a file as flights.py, a module as package.flights (both with :name where it declares several), or one of
    the shipped: flights, plain, delays.
    """


for command in (dlq, features, models, replay, rules, schema, tune):
    cli.add_command(command)


@cli.command()
@PIPELINE
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(pipeline: str, *, as_json: bool) -> None:
    """Check a declaration and print what it will run: topics, vector, models."""
    from tidemill.cli import text as describe

    declared = load(pipeline)
    describe.check_models(declared)
    click.echo(json.dumps(describe.as_json(declared), indent=2) if as_json else describe.as_text(declared), nl=as_json)


@cli.command()
@click.argument("service", type=click.Choice((*SERVICES, *WATCHING)))
@PIPELINE
@click.option("--model", help="Learner: which model; the champion by default. One process a model.")
@with_settings(
    "brokers", "redis_url", "registry_url", "registry_seconds", "store_url", "delivery", "instance", "http_port",
    "interval_ms", "max_batch", "snapshot_seconds", "snapshot_examples", "archive_url", "archive_seconds", "fuse",
    "log_level",
)  # fmt: skip
def run(service: str, pipeline: str, model: str | None, **options: Any) -> None:
    """Run one service of a pipeline until SIGTERM or Ctrl-C."""
    from tidemill.runtime import run as running
    from tidemill.runtime import worker

    chosen = settings.load(**options)
    logs.setup(service if model is None else f"{service}-{model}", chosen.log_level)
    if model is not None and service != "learner":
        raise SettingsError(f"--model goes with the learner, not with the {service}")
    declared = load(pipeline)
    running.load(service)
    worker.become_worker()
    running.run(service, declared, chosen, model)


@cli.command()
@PIPELINE
@click.option("--create", is_flag=True, help="Create those that are missing.")
@with_settings("brokers", "replication")
def topics(pipeline: str, *, create: bool, **options: Any) -> None:
    """Print a pipeline's topics; with --create, make those that the broker lacks."""
    from tidemill.cli import text as describe
    from tidemill.runtime import run as running

    chosen, declared = settings.load(**options), load(pipeline)
    if not create:
        click.echo(describe.topics_text(declared), nl=False)
        return
    broker = running.broker_of(chosen)
    broker.connect()
    made = broker.create(running.topic_table(declared), chosen.replication)
    click.echo(f"created {', '.join(made)}" if made else "all topics are there")


@cli.command()
@PIPELINE
@click.option("--events", "events_path", type=click.Path(path_type=Path), help="CSV, JSON lines or Parquet.")
@click.option("--labels", "labels_path", type=click.Path(path_type=Path), help="CSV, JSON lines or Parquet.")
@click.option(
    "--archive", metavar="URL", help="Instead of both: vectors as they were served, and labels, from an archive."
)
@click.option(
    "--model-delay",
    default=None,
    metavar="DURATION",
    help="Time a learned label takes to reach the scorer, as 5m. Default: none.",
)
@click.option(
    "--every", default="1d", show_default=True, metavar="DURATION", help="Event time between rows of metrics."
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--predictions", type=click.Path(path_type=Path), help="Also write every prediction, as JSON lines.")
def backtest(pipeline: str, events_path: Path | None, labels_path: Path | None, archive: str | None, model_delay: str | None,
             every: str, *, as_json: bool, predictions: Path | None) -> None:  # fmt: skip
    """Run a pipeline over history in one process: what production would have done."""
    from tidemill.cli import text as describe
    from tidemill.durations import milliseconds
    from tidemill.offline import history
    from tidemill.offline.backtest import Backtest

    declared = load(pipeline)
    try:
        delay, step = milliseconds(model_delay) if model_delay else 0, milliseconds(every)
    except ValueError as error:
        raise SettingsError(f"--model-delay or --every: {error}") from None
    run = Backtest(declared, model_delay_ms=delay, checkpoint_every_ms=step)
    if archive is not None and events_path is None and labels_path is None:
        questions, outcomes = history.archived(declared, archive)
        total, begin = len(questions), partial(run.replay, questions, outcomes)
    elif archive is None and events_path is not None and labels_path is not None:
        events, labels = history.read(events_path, declared.events), history.read(labels_path, declared.labels)
        total, begin = len(events), partial(run.run, events, labels)
    else:
        raise SettingsError(
            "a backtest runs over --events and --labels, or over an --archive: name the two, or the one"
        )
    with history.prediction_writer(predictions) as write, progress("backtest", total) as advance:
        run.predictions = write
        report = begin(advance)
    click.echo(
        json.dumps(describe.report_json(report), indent=2) if as_json else describe.report_text(report), nl=as_json
    )


@cli.command()
@PIPELINE
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The Parquet file to write.")
@click.option(
    "--from", "begin", metavar="TIME", help="Event times from this one on, ISO 8601; UTC where no zone is said."
)
@click.option("--to", "end", metavar="TIME", help="Event times before this one.")
@click.option("--archive", metavar="URL", help="Examples from an archive; by default from Kafka.")
@click.option(
    "--recompute", is_flag=True, help="Vectors anew from history, under this declaration: for views added later."
)
@click.option(
    "--events", "events_path", type=click.Path(path_type=Path), help="With --recompute: history, instead of Kafka's."
)
@click.option("--labels", "labels_path", type=click.Path(path_type=Path), help="The same for labels.")
@click.option("--force", is_flag=True, help="Write over a file that is there.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@with_settings("brokers")
def dataset(pipeline: str, out: Path, begin: str | None, end: str | None, archive: str | None, events_path: Path | None,
            labels_path: Path | None, *, recompute: bool, force: bool, as_json: bool, **options: Any) -> None:  # fmt: skip
    """Write a training set: labelled vectors, each as of its event's time, as one Parquet file."""
    try:
        from tidemill.offline import dataset as sets
        from tidemill.offline import recompute as again
    except ModuleNotFoundError as error:
        raise SettingsError(f"a data set needs {error.name}: pip install 'tidemill[parquet]'") from None
    from tidemill.cli import text as describe
    from tidemill.offline import history
    from tidemill.runtime import run as running
    from tidemill.wire import topics

    if (events_path is None) != (labels_path is None):
        raise SettingsError("--events and --labels go together: name both, or neither")
    if events_path is not None and not recompute:
        raise SettingsError("--events and --labels go with --recompute: vectors are made of them, not found in them")
    if archive is not None and recompute:
        raise SettingsError("--archive holds vectors as they were served: --recompute makes them of events and labels")
    span = sets.span_of(begin, end)
    sets.check_out(out, force=force)
    chosen, declared = settings.load(**options), load(pipeline)
    form = sets.Form(declared, is_served=not recompute)
    with progress("dataset", None) as advance, sets.written(out, form, span) as writer:
        if archive is not None:
            sets.archived(declared, archive, writer, advance)
        elif events_path is not None and labels_path is not None:
            events, labels = history.read(events_path, declared.events), history.read(labels_path, declared.labels)
            again.recompute(declared, events, labels, writer, progress=advance)
        else:
            broker = running.broker_of(chosen)
            broker.connect()
            used = (topics.EVENTS_VALID, topics.LABELS_VALID) if recompute else (topics.EXAMPLES,)
            running.check_topics(declared, broker, tuple(topic.name(declared.name) for topic in used))
            (again.from_kafka if recompute else sets.served)(declared, broker, writer, advance)
    found = writer.summary
    click.echo(json.dumps(dataclasses.asdict(found), indent=2) if as_json else describe.dataset_text(found), nl=as_json)


@cli.command("demo-data")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--month", type=click.IntRange(1, 12), default=(1,), multiple=True, show_default=True, help="May be given often."
)
@click.option("--question", type=click.Choice(["scheduled", "departure"]), default="scheduled", show_default=True,
              help="Asked at the scheduled departure, or at the actual one, when dep_delay is known.")  # fmt: skip
@click.option("--format", "form", type=click.Choice(["csv", "jsonl", "parquet"]), default="csv", show_default=True)
def demo_data(folder: Path, month: tuple[int, ...], question: Any, form: str) -> None:
    """Write the demo's flights as files that `backtest` reads: events and labels."""
    from tidemill.demo import data
    from tidemill.offline import history

    found = data.flights(month, question)
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("events", [f.event for f in found]), ("labels", data.labels(found))):
        history.write(folder / f"{name}.{form}", rows)
        click.echo(f"{folder / name}.{form}: {len(rows):,} rows")


@cli.command()
@click.option(
    "--days", type=click.IntRange(1, 31), default=31, show_default=True, help="Only the first days of January."
)
@click.option("--seconds", type=click.FloatRange(min=1), default=60.0, show_default=True,
              help="Wall time of a whole month: the speed of the replay.")  # fmt: skip
@click.option("--headless", is_flag=True, help="No live screen; a line now and then.")
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), help="Write the run's figures as JSON.")
@click.option("--broker", metavar="HOST:PORT", help="A real Kafka instead of the embedded broker.")
@click.option("--keep-running", is_flag=True, help="Leave everything running at the end, until Ctrl-C.")
def demo(
    days: int, seconds: float, report: Path | None, broker: str | None, *, headless: bool, keep_running: bool
) -> None:
    """Run everything on this machine and replay January's flights through it, in about a minute."""
    from tidemill.demo import show

    if report is not None and not report.parent.is_dir():
        raise SettingsError(f"--report {report}: the folder {report.parent} does not exist")
    show.run(show.Options(days, seconds, headless, report, broker, keep_running))


def main() -> None:
    """Run the command; a user's mistake ends in one line and exit code 1, never in a traceback."""
    try:
        cli(prog_name="tidemill", standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "tidemill"
        click.echo(f"tidemill: {' '.join(error.format_message().split())} See `{where} --help`.", err=True)
        sys.exit(2)
    except click.ClickException as error:
        _fail(error.format_message())
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except TidemillError as error:
        if logging.getLogger().handlers:  # a running service: its log is what is read
            logging.getLogger("tidemill").critical(str(error), extra={"error": type(error).__name__})
        else:
            _fail(str(error))
        sys.exit(1)
