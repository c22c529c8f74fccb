"""Keys: Ed25519. A process that signs has its private key; all that read have the public keys, and can't sign.

Files: `keys/public/verify.json` has the public keys, `keys/<service>/<service>.key` the private key of a service that
signs. Both are read again when they change, so that keys are rotated while everything runs.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from tidemill.durations import moment
from tidemill.errors import ArtifactError, SettingsError
from tidemill.files import write_atomic
from tidemill.limits import KEY_FILE_BYTES

log = logging.getLogger(__name__)

#: The kinds of signed records that each service signs; `tidemill models rebuild` signs with the learner's key.
SIGNERS: Mapping[str, tuple[str, ...]] = {
    "learner": ("manifest", "replacement"),
    "gate": ("decision",),
    "status": ("command", "acknowledgement"),
    "monitor": ("alert",),
}
#: Who signs with a key of their own: the services, and `tidemill audit` and `forget`, whose keys no service needs.
KEY_OWNERS: Mapping[str, tuple[str, ...]] = {**SIGNERS, "audit": ("audit",), "forget": ("forgetting", "certificate")}
KINDS = tuple(kind for kinds in KEY_OWNERS.values() for kind in kinds)

#: Why a signed record is refused; the label `reason` of tidemill_signed_records_refused_total.
Reason = Literal["damaged", "forged", "expired_key", "foreign", "old", "forked", "gap"]

#: How a private key begins, as text: then 32 bytes in base64.
PRIVATE_PREFIX = "ed25519:"
VERIFY_FILE = "public/verify.json"
#: An expired key stays in `verify.json` this long, so that a refusal can say "expired" and not "unknown".
EXPIRED_KEPT_DAYS = 365


class RefusedError(ArtifactError):
    """A signed record is not obeyed; `reason` is why, in one word."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason


@dataclass(frozen=True)
class VerifyKey:
    """A public key.

    Parameters
    ----------
    until
        When it ends, ms since the epoch; None: never. After that, what it signed counts only where a later record of
        the same chain vouches for it.
    kinds
        The kinds of records that it may sign; empty: all.
    name
        Whose it is, for people.
    """

    id: str
    public: bytes
    until: int | None = None
    kinds: tuple[str, ...] = ()
    name: str = ""

    @staticmethod
    def of(entry: Any, where: str) -> VerifyKey:
        """Return the key that an entry of `verify.json` describes. Raises SettingsError."""
        if not isinstance(entry, dict):
            raise SettingsError(f"{where}: {entry!r} where a key was expected, as `tidemill keys new` writes it")
        try:
            public = base64.b64decode(entry["key"], validate=True)
            Ed25519PublicKey.from_public_bytes(public)
        except (KeyError, TypeError, ValueError, binascii.Error):
            raise SettingsError(f"{where}: `key` of {entry.get('id')!r} is no Ed25519 public key in base64") from None
        id_ = key_id(public)
        if entry.get("id", id_) != id_:
            raise SettingsError(f"{where}: the key called {entry['id']!r} has the id {id_}: its hash")
        until, kinds = entry.get("until"), entry.get("kinds", [])
        try:
            end = None if until is None else moment(until)
        except (TypeError, ValueError) as error:
            raise SettingsError(f"{where}: `until` of {id_}: {error}") from None
        unknown = [kind for kind in kinds if kind not in KINDS] if isinstance(kinds, list) else [kinds]
        if unknown:
            raise SettingsError(f"{where}: `kinds` of {id_} has {unknown[0]!r}: expected a list of {', '.join(KINDS)}")
        return VerifyKey(id_, public, end, tuple(kinds), str(entry.get("name", "")))

    def as_dict(self) -> dict[str, Any]:
        """Return the key's entry of `verify.json`."""
        until = None if self.until is None else dt.datetime.fromtimestamp(self.until / 1000, dt.UTC).isoformat()
        entry: dict[str, Any] = {"id": self.id, "name": self.name, "key": base64.b64encode(self.public).decode()}
        return entry | {"kinds": list(self.kinds)} | ({"until": until} if until else {})

    def is_over(self, now: float) -> bool:
        """Whether it ended before `now`, s since the epoch."""
        return self.until is not None and now * 1000 > self.until


def key_id(public: bytes) -> str:
    """Return a public key's id: the first 16 digits of its SHA-256."""
    return hashlib.sha256(public).hexdigest()[:16]


def private_of(text: str, where: str) -> Ed25519PrivateKey:
    """Return the private key in a text. Raises SettingsError, without the text, for anything else."""
    encoded = text.strip().removeprefix(PRIVATE_PREFIX)
    try:
        return Ed25519PrivateKey.from_private_bytes(base64.b64decode(encoded, validate=True))
    except (ValueError, binascii.Error):
        raise SettingsError(
            f"{where} holds {len(text.strip())} characters where a private key was expected, {PRIVATE_PREFIX}... with "
            f"32 bytes in base64: set TIDEMILL_SIGNING_KEY to a file that `tidemill keys new` made"
        ) from None


def _privates_and_id(text: str, where: str) -> tuple[Ed25519PrivateKey, str, Ed25519PrivateKey]:
    """Return the private key with its id, and the first of those whose place it took; itself where that is none."""
    first, *others = text.split() or [""]
    private = private_of(first, where)
    return private, key_id(private.public_key().public_bytes_raw()), private_of((others or [first])[-1], where)


def private_text(private: Ed25519PrivateKey) -> str:
    """Return a private key as text."""
    return PRIVATE_PREFIX + base64.b64encode(private.private_bytes_raw()).decode()


class _Cached:
    """What is read from a file, or given as a text; read again when the file changes.

    A file that can't be read any more, or holds nonsense, is logged, and what was read before stays in force.
    """

    def __init__(self, path: Path | None, text: str, parse: Callable[[str, str], Any], setting: str) -> None:
        self._path, self._parse = path, parse
        self._seen: tuple[int, int, int] | None = None
        if path is None:
            self._value = parse(text, setting)
        else:
            self._value = self._read(setting)

    def _read(self, setting: str) -> Any:
        path = self._path
        assert path is not None  # noqa: S101  read from a file alone
        try:
            stat = path.stat()
            if stat.st_size > KEY_FILE_BYTES.max:
                raise SettingsError(f"{setting}: {KEY_FILE_BYTES.excess(stat.st_size, str(path))}")
            value = self._parse(path.read_text(), str(path))
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or "it is no text"
            # What was meant as a private key may be what is taken for the path here.
            named = "its file" if setting == "signing_key" else path
            raise SettingsError(
                f"{setting}: {named} can't be read: {why}; `tidemill keys new` makes keys, set "
                f"TIDEMILL_{setting.upper()} to their file"
            ) from None
        self._seen = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        return value

    def get(self) -> Any:
        if self._path is None:
            return self._value
        try:
            stat = self._path.stat()
            seen = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        except OSError:
            return self._value
        if seen != self._seen:
            try:
                self._value = self._read("keys")
                log.info("keys read again", extra={"file": str(self._path)})
            except SettingsError as error:
                self._seen = seen
                log.error("keys can't be read again; those of before stay", extra={"cause": str(error)})
        return self._value


def _verify_keys(text: str, where: str) -> dict[str, VerifyKey]:
    try:
        entries = json.loads(text)
    except ValueError:
        raise SettingsError(f"{where}: no JSON list of keys; `tidemill keys new` writes one") from None
    if not isinstance(entries, list) or not entries:
        raise SettingsError(f"{where}: no JSON list of keys; `tidemill keys new` writes one")
    keys = [VerifyKey.of(entry, where) for entry in entries]
    return {key.id: key for key in keys}


class Keyring:
    """The keys of one process.

    Parameters
    ----------
    verify
        The public keys: a JSON list, or the path of a file that holds one.
    signing
        The private key, a file that holds it, or the folder that `tidemill keys new` made; empty: this process signs
        nothing.
    service
        Whose key is taken where `signing` is a folder.
    clock
        Wall time in s: keys end.

    Raises SettingsError where there are no keys to verify with, or one can't be read.
    """

    def __init__(
        self, verify: str, signing: str = "", service: str = "", clock: Callable[[], float] = time.time
    ) -> None:
        self.clock = clock
        in_file = not verify.lstrip().startswith("[")
        self._verify = _Cached(Path(verify) if in_file else None, verify, _verify_keys, "verify_keys")
        self._private: _Cached | None = None
        is_folder = os.path.isdir(signing)
        if signing and not (is_folder and service not in KEY_OWNERS):
            file = None if signing.startswith(PRIVATE_PREFIX) else Path(signing)
            file = private_file(file, service) if file and is_folder else file
            self._private = _Cached(file, signing, _privates_and_id, "signing_key")
            if self.signs_with not in self.keys:
                raise SettingsError(
                    f"signing_key: the public half of key {self.signs_with} is not in verify_keys, so nobody would "
                    f"believe what it signs: set TIDEMILL_VERIFY_KEYS to the {VERIFY_FILE} that was made with it"
                )

    @classmethod
    def generate(cls, *kinds: str, clock: Callable[[], float] = time.time) -> Keyring:
        """Return a keyring of one new key, which may sign these kinds (none: all). It is nowhere else."""
        private = Ed25519PrivateKey.generate()
        public = private.public_key().public_bytes_raw()
        keys = json.dumps([VerifyKey(key_id(public), public, kinds=kinds).as_dict()])
        return cls(keys, private_text(private), clock=clock)

    @property
    def keys(self) -> Mapping[str, VerifyKey]:
        """The public keys by their ids."""
        keys: Mapping[str, VerifyKey] = self._verify.get()
        return keys

    @property
    def can_sign(self) -> bool:
        """Whether it has a private key."""
        return self._private is not None

    @property
    def signs_with(self) -> str:
        """The id of the key that signs; empty without one."""
        return self._signing[1] if self._private else ""

    @property
    def _signing(self) -> tuple[Ed25519PrivateKey, str, Ed25519PrivateKey]:
        if self._private is None:
            raise SettingsError(
                "signing_key is not set, and this signs: set TIDEMILL_SIGNING_KEY to the private key's file; "
                "`tidemill keys new` makes one"
            )
        private: tuple[Ed25519PrivateKey, str, Ed25519PrivateKey] = self._private.get()
        return private

    def verifier(self) -> Keyring:
        """Return the same keyring without its private key."""
        other = object.__new__(Keyring)
        other.clock, other._verify, other._private = self.clock, self._verify, None
        return other

    def sign(self, make: Callable[[str], bytes]) -> str:
        """Return the signature, hex, of what `make` returns for the signing key's id."""
        private, id_, _ = self._signing
        return private.sign(make(id_)).hex()

    def secret(self, of: bytes) -> bytes:
        """Return what nobody without the private key can make of `of`: always the same, also after a rotation."""
        return self._signing[2].sign(of)  # Ed25519 signs the same bytes the same way each time

    def verify(self, kind: str, key: str, message: bytes, signature: str) -> None:
        """Raise RefusedError where a key did not sign a message, is unknown, is over, or may not sign this kind."""
        known = self.keys.get(key)
        if known is None:
            raise RefusedError("forged", f"it is signed with key {key[:64]!r}, which is not in TIDEMILL_VERIFY_KEYS")
        try:
            raw = bytes.fromhex(signature)
            if raw.hex() != signature:  # one signature has one way to be written
                raise InvalidSignature
            Ed25519PublicKey.from_public_bytes(known.public).verify(raw, message)
        except (InvalidSignature, ValueError):
            raise RefusedError("forged", f"it has a wrong signature by key {key}: it is damaged or forged") from None
        if known.kinds and kind not in known.kinds:
            raise RefusedError("forged", f"key {key} may sign {', '.join(known.kinds)}, and not a {kind}")
        if known.is_over(self.clock()):
            raise RefusedError("expired_key", f"its key {key} has ended: nothing newer vouches for it")


# Files of keys --------------------------------------------------------------------------------------------------------


def private_file(folder: Path, service: str) -> Path:
    """Return where a service's private key is."""
    return folder / service / f"{service}.key"


def signing_id(folder: Path, service: str) -> str:
    """Return the id of the key that a service signs with; empty where it has none."""
    path = private_file(folder, service)
    try:
        return _privates_and_id(path.read_text(), str(path))[1]
    except OSError:
        return ""


def read_keys(folder: Path) -> list[VerifyKey]:
    """Return the public keys in a folder; none where it has none. Raises SettingsError."""
    path = folder / VERIFY_FILE
    if not path.exists():
        return []
    try:
        return list(_verify_keys(path.read_text(), str(path)).values())
    except OSError as error:
        raise SettingsError(f"{path} can't be read: {error.strerror}") from None


def write_keys(folder: Path, keys: Iterable[VerifyKey]) -> None:
    """Replace the public keys in a folder."""
    text = json.dumps([key.as_dict() for key in keys], indent=2)
    (folder / VERIFY_FILE).parent.mkdir(parents=True, exist_ok=True)
    write_atomic(str(folder / VERIFY_FILE), text.encode() + b"\n")


def make_keys(
    folder: Path, signers: Sequence[str] = tuple(SIGNERS), *, until: int | None = None, now: float | None = None
) -> list[VerifyKey]:
    """Make a new key for each signer, and return them; `until` (ms since the epoch) ends those that they had.

    The public keys are written first: who reads them knows the new ones before anything is signed with them.
    """
    try:
        return _make(folder, signers, until, time.time() if now is None else now)
    except OSError as error:
        raise SettingsError(f"keys can't be written to {folder}: {error.strerror or error}") from None


def _make(folder: Path, signers: Sequence[str], until: int | None, now: float) -> list[VerifyKey]:
    private = {signer: Ed25519PrivateKey.generate() for signer in signers}
    made = []
    for signer, key in private.items():
        public = key.public_key().public_bytes_raw()
        made.append(VerifyKey(key_id(public), public, kinds=KEY_OWNERS[signer], name=signer))
    before = [key for key in read_keys(folder) if not key.is_over(now - EXPIRED_KEPT_DAYS * 86_400)]
    ended = [
        VerifyKey(key.id, key.public, until if key.until is None else min(key.until, until), key.kinds, key.name)
        if until is not None and key.name in private
        else key
        for key in before
    ]
    write_keys(folder, [*ended, *made])
    mask = os.umask(0o077)  # nobody else may read a private key, not even while it is written
    try:
        for signer, key in private.items():
            path = private_file(folder, signer)
            path.parent.mkdir(parents=True, exist_ok=True)
            # Ids that were forgotten are known again by what the first key makes of them.
            first = path.read_text().split()[-1:] if signer == "forget" and path.exists() else []
            write_atomic(str(path), "\n".join([private_text(key), *first, ""]).encode())
    finally:
        os.umask(mask)
    return made
