"""The archiver's tables in Iceberg: how far each has come is in its properties."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa
from pyiceberg.exceptions import CommitFailedException, NoSuchTableError, RESTError
from pyiceberg.table import Table
from sqlalchemy.exc import SQLAlchemyError

from tidemill.declare.pipeline import Pipeline
from tidemill.stream.group import Service
from tidemill.watch.archiver.tables import TableArchiver
from tidemill.wire.iceberg import open_catalog
from tidemill.wire.services import service

#: A commit that comes second is not made again on top of the first one: that may have had the same rows.
_ONE_TRY = {"commit.retry.num-retries": "0"}


class IcebergArchiver(TableArchiver[Table]):
    """Appends rows to tables of Iceberg."""

    errors = (CommitFailedException, NoSuchTableError, RESTError, SQLAlchemyError, OSError, ValueError)

    def _open(self, name: str, schema: pa.Schema) -> Table:
        catalog, place = open_catalog(self.url), f"{self.url.rstrip('/')}/{self.pipeline.name}/{name}"
        catalog.create_namespace_if_not_exists(self.pipeline.name)
        table = catalog.create_table_if_not_exists((self.pipeline.name, name), schema, place, properties=_ONE_TRY)
        if table.spec().is_unpartitioned():
            with table.update_spec() as spec:
                spec.add_identity("date")
        if not table.properties.items() >= _ONE_TRY.items():
            with table.transaction() as commit:
                commit.set_properties(_ONE_TRY)
        return table

    def _refresh(self, table: Table) -> None:
        table.refresh()

    def _end(self, table: Table, name: str) -> int:
        return int(table.properties.get(name, 0))

    def _append(self, table: Table, rows: pa.Table, ends: Mapping[str, int]) -> None:
        with table.transaction() as commit:
            with commit.update_schema() as schema:
                schema.union_by_name(rows.schema)
            commit.append(rows)
            commit.set_properties({name: str(end) for name, end in ends.items()})


def build(pipeline: Pipeline, url: str, every_seconds: float) -> Service:
    """Wire it to its topics."""
    return service("archiver", pipeline, IcebergArchiver(pipeline, url, every_seconds=every_seconds))
