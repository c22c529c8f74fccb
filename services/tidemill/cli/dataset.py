"""`tidemill dataset`: labelled vectors as one Parquet file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import tidemill
from tidemill import settings
from tidemill.cli.shared import AS_JSON, PIPELINE, connected, print_report, progress, with_settings, with_source
from tidemill.errors import SettingsError

if TYPE_CHECKING:
    from tidemill.offline.source import ArchiveSource, FileSource


@click.command()
@PIPELINE
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The Parquet file to write.")
@click.option("--from", "begin", metavar="TIME", help="Event times from this one, ISO 8601; UTC unless it has a zone.")
@click.option("--to", "end", metavar="TIME", help="Event times before this one.")
@with_source()
@click.option(
    "--recompute",
    is_flag=True,
    help="Vectors computed again from history, under this declaration: for views added later.",
)
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
@AS_JSON
@with_settings("brokers")
def dataset(
    pipeline: str,
    out: Path,
    begin: str | None,
    end: str | None,
    source: ArchiveSource | FileSource | None,
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
        from tidemill.offline.recompute import recompute as recompute_vectors
    except ModuleNotFoundError as error:
        raise SettingsError(f"a data set needs {error.name}: pip install 'tidemill[parquet]'") from None
    from tidemill.cli.text.reports import dataset_text
    from tidemill.offline.source import ArchiveSource, FileSource, KafkaSource
    from tidemill.wire import topics

    if isinstance(source, FileSource) and not recompute:
        raise SettingsError("--events and --labels go with --recompute: they hold no vectors")
    if isinstance(source, ArchiveSource) and recompute:
        raise SettingsError(
            "--archive holds vectors as they were served; --recompute computes them from events and labels"
        )
    span = sets.span_of(begin, end)
    sets.check_out(out, force=force)
    chosen, declared = settings.load(**options), tidemill.load(pipeline)
    form = sets.Form(declared, is_served=not recompute)
    topics_read = (topics.EVENTS_VALID, topics.LABELS_VALID) if recompute else (topics.EXAMPLES,)
    with progress("dataset", None) as advance, sets.written(out, form, span) as writer:
        used = source or KafkaSource(connected(declared, chosen, *topics_read))
        if isinstance(used, FileSource) or (recompute and isinstance(used, KafkaSource)):
            recompute_vectors(declared, used, writer, advance)
        else:
            sets.served(declared, used, writer, advance)
    print_report(writer.summary, dataset_text, as_json=as_json)
