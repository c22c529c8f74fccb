"""`tidemill dataset`: labelled vectors as one Parquet file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import tidemill
from tidemill import settings
from tidemill.cli.shared import AS_JSON, PIPELINE, print_report, progress, with_settings
from tidemill.errors import SettingsError


@click.command()
@PIPELINE
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The Parquet file to write.")
@click.option("--from", "begin", metavar="TIME", help="Event times from this one, ISO 8601; UTC unless it has a zone.")
@click.option("--to", "end", metavar="TIME", help="Event times before this one.")
@click.option("--archive", metavar="URL", help="Examples from an archive; by default from Kafka.")
@click.option(
    "--recompute", is_flag=True, help="Compute the vectors again from history: for views that were added later."
)
@click.option(
    "--events", "events_path", type=click.Path(path_type=Path), help="With --recompute: history, instead of Kafka's."
)
@click.option("--labels", "labels_path", type=click.Path(path_type=Path), help="Labels, as --events.")
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
@AS_JSON
@with_settings("brokers")
def dataset(
    pipeline: str,
    out: Path,
    begin: str | None,
    end: str | None,
    archive: str | None,
    events_path: Path | None,
    labels_path: Path | None,
    *,
    recompute: bool,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Write a training set as one Parquet file.

    Its rows are labelled vectors, each as of its event's time.
    """
    try:
        from tidemill.offline import dataset as sets
        from tidemill.offline import recompute as again
    except ModuleNotFoundError as error:
        raise SettingsError(f"a data set needs {error.name}: pip install 'tidemill[parquet]'") from None
    from tidemill.cli.text.reports import dataset_text
    from tidemill.offline import history
    from tidemill.runtime import run as running
    from tidemill.wire import topics

    if (events_path is None) != (labels_path is None):
        raise SettingsError("--events and --labels go together: name both, or neither")
    if events_path is not None and not recompute:
        raise SettingsError("--events and --labels go with --recompute: they hold no vectors")
    if archive is not None and recompute:
        raise SettingsError(
            "--archive holds vectors as they were served; --recompute computes them from events and labels"
        )
    span = sets.span_of(begin, end)
    sets.check_out(out, force=force)
    chosen, declared = settings.load(**options), tidemill.load(pipeline)
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
    print_report(writer.summary, dataset_text, as_json=as_json)
