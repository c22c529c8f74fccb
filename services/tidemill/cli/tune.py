"""`tidemill tune`: search a declared space of models on recorded examples, and write the winners as challengers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import tidemill
from tidemill import settings
from tidemill.cli.shared import AS_JSON, PIPELINE, connected, print_report, progress, with_settings, with_source
from tidemill.durations import milliseconds
from tidemill.errors import SettingsError
from tidemill.wire import topics

if TYPE_CHECKING:
    from tidemill.offline.source import ArchiveSource, FileSource


@click.command()
@PIPELINE
@click.option("--trials", type=click.IntRange(1, 100_000), default=40, show_default=True, help="Number of candidates.")
@click.option(
    "--seconds",
    type=click.FloatRange(min=1),
    default=600.0,
    show_default=True,
    help="Time limit of the search, without reading; candidates with all examples by then count.",
)
@click.option("--best", type=click.IntRange(1, 8), default=3, show_default=True, help="Maximum number of winners.")
@click.option("--metric", default="", help="Metric to compare by. Default: the one that `backtest` prints over time.")
@click.option(
    "--seed", type=int, default=0, show_default=True, help="The same seed, trials and examples: the same search."
)
@click.option(
    "--examples",
    type=click.IntRange(min=1),
    default=200_000,
    show_default=True,
    help="Use at most this many, the newest.",
)
@click.option(
    "--model-delay", metavar="DURATION", help="Time a learned label takes to reach the scorer, as 5m. Default: none."
)
@with_source()
@click.option("--out", type=click.Path(path_type=Path), help="Write the winners, for `tuned(...)` in the declaration.")
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
@AS_JSON
@with_settings("brokers")
def tune(
    pipeline: str,
    trials: int,
    seconds: float,
    best: int,
    metric: str,
    seed: int,
    examples: int,
    model_delay: str | None,
    source: ArchiveSource | FileSource | None,
    out: Path | None,
    *,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Search a declared space of models on recorded examples.

    The space is search=... of the declaration. Each candidate is asked when the event was. Candidates that are better
    than the champion on all examples win; exit code 1 where --out is given and none does.
    """
    from tidemill.cli.text.tuning import tuning_text
    from tidemill.offline.source import KafkaSource
    from tidemill.offline.tuning import questions
    from tidemill.offline.tuning.successive_halving import SearchOptions, SuccessiveHalving, file_of

    try:
        delay = milliseconds(model_delay) if model_delay else 0
    except ValueError as error:
        raise SettingsError(f"--model-delay: {error}") from None
    if out is not None:
        _check_out(out, force=force)
    chosen, declared = settings.load(**options), tidemill.load(pipeline)
    search = SearchOptions(trials, seconds, best, seed, metric)
    search.metric_of(declared)
    with progress("examples", None) as advance:
        used = source or KafkaSource(connected(declared, chosen, topics.EXAMPLES))
        asked = questions.read(declared, used, examples, delay=delay, progress=advance)
    with progress("tune", SuccessiveHalving.total_examples(len(asked), trials, best)) as advance:
        report = SuccessiveHalving(declared, asked, search, progress=advance).run()
    if out is not None and report.winners:
        _write(out, json.dumps(file_of(report), indent=2) + "\n")
    print_report(report, tuning_text, as_json=as_json)
    if out is not None and not as_json:
        use = f'for models={{..., **tuned("{out.name}", SEARCH)}}'
        click.echo(f"{out}: {use if report.winners else 'not written'}")
    if out is not None and not report.winners:
        sys.exit(1)


def _check_out(out: Path, *, force: bool) -> None:
    if out.suffix != ".json":
        raise SettingsError(f"--out {out}: its name ends in {out.suffix!r}; expected .json")
    if not out.absolute().parent.is_dir():
        raise SettingsError(f"--out {out}: the folder {out.parent} does not exist")
    if out.is_dir():
        raise SettingsError(f"--out {out}: a folder of that name exists")
    if out.exists() and not force:
        raise SettingsError(f"--out {out}: the file exists; --force overwrites it")


def _write(out: Path, text: str) -> None:
    from tidemill.files import write_atomic

    try:
        write_atomic(str(out.absolute()), text.encode())
    except OSError as error:
        raise SettingsError(f"--out {out}: writing failed: {error}") from error
