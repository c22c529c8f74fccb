"""What to make of somebody's data: which columns are id, time, label and entity, and what becomes a feature.

What can be told from the data is decided, and noted with the option that says otherwise. What can't is asked, or ends
in an error that names the option.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

from tidemill.declare.tasks import TASKS
from tidemill.durations import duration, milliseconds, moment
from tidemill.encoding import schema_files, schema_limits
from tidemill.encoding.times import PER_SECOND
from tidemill.errors import SettingsError
from tidemill.limits import LARGEST_NUMBER
from tidemill.offline.scaffold.columns import (
    EPOCH,
    ISO,
    LARGEST_LONG,
    Column,
    columns_of,
    field_names,
    free_name,
    iso_text,
    quoted,
    time_reader,
    words_of,
)
from tidemill.stream.api import Record

#: Asks (question, choices) and returns the answer.
Ask = Callable[[str, Sequence[str]], str]

#: Rows without a time get one each, from here on.
FIRST_ROW_TIME_MS = moment("2024-01-01")
#: So many rows get a minute each, more a second each.
MAX_ROWS_BY_MINUTE = 500_000
#: Numbers with no more values are classes, if each is there often.
MAX_NUMBER_CLASSES, MIN_ROWS_OF_NUMBER_CLASS = 10, 20
MAX_CLASSES = 100
#: Texts with no more values are categories of their own, with more the mean of what came of each.
MAX_CATEGORY_VALUES = 30
MIN_ROWS_OF_VALUE = 5
MAX_MEAN_VIEWS = 3
#: Columns that an error names.
MAX_CHOICES = 20
#: What `label_timeout`, windows and `Monitor` may be.
DURATIONS = ("5m", "15m", "1h", "6h", "1d", "2d", "7d", "14d", "30d", "90d", "180d", "360d")
#: Windows of views, and the tiles that they are a multiple of.
WINDOWS = {"5m": "30s", "1h": "5m", "6h": "30m", "1d": "2h", "7d": "12h", "30d": "2d", "90d": "6d", "360d": "30d"}
#: Examples that a window of the monitor should hold: of one with fewer than `Monitor(least=100)` no alert is opened.
EXAMPLES_OF_MONITOR_WINDOW = 110, 150
#: Windows of its reference, which should be no more than half of the data: only what comes after it is judged.
MONITOR_WINDOWS_OF_REFERENCE = 3, 5
#: Events of one entity that a window should hold, as far as one can.
EVENTS_OF_WINDOW = 10
SHRUNK_BY = 10

_IDS = re.compile(r"(^|[^a-z])(id|uuid|guid|key|nr|no|number|ref|index)$|[a-z]{3}id$")
_ENTITIES = {
    *("user", "customer", "client", "account", "card", "device", "store", "shop", "driver", "courier", "depot"),
    *("merchant", "vendor", "seller", "patient", "player", "host", "ip", "origin", "station", "sensor", "machine"),
    *("sku", "product", "item", "symbol", "ticker", "subject", "chick", "team", "carrier", "vehicle", "city"),
}
#: Whole numbers that are called so are names: their size says nothing.
_CODES = {"code", "zip", "zipcode", "postal", "postcode", "plz"}
_LABELS = {
    *("label", "target", "y", "class", "outcome", "fraud", "is_fraud", "churn", "churned", "survived", "response"),
    *("default", "ground_truth", "truth"),
}
_TIMES = {"time", "date", "datetime", "timestamp", "ts", "epoch", "created", "unixtime", "datum", "at"}
_LABEL_WORDS = ("label", "target", "is", "was")
_TRUE = {
    *("true", "t", "yes", "y", "1", "1.0", "ja", "oui", "si", "pos", "positive", "bad", "fraud", "spam", "churn"),
    *("churned", "late", "fail", "failed", "failure", "malignant", "attack", "default", "defaulted", "won", "up"),
}


@dataclass(frozen=True)
class Sample:
    """The newest records of a topic; `schema`: the one that all were read with, `is_json`: none was of Avro."""

    topic: str
    partitions: int
    records: Sequence[Record] = field(repr=False)
    registry_url: str = field(repr=False)
    schema: Mapping[str, Any] | None
    is_json: bool = True

    def types(self) -> Mapping[str, Any]:
        """Return the Avro types of the fields whose values in a file are those on the topic."""
        fields = self.schema["fields"] if self.schema else ()
        return {one["name"]: one["type"] for one in fields if _is_plain(one["type"])}


def _is_plain(avro: Any) -> bool:
    if isinstance(avro, list):
        return len(avro) == 2 and avro[0] == "null" and _is_plain(avro[1])
    logical = schema_files.logical_type(avro)
    kind = avro["type"] if isinstance(avro, dict) else avro
    return kind in PLAIN_AVRO and (not logical or logical == "uuid" or logical.startswith("timestamp-"))


@dataclass
class Data:
    """One source of rows: what it is called, its columns as they stand there, and the topic that they are from."""

    name: str
    given: Mapping[str, Sequence[Any]]
    is_csv: bool
    sample: Sample | None = None
    columns: list[Column] = field(init=False)

    def __post_init__(self) -> None:
        self.columns = columns_of(self.given, is_csv=self.is_csv)
        for column in self.columns:
            column.declared = self.sample.types().get(column.name) if self.sample and not column.is_renamed else None
        if not self.columns or not self.rows:
            raise SettingsError(f"{self.name} has no rows: give a file with a line of names and some rows")
        if self.is_csv and len(self.columns) == 1 and re.search(r"[^\w.]", name := self.columns[0].name.strip()):
            raise SettingsError(
                f"{self.name} has one column, {name[:60]!r}: see that its values are separated by one of , ; | or tab"
            )

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self.columns[0].values) if self.columns else 0

    def column(self, option: str, name: str) -> Column:
        """Return the column of that name, or of that field. Raises SettingsError, which names the option."""
        for column in self.columns:
            if name.strip() in (column.name.strip(), column.field):
                return column
        raise SettingsError(f"--{option} {name!r}: {self.name} has no such column: it has {listed(self.columns)}")


def listed(columns: Iterable[Column]) -> str:
    """Return the names of columns, the first of them where there are many."""
    names = [repr(column.name) for column in columns]
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


@dataclass(frozen=True)
class Part:
    """One field of a schema: its Avro type, the column it is from where that has another name, and its values."""

    name: str
    avro: Any
    values: Sequence[Any] = field(repr=False)
    column: str = ""


@dataclass
class Plan:
    """What is written: the parts of both schemas, and the declaration's choices."""

    name: str
    task: str
    is_csv: bool
    events: list[Part] = field(default_factory=list)
    labels: list[Part] = field(default_factory=list)
    id: str = ""
    time: str = ""
    time_unit: str = ""
    label_time_unit: str = ""
    entity: str = ""
    label: str = ""
    label_id: str = ""
    label_time: str = ""
    #: The Python of the label, as the declaration's `value` has it.
    value: str = ""
    label_timeout: str = "1d"
    numbers: list[str] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    categories: list[str] = field(default_factory=list)
    #: Categories that are whole numbers in the data.
    codes: list[str] = field(default_factory=list)
    #: Features of the time: "hour", "weekday", "month".
    calendar: list[str] = field(default_factory=list)
    #: Fields whose values are told by the mean of their labels.
    means: list[str] = field(default_factory=list)
    #: Fields that are no features, and why.
    left_out: dict[str, str] = field(default_factory=dict)
    prior: float = 0.0
    window: str = "1d"
    monitor: str = "1d"
    reference: str = "5d"
    segments: list[str] = field(default_factory=list)
    #: The topics that events and labels are from, where they are; the pipeline reads them where it can.
    samples: dict[str, Sample] = field(default_factory=dict)
    #: By "events" and "labels": the topic that is read as it is.
    topics: dict[str, str] = field(default_factory=dict)
    rows: int = 0
    notes: list[str] = field(default_factory=list)
    is_labelled: bool = True

    @property
    def suffix(self) -> str:
        """The form of the data files: CSV as it came, JSON lines for values that have types."""
        return "csv" if self.is_csv else "jsonl"


@dataclass
class Options:
    """What the user says himself; empty: it is to be decided. "none" stands for no such column."""

    id: str = ""
    label_id: str = ""
    time: str = ""
    time_unit: str = ""
    time_format: str = ""
    entity: str = ""
    label: str = ""
    label_time: str = ""
    label_delay: str = ""
    task: str = ""
    positive: str = ""


def plan(name: str, events: Data, labels: Data | None, options: Options, ask: Ask | None = None) -> Plan:
    """Return what to write. Raises SettingsError, in one line, where something is not right or can't be known."""
    return _Planner(name, events, labels, options, ask).plan()


class _Planner:
    def __init__(self, name: str, events: Data, labels: Data | None, options: Options, ask: Ask | None) -> None:
        self.events, self.labels, self.options, self.ask = events, labels, options, ask
        self.made = Plan(name, options.task, events.is_csv and (labels is None or labels.is_csv))
        self.made.rows = events.rows
        for data in filter(None, (events, labels)):
            if data.is_csv and not self.made.is_csv:  # the other file is none, and both are written in one form
                for column in data.columns:
                    column.values = column.typed()
        self.made.samples = {
            stream: data.sample for stream, data in (("events", events), ("labels", labels)) if data and data.sample
        }
        for sample in self.made.samples.values():
            if sample.topic.startswith(f"{name}."):
                raise SettingsError(
                    f"topic {sample.topic!r} is called as topics of a pipeline {name!r} are: choose another name"
                )
        if options.task and options.task not in TASKS:
            raise SettingsError(f"--task {options.task!r}: expected one of {', '.join(TASKS)}")
        self.used: set[str] = set()

    def note(self, text: str) -> None:
        self.made.notes.append(text)

    def note_all(self, what: str, each: Sequence[str]) -> None:
        """Note things of one kind, the first of them, if there are any."""
        more = f" and {len(each) - MAX_NOTED} more" if len(each) > MAX_NOTED else ""
        if each:
            self.note(f"{what}: {', '.join(each[:MAX_NOTED])}{more}")

    def choose(self, option: str, question: str, choices: Sequence[str]) -> str:
        """Ask what can't be known. Raises SettingsError where nobody can be asked."""
        if self.ask is None:
            shown = ", ".join(map(repr, choices[:MAX_CHOICES])) + (", ..." if len(choices) > MAX_CHOICES else "")
            raise SettingsError(f"{question} Say so with --{option}: {shown}")
        answer = self.ask(f"{question} (--{option})", choices)
        setattr(self.options, option.replace("-", "_"), answer)
        return answer

    def plan(self) -> Plan:
        for data in filter(None, (self.events, self.labels)):
            renamed = [f"{c.name!r} is {c.field}" for c in data.columns if c.is_renamed]
            self.note_all(f"{data.name}: names that Avro has not", renamed)
            values = [repr(c.name) for c in data.columns if data.is_csv and _VALUE.match(c.name)]
            self.note_all(f"{data.name}: the first line is taken for one of names, and holds values", values)
            for column in data.columns:
                if column.note:
                    self.note(f"{data.name}: {column.name!r}: {column.note}")
        label, label_data = self._label()
        time, millis = self._time(label if self.labels is None else None)
        id_, label_id = self._id(label, time)
        self._task(label)
        label_time, label_millis = self._label_time(label, time, millis, id_, label_id)
        apart = [c for c in (label, label_time) if c is not None] if label_data is self.events else []
        self._events(id_, time, millis, apart)
        self._labels(label, id_, label_id, label_time, millis, label_millis)
        entity = self._entity([c for c in (id_, time, label, label_time) if c])
        self._features(entity, [c for c in (id_, time, *apart) if c], time, millis)
        self._windows(entity, millis)
        return self.made

    # Which columns are what.

    def _label(self) -> tuple[Column | None, Data]:
        data, options = self.labels or self.events, self.options
        if options.label and options.label != "none":
            return self._with_values("label", data.column("label", options.label)), data
        if options.label == "none":
            return None, data
        likely = [c for c in data.columns if c.kind not in ("nested", "time")]
        named = [c for c in likely if "_".join(words_of(c.name)) in _LABELS]
        named = named or [c for c in likely[-1:] if words_of(c.name)[:1] and words_of(c.name)[0] in _LABEL_WORDS]
        if named:  # of `label_a` and `label_b` either may be meant
            named += [c for c in likely if c not in named and words_of(c.name)[:1] in (["label"], ["target"])]
        if self.labels is not None:
            shared = {c.name for c in self.events.columns}
            others = [c for c in likely if c.name not in shared and not c.told and not _IDS.search(_plain(c))]
            named = named or (others if len(others) == 1 else [])
        if len(named) == 1:
            self.note(f"the label is {named[0].name!r} (--label)")
            return self._with_values("label", named[0]), data
        if options.task == "anomaly":
            return None, data
        question = f"which column of {data.name} is the label, or `none` to look for anomalies?"
        some = [c for c in named or likely if c.kind != "text" or not c.is_unique]  # a text of each row is no answer
        answer = self.choose("label", question, [*(c.name for c in some), "none"])
        if answer == "none":
            return None, data
        return self._with_values("label", data.column("label", answer)), data

    @staticmethod
    def _with_values(option: str, column: Column) -> Column:
        if column.kind in ("nested", "empty"):
            what = "no value in any row" if column.kind == "empty" else "lists or objects, which is no plain value"
            raise SettingsError(f"--{option} {column.name!r} has {what}: name another column")
        return column

    def _time(self, label: Column | None) -> tuple[Column | None, list[int]]:
        data, name = self.events, self.options.time
        if name and name != "none":
            column = data.column("time", name)
        elif name == "none":
            return None, self._times_by_row()
        else:
            likely = [c for c in data.columns if c is not label and _is_time(c)]
            chosen = self._event_time(likely)
            if chosen is None:
                return None, self._times_by_row()
            column = chosen
        self._read_times("time", column)
        return column, self._whole_times("time", column)

    def _event_time(self, likely: list[Column]) -> Column | None:
        """Return the column with the time of the events, of several that may be: the earliest in every row."""
        whole = [c for c in likely if not c.missing]
        if not whole:
            for column in likely:
                self.note(
                    f"{column.name!r} has no value in {column.missing:,} rows, row {column.values.index(None) + 1} the "
                    f"first: it is not the time of the events"
                )
            return None
        dated = [c for c in whole if c.kind == "time"] or [c for c in whole if c.told in PER_SECOND] or whole
        if len(dated) > 1:
            dated = _not_cut(dated)
            sure = [c for c in dated if c.told]
            by_row = list(zip(*(c.millis for c in sure), strict=True))
            first = [c for i, c in enumerate(sure) if all(row[i] == min(row) for row in by_row)]
            dated = first[:1] if len(sure) == len(dated) and first else dated
        if len(dated) == 1:
            self.note(f"the time of an event is {dated[0].name!r} (--time)")
            self._note_times_of_day(dated[0])
            return dated[0]
        answer = self.choose("time", "which column is the time of an event?", [*(c.name for c in dated), "none"])
        return None if answer == "none" else self.events.column("time", answer)

    def _note_times_of_day(self, day: Column) -> None:
        if day.told and not any(ms is not None and ms % 86_400_000 for ms in day.millis):
            apart = [
                repr(c.name)
                for c in self.events.columns
                if c.kind == "text" and all(_TIME_OF_DAY.fullmatch(str(value).strip()) for value in c.counts)
            ]
            self.note_all(f"{day.name!r} is a day; its time of day is not read, from", apart)

    def _times_by_row(self) -> list[int]:
        step = 60_000 if self.events.rows <= MAX_ROWS_BY_MINUTE else 1_000
        self.note(
            f"{self.events.name} has no time: its rows are taken to come in order, one a "
            f"{'minute' if step == 60_000 else 'second'} from 2024-01-01 on (--time)"
        )
        for column in self.events.columns if self.options.time != "none" else ():
            if (set(words_of(column.name)[-1:]) & _TIMES) and not _is_time(column) and not column.note:
                if column.kind in ("int", "float"):
                    between = (
                        f"numbers, from {min(column.numbers):.16g} to {max(column.numbers):.16g}, do not all count"
                    )
                    self.note(f"{column.name!r} is no time: its {between} seconds, or parts of them, since 1970")
                elif column.kind == "text":
                    example = min(column.counts, key=len)[:40]
                    self.note(f"{column.name!r} is no time: its texts, as {example!r}, are of no form that is known")
        return [FIRST_ROW_TIME_MS + number * step for number in range(self.events.rows)]

    def _read_times(self, option: str, column: Column) -> None:
        """Say how the times of a column are told. Raises SettingsError where that is not known."""
        options = self.options
        for given, known in ((options.time_format, None), (options.time_unit, (*PER_SECOND, ISO))):
            if given and (option == "time" or not column.told):
                if known and given not in known:
                    raise SettingsError(f"--time-unit {given!r}: expected one of {', '.join(known)}")
                column.told, column.ambiguous = given, ()
        if column.kind in ("nested", "empty", "flag"):
            raise SettingsError(f"--{option} {column.name!r} has no times: it holds {column.kind} values")
        if column.ambiguous and not column.told:
            example = next(value for value in column.values if value)
            column.told = self.choose(
                "time-format", f"{column.name!r} may be read in several ways, as {example!r}: which?", column.ambiguous
            )
        if not column.told:
            example = next(value for value in column.values if value is not None)
            given = (
                "--time-unit seconds, millis, micros or nanos" if column.kind in ("int", "float") else "--time-format"
            )
            why = f": {column.note}" if column.note else f": give {given}, or --{option} none"
            raise SettingsError(
                f"--{option} {column.name!r} holds {str(example)[:40]!r}, and it can't be told what time that is{why}"
            )
        read, millis = time_reader(column.told), list[int | None]()
        try:
            millis.extend(None if value is None else _checked(read(value)) for value in column.values)
            column.millis = millis
            if column.told in PER_SECOND and not all(ms is None or EPOCH[0] <= ms <= EPOCH[1] for ms in column.millis):
                raise ValueError("its numbers are no times between 1990 and 2100")
        except (ArithmeticError, ValueError, TypeError) as error:
            why = "it holds no numbers of our days" if isinstance(error, ArithmeticError) else str(error)
            where = f" in row {len(millis) + 1}" if len(millis) < len(column.values) else ""
            raise SettingsError(f"--{option} {column.name!r} is not in {column.told!r}{where}: {why}") from None

    @staticmethod
    def _whole_times(option: str, column: Column) -> list[int]:
        if column.missing:
            row = column.values.index(None) + 1
            raise SettingsError(f"--{option} {column.name!r} has no value in row {row}: every event needs a time")
        return [ms for ms in column.millis if ms is not None]

    def _id(self, label: Column | None, time: Column | None) -> tuple[Column | None, Column | None]:
        """Return the columns that name an event, in the events and in the labels; None: the row's number does."""
        data, name = self.events, self.options.id
        if name and name != "none":
            column = data.column("id", name)
            if column.missing or column.kind not in ("int", "text"):
                what = f"no value in {column.missing:,} rows" if column.missing else f"{column.kind} values"
                raise SettingsError(f"--id {column.name!r} has {what}: an id is a text or a whole number, in every row")
            if not column.is_unique:
                self.note(
                    f"{column.name!r} repeats: of {data.rows:,} rows {len(column.counts):,} have an id of their own"
                )
        elif self.labels is not None:
            if name == "none":
                raise SettingsError("--id none: events and labels are in two files, and an id connects them: name it")
            column = self._common_id(label)
        else:
            likely = [c for c in data.columns if c.is_unique and c.kind in ("int", "text") and c not in (label, time)]
            likely = [c for c in likely if _IDS.search(_plain(c))] if name != "none" else []
            if not likely:
                self.note(f"{data.name} has no id: the number of the row is one (--id)")
                return None, None
            column = likely[0]
            self.note(f"an event is named by {column.name!r} (--id)")
        if self.labels is None:
            return column, column
        label_id = self.labels.column("label-id", self.options.label_id or column.name)
        if label_id.kind not in ("int", "text"):
            raise SettingsError(f"--label-id {label_id.name!r} holds {label_id.kind} values: expected those of the id")
        if not {str(v) for v in column.counts} & {str(v) for v in label_id.counts}:
            raise SettingsError(
                f"--id {column.name!r}: no label has the id of an event: name the columns with --id and --label-id"
            )
        return column, label_id

    def _common_id(self, label: Column | None) -> Column:
        assert self.labels is not None  # noqa: S101
        in_labels = {c.name: c for c in self.labels.columns if c.kind in ("int", "text") and c is not label}
        likely = [c for c in self.events.columns if c.is_unique and c.kind in ("int", "text") and c.name in in_labels]
        likely = [c for c in likely if {str(v) for v in c.counts} & {str(v) for v in in_labels[c.name].counts}]
        hinted = [c for c in likely if _IDS.search(_plain(c))] or likely
        if len(hinted) != 1:
            shared = [c.name for c in hinted] or [c.name for c in self.events.columns]
            answer = self.choose("id", "which column names an event, in events and labels alike?", shared)
            return self.events.column("id", answer)
        self.note(f"an event is named by {hinted[0].name!r}, in both files (--id)")
        return hinted[0]

    def _label_time(
        self, label: Column | None, time: Column | None, millis: list[int], id_: Column | None, label_id: Column | None
    ) -> tuple[Column | None, list[int | None]]:
        """Return the column with the time of labels, and the times: of the labels' rows."""
        options, data = self.options, self.labels or self.events
        delay = 0
        if options.label_delay:
            try:
                delay = 0 if options.label_delay in ("0", "none") else milliseconds(options.label_delay)
            except ValueError as error:
                raise SettingsError(f"--label-delay: {error}") from None
        column = None
        if options.label_time and options.label_time != "none":
            column = data.column("label-time", options.label_time)
            self._read_times("label-time", column)
        elif not options.label_time and not options.label_delay and label is not None:
            column = self._likely_label_time(data, label, time, millis)
        if column is not None:
            return column, list(column.millis)
        if label is not None:
            when = f"{options.label_delay} after its event" if delay else "at the time of its event"
            self.note(f"a label is known {when}{'' if delay else ' (--label-time or --label-delay)'}")
        if self.labels is None:
            return None, [ms + delay for ms in millis]
        assert id_ is not None and label_id is not None  # noqa: S101,PT018
        known = dict(zip(map(str, id_.values), millis, strict=True))
        return None, [known.get(str(v), max(millis)) + delay for v in label_id.values]

    def _likely_label_time(self, data: Data, label: Column, time: Column | None, millis: list[int]) -> Column | None:
        likely = [c for c in data.columns if c is not label and c is not time]
        likely = [c for c in likely if c.kind == "time" or c.told in PER_SECOND]
        if data is self.events:
            likely = [
                c
                for c in likely
                if c.told
                and time is not None
                and all(y is None or ms is not None for y, ms in zip(label.values, c.millis, strict=True))
                and all(ms is None or at <= ms for at, ms in zip(millis, c.millis, strict=True))
                and any(ms is not None and at < ms for at, ms in zip(millis, c.millis, strict=True))
            ]
        likely = _not_cut([time, *likely] if time is not None and data is self.events else likely)
        likely = [c for c in likely if c is not time]
        if not likely:
            return None
        if len(likely) > 1:
            question = f"which column of {data.name} is the time at which a label is known?"
            answer = self.choose("label-time", question, [*(c.name for c in likely), "none"])
            if answer == "none":
                return None
            likely = [data.column("label-time", answer)]
        self._read_times("label-time", likely[0])
        self.note(f"a label is known at {likely[0].name!r} (--label-time)")
        return likely[0]

    # The task, from the label.

    def _task(self, label: Column | None) -> None:
        made, asked = self.made, self.options.task
        if label is None:
            if asked not in ("", "anomaly"):
                raise SettingsError(f"--task {asked} needs a label: name it with --label")
            made.task, made.is_labelled = "anomaly", False
            made.label = free_name("anomaly", [c.field for c in self.events.columns])
            made.value = quoted(made.label)
            self.note("there is no label: the task is anomaly, and no event is said to be one")
            return
        made.label = label.field
        values, rows = label.counts, label.counts.total()
        alike = Counter(" ".join(str(value).split()).casefold() for value in values) if label.kind == "text" else {}
        self.note_all(
            f"values of {label.name!r} that differ in blanks or case alone, and are classes of their own",
            [repr(value) for value in values if alike and alike[" ".join(str(value).split()).casefold()] > 1],
        )
        if self.labels is None:
            same = [repr(c.name) for c in self.events.columns if c is not label and _says_the_same(c, label)]
            self.note_all("these say the label in every row; leave out what is not known when the event comes", same)
        is_number = label.kind in ("int", "float")
        if not asked:
            asked = self._task_of(label, len(values), rows)
            self.note(f"the task is {asked}, for {label.name!r} has {_values_of(label)} (--task)")
        made.task = asked
        if asked in ("binary", "anomaly"):
            self._binary(label, asked)
        elif asked == "regression":
            if not is_number:
                raise SettingsError(f"--task regression: {label.name!r} has {_values_of(label)}: expected numbers")
            made.value = quoted(label.field)
            finite = [number for number in label.numbers if abs(number) <= LARGEST_NUMBER]
            made.prior = float(f"{mean(finite) if finite else 0.0:.4g}")
        else:
            made.value = (
                quoted(label.field)
                if label.kind in ("text", "time")
                else f"lambda label: str(label[{quoted(label.field)}])"
            )

    def _task_of(self, label: Column, distinct: int, rows: int) -> str:
        if label.kind == "flag" or distinct == 2 or {str(value) for value in label.counts} <= {"0", "1"}:
            return "binary"
        if label.kind in ("int", "float"):
            few = distinct <= MAX_NUMBER_CLASSES and rows >= MIN_ROWS_OF_NUMBER_CLASS * distinct
            return "multiclass" if few and label.kind == "int" and distinct > 1 else "regression"
        if distinct > MAX_CLASSES or label.kind == "time":
            raise SettingsError(
                f"{label.name!r} has {_values_of(label)}: no label that can be learned. Name another with --label, or "
                f"say --task multiclass"
            )
        return "multiclass"

    def _binary(self, label: Column, task: str) -> None:
        made, values = self.made, label.counts
        made.prior = 0.5
        if label.kind == "flag":
            made.value = quoted(label.field)
            made.prior = round(sum(n for v, n in values.items() if str(v).lower() in _TRUE) / values.total(), 4)
            return
        positive = next((v for v in values if self.options.positive and str(v) == self.options.positive), None)
        if self.options.positive and positive is None:
            raise SettingsError(f"--positive {self.options.positive!r} is no value of {label.name!r}")
        if len(values) > 2 and positive is None:
            raise SettingsError(
                f"--task {task}: {label.name!r} has {_values_of(label)}: say which is true, by --positive"
            )
        if positive is None:
            likely = [value for value in values if str(value).strip().lower() in _TRUE]
            rarest = sorted(values, key=lambda value: (values[value], str(value)))
            positive = likely[0] if len(likely) == 1 else rarest[0]
            if len(values) == 1 and not likely:
                positive = None
        if positive is None:
            only = next(iter(values))
            self.note(f"every label is {only!r}: taken as false (--positive)")
            made.value, made.prior = f"lambda label: label[{quoted(label.field)}] != {_as_python(label, only)}", 0.0
            return
        self.note(f"the label is true where {label.name!r} is {str(positive)!r} (--positive)")
        made.value = f"lambda label: label[{quoted(label.field)}] == {_as_python(label, positive)}"
        made.prior = round(values[positive] / values.total(), 4)

    # The parts of both schemas.

    def _events(self, id_: Column | None, time: Column | None, millis: list[int], apart: Sequence[Column]) -> None:
        made, data = self.made, self.events
        names = [column.field for column in data.columns]
        if id_ is None:
            made.id = free_name("row", names)
            made.events.append(Part(made.id, "long", [self._whole(n) for n in range(1, data.rows + 1)]))
        else:
            made.id = id_.field
            plain = "long" if id_.kind == "int" and self._ids_are_whole(id_) else "string"
            made.events.append(_part(id_, _never_null(id_.declared or plain)))
        if time is None:
            made.time = free_name("at", names)
            made.events.append(Part(made.time, MILLIS, list(map(iso_text, millis))))
        else:
            made.time = time.field
            part, made.time_unit = self._time_part(time, millis)
            made.events.append(part)
        for column in data.columns:
            if column in (id_, time) or column in apart:
                continue
            if column.kind in ("nested", "empty") or (column.kind == "float" and _is_beyond(column)):
                what = {"nested": _kind_of(column), "empty": "no value in any row"}.get(
                    column.kind, f"most of its numbers lie beyond {LARGEST_NUMBER:g}"
                )
                is_of_json = data.sample and data.sample.is_json and not column.is_renamed and column.kind != "float"
                avro = _nested_type(column) if is_of_json else None
                if avro is not None:  # JSON of its topic has it
                    made.left_out[column.field] = what
                    made.events.append(Part(column.field, avro, column.values))
                else:
                    made.left_out[column.field] = f"{what}; not in the schema"
                continue
            made.events.append(_part(column))

    def _ids_are_whole(self, id_: Column) -> bool:
        """Whether ids are whole numbers in both files."""
        name = self.options.label_id or id_.name
        return self.labels is None or self.labels.column("label-id", name).kind == "int"

    def _whole(self, number: int) -> Any:
        return str(number) if self.made.is_csv else number

    def _time_part(self, column: Column, millis: Sequence[int | None]) -> tuple[Part, str]:
        """Return the field of a time as it is told, if a schema can say so, and its unit; else as ISO 8601."""
        told = column.told
        if told == "seconds" and column.kind != "text":
            return _part(column), "seconds"
        if column.declared is not None and column.kind == "time":
            is_text = schema_files.primitive(column.declared, {}) == "string"
            if not is_text or told == ISO:
                return _part(column, _never_null(column.declared)), ISO if is_text else ""
        logical = {"millis": "timestamp-millis", "micros": "timestamp-micros", "nanos": "timestamp-nanos"}.get(told)
        if logical and column.kind == "int":
            return _part(column, {"type": "long", "logicalType": logical}), ""
        if told == ISO and self.made.is_csv:
            return _part(column, MILLIS), ""
        self._say_written_as_iso(column)
        texts = [None if ms is None else iso_text(ms) for ms in millis]
        return Part(column.field, MILLIS, texts, column.name if column.is_renamed else ""), ""

    def _say_written_as_iso(self, column: Column) -> None:
        if column.told != ISO:
            self.note(f"the times of {column.name!r} are written as ISO 8601, as 2026-01-31T18:00:00Z")

    def _labels(
        self,
        label: Column | None,
        id_: Column | None,
        label_id: Column | None,
        label_time: Column | None,
        millis: list[int],
        label_millis: list[int | None],
    ) -> None:
        """Make the fields of the labels, of the rows that have one."""
        made, data = self.made, self.labels or self.events
        ids: Sequence[Any]
        if id_ is None or label_id is None:
            ids, made.label_id = made.events[0].values, made.id
        else:
            ids, made.label_id = label_id.values, label_id.field
        if made.label == made.label_id:
            raise SettingsError(f"--label {made.label!r} is the id as well: name another column")
        taken = [made.label_id, made.label]
        made.label_time = label_time.field if label_time is not None else free_name("known_at", taken)
        if made.label_time in taken:
            raise SettingsError(f"--label-time {made.label_time!r} is the id or the label as well: name another column")
        values = label.values if label is not None else ["false" if made.is_csv else False] * data.rows
        time = Part(made.label_time, MILLIS, [None if ms is None else iso_text(ms) for ms in label_millis])
        if label_time is not None and self.labels is not None and self.labels.sample:  # to be read as it is there
            time, made.label_time_unit = self._time_part(label_time, label_millis)
        rows = [
            (i, ms, value, at)
            for i, ms, value, at in zip(ids, label_millis, values, time.values, strict=True)
            if i is not None and ms is not None and value is not None
        ]
        if len(rows) < data.rows:
            lacking, many = data.rows - len(rows), data.rows - len(rows) != 1
            what = "without a label yet" if data is self.events else f"of {data.name} without id, time or label"
            self.note(f"{lacking:,} row{'s' * many} {what}")
        if not rows:
            raise SettingsError(f"no row of {data.name} has an id, a time and a label")
        id_type = made.events[0].avro
        kept = [str(i) if id_type == "string" else i for i, *_ in rows]
        kind: Any = {"int": "long", "float": "double", "flag": "boolean"}.get(label.kind if label else "flag", "string")
        if label is not None and isinstance(label.declared, dict) and label.declared["type"] == "enum":
            kind = label.declared
        id_name = label_id.name if label_id is not None and label_id.is_renamed else ""
        made.labels = [
            Part(made.label_id, id_type, kept, id_name),
            dataclasses.replace(time, values=[at for *_, at in rows], column=_original(label_time)),
            Part(made.label, kind, [value for _, _, value, _ in rows], _original(label)),
        ]
        if label is not None and label.kind == "time":
            made.labels[2] = dataclasses.replace(made.labels[2], values=[str(value) for _, _, value, _ in rows])
        known = dict(zip(map(str, made.events[0].values), millis, strict=True))
        delays = [ms - known[str(i)] for i, ms, *_ in rows if str(i) in known]
        made.label_timeout = _at_least(max(delays, default=0) * 3 // 2)

    # Features.

    def _entity(self, taken: Sequence[Column]) -> Column | None:
        name = self.options.entity
        if name == "none":
            return None
        if name:
            column = self.events.column("entity", name)
            if column.missing or column.kind not in ("int", "text"):
                what = f"no value in {column.missing:,} rows" if column.missing else f"{column.kind} values"
                raise SettingsError(
                    f"--entity {column.name!r} has {what}: expected texts or whole numbers, in every row"
                )
            if column.field not in {part.name for part in self.made.events}:
                raise SettingsError(f"--entity {column.name!r} is known with the label only: name another column")
        else:
            likely = [
                c
                for c in self.events.columns
                if c.kind in ("int", "text")
                and c not in taken
                and not c.missing
                and 2 <= len(c.counts) <= c.counts.total() / 3
                and not c.told
                and (_IDS.search(_plain(c)) or (c.kind == "text" and set(words_of(c.name)[-1:]) & _ENTITIES))
            ]
            if not likely:
                return None
            column = max(likely, key=lambda c: len(c.counts))
            self.note(f"features of the past are kept for each {column.name!r} (--entity)")
        self.made.entity = column.field
        self.made.events = [
            dataclasses.replace(part, avro=_never_null(part.avro)) if part.name == column.field else part
            for part in self.made.events
        ]
        return column

    def _features(
        self, entity: Column | None, taken: Sequence[Column], time: Column | None, millis: Sequence[int]
    ) -> None:
        made, rows = self.made, self.events.rows
        fields = {part.name for part in made.events}
        for column in self.events.columns:
            if column in taken or column.field not in fields or column.kind in ("nested", "empty"):
                continue
            distinct = len(column.counts)
            is_code = column.kind == "int" and bool(_CODES & set(words_of(column.name)))
            if distinct == 1 and not column.missing and rows >= MIN_ROWS_OF_NUMBER_CLASS:
                made.left_out[column.field] = f"always {str(next(iter(column.counts)))[:40]!r}"
            elif column.kind == "time" or column.told in PER_SECOND:
                made.left_out[column.field] = "a time: it only goes up"
            elif column.kind in ("int", "float") and not is_code:
                if column.kind == "int" and (column is entity or (column.is_unique and _IDS.search(_plain(column)))):
                    made.left_out[column.field] = "an id"
                elif column.kind == "int" and any(abs(number) > LARGEST_NUMBER for number in column.numbers):
                    made.left_out[column.field] = f"whole numbers beyond {LARGEST_NUMBER:g}, which are names"
                else:
                    made.numbers.append(column.field)
            elif column.kind == "flag":
                made.flags.append(column.field)
            elif distinct <= MAX_CATEGORY_VALUES and (rows >= 2 * distinct or rows < MIN_ROWS_OF_NUMBER_CLASS):
                made.categories.append(column.field)
                made.codes += [column.field] * is_code
                if distinct <= MAX_NUMBER_CLASSES and len(made.segments) < 2:
                    made.segments.append(column.field)
            elif (
                rows >= MIN_ROWS_OF_VALUE * distinct
                and made.task != "multiclass"
                and len(made.means) < MAX_MEAN_VIEWS
                and column is not entity
            ):
                made.means.append(column.field)
            elif column is not entity:
                made.left_out[column.field] = (
                    f"{'codes' if is_code else 'text'} with {distinct:,} different values in {rows:,} rows"
                )
        self.note_all("no feature is made of", [f"{name!r} ({why})" for name, why in made.left_out.items()])
        if time is not None:
            span = max(millis) - min(millis)
            made.calendar += ["hour"] if any(ms % 86_400_000 for ms in millis) else []
            made.calendar += ["weekday"] if span >= 14 * 86_400_000 else []
            made.calendar += ["month"] if span >= 400 * 86_400_000 else []
        if not (made.numbers or made.flags or made.categories or made.calendar or made.means or entity):
            raise SettingsError(
                f"{self.events.name} has nothing to predict from: beside id, time and label it needs a column of "
                f"numbers or categories"
            )

    def _windows(self, entity: Column | None, millis: Sequence[int]) -> None:
        made, span = self.made, max(millis) - min(millis)
        entities = len(entity.counts) if entity is not None else 1
        wanted = EVENTS_OF_WINDOW * span * entities // max(1, len(millis))
        made.window = next((w for w in WINDOWS if milliseconds(w) >= wanted), "360d")
        least, most = (count * span // max(1, len(millis)) for count in EXAMPLES_OF_MONITOR_WINDOW)
        full = max(least, min(most, span // 2 // MONITOR_WINDOWS_OF_REFERENCE[0]))
        made.monitor = _at_least(max(span // 20, full), DURATIONS[2:])
        window, (fewest, most_windows) = milliseconds(made.monitor), MONITOR_WINDOWS_OF_REFERENCE
        made.reference = duration(window * max(fewest, min(most_windows, span // 2 // window)))


MILLIS = {"type": "long", "logicalType": "timestamp-millis"}
#: Of things of one kind so many are noted one by one.
MAX_NOTED = 8
#: Avro types whose values a file has as they are on the topic.
PLAIN_AVRO = ("string", "boolean", "int", "long", "float", "double", "enum")


def _never_null(avro: Any) -> Any:
    """Return the type of a field that has a value in every row, and must: an id, a time or a key."""
    return next(kind for kind in avro if kind != "null") if isinstance(avro, list) else avro


def _is_beyond(column: Column) -> bool:
    """Whether most of a column's numbers are such that the validator would refuse their events."""
    return 2 * sum(not abs(number) <= LARGEST_NUMBER for number in column.numbers) > len(column.numbers)


def _kind_of(column: Column) -> str:
    """Return what values are that no field of a plain type has."""
    plain = {bytes: "bytes", dt.timedelta: "durations", dict: "lists or objects", list: "lists or objects"}
    kinds = {plain.get(type(value), "values of several types") for value in column.values if value is not None}
    return kinds.pop() if len(kinds) == 1 else "values of several types"


def _says_the_same(column: Column, label: Column) -> bool:
    """Whether each value of a column is there with one value of the label, and the other way round."""
    pairs = set(zip(map(str, column.values), map(str, label.values), strict=True))
    return len(column.counts) == len(label.counts) == len(pairs) > 1 and len(pairs) * 2 <= len(label.values)


def _checked(ms: int) -> int:
    iso_text(ms)  # OverflowError beyond the years that a calendar has
    return ms


def _not_cut(columns: Sequence[Column]) -> list[Column]:
    """Leave out what is the day, month or year of another column in every row: it says no time of its own."""
    days = {c.name: [ms is not None and iso_text(ms)[:10] for ms in c.millis] for c in columns if c.told}

    def is_cut(one: Column, other: Column) -> bool:
        if one is other or not one.told or not other.told or one.millis == other.millis:
            return False
        size = next((size for size, rest in _CUTS.items() if all(iso.endswith(rest) for iso in texts(one))), 0)
        return size > 0 and [day and day[:size] for day in days[one.name]] == [
            day and day[:size] for day in days[other.name]
        ]

    def texts(column: Column) -> list[str]:
        return [iso_text(ms) for ms in column.millis if ms is not None]

    return [one for one in columns if not any(is_cut(one, other) for other in columns)]


#: What the text of a time that was cut to the year, month or day ends in, by how much of it is left.
_CUTS = {4: "-01-01T00:00:00Z", 7: "-01T00:00:00Z", 10: "T00:00:00Z"}
#: A name that is a value: a number with a fraction, or a day.
_VALUE = re.compile(r"[+-]?\d+\.\d+(e[+-]?\d+)?$|\d{4}-\d\d-\d\d", re.IGNORECASE)
_TIME_OF_DAY = re.compile(r"\d{1,2}:\d\d(:\d\d(\.\d+)?)?")


def _is_time(column: Column) -> bool:
    return column.kind == "time" or bool(column.told)


def _plain(column: Column) -> str:
    return "_".join(words_of(column.name))


def _original(column: Column | None) -> str:
    return column.name if column is not None and column.is_renamed else ""


def _nested_type(column: Column) -> Any:
    """Return the Avro type of a column of JSON values; None where no schema can have it, or should."""
    try:
        avro = json_type(column.values, column.field)
        schema = {"type": "record", "name": "Row", "fields": [{"name": column.field} | typed(avro)]}
        schema_files.parsed(schema)
    except (TypeError, ValueError, RecursionError):
        return None
    return None if schema_limits.unsafe(schema) else avro


def json_type(values: Iterable[Any], name: str) -> Any:
    """Return the Avro type of JSON values. Raises TypeError where they have no common one that holds them exactly."""
    present = [value for value in values if value is not None]
    types = {type(value) for value in present}
    kind: Any = "string"
    if types == {dict}:
        names = list(dict.fromkeys(key for value in present for key in value))
        inner = {one: json_type([value.get(one) for value in present], f"{name}.{one}") for one in names}
        fields = [{"name": one} | typed(inner[one]) for one in names]
        kind = {"type": "record", "name": name, "fields": fields}
    elif types == {list}:
        items = [item for value in present for item in value]
        kind = {"type": "array", "items": json_type(items, f"{name}.item")}
    elif types == {bool}:
        kind = "boolean"
    elif types and types <= {int, float}:
        kind = "long" if types == {int} and all(abs(value) <= LARGEST_LONG for value in present) else "double"
        if kind == "double" and not all(_is_exact(value) for value in present):
            raise TypeError
    elif types and types != {str}:
        raise TypeError
    return kind if present and all(value is not None for value in values) else ["null", kind]


def _is_exact(value: float) -> bool:
    """Whether a double holds a number exactly."""
    try:
        return not isinstance(value, int) or int(float(value)) == value
    except OverflowError:
        return False


def typed(avro: Any) -> dict[str, Any]:
    """Return the type of a field, and its default where the field may be missing."""
    return {"type": avro, "default": None} if isinstance(avro, list) else {"type": avro}


def _part(column: Column, avro: Any = None) -> Part:
    values = column.values
    if column.kind == "time":
        values = [v if v is None or isinstance(v, str) else iso_text(time_reader(ISO)(v)) for v in values]
    if avro == "string" and column.kind == "int":
        values = [str(value) for value in values]
    return Part(column.field, column.avro if avro is None else avro, values, _original(column))


def _as_python(column: Column, value: Any) -> str:
    """Return a value as a label's record has it, as Python."""
    return (
        quoted(str(value))
        if column.kind in ("text", "time")
        else repr({"int": int, "float": float}[column.kind](value))
    )


def _values_of(column: Column) -> str:
    shown = ", ".join(repr(str(value)[:30]) for value, _ in Counter(column.counts).most_common(4))
    few = len(column.counts) <= 4
    kind = {"int": "whole numbers", "float": "numbers"}.get(column.kind, "values")
    return (
        f"the {'value' if len(column.counts) == 1 else 'values'} {shown}"
        if few
        else (f"{len(column.counts):,} different {kind}, as {shown}")
    )


def _at_least(ms: int, durations: Sequence[str] = DURATIONS[4:]) -> str:
    return next((text for text in durations if milliseconds(text) >= ms), f"{-(-ms // 86_400_000)}d")


def clean_name(name: str) -> str:
    """Return a name that a pipeline may have. Raises SettingsError where nothing of it is left."""
    plain = field_names([name])[name].lower().strip("_")
    plain = re.sub(r"^[^a-z]+", "", plain)
    if not plain or plain.startswith("column_1"):
        raise SettingsError(f"{name!r} is no name for a pipeline: use small letters, digits, - and _, a letter first")
    return plain
