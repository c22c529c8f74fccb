"""An audit, or a certificate, as two files: `audit.json`, which is signed, and `audit.html`, whose hash is in it."""

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


def _codec(pipeline: str, keys: Keyring | None, kind: str = KIND) -> SignedCodec[dict[str, Any]]:
    return SignedCodec(pipeline, f"{kind}.json", (kind,), cast("Codec", _Json()), keys, dict)


def check_out(folder: Path, *, force: bool) -> None:
    """Raise SettingsError where the folder holds an audit already, which `force` allows to replace."""
    if not force and any((folder / name).exists() for name in (DATA_FILE, PAGE_FILE)):
        raise SettingsError(f"{folder} holds an audit already: name another folder, or replace it with --force")


def write(folder: Path, content: Mapping[str, Any], page: str, keys: Keyring | None, kind: str = KIND) -> None:
    """Write both files; without keys the audit is not signed. Raises SettingsError where they can't be written."""
    html, page_file = page.encode(), f"{kind}.html"
    body = {**content, "page": {"file": page_file, "sha256": sha256(html)}, "signature": {}}
    codec = _codec(str(content["pipeline"]), keys, kind)
    data = codec.encode(body) if keys is None else codec.sign(body, chain=kind)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(str(folder / page_file), html)
        write_atomic(str(folder / f"{kind}.json"), data)
    except OSError as error:
        raise SettingsError(f"{folder}: the {kind} can't be written: {error.strerror or error}") from None


def verify(folder: Path, keys: Keyring, kind: str = KIND) -> tuple[dict[str, Any], list[str]]:
    """Return an audit's content, and what is wrong with it in sentences; without any it is as it was written.

    Raises SettingsError where there is no audit. The content is {} where it can't be read.
    """
    data_file, page_file = f"{kind}.json", f"{kind}.html"
    try:
        data = (folder / data_file).read_bytes()
    except OSError as error:
        raise SettingsError(f"{folder / data_file} can't be read: {error.strerror}: name its folder") from None
    try:
        content = _codec("", keys, kind).parse(data)
        codec = _codec(str(content["pipeline"]), keys, kind)
        page, signature = content["page"]["sha256"], codec.signature_of(content)
        if not signature.value:
            raise RefusedError("forged", "it is not signed")
        codec.verify(content)
        codec.belongs(content)
    except RefusedError as error:
        return {}, [f"{data_file} was changed, or is not signed by a key that counts: {error}"]
    except (KeyError, TypeError, AttributeError):
        return {}, [f"{data_file} is no {kind}"]
    try:
        html = (folder / page_file).read_bytes()
    except OSError as error:
        return content, [f"{page_file} can't be read: {error.strerror}"]
    if sha256(html) != page:
        return content, [f"{page_file} was changed: its hash is not the one in {data_file}"]
    return content, []
