"""Where tables of Iceberg are looked up: a catalog knows the newest metadata of each."""

from __future__ import annotations

from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.utils.config import Config

from tidemill.errors import SettingsError

#: The catalog's name in pyiceberg's own configuration, and its file where none is configured.
NAME, FILE = "tidemill", "iceberg.db"


def open_catalog(url: str) -> Catalog:
    """Return the catalog `tidemill` of pyiceberg's configuration; where none is there, SQLite in an archive's folder.

    Raises SettingsError where the archive is in no folder.
    """
    if Config().get_catalog_config(NAME):
        return load_catalog(NAME)
    files, root = fsspec.core.url_to_fs(url)
    if not isinstance(files, LocalFileSystem):
        raise SettingsError(
            f"archive {url} is of Iceberg, and no catalog for it is configured: set PYICEBERG_CATALOG__TIDEMILL__URI"
        )
    Path(root).mkdir(parents=True, exist_ok=True)
    return load_catalog(NAME, type="sql", uri=f"sqlite:///{root}/{FILE}", warehouse=f"file://{root}")


def paths_of_table(url: str, pipeline: str, name: str) -> list[str]:
    """Return the files of a table, called as below the archive. Raises SettingsError where rows were deleted."""
    tasks = [*open_catalog(url).load_table((pipeline, name)).scan().plan_files()]
    if any(task.delete_files for task in tasks):
        raise SettingsError(f"archive {url}: rows of {name} were deleted apart from its files: rewrite them first")
    place = f"{pipeline}/{name}"
    return sorted(f"{place}/{task.file.file_path.rpartition(f'/{place}/')[2]}" for task in tasks)
