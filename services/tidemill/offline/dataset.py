"""A training set: labelled examples as flat rows of one Parquet file, each vector as of its event's time.

from     <pipeline>.examples, or an archive: vectors as they were served; or history, by `recompute.py`
columns  event_id, entity_id, entity_<field>; event_time; x_<feature>; partial, stale; champion, score, version, and
         where classes have them probabilities; label, by its last correction; label_time, of the first
order    as the first labels came; within an archive by date first
memory   one group of rows, and one batch of what is read
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tidemill.declare.pipeline import Pipeline
from tidemill.durations import moment
from tidemill.errors import SettingsError
from tidemill.files import open_atomic
from tidemill.models.corrections import read_corrections
from tidemill.offline.source import ArchiveSource, KafkaSource
from tidemill.stream.api import Progress, expect
from tidemill.stream.ranges import full_range
from tidemill.wire import archive_rows as rows
from tidemill.wire import topics
from tidemill.wire.archive_rows import MOMENT, Row, date_of
from tidemill.wire.records import Records

#: Rows of one row group: what is held in memory, and what a reader of the file reads at once.
GROUP_ROWS = 10_000
#: Takes a row of the archive's form.
Take = Callable[[Row], None]


@dataclass(frozen=True)
class Span:
    """Event times from `begin` up to and without `end`, in ms since the epoch; None is without a limit."""

    begin: int | None = None
    end: int | None = None

    def __contains__(self, moment: int) -> bool:
        return (self.begin is None or self.begin <= moment) and (self.end is None or moment < self.end)

    def touches(self, date: str) -> bool:
        """Whether anything of a day, YYYY-MM-DD in UTC, may be in it."""
        return (self.begin is None or date >= date_of(self.begin)) and (self.end is None or date <= date_of(self.end))


@dataclass
class Summary:
    """What a data set holds, and what to know before: `warnings`, of vectors that were computed again from history.

    Times are ms since the epoch; `labels` counts each label where they are not numbers.
    """

    file: str
    rows: int = 0
    first_event: int = 0
    last_event: int = 0
    label_mean: float | None = None
    labels: dict[str, int] = field(default_factory=dict)
    partial: int = 0
    stale: int = 0
    corrected: int = 0
    skipped: int = 0
    dead_letters: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return the summary for programs."""
        return dataclasses.asdict(self)


class Form:
    """The columns of a pipeline's data sets, and how a row of the archive becomes one of theirs.

    Parameters
    ----------
    is_served
        Whether the vectors are those that predictions were made with; else there are no predictions to tell of.
    """

    def __init__(self, pipeline: Pipeline, *, is_served: bool = True) -> None:
        self.is_served, self.by_class = is_served, pipeline.task == "multiclass"
        archive = rows.RowFormat(pipeline, labelled=True).schema
        same = [f for f in archive if f.name.startswith((rows.ENTITY, "x_"))]
        scores = [pa.field("champion", pa.string()), pa.field("score", pa.float64()), pa.field("version", pa.int64())]
        if self.by_class:
            scores.append(pa.field("probabilities", pa.map_(pa.string(), pa.float64())))
        names = [f.name for f in same]
        at = names.index("entity_id") + 1
        entities = [f for f in same[at:] if f.name.startswith(rows.ENTITY)]
        features = [f for f in same[at:] if f.name.startswith("x_")]
        self.schema = pa.schema(
            [
                *(archive.field(name) for name in ("event_id", "entity_id")),
                *entities,
                pa.field("event_time", MOMENT),
                *features,
                *(archive.field(name) for name in ("partial", "stale")),
                *scores,
                *(archive.field(name) for name in ("label", "label_time")),
            ]
        )

    def row(self, archived: Row) -> Row:
        """Return a row of the archive as one of the data set."""
        row = {name: archived.get(name) for name in self.schema.names}
        champion = row["champion"]
        if not self.is_served:
            row["champion"] = None
        else:
            row["score"], row["version"] = archived.get(f"score_{champion}"), archived.get(f"version_{champion}")
            if self.by_class:
                row["probabilities"] = archived.get(f"probabilities_{champion}")
        return row


class Writer:
    """Writes rows of the archive that are within a span of event time, a group at a time, and counts them."""

    def __init__(self, out: Any, form: Form, span: Span, summary: Summary) -> None:
        self.form, self.span, self.summary = form, span, summary
        self._file = pq.ParquetWriter(out, form.schema, compression="zstd")
        self._rows: list[Row] = []
        self._labels: Counter[Any] = Counter()
        self._total = 0.0

    def take(self, archived: Row) -> None:
        """Take a row of the archive."""
        now, summary = archived["event_time"], self.summary
        if now not in self.span:
            return
        summary.first_event = min(now, summary.first_event) if summary.rows else now
        summary.last_event = max(now, summary.last_event) if summary.rows else now
        summary.rows += 1
        summary.partial += bool(archived["partial"])
        summary.stale += bool(archived.get("stale"))
        summary.corrected += bool(archived.get("is_corrected"))
        label = archived["label"]
        if isinstance(label, float):
            self._total += label
        else:
            self._labels[str(label).lower() if isinstance(label, bool) else label] += 1
        self._rows.append(self.form.row(archived))
        if len(self._rows) >= GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        self._file.write_table(pa.Table.from_pylist(self._rows, schema=self.form.schema))
        self._rows.clear()

    def finish(self) -> None:
        """Write what is left, and what is known of all of it."""
        if self._rows:
            self._flush()
        summary = self.summary
        summary.labels = dict(self._labels.most_common())
        if summary.rows and summary.labels.keys() <= {"true", "false"}:
            total = summary.labels.get("true", 0) if summary.labels else self._total
            summary.label_mean = total / summary.rows

    def close(self) -> None:
        """End the file, also where it will be thrown away: Arrow would do so later, when there is no file any more."""
        self._file.close()


@contextlib.contextmanager
def written(path: Path, form: Form, span: Span) -> Iterator[Writer]:
    """Write a data set: complete when the block has ended well; else the earlier file stays.

    Raises SettingsError where there was nothing to write, or it can't be written.
    """
    started = time.perf_counter()
    summary = Summary(str(path))
    try:
        with open_atomic(str(path.absolute())) as out:
            writer = Writer(out, form, span, summary)
            with contextlib.closing(writer):
                yield writer
                writer.finish()
            if not summary.rows:
                raise SettingsError(f"--out {path}: nothing to write: {_nothing(summary, form)}")
    except OSError as error:
        raise SettingsError(f"--out {path}: writing failed: {error}") from error
    summary.seconds = time.perf_counter() - started


def _nothing(summary: Summary, form: Form) -> str:
    if summary.skipped and form.is_served:
        return (
            f"all {summary.skipped:,} examples in these event times are of an earlier declaration, with other vectors: "
            f"--recompute makes them again from history"
        )
    refused = ", ".join(f"{reason} {n:,}" for reason, n in sorted(summary.dead_letters.items()))
    why = f"; dead letters: {refused}, of which `tidemill backtest` says more" if refused else ""
    why += "".join(f"; {text}" for text in summary.warnings)
    return f"there is no example in these event times{why}"


def check_out(path: Path, *, force: bool) -> None:
    """Raise SettingsError where a data set can't be written to `path`, or would take another file's place."""
    if path.suffix != ".parquet":
        raise SettingsError(f"--out {path}: its name ends in {path.suffix!r}; expected .parquet")
    if not path.absolute().parent.is_dir():
        raise SettingsError(f"--out {path}: the folder {path.parent} does not exist")
    if path.is_dir():
        raise SettingsError(f"--out {path}: there is a folder of that name")
    if path.exists() and not force:
        raise SettingsError(f"--out {path}: there is a file of that name; --force writes over it")


def span_of(begin: str | None, end: str | None) -> Span:
    """Return the event times of --from and --to. Raises SettingsError where they are no times, or none is between."""
    span = Span(_moment("--from", begin), _moment("--to", end))
    if span.begin is not None and span.end is not None and span.begin >= span.end:
        raise SettingsError(f"--from {begin} --to {end}: no time is between them; --to is not included")
    return span


def _moment(option: str, text: str | None) -> int | None:
    try:
        return None if text is None else moment(text)
    except ValueError as error:
        raise SettingsError(f"{option} {error}") from None


def served(
    pipeline: Pipeline, source: KafkaSource | ArchiveSource, writer: Writer, progress: Progress | None = None
) -> None:
    """Give `writer` the examples that <pipeline>.examples or an archive holds at this moment.

    Of an archive's days outside of the writer's span, nothing is read. Examples in Kafka of an earlier declaration,
    whose vectors were others, are counted and passed over. Raises SettingsError where an archive holds none of this
    pipeline, or some of another declaration on those days.
    """
    if isinstance(source, ArchiveSource):
        for row in source.rows(pipeline, labelled=True, wanted=writer.span.touches):
            writer.take(row)
            if progress:
                progress(1)
        return
    broker, topic = source.broker, topics.EXAMPLES.name(pipeline.name)
    form, records = rows.RowFormat(pipeline, labelled=True), Records(pipeline)
    corrections = read_corrections(pipeline, broker)
    ranges = full_range(broker, topic)
    expect(progress, sum(end - begin for begin, end in ranges.values()))
    for batch in broker.read(ranges):
        for record in batch:
            if corrections.is_one(record):
                continue
            example = form.row(record)
            if example is not None:
                writer.take(rows.corrected(example, corrections.labels))
            elif (time := records.event_time(record.value())) is None or time in writer.span:
                writer.summary.skipped += 1
        if progress:
            progress(len(batch))
