"""`tidemill dlq`: look at dead letters, and send them back once what was wrong is mended."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tidemill import settings
from tidemill.cli.shared import PIPELINE, connected, moment_of, progress, with_settings
from tidemill.declare.load import load
from tidemill.declare.pipeline import Pipeline
from tidemill.errors import SettingsError
from tidemill.stream.topic import Topic
from tidemill.wire import topics

if TYPE_CHECKING:
    from tidemill.offline.dead_letters import Wanted
    from tidemill.stream.kafka.broker import KafkaBroker
    from tidemill.wire.dead_letters import Place

FILTERS = {
    "reason": click.option("--reason", help="As out_of_range."),
    "rule": click.option("--rule", help="As between."),
    "field": click.option("--field", help="As sched_hour."),
    "stage": click.option("--stage", type=click.Choice(topics.DLQ.writers), help="Who refused it."),
    "source": click.option("--source", type=click.Choice(["events", "labels"]), help="What it was."),
    "value": click.option("--value", help="The value that was refused, exactly."),
    "since": click.option(
        "--since", metavar="TIME", help="Refused at this time or later, ISO 8601; UTC where no zone is said."
    ),
    "until": click.option("--until", metavar="TIME", help="Refused before this time."),
}
OPEN = click.option("--open", "state", flag_value="open", help="Only those that did not go back.")
REDRIVEN = click.option("--redriven", "state", flag_value="redriven", help="Only those that went back.")
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def with_filters(command: Any) -> Any:
    """Add an option for each filter; `_wanted` takes what was given out of the command's options."""
    for option in reversed(FILTERS.values()):
        command = option(command)
    return command


@click.group()
def dlq() -> None:
    """Dead letters: what was refused, and why; and sending it back after a fix."""


@dlq.command("list")
@PIPELINE
@with_filters
@OPEN
@REDRIVEN
@click.option("--limit", type=click.IntRange(1, 100_000), default=20, show_default=True, help="The newest so many.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines.")
@with_settings("brokers")
def list_(pipeline: str, limit: int, *, as_json: bool, **options: Any) -> None:
    """Print the newest dead letters, the newest at the end."""
    from tidemill.cli import text as describe
    from tidemill.offline.dead_letters import Letters

    wanted, declared = _wanted(options), load(pipeline)
    there = Letters(declared, _broker(declared, **options))
    with progress("dead letters", there.count(wanted)) as advance:
        found = there.last(wanted, limit, advance)
    if not as_json:
        click.echo(describe.letters_text(there, found), nl=False)
        return
    for letter in found:
        click.echo(json.dumps(describe.letter_json(letter, there.state(letter))))


@dlq.command()
@PIPELINE
@click.argument("letter", metavar="PARTITION:OFFSET")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the original bytes to a new file.")
@with_settings("brokers")
def show(pipeline: str, letter: str, out: Path | None, **options: Any) -> None:
    """Print all about one dead letter: why, where from, its headers, and what is in it."""
    from tidemill.cli import text as describe
    from tidemill.offline.dead_letters import Letters, content
    from tidemill.wire import dead_letters

    place, declared = _place(letter), load(pipeline)
    there = Letters(declared, _broker(declared, **options))
    found, record = there.one(place)
    data = record.value() or b""
    text = describe.letter_text(
        found, there, dead_letters.producer_headers(record), there.history(place), content(declared, found, data)
    )
    click.echo(text, nl=False)
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
@click.option("--by-entity", is_flag=True, help="Also of each entity: whose labels contradict.")
@AS_JSON
@with_settings("brokers")
def stats(pipeline: str, *, by_entity: bool, as_json: bool, **options: Any) -> None:
    """Print how many dead letters there are of each reason, rule and field."""
    from tidemill.cli import text as describe
    from tidemill.offline.dead_letters import Letters

    wanted, declared = _wanted(options), load(pipeline)
    there = Letters(declared, _broker(declared, **options))
    with progress("dead letters", there.count(wanted)) as advance:
        found = there.stats(wanted, advance, by_entity=by_entity)
    click.echo(
        json.dumps(describe.stats_json(found), indent=2) if as_json else describe.stats_text(there, found), nl=as_json
    )


@dlq.command()
@PIPELINE
@with_filters
@click.option("--letter", "places", multiple=True, metavar="PARTITION:OFFSET", help="This one. May be given often.")
@click.option("--limit", type=click.IntRange(min=1), help="Send at most so many.")
@click.option("--again", is_flag=True, help="Also those that went back already.")
@click.option("--dry-run", is_flag=True, help="Say what would be sent, and send nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@with_settings("brokers")
def redrive(
    pipeline: str, places: tuple[str, ...], limit: int | None, *, again: bool, dry_run: bool, yes: bool, **options: Any
) -> None:
    """Send dead letters back to the topic that they came from, each once. Mend what refused them first."""
    from tidemill.cli import text as describe
    from tidemill.offline.dead_letters import Letters
    from tidemill.offline.redrive import Redrive

    if not (yes or dry_run or asks()):
        raise SettingsError(
            "a redrive asks before it sends, and standard input is no terminal: say --yes, or --dry-run to see what it "
            "would do"
        )
    wanted, declared = _wanted(options, places), load(pipeline)
    broker = _broker(declared, topics.EVENTS, topics.LABELS, topics.REDRIVES, **options)
    there = Letters(declared, broker)
    total = there.count(wanted)
    driving = Redrive(declared, broker, wanted, again=again, most=limit)
    with progress("looking", total) as advance:
        found = driving.plan(there, advance)
    count = found.going.total()
    click.echo(describe.redrive_text(found), nl=False)
    if not count:
        click.echo("nothing to send")
        return
    if dry_run:
        click.echo(f"would send {_letters(count)} back; nothing was sent")
        return
    if not yes:
        click.confirm(f"send {_letters(count)} back?", abort=True)
    with progress("redrive", total) as advance:
        sent = driving.run(advance).by_topic()
    parts = ", ".join(f"{n:,} to {to}" for to, n in sorted(sent.items())) or "another redrive was faster"
    click.echo(f"sent {_letters(sent.total())} back: {parts}")


def asks() -> bool:
    """Whether there is anybody to ask."""
    return sys.stdin.isatty()


def _letters(count: int) -> str:
    return "1 letter" if count == 1 else f"{count:,} letters"


def _place(text: str, option: str = "") -> Place:
    from tidemill.wire.dead_letters import parse_place

    try:
        return parse_place(text)
    except ValueError as error:
        raise SettingsError(f"{option}{error}") from None


def _wanted(options: dict[str, Any], places: tuple[str, ...] = ()) -> Wanted:
    """Take the filters out of a command's options."""
    from tidemill.offline.dead_letters import Wanted

    given = {name: options.pop(name) for name in (*FILTERS, "state") if name in options}
    for name in ("since", "until"):
        if given[name] is not None:
            given[name] = moment_of(f"--{name}", given[name])
    return Wanted(**given, places=frozenset(_place(text, "--letter ") for text in places))


def _broker(pipeline: Pipeline, *more: Topic, **options: Any) -> KafkaBroker:
    """Return the broker with the dead letters, and these topics. What writes does so in transactions, whatever services do."""
    return connected(pipeline, settings.load(**options, delivery="exactly_once"), topics.DLQ, *more)
