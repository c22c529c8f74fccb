"""What files of history hold, before anything runs on them: `tidemill check PIPELINE --events F --labels F`."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from tidemill import rows
from tidemill.declare.pipeline import Pipeline
from tidemill.declare.stream import Stream
from tidemill.durations import approximate, moment
from tidemill.encoding import schema_files, times
from tidemill.encoding.codec import Codec
from tidemill.errors import SettingsError
from tidemill.offline import history
from tidemill.offline.backtest import LabelDelays
from tidemill.offline.history import Message
from tidemill.offline.source import FileSource
from tidemill.rules import PLAUSIBLE_TIMES
from tidemill.stages.validator.service import Validator
from tidemill.stream.api import Headers, Position, Progress, TopicPartition, expect
from tidemill.stream.memory import MemoryRecord
from tidemill.tables import Lookup
from tidemill.wire import topics
from tidemill.wire.dead_letters import read_dead_letter

#: Of one column; more of them are "more than".
MAX_DISTINCT = 1_000
#: Values of a table's field that name no row, in a report.
MAX_UNMATCHED = 5


@dataclass(frozen=True)
class Column:
    """One column of a file, beside the field of the schema.

    `type` is the schema's, `holds` what the file has, `values` what they are like, `note` what to know.
    """

    name: str
    type: str
    holds: str
    missing: int
    values: str
    note: str = ""


@dataclass(frozen=True)
class TableMatch:
    """How many of the values of a field, and of the events, name a row of a table."""

    table: str
    by: str
    values: int
    matched: int
    events: int
    matched_events: int
    unmatched: Sequence[str]


@dataclass
class StreamFiles:
    """The file, or files, of one stream. Times are ms since the epoch, of valid rows alone."""

    stream: str
    file: str
    unit: str
    rows: int = 0
    valid: int = 0
    columns: list[Column] = field(default_factory=list)
    dead_letters: Counter[str] = field(default_factory=Counter)
    first_letters: dict[str, str] = field(default_factory=dict)
    warned: Counter[str] = field(default_factory=Counter)
    first_warnings: dict[str, str] = field(default_factory=dict)
    first: int | None = None
    last: int | None = None
    same_id: int = 0
    error: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return it for programs; of a Counter `asdict` would count the pairs."""
        counters = {"dead_letters": dict(self.dead_letters), "warned": dict(self.warned)}
        return dataclasses.asdict(self) | counters


@dataclass
class FilesReport:
    """What the files hold, and what to know before anything runs on them."""

    pipeline: str
    label_timeout: str
    streams: list[StreamFiles] = field(default_factory=list)
    delays: LabelDelays | None = None
    tables: list[TableMatch] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return the report for programs."""
        return dataclasses.asdict(self) | {"streams": [files.as_dict() for files in self.streams]}


def check_files(pipeline: Pipeline, source: FileSource, progress: Progress | None = None) -> FilesReport:
    """Return what the files hold. Raises SettingsError where one can't be read at all.

    `progress` is called with rows, as they are read and as they are checked.
    """
    report = FilesReport(pipeline.name, pipeline.label_timeout)
    validator = Validator(pipeline, any_encoding=True, fuse=False)
    known: dict[str, dict[str, int]] = {}
    sent: dict[str, set[str]] = {}
    for name, path, stream, raw, valid in (
        ("events", source.events, pipeline.events, topics.EVENTS, topics.EVENTS_VALID),
        ("labels", source.labels, pipeline.labels, topics.LABELS, topics.LABELS_VALID),
    ):
        if path is None:
            continue
        files = StreamFiles(name, str(path), stream.unit)
        report.streams.append(files)
        columns, files.rows = history.columns(path, stream)
        files.columns = [_column(stream, column, columns.get(column), files.rows) for column in _names(stream, columns)]
        try:
            messages = history.messages(path, stream, progress)
        except SettingsError as error:  # of one value; the file itself can be read
            files.error = str(error)
            report.warnings.append(f"nothing runs on this file: {error}")
            continue
        codec = validator.records.event if name == "events" else validator.records.label
        validator.assign(TopicPartition(raw.name(pipeline), 0), Position(0))
        expect(progress, len(messages))
        records = list(
            valid_records(validator, raw.name(pipeline), valid.name(pipeline), messages, codec, files, progress)
        )
        known[name], sent[name] = {}, {message.id for message in messages}
        for record in records:
            files.same_id += str(record[stream.id]) in known[name]
            known[name].setdefault(str(record[stream.id]), record[stream.time])
        if records:
            ordered = [record[stream.time] for record in records]
            files.first, files.last = min(ordered), max(ordered)
        report.warnings += _warnings(files, stream)
        if name == "events":
            report.tables = [_match(lookup, records) for lookup in _lookups(pipeline)]
            report.warnings += _entity_warnings(pipeline, records)
    if "events" in known and "labels" in known:
        timeout = pipeline.label_timeout_ms
        report.delays = LabelDelays.of(known["events"], known["labels"], timeout, sent["events"])
        report.warnings += filter(None, [report.delays.as_text(pipeline.label_timeout)])
    report.warnings += [
        f"table {match.table}: {match.events - match.matched_events:,} of {match.events:,} events name no row by "
        f"{match.by!r}, as {', '.join(map(repr, match.unmatched))}"
        for match in report.tables
        if match.matched_events < match.events
    ]
    return report


def _names(stream: Stream, columns: Mapping[str, Any]) -> list[str]:
    declared = [field["name"] for field in stream.avro["fields"]]
    return [*declared, *(name for name in columns if name not in declared)]


def _column(stream: Stream, name: str, values: list[Any] | None, count: int) -> Column:
    avro = next((field for field in stream.avro["fields"] if field["name"] == name), None)
    named = schema_files.parsed(stream.avro)[1]
    kind = schema_files.primitive(avro["type"], named) if avro else ""
    type_ = _type(avro, kind) if avro else "not in the schema"
    if values is None:
        note = "not in the file: the default" if avro and "default" in avro else "not in the file"
        return Column(name, type_, "nothing", count, "", note)
    present = [value for value in values if not _is_missing(value, is_text=kind in ("string", "enum"))]
    holds = _holds(present)
    padded = sum(isinstance(value, str) and value != value.strip() for value in present)
    notes = [f"{padded:,} with blanks around them"] if padded and kind in ("string", "enum") else []
    notes += ["left out"] if avro is None else []
    return Column(name, type_, holds, count - len(present), _like(present, holds), "; ".join(notes))


def _type(avro: Mapping[str, Any], kind: str) -> str:
    logical = schema_files.logical_type(avro["type"])
    return f"{logical or kind}{' or null' if schema_files.nullable(avro['type']) else ''}"


def _is_missing(value: Any, *, is_text: bool) -> bool:
    if isinstance(value, str):
        return rows.text_or_none(value, is_text_column=is_text) is None
    return not isinstance(value, (list, dict, tuple)) and rows.is_missing(value)


def _holds(values: Sequence[Any]) -> str:
    """Return what the values are: of texts, what all of them can be read as."""
    kinds = {type(value) for value in values}
    if not values:
        return "nothing"
    if kinds == {str}:
        if all(history.is_number(value.strip()) for value in values):
            return "numbers"
        return "times" if all(_is_time(value) for value in values[:MAX_DISTINCT]) else "text"
    words = {int: "numbers", float: "numbers", bool: "true or false", str: "text", rows.Timestamp: "times"}
    return " and ".join(sorted({words.get(kind, kind.__name__) for kind in kinds}))


def _is_time(text: str) -> bool:
    try:
        moment(text)
    except ValueError:
        return False
    return True


def _like(values: Sequence[Any], holds: str) -> str:
    if holds == "numbers":
        numbers = [Decimal(value.strip() if isinstance(value, str) else str(value)) for value in values]
        lowest, highest = min(numbers), max(numbers)
        return f"{lowest:,}" if lowest == highest else f"{lowest:,} to {highest:,}"
    distinct = Counter(map(str, values[:100_000]))
    if holds == "times" and values and isinstance(values[0], str):
        return f"{min(distinct)} to {max(distinct)}" if len(distinct) > 1 else next(iter(distinct))
    most = ", ".join(history.shown(value, 20) for value, _ in distinct.most_common(3))
    return f"{len(distinct):,} different, as {most}" if len(distinct) > 3 else most


def valid_records(
    validator: Validator,
    raw: str,
    valid: str,
    messages: Sequence[Message],
    codec: Codec,
    files: StreamFiles,
    progress: Progress | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield the valid records; the rest is counted."""
    passed: list[bytes] = []

    def emit(
        topic: str,
        value: bytes,
        key: bytes | None = None,
        timestamp: int = 0,
        headers: Headers | None = None,
        partition: int = -1,
    ) -> None:
        del timestamp, partition
        if topic == valid:
            passed.append(value)
        elif topic == validator.dlq:
            letter = read_dead_letter(MemoryRecord(topic, value, key, 0, headers))
            files.dead_letters[letter.reason] += 1
            files.first_letters.setdefault(letter.reason, letter.message)
        elif topic == validator.warnings:
            for rule in validator.records.warnings.decode(value)["rules"]:
                name = f"{rule['rule']}{rule['field'] and ':'}{rule['field']}"
                files.warned[name] += rule["records"]
                files.first_warnings.setdefault(name, rule["message"])

    for offset, message in enumerate(messages):
        validator.process((MemoryRecord(raw, message.data, None, message.time, None, 0, offset),), emit)
        if progress:
            progress(1)
        if passed:
            files.valid += 1
            yield codec.decode(passed.pop())


def _warnings(files: StreamFiles, stream: Stream) -> list[str]:
    made = []
    if not files.rows:
        made.append(f"{files.file} has no rows")
    for reason, count in files.dead_letters.most_common():
        refused = f"{count:,} of {files.rows:,} {files.stream} are refused: {reason}"
        made.append(f"{refused}, the first: {files.first_letters[reason]}")
    for name, count in files.warned.most_common():
        passed = f"{count:,} of {files.rows:,} {files.stream} pass, and {name} warns"
        made.append(f"{passed}, the first: {files.first_warnings[name]}")
    if files.dead_letters["implausible_time"]:
        where = "Stream(..., time_unit=...)" if stream.is_time_plain else f"the schema {stream.schema_name} says it"
        made.append(f"if the unit of {stream.time!r} is another than {stream.unit}, declare it: {where}")
    begin, end = map(moment, PLAUSIBLE_TIMES)
    if files.first is not None and files.last is not None and not (begin <= files.first and files.last <= end):
        made.append(
            f"times of {files.stream} lie outside {PLAUSIBLE_TIMES[0]} to {PLAUSIBLE_TIMES[1]}: see that "
            f"{stream.time!r} is in {'ISO 8601' if stream.unit == times.TEXT else stream.unit}"
        )
    if files.same_id:
        made.append(f"{files.same_id:,} of {files.valid:,} {files.stream} have an id that came before")
    for column in files.columns:
        if files.rows and column.missing == files.rows and column.note == "":
            made.append(f"{files.stream}: {column.name!r} is missing in every row")
        if column.note.endswith("with blanks around them"):
            made.append(f"{files.stream}: {column.name!r} has {column.note}; text is taken as it is")
    return made


def _entity_warnings(pipeline: Pipeline, records: Sequence[Mapping[str, Any]]) -> list[str]:
    entities = dict.fromkeys([*filter(None, [pipeline.entity]), *(view.entity for view in pipeline.views)])
    made = []
    for name in entities:
        empty = sum(record[name] is not None and not str(record[name]).strip() for record in records)
        if empty and not pipeline.events.empty_entities:
            made.append(
                f"{empty:,} events have an empty {name!r}: it is no entity, unless Stream(..., empty_entities=True)"
            )
    return made


def _lookups(pipeline: Pipeline) -> list[Lookup]:
    """Return one look-up of each table by each field."""
    sources = [feature.source for feature in pipeline.request_features.values()]
    by_place = {(s.table.name, s.by): s for s in sources if isinstance(s, Lookup)}
    return list(by_place.values())


def _match(lookup: Lookup, records: Sequence[Mapping[str, Any]]) -> TableMatch:
    values = Counter(record[lookup.by] for record in records if record[lookup.by] is not None)
    unmatched = Counter({value: n for value, n in values.items() if lookup.key_of(value) not in lookup.values})
    return TableMatch(
        lookup.table.name,
        lookup.by,
        len(values),
        len(values) - len(unmatched),
        values.total(),
        values.total() - unmatched.total(),
        [str(value) for value, _ in unmatched.most_common(MAX_UNMATCHED)],
    )


def delays_text(delays: LabelDelays) -> str:
    """Return within which time labels come."""
    return ", ".join(f"{percent}% within {approximate(delay)}" for percent, delay in delays.quantiles.items())
