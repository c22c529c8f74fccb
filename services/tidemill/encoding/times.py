"""Units of time: what the time of a stream may be in, as milliseconds since the epoch, which it is from there on."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from tidemill.durations import moment

#: Units of numbers, and what each is in a second.
PER_SECOND = {"seconds": 1, "millis": 1_000, "micros": 1_000_000, "nanos": 1_000_000_000}
#: The unit of times that are text.
TEXT = "iso8601"
#: How times may be told in a record, by their logical type; local ones are taken as UTC.
LOGICAL_UNITS = {f"{local}timestamp-{unit}": unit for local in ("", "local-") for unit in ("millis", "micros", "nanos")}
#: Logical types by what Kafka Connect and Debezium call them, in the schemas of their JSON and of their Avro.
CONNECT_TYPES = {
    "org.apache.kafka.connect.data.Date": "date",
    "org.apache.kafka.connect.data.Time": "time-millis",
    "org.apache.kafka.connect.data.Timestamp": "timestamp-millis",
    "io.debezium.time.Date": "date",
    "io.debezium.time.Time": "time-millis",
    "io.debezium.time.MicroTime": "time-micros",
    "io.debezium.time.NanoTime": "time-nanos",
    "io.debezium.time.Timestamp": "timestamp-millis",
    "io.debezium.time.MicroTimestamp": "timestamp-micros",
    "io.debezium.time.NanoTimestamp": "timestamp-nanos",
}
#: The type of a time that is in milliseconds.
MILLIS_TYPE = {"type": "long", "logicalType": "timestamp-millis"}

_MAX_MILLIS = 2**63 - 1
_DATE_AS_NUMBER = re.compile(r"(19|20)\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(([01]\d|2[0-3])([0-5]\d){2})?")


def looks_like_date(value: Any) -> bool:
    """Whether a number is written as a date is, as 20240131, or with its time of day: as a time it lies in 1970."""
    return _DATE_AS_NUMBER.fullmatch(str(value)) is not None


def per_second_of(logical: str) -> int | None:
    """Return how many of a logical type's ticks a second has; None where it is no timestamp."""
    unit = LOGICAL_UNITS.get(logical)
    return None if unit is None else PER_SECOND[unit]


def as_millis(unit: str) -> Callable[[Any], int]:
    """Return the function that makes milliseconds since the epoch of a time in this unit.

    What is finer is cut, towards the past; floats are rounded. It raises ValueError with what was expected instead.
    """
    if unit == TEXT:
        return moment
    per_second = PER_SECOND[unit]

    def convert(value: Any) -> int:
        if isinstance(value, float):
            if not math.isfinite(value) or abs(value) > _MAX_MILLIS:
                raise ValueError(f"a time in {unit} was expected")
            millis = round(value * 1_000 / per_second)
        else:
            millis = value * 1_000 // per_second
        if abs(millis) > _MAX_MILLIS:
            raise ValueError(f"a time in {unit} was expected")
        return millis

    return convert
