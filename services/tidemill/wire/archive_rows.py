"""What a record looks like in the archive: one flat row, by an Arrow schema that is made from the declaration.

Columns: `partition` and `offset` of the record, `timestamp` (its origin: when the producer sent it); `event_id`,
`entity_id`, `event_time`; `source_partition` and `source_offset` of the valid event; `partial`; the vector as
`x_<feature>`; `champion`, the serving model, with its `champion_version` and `champion_score`; for each model
`score_<model>`, `version_<model>` and, where classes have probabilities of their own, `probabilities_<model>`.
Examples have `label` and `label_time` as well. Where corrections of labels are declared, one is a row of its own among
the examples, without a vector: it has the new `label` with its time, `first_label` and `replaced_label`, which no
example has.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import io
import itertools
from collections.abc import Callable, Iterator, Mapping
from operator import itemgetter
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from tidemill.declare.pipeline import Pipeline
from tidemill.encoding.codec import carried
from tidemill.errors import SettingsError
from tidemill.files import Files
from tidemill.stream.api import Record
from tidemill.stream.memory import MemoryRecord
from tidemill.stream.origin import origin_of
from tidemill.wire import topics
from tidemill.wire.records import Correction, Features, PredictionLog, Records

MOMENT = pa.timestamp("ms", tz="UTC")
_FEATURES = {"number": pa.float64(), "category": pa.string(), "flag": pa.bool_()}
_LABELS = {"boolean": pa.bool_(), "double": pa.float64(), "string": pa.string()}

#: Prefixes of the columns that an older archive may lack: what each model answered, and how fresh each view was.
OPTIONAL = ("score_", "version_", "probabilities_", "entity_", "as_of_", "stale", "first_label", "replaced_label")
ENTITY, AS_OF = "entity_", "as_of_"

Row = dict[str, Any]


class RowFormat:
    """How records of one topic become rows.

    Parameters
    ----------
    labelled
        Whether they are examples; else they are records of the prediction log.
    """

    def __init__(self, pipeline: Pipeline, *, labelled: bool) -> None:
        self.pipeline, self.labelled = pipeline, labelled
        records = Records(pipeline)
        self._codec = records.example if labelled else records.prediction_log
        self._corrections = records.correction if labelled and pipeline.corrections_ms else None
        self.id = self._codec.id
        self.by_class = pipeline.task == "multiclass"
        self.schema = pa.schema(list(self._fields()))

    def _fields(self) -> Any:
        yield from (("partition", pa.int32()), ("offset", pa.int64()), ("timestamp", MOMENT))
        yield from (("event_id", pa.string()), ("entity_id", pa.string()), ("event_time", MOMENT))
        yield from (("source_partition", pa.int32()), ("source_offset", pa.int64()), ("partial", pa.bool_()))
        yield from (
            (f"{ENTITY}{name}", pa.string()) for name in dict.fromkeys(v.entity for v in self.pipeline.remote_views)
        )
        yield from ((f"{AS_OF}{view.label}", MOMENT) for view in self.pipeline.views)
        yield ("stale", pa.list_(pa.string()))
        for name, kind in self.pipeline.vector.items():
            yield (f"x_{name}", _FEATURES[kind])
        yield from (("champion", pa.string()), ("champion_version", pa.int64()), ("champion_score", pa.float64()))
        for model in self.pipeline.model_names:
            yield (f"score_{model}", pa.float64())
            yield (f"version_{model}", pa.int64())
            if self.by_class:
                yield (f"probabilities_{model}", pa.map_(pa.string(), pa.float64()))
        if self.labelled:
            yield ("label", _LABELS[self.pipeline.kind.label_type])
            yield ("label_time", MOMENT)
            if self._corrections is not None:
                yield from (
                    (name, _LABELS[self.pipeline.kind.label_type]) for name in ("first_label", "replaced_label")
                )

    def row(self, record: Record) -> Row | None:
        """Return the record's row; None for one of an earlier declaration, whose vector was another."""
        if self._corrections is not None and (correction := self._corrections.of(record.value())) is not None:
            return self._correction_row(record, correction)
        decoded = self._codec.of(record.value())
        if decoded is None:
            return None
        log: Mapping[str, Any] = decoded["prediction"] if self.labelled else decoded
        of = log["features"]
        row = {
            "partition": record.partition(),
            "offset": record.offset(),
            "timestamp": origin_of(record),
            "event_id": of["event_id"],
            "entity_id": of["entity_id"],
            "event_time": of["event_time"],
            "source_partition": of["partition"],
            "source_offset": of["offset"],
            "partial": of["partial"],
            "stale": of["stale"],
            **{f"{ENTITY}{name}": entity for name, entity in of["entities"].items()},
            **{f"{AS_OF}{view}": time for view, time in of["as_of"].items()},
            "champion": log["champion"]["model"],
            "champion_version": log["champion"]["version"],
            "champion_score": log["champion"]["score"],
            **{f"x_{name}": value for name, value in of["vector"].items()},
        }
        for score in (*log["challengers"], log["champion"]):  # of two versions of a model the one that was served
            row[f"score_{score['model']}"] = score["score"]
            row[f"version_{score['model']}"] = score["version"]
            if self.by_class:
                row[f"probabilities_{score['model']}"] = list(score["probabilities"].items())
        if self.labelled:
            row["label"], row["label_time"] = decoded["label"], decoded["label_time"]
        return row

    @staticmethod
    def _correction_row(record: Record, correction: Correction) -> Row:
        place = {"source_partition": correction["partition"], "source_offset": correction["offset"]}
        own = {"partition": record.partition(), "offset": record.offset(), "timestamp": origin_of(record)}
        return {**correction, **place, **own}

    def file(self, rows: list[Row]) -> bytes:
        """Return rows as a Parquet file."""
        out = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, schema=self.schema), out, compression="zstd")
        return out.getvalue()

    def rows(self, file: bytes) -> list[Row]:
        """Return the rows of a Parquet file, as `row` made them."""
        table = pq.read_table(io.BytesIO(file))
        names = set(table.schema.names)
        # The archive may be older than one of today's models, which is tried on it.
        lacking = [name for name in self.schema.names if name not in names and not name.startswith(OPTIONAL)]
        if lacking:
            raise SettingsError(
                f"an archive's file was written by another declaration of the pipeline: it has no "
                f"{', '.join(lacking)}; "
                f"`tidemill dataset --recompute` makes vectors again from history"
            )
        fields = [field for field in self.schema if field.name in names]
        plain = [pa.field(f.name, pa.int64()) if f.type == MOMENT else f for f in fields]
        table = table.select([f.name for f in fields]).cast(pa.schema(fields))  # tables have times in microseconds
        rows: list[Row] = table.cast(pa.schema(plain)).to_pylist()
        return rows

    @staticmethod
    def count(file: bytes) -> int:
        """Return how many rows a Parquet file has."""
        rows: int = pq.read_metadata(io.BytesIO(file)).num_rows
        return rows


#: Rows of one group of a file.
GROUP_ROWS = 10_000


@contextlib.contextmanager
def prediction_rows(out: BinaryIO, pipeline: Pipeline) -> Iterator[Callable[[PredictionLog], None]]:
    """Write records of the prediction log, in the order of their offsets, as one Parquet file of the archive's rows."""
    form, header, rows = RowFormat(pipeline, labelled=False), Records(pipeline).prediction_log.header, list[Row]()
    offsets = itertools.count()

    def take(log: PredictionLog) -> None:
        record = MemoryRecord("", carried(header, log), None, log["features"]["event_time"], None, 0, next(offsets))
        rows.append(form.row(record) or {})
        if len(rows) >= GROUP_ROWS:
            flush()

    def flush() -> None:
        file.write_table(pa.Table.from_pylist(rows, schema=form.schema))
        rows.clear()

    with pq.ParquetWriter(out, form.schema, compression="zstd") as file:
        yield take
        flush()


def features_of(row: Row) -> Features:
    """Return the vector of a row as it was served, with where it came from."""
    return {
        "event_id": row["event_id"],
        "entity_id": row["entity_id"],
        "event_time": row["event_time"],
        "partition": row["source_partition"],
        "offset": row["source_offset"],
        "partial": row["partial"],
        "entities": {
            n[len(ENTITY) :]: entity
            for n, entity in row.items()
            if n.startswith(ENTITY) and n != "entity_id" and entity is not None
        },
        "as_of": {n[len(AS_OF) :]: time for n, time in row.items() if n.startswith(AS_OF) and time is not None},
        "stale": row.get("stale") or [],
        "vector": {name[2:]: value for name, value in row.items() if name.startswith("x_")},
    }


def key_of(row: Row) -> tuple[str, int, int]:
    """Return what names the example of a row, or that a correction's row is of."""
    return row["event_id"], row["source_partition"], row["source_offset"]


def corrected(row: Row, labels: Mapping[tuple[str, int, int], Any]) -> Row:
    """Return an example's row with its label by `labels`, and `is_corrected` where that is another."""
    label = labels.get(key_of(row), row["label"]) if labels else row["label"]
    return row if label == row["label"] else {**row, "label": label, "is_corrected": True}


#: By format of tables: what is beside each of its tables.
TABLES = {"delta": "_delta_log/*.json", "iceberg": "metadata/*.metadata.json"}


def table_format(files: Files, place: str) -> str | None:
    """Return the format of the table at a place of an archive; None where the archive is of files alone."""
    return next((name for name, mark in TABLES.items() if files.glob(f"{place}/{mark}")), None)


def paths_of_table(files: Files, pipeline: str, topic: str, format_: str) -> list[str]:
    """Return the files of a table: it may have others beside them, of writes that were not committed."""
    try:
        if format_ == "iceberg":
            from tidemill.wire import iceberg

            return iceberg.paths_of_table(files.url, pipeline, topic)
        from deltalake import DeltaTable
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"archive {files.url} has tables, and reading them needs {error.name}: pip install 'tidemill[{format_}]'"
        ) from error
    place = f"{pipeline}/{topic}"
    actions = pa.table(DeltaTable(f"{files.url.rstrip('/')}/{place}").get_add_actions(flatten=True))
    return sorted(f"{place}/{path}" for path in actions["path"].to_pylist())


def _any(_: str) -> bool:
    return True


def read(pipeline: Pipeline, files: Files, *, labelled: bool, wanted: Callable[[str], bool] = _any) -> Iterator[Row]:
    """Yield the rows of a pipeline's archive, file by file; `wanted` is asked about each date, YYYY-MM-DD of the event.

    Where corrections are declared, examples have their last label, and are read twice: a correction has the date of its
    event.
    Raises SettingsError where there is no archive.
    """
    topic = topics.EXAMPLES if labelled else topics.PREDICTION_LOG
    form = RowFormat(pipeline, labelled=labelled)
    place = f"{pipeline.name}/{topic.suffix}"
    if format_ := table_format(files, place):
        paths = paths_of_table(files, pipeline.name, topic.suffix, format_)
    else:
        paths = files.glob(f"{place}/date=*/*.parquet")
    if not paths:
        raise SettingsError(f"archive {files.url} has no {topic.suffix} of the pipeline {pipeline.name!r}")
    paths = [path for path in paths if wanted(path.rpartition("/date=")[2].partition("/")[0])]
    labels: dict[tuple[str, int, int], Any] = {}
    if labelled and pipeline.corrections_ms:
        given = [row for path in paths for row in form.rows(files.read(path) or b"") if _is_correction(row)]
        labels = {key_of(row): row["label"] for row in sorted(given, key=itemgetter("offset"))}
    for path in paths:
        rows = form.rows(files.read(path) or b"")
        yield from (corrected(row, labels) for row in rows if not _is_correction(row)) if labelled else rows


def _is_correction(row: Row) -> bool:
    return row.get("first_label") is not None


EPOCH = dt.date(1970, 1, 1)


DAY_MS = 86_400_000


def date_of(time: int) -> str:
    """Return the date, in UTC, of ms since the epoch; of what no calendar has, the first or the last that it has."""
    day = min(max(time // DAY_MS, (dt.date.min - EPOCH).days), (dt.date.max - EPOCH).days)
    return (EPOCH + dt.timedelta(days=day)).isoformat()
