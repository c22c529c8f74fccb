"""The archiver's tables in Delta Lake: how far each has come is in its application transactions."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import DeltaError

from tidemill.declare.pipeline import Pipeline
from tidemill.stream.group import Service
from tidemill.watch.archiver.tables import TableArchiver
from tidemill.wire.services import service


class DeltaArchiver(TableArchiver[DeltaTable]):
    """Appends rows to tables of Delta Lake."""

    errors = (DeltaError, OSError, ValueError)

    def _open(self, name: str, schema: pa.Schema) -> DeltaTable:
        place = f"{self.url.rstrip('/')}/{self.pipeline.name}/{name}"
        return DeltaTable.create(place, schema, mode="ignore", partition_by=["date"])

    def _refresh(self, table: DeltaTable) -> None:
        table.update_incremental()

    def _end(self, table: DeltaTable, name: str) -> int:
        return table.transaction_version(name) or 0

    def _append(self, table: DeltaTable, rows: pa.Table, ends: Mapping[str, int]) -> None:
        commit = CommitProperties(app_transactions=[Transaction(name, end) for name, end in ends.items()])
        write_deltalake(
            table, rows, mode="append", schema_mode="merge", partition_by=["date"], commit_properties=commit
        )


def build(pipeline: Pipeline, url: str, every_seconds: float) -> Service:
    """Wire it to its topics."""
    return service("archiver", pipeline, DeltaArchiver(pipeline, url, every_seconds=every_seconds))
