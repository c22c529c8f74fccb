"""`tidemill rules`: value rules that history suggests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import tidemill
from tidemill import settings
from tidemill.cli.shared import AS_JSON, PIPELINE, print_report, progress, with_settings
from tidemill.errors import SettingsError

if TYPE_CHECKING:
    from tidemill.declare.pipeline import Pipeline


@click.group()
def rules() -> None:
    """Suggest value rules from history."""


@rules.command()
@PIPELINE
@click.option("--events", "events_path", type=click.Path(path_type=Path), help="History, instead of Kafka's.")
@click.option("--labels", "labels_path", type=click.Path(path_type=Path), help="Labels, as --events.")
@click.option(
    "--most",
    type=click.FloatRange(1e-4, 0.05),
    default=0.001,
    show_default=True,
    help="The share of history that a suggestion may refuse.",
)
@AS_JSON
@with_settings("brokers")
def suggest(
    pipeline: str, events_path: Path | None, labels_path: Path | None, most: float, *, as_json: bool, **options: Any
) -> None:
    """Print rules as Python for the declaration.

    Each is shown with what it would have refused of history.
    """
    from tidemill.cli.text.suggestions import suggestions_text
    from tidemill.offline import history
    from tidemill.offline.suggest.core import suggest as suggest_rules
    from tidemill.offline.suggest.profiles import of_kafka, of_rows

    if events_path is None and labels_path is not None:
        raise SettingsError("--labels goes with --events: name both, or --events alone, or neither")
    chosen, declared = settings.load(**options), tidemill.load(pipeline)
    streams = {"rules": (declared.events, declared.rules), "label_rules": (declared.labels, declared.label_rules)}
    suggestions = []
    with progress("history", None) as advance:
        if events_path is not None:
            files = {"rules": events_path} | ({"label_rules": labels_path} if labels_path else {})
            for argument, path in files.items():
                stream, known = streams[argument]
                profile = of_rows(stream, known, history.read(path, stream), advance)
                if not profile.records:
                    raise SettingsError(f"{path} has no rows: give a file with history")
                suggestions.append(suggest_rules(declared, argument, profile, most))
        else:
            read = of_kafka(declared, _broker(declared, chosen), advance)
            if not any(profile.records for profile in read.values()):
                raise SettingsError(
                    f"the log holds no valid events or labels of {declared.name!r}: run its validator first, or name files of "
                    f"history with --events and --labels"
                )
            suggestions = [suggest_rules(declared, argument, profile, most) for argument, profile in read.items()]
    print_report(suggestions, lambda each: "\n".join(map(suggestions_text, each)), as_json=as_json)


def _broker(declared: Pipeline, chosen: settings.Settings) -> Any:
    from tidemill.runtime import run as running
    from tidemill.wire import topics

    broker = running.broker_of(chosen)
    broker.connect()
    running.check_topics(
        declared, broker, tuple(topic.name(declared.name) for topic in (topics.EVENTS_VALID, topics.LABELS_VALID))
    )
    return broker
