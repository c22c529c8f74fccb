"""River's own data sets as the events and labels of the pipelines beside this: python -m examples.data phishing data

They are in River's wheel: nothing is downloaded. Rows stay in their order. Only the polls say of which day they are; of all
others an event is made to come every minute, from the first of January 2024. A label is known as long after its event as
`--delay` says; without it at the event's own time, which is before the next question.
"""

from __future__ import annotations

import argparse
import datetime as dt
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from river import datasets

from tidemill import load
from tidemill.declare.pipeline import Pipeline
from tidemill.durations import milliseconds
from tidemill.offline import history

DATASETS: Mapping[str, Iterable[tuple[dict[str, Any], Any]]] = {
    "phishing": datasets.Phishing(),
    "segments": datasets.ImageSegments(),
    "approval": datasets.TrumpApproval(),
    "shuttle": datasets.Shuttle(),
}
"""By the name of the pipeline."""
MOST = 10_000
"""Rows that are taken of a data set, which is all but of the 49,097 of Shuttle: as many as River's own example takes."""
FIRST = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)


def declared(name: str) -> Pipeline:
    """Return the pipeline of the file of that name."""
    return load(str(Path(__file__).parent / f"{name}.py"))


def moment(number: int, x: Mapping[str, Any]) -> dt.datetime:
    """Return when the row is asked about: on its day where it has one, else a minute after the one before it."""
    if "ordinal_date" in x:
        day = dt.date.fromordinal(x["ordinal_date"])
        return dt.datetime(day.year, day.month, day.day, tzinfo=dt.UTC)
    return FIRST + dt.timedelta(minutes=number)


def rows(name: str, delay: str | None = None) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return a data set's events and labels, in order of time, by the schemas of its pipeline.

    `delay` is the time from an event to its label, as 5m.
    """
    pipeline, wait = declared(name), milliseconds(delay) if delay else 0
    events, labels = [], []
    for number, (x, y) in enumerate(itertools.islice(DATASETS[name], MOST)):
        at = moment(number, x)
        key = f"{at:%Y-%m-%d}" if name == "approval" else f"{name}-{number:05}"
        now = int(at.timestamp()) * 1000
        features = {feature.replace("-", "_"): value for feature, value in x.items()}
        events.append({pipeline.events.id: key, pipeline.events.time: now, **features})
        label = bool(y) if pipeline.kind.label_type == "boolean" else y
        labels.append({pipeline.labels.id: key, pipeline.labels.time: now + wait, str(pipeline.labels.value): label})
    return events, labels


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(prog="python -m examples.data", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("name", choices=list(DATASETS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--delay", help="the time from an event to its label, as 5m; none by default")
    parser.add_argument("--format", choices=["csv", "jsonl", "parquet"], default="csv")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    try:
        events, labels = rows(given.name, given.delay)
    except ValueError as error:
        parser.error(f"--delay: {error}")
    for what, found in (("events", events), ("labels", labels)):
        path = given.folder / f"{what}.{given.format}"
        history.write(path, found)
        print(f"{path}: {len(found):,} rows")


if __name__ == "__main__":
    main()
