"""The artifact store: bytes under the name of their own SHA-256, in a folder or any place that fsspec can write to."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import uuid
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from tidemill.errors import ArtifactError, StoreError

_SHA256 = re.compile(r"[0-9a-f]{64}")


def sha256(data: bytes) -> str:
    """Return the SHA-256 of `data`, in hex."""
    return hashlib.sha256(data).hexdigest()


def _write_whole(path: str, data: bytes) -> None:
    """Write a local file so that its name never leads to half of it, whatever happens on the way."""
    folder, name = os.path.split(path)
    beside = os.path.join(folder, f".{name}.{uuid.uuid4().hex}")
    try:
        with open(beside, "xb") as out:
            out.write(data)
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


class ArtifactStore:
    """Content-addressed bytes below `url` (a folder, s3://..., memory://...)."""

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            self._fs: Any
            self._fs, self._root = fsspec.core.url_to_fs(url)
            self._fs.makedirs(self._root, exist_ok=True)
        except (OSError, ValueError, ImportError) as error:
            raise StoreError(f"store_url {url!r} can't be used: {error}; set TIDEMILL_STORE_URL") from error

    @staticmethod
    def path(digest: str) -> str:
        """Return the place of an artifact below the store's root. Raises ArtifactError for what is no SHA-256."""
        if not _SHA256.fullmatch(digest):
            raise ArtifactError(f"{digest!r} is no SHA-256, so no artifact has that name")
        return f"{digest[:2]}/{digest}"

    def put(self, data: bytes) -> str:
        """Store `data`; returns its SHA-256. What lies under its name already stays only if it is whole.

        Raises StoreError where the store is away or full; nothing new lies under that name then.
        """
        digest = sha256(data)
        path = f"{self._root}/{self.path(digest)}"
        try:
            if self._holds(path, digest):
                return digest
            self._fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
            if isinstance(self._fs, LocalFileSystem):
                _write_whole(path, data)
            else:
                with self._fs.transaction, self._fs.open(path, "wb") as out:
                    out.write(data)
        except OSError as error:
            raise StoreError(f"artifact store {self.url}: writing failed: {error}") from error
        return digest

    def _holds(self, path: str, digest: str) -> bool:
        try:
            return sha256(self._fs.cat_file(path)) == digest
        except FileNotFoundError:
            return False

    def get(self, digest: str) -> bytes:
        """Return the artifact. Raises ArtifactError where it is missing or its bytes are not what they were."""
        try:
            data = bytes(self._fs.cat_file(f"{self._root}/{self.path(digest)}"))
        except FileNotFoundError as error:
            raise ArtifactError(f"artifact {digest} is not in {self.url}") from error
        except OSError as error:
            raise StoreError(f"artifact store {self.url}: reading failed: {error}") from error
        if sha256(data) != digest:
            raise ArtifactError(f"artifact {digest} in {self.url} is damaged: its bytes have another hash")
        return data
