"""`tidemill dlq`: list and count dead letters, and send them back after a fix."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import tidemill
from tidemill import settings
from tidemill.cli.shared import (
    AS_JSON,
    AS_JSON_LINES,
    PIPELINE,
    SHOW_PERSONAL,
    connected,
    moment_of,
    print_report,
    progress,
    with_settings,
)
from tidemill.errors import SettingsError
from tidemill.wire import topics

if TYPE_CHECKING:
    from tidemill.declare.pipeline import Pipeline
    from tidemill.offline.dead_letters import LetterFilter
    from tidemill.stream.kafka.broker import KafkaBroker
    from tidemill.stream.topic import Topic
    from tidemill.wire.dead_letters import Place

FILTERS = {
    "reason": click.option("--reason", help="Only this reason, as out_of_range."),
    "rule": click.option("--rule", help="Only this rule, as between."),
    "field": click.option("--field", help="Only this field, as sched_hour."),
    "stage": click.option("--stage", type=click.Choice(topics.DLQ.writers), help="Only from this service."),
    "source": click.option("--source", type=click.Choice(["events", "labels"]), help="Only events, or only labels."),
    "value": click.option("--value", help="Only this value, exactly."),
    "since": click.option(
        "--since", metavar="TIME", help="Refused at this time or later, ISO 8601; UTC unless it has a zone."
    ),
    "until": click.option("--until", metavar="TIME", help="Refused before this time."),
}
OPEN = click.option("--open", "state", flag_value="open", help="Only those that were not redriven.")
REDRIVEN = click.option("--redriven", "state", flag_value="redriven", help="Only those that were redriven.")


def with_filters(command: Any) -> Any:
    """Add an option for each filter; `_wanted` takes them out of the command's options."""
    for option in reversed(FILTERS.values()):
        command = option(command)
    return command


@click.group()
def dlq() -> None:
    """List, count and redrive dead letters."""


@dlq.command("list")
@PIPELINE
@with_filters
@OPEN
@REDRIVEN
@click.option(
    "--limit", type=click.IntRange(1, 100_000), default=20, show_default=True, help="Print this many, the newest."
)
@SHOW_PERSONAL
@AS_JSON_LINES
@with_settings("brokers")
def list_(pipeline: str, limit: int, *, show_personal: bool, as_json: bool, **options: Any) -> None:
    """Print the newest dead letters, newest last."""
    from tidemill.cli.text.dead_letters import letters_text
    from tidemill.offline.dead_letters import DeadLetters

    wanted, declared = _wanted(options), tidemill.load(pipeline)
    dead_letters = DeadLetters(declared, _broker(declared, **options), shows_personal=show_personal)
    with progress("dead letters", dead_letters.count(wanted)) as advance:
        newest = dead_letters.last(wanted, limit, advance)
    if not as_json:
        click.echo(letters_text(dead_letters, newest), nl=False)
        return
    for letter in newest:
        click.echo(json.dumps(dead_letters.as_dict(letter)))


@dlq.command()
@PIPELINE
@click.argument("letter", metavar="PARTITION:OFFSET")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the original bytes to a new file.")
@SHOW_PERSONAL
@with_settings("brokers")
def show(pipeline: str, letter: str, out: Path | None, *, show_personal: bool, **options: Any) -> None:
    """Print everything about one dead letter.

    Shows why it was refused, where it came from, its headers and its content.
    """
    from tidemill.cli.text.dead_letters import letter_text
    from tidemill.offline.dead_letters import DeadLetters, content
    from tidemill.wire.dead_letters import producer_headers
    from tidemill.wire.personal import Mask

    place, declared = _place(letter), tidemill.load(pipeline)
    dead_letters = DeadLetters(declared, _broker(declared, **options), shows_personal=show_personal)
    is_masked = not show_personal and Mask(declared).is_on
    if out is not None and is_masked:
        raise SettingsError("--out writes all of a record, and it may hold personal fields: add --show-personal")
    dead_letter, record = dead_letters.one(place)
    data = record.value() or b""
    redrives = dead_letters.history(place)
    original = content(declared, dead_letter, data, shows_personal=show_personal)
    headers = [] if is_masked else producer_headers(record)
    click.echo(letter_text(dead_letters.shown(dead_letter), dead_letters, headers, redrives, original), nl=False)
    if out is not None:
        try:
            with out.open("xb") as file:
                file.write(data)
        except OSError as error:
            raise SettingsError(f"--out {out}: {error.strerror}; name a new file in a folder that exists") from error
        click.echo(f"\n{out}: {len(data):,} bytes")


@dlq.command()
@PIPELINE
@with_filters
@OPEN
@REDRIVEN
@click.option("--by-entity", is_flag=True, help="Count by entity, too: for labels that contradict.")
@SHOW_PERSONAL
@AS_JSON
@with_settings("brokers")
def stats(pipeline: str, *, by_entity: bool, show_personal: bool, as_json: bool, **options: Any) -> None:
    """Count dead letters by reason, rule and field."""
    from tidemill.cli.text.dead_letters import stats_text
    from tidemill.offline.dead_letters import DeadLetters

    wanted, declared = _wanted(options), tidemill.load(pipeline)
    dead_letters = DeadLetters(declared, _broker(declared, **options), shows_personal=show_personal)
    with progress("dead letters", dead_letters.count(wanted)) as advance:
        counts = dead_letters.stats(wanted, advance, by_entity=by_entity)
    print_report(counts, partial(stats_text, dead_letters), as_json=as_json)


@dlq.command()
@PIPELINE
@with_filters
@click.option("--letter", "places", multiple=True, metavar="PARTITION:OFFSET", help="Only this one. May be repeated.")
@click.option("--limit", type=click.IntRange(min=1), help="Send at most this many.")
@click.option("--again", is_flag=True, help="Also those that were redriven already.")
@click.option("--dry-run", is_flag=True, help="Print what would be sent, and send nothing.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@with_settings("brokers")
def redrive(
    pipeline: str, places: tuple[str, ...], limit: int | None, *, again: bool, dry_run: bool, yes: bool, **options: Any
) -> None:
    """Send dead letters back to the topics they came from.

    Each is sent once. Fix the cause first.
    """
    from tidemill.cli.text.dead_letters import redrive_text
    from tidemill.offline.dead_letters import DeadLetters
    from tidemill.offline.redrive import Redrive

    if not (yes or dry_run or can_ask()):
        raise SettingsError(
            "a redrive asks before it sends, and standard input is no terminal: add --yes, or --dry-run to print what "
            "it would send"
        )
    wanted, declared = _wanted(options, places), tidemill.load(pipeline)
    broker = _broker(declared, topics.EVENTS, topics.LABELS, topics.REDRIVES, **options)
    dead_letters = DeadLetters(declared, broker)
    total = dead_letters.count(wanted)
    running = Redrive(declared, broker, wanted, again=again, most=limit)
    with progress("dead letters", total) as advance:
        plan = running.plan(dead_letters, advance)
    count = plan.going.total()
    click.echo(redrive_text(plan), nl=False)
    if not count:
        click.echo("nothing to send")
        return
    if dry_run:
        click.echo(f"would send {_letters(count)} back; nothing was sent")
        return
    if not yes:
        click.confirm(f"send {_letters(count)} back?", abort=True)
    with progress("redrive", total) as advance:
        sent = running.run(advance).by_topic()
    parts = ", ".join(f"{n:,} to {to}" for to, n in sorted(sent.items())) or "another redrive sent them first"
    click.echo(f"sent {_letters(sent.total())} back: {parts}")


def can_ask() -> bool:
    """Whether standard input is a terminal."""
    return sys.stdin.isatty()


def _letters(count: int) -> str:
    return "1 letter" if count == 1 else f"{count:,} letters"


def _place(text: str, option: str = "") -> Place:
    from tidemill.wire.dead_letters import parse_place

    try:
        return parse_place(text)
    except ValueError as error:
        raise SettingsError(f"{option}{error}") from None


def _wanted(options: dict[str, Any], places: tuple[str, ...] = ()) -> LetterFilter:
    """Take the filters out of a command's options."""
    from tidemill.offline.dead_letters import LetterFilter

    given = {name: options.pop(name) for name in (*FILTERS, "state") if name in options}
    for name in ("since", "until"):
        if given[name] is not None:
            given[name] = moment_of(f"--{name}", given[name])
    return LetterFilter(**given, places=frozenset(_place(text, "--letter ") for text in places))


def _broker(pipeline: Pipeline, *more: Topic, **options: Any) -> KafkaBroker:
    """Return the broker, with these topics. A redrive writes in transactions, whatever TIDEMILL_DELIVERY is."""
    return connected(pipeline, settings.load(**options, delivery="exactly_once"), topics.DLQ, *more)
