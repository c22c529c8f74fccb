"""What an archive holds of the forgotten, and how it goes: rows of Parquet files, or of tables.

A file of an archive of files is rewritten at once. Of a table rows go by a commit of its own, which leaves up to where
it goes; then what log, checkpoints and older snapshots have of the files of before, and those files last: until they
are gone, a search finds them, and all is done again. A file that a table does not have is none that somebody is
writing: services have made their state again, without the forgotten, before anything is erased here.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from tidemill.errors import StoreError
from tidemill.wire.archive_rows import paths_of_table, table_format

if TYPE_CHECKING:
    from tidemill.files import Files
    from tidemill.offline.byte_search import ByteSearch

#: Most rows that one commit of a table deletes by their offsets.
MAX_OFFSETS = 10_000
#: So often a commit is made again where the archiver's came first.
MAX_TRIES = 5

#: By partition of the topic, the offsets of rows.
Offsets = Mapping[int, Sequence[int]]


class Archived:
    """A pipeline's archive."""

    def __init__(self, files: Files, pipeline: str) -> None:
        self.files, self.pipeline = files, pipeline

    def _tables(self) -> Iterator[tuple[str, pa.Table, bytes]]:
        for folder in ("*", "*/data"):  # Iceberg has its files in a folder of their own
            for path in self.files.glob(f"{self.pipeline}/{folder}/date=*/*.parquet"):
                if (data := self.files.read(path)) is not None:
                    yield path, pq.read_table(io.BytesIO(data)), data

    def found(self, search: ByteSearch) -> Iterator[tuple[str, int]]:
        """Yield the files that hold an id, with how many rows of each do; of a table what describes them as well."""
        for path, table, data in self._tables():
            if (hits := len(rows_with(search, table))) or search.holds(data):
                yield path, hits
        for folder in ("_delta_log", "metadata"):
            for path in self.files.glob(f"{self.pipeline}/*/{folder}/*"):
                data = self.files.read(path) or b""
                if search.holds(data) or search.holds(_unpacked(path, data)):
                    yield path, 1

    def rows(self) -> Iterator[tuple[list[str], list[bytes]]]:
        """Yield the ids of the events in each file, and the numbers of each row as text."""
        for _, table, _ in self._tables():
            numbers = [one.name for one in table.schema if str(one.type) == "double"]
            rows = [repr(row).encode() for row in table.select(numbers).to_pylist()]
            yield table.column("event_id").to_pylist(), rows

    def erase(self, search: ByteSearch) -> None:
        """Erase rows that hold an id. Raises StoreError where a table can't be written."""
        by_topic: dict[str, list[str]] = {}
        for path, _ in self.found(search):
            by_topic.setdefault(path.split("/")[1], []).append(path)
        for topic, paths in by_topic.items():
            if format_ := table_format(self.files, f"{self.pipeline}/{topic}"):
                self._erase_from_table(topic, format_, paths, search)
            for path in paths if not format_ else ():
                self._rewrite(path, search)

    def _rewrite(self, path: str, search: ByteSearch) -> None:
        table = pq.read_table(io.BytesIO(self.files.read(path) or b""))
        gone = set(rows_with(search, table))
        out = io.BytesIO()
        stays = pa.array([n for n in range(table.num_rows) if n not in gone], pa.int64())  # none of them, perhaps
        pq.write_table(table.take(stays), out, compression="zstd")
        self.files.write(path, out.getvalue())

    def _erase_from_table(self, topic: str, format_: str, paths: Collection[str], search: ByteSearch) -> None:
        own = set(paths_of_table(self.files, self.pipeline, topic, format_))
        offsets: dict[int, list[int]] = {}
        for path in own & set(paths):
            table = pq.read_table(io.BytesIO(self.files.read(path) or b""))
            rows = pa.array(rows_with(search, table), pa.int64())
            for row in table.select(["partition", "offset"]).take(rows).to_pylist():
                offsets.setdefault(row["partition"], []).append(row["offset"])
        place = f"{self.pipeline}/{topic}"
        for partition, some in offsets.items():
            for begin in range(0, len(some), MAX_OFFSETS):
                _delete(self.files, place, format_, partition, some[begin : begin + MAX_OFFSETS])
        (_clean_delta if format_ == "delta" else _clean_iceberg)(self.files, place)
        own = set(paths_of_table(self.files, self.pipeline, topic, format_))
        for path in paths:
            if "/date=" in path and path not in own:
                self.files.delete(path)


def rows_with(search: ByteSearch, table: pa.Table) -> list[int]:
    """Return the rows that hold a text."""
    texts = [one.name for one in table.schema if str(one.type) == "string"]
    return search.among([repr(row).encode() for row in table.select(texts).to_pylist()])


def _unpacked(path: str, data: bytes) -> bytes:
    """Return what a file of a table's own says of its data, as text."""
    if path.endswith(".parquet"):
        return repr(pq.read_table(io.BytesIO(data)).to_pylist()).encode()
    if path.endswith(".avro"):
        import fastavro

        return repr(list(fastavro.reader(io.BytesIO(data)))).encode()
    return b""


def _again(files: Files, format_: str, commit: Callable[[], Any]) -> None:
    """Commit, and again where another commit came first. Raises StoreError where one always does."""
    if format_ == "delta":
        from tidemill.watch.archiver.delta import DeltaArchiver as Writer
    else:
        from tidemill.watch.archiver.iceberg import IcebergArchiver as Writer  # type: ignore[assignment]
    for number in range(MAX_TRIES):
        try:
            commit()
            return
        except Writer.errors as error:
            if number == MAX_TRIES - 1:
                raise StoreError(f"archive {files.url}: writing failed: {error}") from error


def _delete(files: Files, place: str, format_: str, partition: int, offsets: Sequence[int]) -> None:
    which = f"partition = {partition} and offset in ({', '.join(map(str, offsets))})"
    _again(files, format_, lambda: (_delta if format_ == "delta" else _iceberg)(files, place).delete(which))


def _delta(files: Files, place: str) -> Any:
    from deltalake import DeltaTable

    return DeltaTable(f"{files.url.rstrip('/')}/{place}")


def _clean_delta(files: Files, place: str) -> None:
    """Take what the log and its checkpoints say of the values in files that are the table's no more.

    The log's files stay: a writer that has not seen all of them must not write one of their names.
    """
    table = _delta(files, place)
    table.create_checkpoint()
    own = {row["path"] for row in pa.table(table.get_add_actions()).select(["path"]).to_pylist()}
    for path in files.glob(f"{place}/_delta_log/*.checkpoint*.parquet"):
        if int(path.rpartition("/")[2].partition(".")[0]) < table.version():
            files.delete(path)
    for path in files.glob(f"{place}/_delta_log/*.json"):
        if int(path.rpartition("/")[2].partition(".")[0]) > table.version():
            continue
        lines = [json.loads(line) for line in (files.read(path) or b"").splitlines()]
        adds = [one["add"] for one in lines if one.get("add", {}).get("stats") and one["add"]["path"] not in own]
        for add in adds:
            del add["stats"]
        if adds:
            files.write(path, "".join(json.dumps(one) + "\n" for one in lines).encode())


def _iceberg(files: Files, place: str) -> Any:
    from tidemill.wire.iceberg import open_catalog

    return open_catalog(files.url).load_table(tuple(place.split("/")))


def _clean_iceberg(files: Files, place: str) -> None:
    """Delete what older snapshots have of their own, but data, and have the table forget them.

    Manifests have bounds of the values in each file, also of files that a snapshot has deleted: the next snapshot has
    no such manifest.
    """

    def commit() -> None:
        table = _iceberg(files, place)
        table.append(table.schema().as_arrow().empty_table())

    _again(files, "iceberg", commit)
    table = _iceberg(files, place)
    present = table.current_snapshot()
    own = {one.manifest_path for one in present.manifests(table.io)}
    older = [one for one in table.snapshots() if one.snapshot_id != present.snapshot_id]
    for snapshot in older:
        try:
            manifests = snapshot.manifests(table.io)
        except FileNotFoundError:
            continue  # a run that broke off has deleted it, and before it what it lists
        for path in {one.manifest_path for one in manifests} - own:
            _delete_file(table, path)
        _delete_file(table, snapshot.manifest_list)

    def forget() -> None:
        again = _iceberg(files, place)
        again.maintenance.expire_snapshots().by_ids([one.snapshot_id for one in older]).commit()

    if older:
        _again(files, "iceberg", forget)


def _delete_file(table: Any, path: str) -> None:
    try:
        table.io.delete(path)
    except FileNotFoundError:
        return
