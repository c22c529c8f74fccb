"""Local state in LMDB.

It is never synchronised to the disk. What a process has saved outlives the process; what the machine may not have
written when it went down is thrown away, and made again from the log.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import uuid
from functools import partial
from pathlib import Path
from typing import Any

import lmdb

from tidemill.errors import Retry, SettingsError, described
from tidemill.stream.local_state import OpenState, Table

log = logging.getLogger(__name__)

#: Address space that a partition's state may take; the file is as large as what is in it.
MAP_BYTES = 2**38
#: What the library says of a file that it did not write so: everything else may pass, as a full disk.
DAMAGED = (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.PanicError, lmdb.InvalidError, lmdb.VersionMismatchError)
#: A machine that went down since has another one.
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
#: Where there is none, no state outlives the process.
PROCESS_ID = uuid.uuid4().hex
#: Folders for the state of one partition. A process that hangs, and was replaced, may still have the first.
PLACES = 4


class InUseError(Retry):
    """Another process has this state."""


class _LmdbTable:
    def __init__(self, state: LmdbState, db: Any) -> None:
        self._state, self._db = state, db

    def get(self, key: bytes) -> bytes | None:
        try:
            return self._state.txn.get(key, db=self._db)  # type: ignore[no-any-return]
        except lmdb.Error as error:
            raise self._state.failed(error) from error

    def put(self, key: bytes, value: bytes) -> None:
        try:
            self._state.txn.put(key, value, db=self._db)
        except lmdb.Error as error:
            raise self._state.failed(error) from error

    def delete(self, key: bytes) -> None:
        try:
            self._state.txn.delete(key, db=self._db)
        except lmdb.Error as error:
            raise self._state.failed(error) from error

    def first(self) -> bytes | None:
        try:
            cursor: Any = self._state.txn.cursor(self._db)
            return cursor.key() if cursor.first() else None
        except lmdb.Error as error:
            raise self._state.failed(error) from error

    def last_until(self, key: bytes) -> bytes | None:
        try:
            cursor: Any = self._state.txn.cursor(self._db)
            if cursor.set_range(key):
                if cursor.key() == key:
                    return key
                return cursor.key() if cursor.prev() else None
            return cursor.key() if cursor.last() else None
        except lmdb.Error as error:
            raise self._state.failed(error) from error


class LmdbState:
    """A partition's tables in LMDB. One process has it at a time.

    Parameters
    ----------
    folder
        Made where it does not exist.
    tables
        How many tables there may be.
    """

    def __init__(self, folder: Path, tables: int = 16) -> None:
        self._folder, self._tables = folder, tables
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = (folder / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise InUseError(
                f"{folder}: another process has this state: give each instance a name of its own"
            ) from None
        try:
            self._open()
        except Retry:
            self._lock.close()
            raise

    def _open(self) -> None:
        boot, boot_id = self._folder / "boot", _boot_id()
        if not boot.exists() or boot.read_text() != boot_id:
            for name in ("data.mdb", "boot"):
                (self._folder / name).unlink(missing_ok=True)
        try:
            self._env = lmdb.open(
                str(self._folder), map_size=MAP_BYTES, max_dbs=self._tables, sync=False, metasync=False, lock=False,
                readahead=False, meminit=False,
            )  # fmt: skip
            self._make_whole()
        except (lmdb.Error, OSError) as error:
            log.warning("local state can't be opened: it is made again", extra={"cause": str(error)})
            (self._folder / "data.mdb").unlink(missing_ok=True)
            raise Retry(f"{self._folder}: {error}") from error
        boot.write_text(boot_id)
        self.txn: Any = self._env.begin(write=True)

    def _make_whole(self) -> None:
        """Give a file that was cut its length again: who reads beyond its end is killed, and a page of zeros fails."""
        data = self._folder / "data.mdb"
        length = (self._env.info()["last_pgno"] + 1) * self._env.stat()["psize"]
        if data.stat().st_size < length:
            os.truncate(data, length)

    def failed(self, error: Exception) -> Retry:
        """Return an error of the library as one of ours; where the file is damaged, the tables are dropped."""
        if not isinstance(error, DAMAGED):
            return Retry(f"{self._folder}: local state can't be written: {error}")
        self.clear()
        return Retry(f"{self._folder}: local state is damaged: it is made again from the log ({error})")

    def table(self, name: str) -> Table:
        try:
            return _LmdbTable(self, self._env.open_db(name.encode(), txn=self.txn))
        except lmdb.Error as error:
            raise self.failed(error) from error

    def rows(self) -> dict[str, int]:
        """Return how many rows each table has."""
        names = [key.decode() for key, _ in self.txn.cursor()]
        return {name: self.txn.stat(self._env.open_db(name.encode(), txn=self.txn))["entries"] for name in names}

    def save(self) -> None:
        try:
            self.txn.commit()
        except lmdb.Error as error:
            raise self.failed(error) from error
        self.txn = self._env.begin(write=True)

    def clear(self) -> None:
        self.txn.abort()
        self._env.close()
        (self._folder / "data.mdb").unlink(missing_ok=True)
        self._open()

    def close(self) -> None:
        with contextlib.suppress(lmdb.Error):
            self.txn.abort()
        self._env.close()
        self._lock.close()


def open_in(folder: Path) -> OpenState:
    """Return how to open the state of each partition in a folder. Raises SettingsError where nothing can be."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (folder / "lock").touch()
    except OSError as error:
        raise SettingsError(
            f"setting state_dir ({str(folder)!r}): {described(error)}; set TIDEMILL_STATE_DIR to a folder that can be "
            f"written"
        ) from error
    return partial(_open_partition, folder)


def _open_partition(folder: Path, partition: int) -> LmdbState:
    """Return the state of a partition: beside that of a process which hangs, and does not let go of it.

    What it holds is of before, or nothing: it is a copy of what the log says. What is left of others is dropped.
    """
    places = [folder / str(partition), *(folder / f"{partition}.{number}" for number in range(1, PLACES))]
    for place in places:
        try:
            state = LmdbState(place)
            break
        except InUseError as error:
            if place == places[-1]:
                raise
            log.warning("local state is kept beside that of another process", extra={"cause": str(error)})
    for other in places[1:]:
        if other != place and other.exists():
            with contextlib.suppress(InUseError):
                left = LmdbState(other)
                left.clear()
                left.close()
    return state


def _boot_id() -> str:
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return PROCESS_ID
