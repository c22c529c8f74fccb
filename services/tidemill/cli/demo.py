"""`tidemill demo` and `tidemill demo-data`: the demo, and its flights as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tidemill.errors import SettingsError


@click.command("demo-data")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--month",
    type=click.IntRange(1, 12),
    default=(1,),
    multiple=True,
    show_default=True,
    help="Month of 2013; may be repeated.",
)
@click.option(
    "--question",
    type=click.Choice(["scheduled", "departure"]),
    default="scheduled",
    show_default=True,
    help="When the prediction is asked for: at the scheduled departure, or at the actual one.",
)
@click.option("--format", "form", type=click.Choice(["csv", "jsonl", "parquet"]), default="csv", show_default=True)
def demo_data(folder: Path, month: tuple[int, ...], question: Any, form: str) -> None:
    """Write the demo's flights as files: events and labels."""
    from tidemill.demo import data
    from tidemill.offline import history

    flights = data.flights(month, question)
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("events", [f.event for f in flights]), ("labels", data.labels(flights))):
        history.write(folder / f"{name}.{form}", rows)
        click.echo(f"{folder / name}.{form}: {len(rows):,} rows")


@click.command()
@click.option(
    "--days", type=click.IntRange(1, 31), default=31, show_default=True, help="Replay this many days of January."
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=1),
    help="Duration of the replay of 31 days; fewer take their share.  [default: 60, and 25 for few days]",
)
@click.option("--headless", is_flag=True, help="Print a line every 5 seconds instead of the live screen.")
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), help="Write the run's figures as JSON.")
@click.option("--broker", metavar="HOST:PORT", help="Use this Kafka instead of the embedded broker.")
@click.option("--keep-running", is_flag=True, help="Leave everything running at the end, until Ctrl-C.")
def demo(
    days: int, seconds: float | None, report: Path | None, broker: str | None, *, headless: bool, keep_running: bool
) -> None:
    """Run everything on this machine and replay a month of flights.

    Takes about a minute.
    """
    from tidemill.demo import show

    if report is not None and not report.parent.is_dir():
        raise SettingsError(f"--report {report}: the folder {report.parent} does not exist")
    show.run(show.Options(days, seconds, headless, report, broker, keep_running))
