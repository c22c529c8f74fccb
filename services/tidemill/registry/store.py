"""The artifact store: bytes under the name of their own SHA-256, in a folder or any place that fsspec can write to."""

from __future__ import annotations

import hashlib
import re
from typing import Literal

from tidemill.errors import ArtifactError
from tidemill.files import Files
from tidemill.limits import ARTIFACT_BYTES, REPLACEMENT_BYTES

_NOTE = ".again"
_SHA256 = re.compile(r"[0-9a-f]{64}")

#: Of an artifact: intact; with other bytes than it had; or not in the store, as after pruning.
State = Literal["stored", "corrupted", "missing"]


def sha256(data: bytes) -> str:
    """Return the SHA-256 of `data`, in hex."""
    return hashlib.sha256(data).hexdigest()


class ArtifactStore:
    """Content-addressed bytes below `url` (a folder, s3://..., memory://...)."""

    def __init__(self, url: str, *, create: bool = True) -> None:
        self.url = url
        self._files = Files(url, "store_url", "artifact store", create=create)

    @staticmethod
    def path(digest: str) -> str:
        """Return the place of an artifact below the store's root. Raises ArtifactError for what is no SHA-256."""
        if not _SHA256.fullmatch(digest):
            raise ArtifactError(f"{digest!r} is no SHA-256, so no artifact has that name")
        return f"{digest[:2]}/{digest}"

    def put(self, data: bytes) -> str:
        """Store `data`; returns its SHA-256. Bytes already stored under that name stay only if they are intact.

        Raises StoreError where the store is away or full; then nothing new is stored under that name. Raises
        ArtifactError for more than anybody would read.
        """
        if len(data) > ARTIFACT_BYTES.max:
            raise ArtifactError(ARTIFACT_BYTES.excess(len(data)))
        digest = sha256(data)
        if self.state(digest) != "stored":
            self._files.write(self.path(digest), data)
        return digest

    def holds(self, digest: str) -> bool:
        """Whether anything lies under the artifact's name; its bytes are not looked at."""
        return bool(_SHA256.fullmatch(digest)) and self._files.has(self.path(digest))

    def size(self, digest: str) -> int | None:
        """Return how many bytes lie under the artifact's name; None where nothing does."""
        return self._files.size(self.path(digest)) if _SHA256.fullmatch(digest) else None

    def sizes(self) -> dict[str, int]:
        """Return how many bytes each artifact has, by its SHA-256; those of other pipelines are among them."""
        sizes = {path.rpartition("/")[2]: size for path, size in self._files.sizes().items()}
        return {name: size for name, size in sizes.items() if _SHA256.fullmatch(name)}

    def has_note(self, digest: str) -> bool:
        """Whether anything was noted about an artifact that is lost."""
        return bool(_SHA256.fullmatch(digest)) and self._files.has(f"{self.path(digest)}{_NOTE}")

    def note(self, digest: str) -> bytes | None:
        """Return what was noted about an artifact that is lost; None where nothing was.

        Raises ArtifactError for what is no note of ours by its size.
        """
        if not _SHA256.fullmatch(digest):
            return None
        return self._files.read_limited(f"{self.path(digest)}{_NOTE}", REPLACEMENT_BYTES)

    def put_note(self, digest: str, data: bytes) -> None:
        """Note something about an artifact that is lost. Raises StoreError where the store is away or full."""
        self._files.write(f"{self.path(digest)}{_NOTE}", data)

    def noted(self) -> set[str]:
        """Return the artifacts about which something is noted."""
        return {path.rpartition("/")[2].removesuffix(_NOTE) for path in self._files.glob(f"*/*{_NOTE}")}

    def delete(self, digest: str) -> None:
        """Delete an artifact and its note, where they exist. Raises StoreError where the store is away."""
        path = self.path(digest)
        self._files.delete(path)
        self._files.delete(f"{path}{_NOTE}")

    def state(self, digest: str) -> State:
        """Return whether the artifact is stored, and intact; it is read for that, and not opened."""
        if not _SHA256.fullmatch(digest):
            return "missing"
        try:
            data = self._files.read_limited(self.path(digest), ARTIFACT_BYTES)
        except ArtifactError:
            return "corrupted"
        return "missing" if data is None else "stored" if sha256(data) == digest else "corrupted"

    def get(self, digest: str) -> bytes:
        """Return the artifact. Raises ArtifactError where it is missing or its bytes have changed."""
        data = self._files.read_limited(self.path(digest), ARTIFACT_BYTES)
        if data is None:
            raise ArtifactError(f"artifact {digest} is not in {self.url}")
        if sha256(data) != digest:
            raise ArtifactError(f"artifact {digest} in {self.url} is damaged: its bytes have another hash")
        return data
