"""Files below one place: a folder, s3://..., or whatever fsspec can write to."""

from __future__ import annotations

import contextlib
import os
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
from fsspec.implementations.local import LocalFileSystem

from tidemill.errors import ArtifactError, SettingsError, StoreError
from tidemill.limits import Limit


@contextlib.contextmanager
def open_atomic(path: str) -> Iterator[BinaryIO]:
    """Write a local file so that nobody ever sees half of it: it gets its name when the block ends without error."""
    folder, name = os.path.split(path)
    beside = os.path.join(folder, f".{name}.{uuid.uuid4().hex}")
    try:
        with open(beside, "xb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)  # the name as well
    finally:
        os.close(handle)


def write_atomic(path: str, data: bytes) -> None:
    """Write a local file so that nobody ever sees half of it, whatever happens."""
    with open_atomic(path) as out:
        out.write(data)


@contextlib.contextmanager
def open_output(path: Path) -> Iterator[BinaryIO]:
    """Write a file that a person named, as `open_atomic` does; what is no file, as /dev/stdout, as it stands.

    Raises SettingsError where it can't be written.
    """
    try:
        full = path.resolve()
        is_file = full.is_file() or not full.exists()
        with open_atomic(str(full)) if is_file else full.open("wb") as out:
            yield out
    except OSError as error:
        raise SettingsError(f"{path} can't be written: {error.strerror or error}") from None


def read_limited(path: Path, limit: Limit) -> bytes:
    """Return a local file. Raises ArtifactError, before it is read, for what has more than `limit`, or is no file.

    Raises OSError where it does not exist or can't be read.
    """
    info = path.stat()
    if not stat.S_ISREG(info.st_mode):
        raise ArtifactError(f"{path} is no file")
    if info.st_size > limit.max:
        raise ArtifactError(f"{path}: {limit.excess(info.st_size)}")
    return path.read_bytes()


class Files:
    """Files below `url`; `setting` named it, and `what` it is, for messages."""

    def __init__(self, url: str, setting: str, what: str, *, create: bool = True) -> None:
        self.url = url
        self._what = what
        try:
            self._fs: Any
            self._fs, self._root = fsspec.core.url_to_fs(url)
            if create:
                self._fs.makedirs(self._root, exist_ok=True)
        except Exception as error:  # each kind of place has errors of its own
            raise StoreError(f"{setting} {url!r} can't be used: {error}; set TIDEMILL_{setting.upper()}") from error

    def _error(self, doing: str, error: Exception) -> StoreError:
        return StoreError(f"{self._what} {self.url}: {doing} failed: {error}")

    def write(self, path: str, data: bytes) -> None:
        """Replace the file at `path` by `data`, all of it or nothing. Raises StoreError where that fails."""
        full = f"{self._root}/{path}"
        try:
            self._fs.makedirs(full.rsplit("/", 1)[0], exist_ok=True)
            if isinstance(self._fs, LocalFileSystem):
                write_atomic(full, data)
            else:
                with self._fs.transaction, self._fs.open(full, "wb") as out:
                    out.write(data)
        except Exception as error:
            raise self._error("writing", error) from error

    def read(self, path: str) -> bytes | None:
        """Return the file at `path`; None where it does not exist. Raises StoreError where reading fails."""
        try:
            return bytes(self._fs.cat_file(f"{self._root}/{path}"))
        except FileNotFoundError:
            return None
        except Exception as error:
            raise self._error("reading", error) from error

    def read_limited(self, path: str, limit: Limit) -> bytes | None:
        """Return the same. Raises ArtifactError, before it is read, for what has more than `limit`, or is no file."""
        info = self._info(path)
        if info is None:
            return None
        if info["type"] != "file":  # a pipe or a device may have no end
            raise ArtifactError(f"{path} in {self.url} is no file")
        if info["size"] > limit.max:
            raise ArtifactError(f"{path} in {self.url}: {limit.excess(info['size'])}")
        return self.read(path)

    def _info(self, path: str) -> Any:
        try:
            return self._fs.info(f"{self._root}/{path}")
        except FileNotFoundError:
            return None
        except Exception as error:
            raise self._error("reading", error) from error

    def size(self, path: str) -> int | None:
        """Return the file's size in bytes; None where it does not exist. Raises StoreError where reading fails."""
        info = self._info(path)
        return None if info is None else int(info["size"])

    def has(self, path: str) -> bool:
        """Whether there is a file at `path`. Raises StoreError where reading fails."""
        return self.size(path) is not None

    def delete(self, path: str) -> None:
        """Delete the file at `path`, if it exists. Raises StoreError where that fails."""
        try:
            self._fs.rm_file(f"{self._root}/{path}")
        except FileNotFoundError:
            return
        except Exception as error:
            raise self._error("deleting", error) from error

    def sizes(self) -> dict[str, int]:
        """Return the size in bytes of each file, by its path. Raises StoreError where listing fails."""
        try:
            listed = self._fs.find(self._root, detail=True)
        except Exception as error:
            raise self._error("listing", error) from error
        return {str(path).removeprefix(f"{self._root}/"): int(one["size"]) for path, one in listed.items()}

    def glob(self, pattern: str) -> list[str]:
        """Return the paths that match a pattern (`*` within one part of a path), in order."""
        try:
            paths = self._fs.glob(f"{self._root}/{pattern}")
        except Exception as error:
            raise self._error("listing", error) from error
        return sorted(str(path).removeprefix(f"{self._root}/") for path in paths)
