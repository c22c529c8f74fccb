"""Numbers that no service of ours writes: a record that has one is somebody else's, whatever its schema says.

One NaN leaves a model NaN for ever, and a time that no calendar has ends whoever makes a date of it. So every float of
a record is finite, or within a range; whole numbers, which are offsets, versions and counts, are not below -1; times
lie between the years 1 and 9999. The check is compiled from the schema: every record that a service reads passes here.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any, NoReturn

from tidemill.declare.stream import Stream
from tidemill.durations import FIRST_TIME_MS, LAST_TIME_MS
from tidemill.encoding import schema_files
from tidemill.errors import Reject

#: The lowest and the highest number that is allowed.
Range = tuple[float, float]
Check = Callable[[Any], None]

FINITE: Range = (-sys.float_info.max, sys.float_info.max)
_FLOATS = ("float", "double")
#: Offsets, versions and counts; -1 is none. Avro's own limit is the highest.
WHOLE: Range = (-1, 2**63 - 1)


def compile_check(avro: Mapping[str, Any], ranges: Mapping[str, Range]) -> Check:
    """Return what raises Reject for a record with a number that is none of ours.

    `avro` has logical types and is complete in itself; `ranges` are by the name of the record that a float is in.
    """
    made = _Maker(ranges)
    made.value(avro, "record", "", FINITE, 1)
    exec("\n".join(["def check(record):", *made.lines, "    return None"]), made.names)  # noqa: S102  made of a schema
    check: Check = made.names["check"]
    return check


def compile_stream_check(stream: Stream) -> Check:
    """Return the same for what the validator passes on: its floats are finite, and its time is one."""
    types = {field["name"]: field["type"] for field in stream.valid_avro["fields"]}
    fields: list[Any] = [{"name": stream.time, "type": {"type": "long", "logicalType": "timestamp-millis"}}]
    for name, kind in stream.types.items():
        if kind in _FLOATS:
            number = ["null", "double"] if schema_files.nullable(types[name]) else "double"
            fields.append({"name": name, "type": number})
    return compile_check({"type": "record", "name": "Stream", "fields": fields}, {})


class _Maker:
    """Makes the source of a check, line by line."""

    def __init__(self, ranges: Mapping[str, Range]) -> None:
        self.ranges, self.lines, self._named = ranges, list[str](), dict[str, Any]()
        self.names: dict[str, Any] = {"refuse": _refuse, "check_each": _check_each}
        self._count = 0

    def _name(self, value: Any = None) -> str:
        self._count += 1
        name = f"_{self._count}"
        if value is not None:
            self.names[name] = value
        return name

    def _add(self, depth: int, line: str) -> None:
        self.lines.append("    " * depth + line)

    def value(self, avro: Any, source: str, path: str, within: Range, depth: int) -> None:
        """Check the value that the expression `source` is; floats must be `within` a range."""
        if isinstance(avro, str):
            avro = self._named.get(avro, avro)
        if isinstance(avro, list):
            value = self._name()
            self._add(depth, f"{value} = {source}")
            self._add(depth, f"if {value} is not None:")
            self._add(depth + 1, "pass")
            for branch in avro:
                if branch != "null":
                    self.value(branch, value, path, within, depth + 1)
        elif isinstance(avro, Mapping) and avro["type"] == "record":
            self._record(avro, source, path, depth)
        elif isinstance(avro, Mapping) and avro["type"] in ("array", "map"):
            item, values = self._name(), source if avro["type"] == "array" else f"{source}.values()"
            self._add(depth, f"for {item} in {values}:")
            before = len(self.lines)
            self.value(avro.get("items", avro.get("values")), item, path, within, depth + 1)
            if len(self.lines) == before:  # no number is in it
                self.lines.pop()
        else:
            kind = avro["type"] if isinstance(avro, Mapping) else avro
            if kind in _FLOATS:
                self._number(source, path, within, depth)
            elif schema_files.logical_type(avro) == "timestamp-millis":
                self._number(source, path, (FIRST_TIME_MS, LAST_TIME_MS), depth)
            elif kind in ("int", "long"):
                self._number(source, path, WHOLE, depth)

    def _record(self, avro: Mapping[str, Any], source: str, path: str, depth: int) -> None:
        self._named[avro["name"]] = avro
        within, record = self.ranges.get(avro["name"], FINITE), self._name()
        floats = [field["name"] for field in avro["fields"] if schema_files.primitive(field["type"]) in _FLOATS]
        self._add(depth, f"{record} = {source}")
        if len(floats) > 1:  # all at once: a vector has many
            self._numbers(floats, record, path, within, depth)
        for field in avro["fields"]:
            if len(floats) < 2 or field["name"] not in floats:
                inner = f"{path}.{field['name']}".lstrip(".")
                self.value(field["type"], f"{record}[{field['name']!r}]", inner, within, depth)

    def _numbers(self, names: list[str], record: str, path: str, within: Range, depth: int) -> None:
        low, high = within
        take, where = self._name(itemgetter(*names)), self._name({name: f"{path}.{name}".lstrip(".") for name in names})
        # What is small together is small one by one; a NaN or an infinity makes the sum one.
        sound = f"sum(map(abs, filter(None, {take}({record})))) <= {min(-low, high)!r}"
        self._add(depth, f"if not {sound}: check_each({record}, {where}, {low!r}, {high!r})")

    def _number(self, source: str, path: str, within: Range, depth: int) -> None:
        (low, high), value = within, self._name()
        self._add(depth, f"{value} = {source}")
        is_sound = f"{value} >= {low!r}" if within == WHOLE else f"{low!r} <= {value} <= {high!r}"
        self._add(depth, f"if not {is_sound}: refuse({path!r}, {value}, {low!r}, {high!r})")


def _check_each(record: Mapping[str, Any], paths: Mapping[str, str], low: float, high: float) -> None:
    for name, path in paths.items():
        if record[name] is not None and not low <= record[name] <= high:
            _refuse(path, record[name], low, high)


def _refuse(path: str, value: float, low: float, high: float) -> NoReturn:
    finite = math.isfinite(value)
    expected = "a finite number" if not finite or (low, high) == FINITE else f"a number from {low:g} to {high:g}"
    raise Reject(
        "out_of_range" if finite else "not_finite",
        f"field {path!r} is {value} where {expected} was expected: no service of this pipeline writes that",
        rule="magnitude" if finite else "finite",
        field=path,
        value=value,
    )
