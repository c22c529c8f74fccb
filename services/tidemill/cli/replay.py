"""`tidemill replay`: the input, features and models of a prediction, and the same prediction repeated."""

from __future__ import annotations

import random
import sys
import time

import click

import tidemill
from tidemill import settings
from tidemill.cli.shared import AS_JSON, PIPELINE, connected, print_report, progress, with_settings
from tidemill.errors import SettingsError
from tidemill.wire import topics


@click.command()
@PIPELINE
@click.argument("prediction_ids", nargs=-1, metavar="[PREDICTION_ID]...")
@click.option("--rebuild", is_flag=True, help="Rebuild the models from the examples, instead of loading artifacts.")
@click.option(
    "--sample", type=click.IntRange(1, 1_000_000), help="Instead of ids: this many predictions, drawn at random."
)
@click.option("--seed", type=int, help="With --sample: the same seed and the same log give the same sample.")
@AS_JSON
@with_settings("brokers", "store_url")
def replay(
    pipeline: str,
    prediction_ids: tuple[str, ...],
    sample: int | None,
    seed: int | None,
    *,
    rebuild: bool,
    as_json: bool,
    **options: str | None,
) -> None:
    """Repeat predictions, and compare their scores.

    Prints the event, the vector, the models and each score then and now; exit code 1 unless all are equal. A
    prediction's id is its event's. Manifests are verified with TIDEMILL_VERIFY_KEYS. Of a sample only the summary and
    the differences are printed.
    """
    from tidemill.cli.text.predictions import prediction_text, replay_text, unequal_text
    from tidemill.offline.replay import Replay, ReplayReport, Summary, version_of
    from tidemill.runtime import run as running

    if bool(prediction_ids) == (sample is not None):
        raise SettingsError("name the predictions to replay, or draw some with --sample: one of the two")
    if seed is not None and sample is None:
        raise SettingsError(f"--seed {seed} goes with --sample: named predictions are not drawn")
    chosen, declared = settings.load(**options), tidemill.load(pipeline)
    registry = running.registry_of(declared, chosen)
    used = (topics.PREDICTION_LOG, topics.MODELS, topics.EXAMPLES, topics.EVENTS_VALID, topics.EXPIRED)
    broker = connected(declared, chosen, *used)
    replaying, started = Replay(declared, broker, registry), time.perf_counter()
    summary = Summary(rebuilt=rebuild)
    if sample is None:
        ids = tuple(dict.fromkeys(prediction_ids))
        with progress("prediction log", replaying.log.total(ids)) as advance:
            predictions = replaying.log.find(ids, advance)
    else:
        summary.seed = random.randrange(2**32) if seed is None else seed  # noqa: S311  it hides nothing
        predictions = replaying.log.draw(sample, summary.seed)
        if not predictions:
            raise SettingsError(f"--sample {sample}: {replaying.log.topic} holds no prediction of this declaration")
    versions = {version_of(score) for prediction in predictions for score in prediction.scores}
    total = max(number for _, number, _ in versions) if rebuild else len(versions)
    with progress("folding examples" if rebuild else "versions", total) as advance:
        replayed = replaying.run(predictions, rebuild=rebuild, progress=advance)
    summary.add(replayed)
    summary.skipped = replaying.log.skipped
    if sample is None:
        with progress("outcomes", None) as advance:
            printed = replaying.details(replayed, advance)
    else:
        printed = [one.as_dict() for one in replayed if not one.is_equal]
    summary.seconds = time.perf_counter() - started

    def as_text(report: ReplayReport) -> str:
        if sample is None:
            each = "".join(prediction_text(declared, one) + "\n" for one in report.predictions)
        else:
            each = unequal_text(report.unequal)
        return each + replay_text(replaying.log.topic, report.summary)

    print_report(ReplayReport(replayed, summary, printed), as_text, as_json=as_json)
    if not summary.is_equal:
        sys.exit(1)
