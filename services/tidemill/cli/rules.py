"""`tidemill rules`: value rules that history suggests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

import tidemill
from tidemill import settings
from tidemill.cli.shared import AS_JSON, PIPELINE, connected, print_report, progress, with_settings, with_source

if TYPE_CHECKING:
    from tidemill.offline.source import FileSource


@click.group()
def rules() -> None:
    """Suggest value rules from history."""


@rules.command()
@PIPELINE
@with_source(archive=False, may_lack_labels=True)
@click.option(
    "--most",
    type=click.FloatRange(1e-4, 0.05),
    default=0.001,
    show_default=True,
    help="The share of history that a suggestion may refuse.",
)
@AS_JSON
@with_settings("brokers")
def suggest(pipeline: str, source: FileSource | None, most: float, *, as_json: bool, **options: Any) -> None:
    """Print rules as Python for the declaration.

    Each is shown with what it would have refused of history.
    """
    from tidemill.cli.text.suggestions import suggestions_text
    from tidemill.offline.source import KafkaSource
    from tidemill.offline.suggest import profiles
    from tidemill.offline.suggest.core import suggest as suggest_rules
    from tidemill.wire import topics

    chosen, declared = settings.load(**options), tidemill.load(pipeline)
    with progress("history", None) as advance:
        used = source or KafkaSource(connected(declared, chosen, topics.EVENTS_VALID, topics.LABELS_VALID))
        by_argument = profiles.read(declared, used, advance)
        suggestions = [suggest_rules(declared, argument, profile, most) for argument, profile in by_argument.items()]
    print_report(suggestions, lambda each: "\n".join(map(suggestions_text, each)), as_json=as_json)
