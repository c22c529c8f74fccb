"""An audit as two files: `audit.json`, which is signed, and `audit.html`, whose hash is in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from tidemill.encoding.codec import Codec
from tidemill.errors import SettingsError
from tidemill.files import write_atomic
from tidemill.keys import Keyring, RefusedError
from tidemill.registry.signing import SignedCodec, sha256

DATA_FILE, PAGE_FILE = "audit.json", "audit.html"
KIND = "audit"


class _Json:
    """JSON as it is written here: of one content there is one text."""

    @staticmethod
    def encode(content: Mapping[str, Any]) -> bytes:
        return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"

    @staticmethod
    def decode(data: bytes) -> Any:
        return json.loads(data)


def _codec(pipeline: str, keys: Keyring | None) -> SignedCodec[dict[str, Any]]:
    return SignedCodec(pipeline, DATA_FILE, (KIND,), cast("Codec", _Json()), keys, dict)


def check_out(folder: Path, *, force: bool) -> None:
    """Raise SettingsError where the folder holds an audit already, which `force` allows to replace."""
    if not force and any((folder / name).exists() for name in (DATA_FILE, PAGE_FILE)):
        raise SettingsError(f"{folder} holds an audit already: name another folder, or replace it with --force")


def write(folder: Path, content: Mapping[str, Any], page: str, keys: Keyring | None) -> None:
    """Write both files; without keys the audit is not signed. Raises SettingsError where they can't be written."""
    html = page.encode()
    body = {**content, "page": {"file": PAGE_FILE, "sha256": sha256(html)}, "signature": {}}
    codec = _codec(str(content["pipeline"]), keys)
    data = codec.encode(body) if keys is None else codec.sign(body, chain=KIND)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(str(folder / PAGE_FILE), html)
        write_atomic(str(folder / DATA_FILE), data)
    except OSError as error:
        raise SettingsError(f"{folder}: the audit can't be written: {error.strerror or error}") from None


def verify(folder: Path, keys: Keyring) -> tuple[dict[str, Any], list[str]]:
    """Return an audit's content, and what is wrong with it in sentences; without any it is as it was written.

    Raises SettingsError where there is no audit. The content is {} where it can't be read.
    """
    try:
        data = (folder / DATA_FILE).read_bytes()
    except OSError as error:
        raise SettingsError(f"{folder / DATA_FILE} can't be read: {error.strerror}: name an audit's folder") from None
    try:
        content = _codec("", keys).parse(data)
        codec = _codec(str(content["pipeline"]), keys)
        page, signature = content["page"]["sha256"], codec.signature_of(content)
        if not signature.value:
            raise RefusedError("forged", "it is not signed")
        codec.verify(content)
        codec.belongs(content)
    except RefusedError as error:
        return {}, [f"{DATA_FILE} was changed, or is not signed by a key that counts: {error}"]
    except (KeyError, TypeError, AttributeError):
        return {}, [f"{DATA_FILE} is no audit"]
    try:
        html = (folder / PAGE_FILE).read_bytes()
    except OSError as error:
        return content, [f"{PAGE_FILE} can't be read: {error.strerror}"]
    if sha256(html) != page:
        return content, [f"{PAGE_FILE} was changed: its hash is not the one in {DATA_FILE}"]
    return content, []
