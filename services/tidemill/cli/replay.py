"""`tidemill replay`: the input, features and models of a prediction, and the same prediction repeated."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

import tidemill
from tidemill import settings
from tidemill.cli.shared import AS_JSON, PIPELINE, SHOW_PERSONAL, connected, print_report, progress, with_settings
from tidemill.errors import SettingsError
from tidemill.wire import topics

if TYPE_CHECKING:
    from tidemill.declare.pipeline import Pipeline
    from tidemill.stream.api import Broker


@click.command()
@PIPELINE
@click.argument("prediction_ids", nargs=-1, metavar="[PREDICTION_ID]...")
@click.option("--rebuild", is_flag=True, help="Rebuild the models from the examples, instead of loading artifacts.")
@click.option(
    "--sample", type=click.IntRange(1, 1_000_000), help="Instead of ids: this many predictions, drawn at random."
)
@click.option("--seed", type=int, help="With --sample: the same seed and the same log give the same sample.")
@SHOW_PERSONAL
@AS_JSON
@with_settings("brokers", "store_url")
def replay(
    pipeline: str,
    prediction_ids: tuple[str, ...],
    sample: int | None,
    seed: int | None,
    *,
    rebuild: bool,
    show_personal: bool,
    as_json: bool,
    **options: str | None,
) -> None:
    """Repeat predictions, and compare their scores.

    Prints the event, the vector, the models and each score then and now; exit code 1 unless all are equal. A
    prediction's id is its event's. Manifests are verified with TIDEMILL_VERIFY_KEYS. Of a sample only the summary and
    the differences are printed.
    """
    from tidemill.cli.text.predictions import prediction_text, replay_text, unequal_text
    from tidemill.offline.replay import Replay, ReplayReport, check_choice
    from tidemill.runtime import run as running

    check_choice(prediction_ids, sample, seed)
    chosen, declared = settings.load(**options), tidemill.load(pipeline)
    registry = running.registry_of(declared, chosen)
    used = (topics.PREDICTION_LOG, topics.MODELS, topics.EXAMPLES, topics.EVENTS_VALID, topics.EXPIRED)
    replaying = Replay(declared, connected(declared, chosen, *used), registry)
    try:
        replayed = replaying.report(
            prediction_ids, sample=sample, seed=seed, rebuild=rebuild, shows_personal=show_personal, progress=progress
        )
    except SettingsError:
        if why := _forgotten(declared, chosen, replaying.broker, prediction_ids):
            raise SettingsError(why) from None
        raise

    def as_text(report: ReplayReport) -> str:
        if sample is None:
            each = "".join(prediction_text(declared, one) + "\n" for one in report.predictions)
        else:
            each = unequal_text(report.unequal)
        return each + replay_text(replaying.log.topic, report.summary)

    print_report(replayed, as_text, as_json=as_json)
    if not replayed.summary.is_equal:
        sys.exit(1)


def _forgotten(declared: Pipeline, chosen: settings.Settings, broker: Broker, ids: tuple[str, ...]) -> str:
    """Return that predictions were forgotten, and when; nothing where none was, or there is no key to know it by."""
    if declared.forgetting is None or not chosen.signing_key.get_secret_value():
        return ""
    from tidemill.registry.forgetting import Hashes, Requests

    keys = chosen.keyring("forget")
    requests, hashes = Requests(declared, broker, keys), Hashes(declared.name, keys)
    with_them = ((id_, requests.of_event(hashes, id_)) for id_ in ids)
    return "; ".join(f"event {id_!r} was {one}" for id_, one in with_them if one)
