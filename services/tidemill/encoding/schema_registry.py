"""A schema registry that speaks Confluent's REST API: what Tidemill asks of it, by Confluent's own client.

`mock://NAME` is a registry in this process, the same one for everybody who names it: for tests, and to try things out.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import httpx

from tidemill.errors import StoreError
from tidemill.limits import REGISTRY_BYTES, REGISTRY_SECONDS

with warnings.catch_warnings(record=True):  # what the client imports prints what will change in it one day
    from confluent_kafka import schema_registry as confluent  # noqa: TID251  this is where Kafka clients live
    from confluent_kafka.schema_registry.schema_registry_client import (  # noqa: TID251
        ConfigCompatibilityLevel as Level,
    )

#: How long may pass until something more of an answer comes.
TIMEOUT_SECONDS = 5.0
_mocks: dict[str, Any] = {}


class Version(NamedTuple):
    """One version of a subject; `guid` is empty where the registry has none."""

    subject: str
    number: int
    id: int
    guid: bytes
    schema: str
    kind: str = "AVRO"
    refers: bool = False

    @property
    def name(self) -> str:
        """How people call it."""
        return f"version {self.number} of {self.subject}"


class SchemaRegistry:
    """One registry. Every method raises StoreError, without the password, where it does not answer or refuses.

    `ca`: PEM file of the authorities that sign its certificate; empty: this machine's.
    """

    def __init__(self, url: str, ca: str = "") -> None:
        parts = urlsplit(url)
        self.place = f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"
        self.client = _client(url, ca)
        self._rest = None if parts.scheme == "mock" else self.client._rest_client

    def versions(self, subject: str) -> list[int]:
        """Return the numbers of a subject's versions; empty where the subject does not exist."""
        try:
            with self._asking():
                return sorted(self.client.get_versions(subject))
        except _MissingError:
            return []

    def version(self, subject: str, number: int) -> Version:
        """Return one version of a subject."""
        with self._asking():
            if self._rest is None:
                answer = self.client.get_version(subject, number).to_dict()
            else:  # this version of the client does not return the GUID
                answer = self._rest.get(f"subjects/{quote(subject, safe='')}/versions/{number}")
            guid = uuid.UUID(answer["guid"]).bytes if answer.get("guid") else b""
            kind, refers = answer.get("schemaType") or "AVRO", bool(answer.get("references"))
            return Version(subject, number, int(answer["id"]), guid, str(answer["schema"]), kind, refers)

    def register(self, subject: str, avro: Any) -> Version:
        """Register a schema, unless it is registered; returns its version."""
        schema = confluent.Schema(json.dumps(avro), "AVRO")
        with self._asking():
            self.client.register_schema(subject, schema)
            registered = self.client.lookup_schema(subject, schema)
            return Version(
                subject, int(registered.version), int(registered.schema_id), b"", str(registered.schema.schema_str)
            )

    def level(self, subject: str) -> str:
        """Return the compatibility level of the subject itself; empty where none is set."""
        try:
            with self._asking():
                config = self.client.get_config(subject)
        except _MissingError:
            return ""
        level = config and (config.compatibility_level or config.compatibility)
        return str(level.value) if level else ""

    def set_level(self, subject: str, level: str) -> None:
        """Set a subject's compatibility level."""
        with self._asking():
            self.client.set_config(subject, confluent.ServerConfig(compatibility=Level(level)))

    @contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except confluent.SchemaRegistryError as error:
            kind = _MissingError if error.http_status_code == 404 else StoreError
            raise kind(
                f"the schema registry at {self.place} refused: {error.error_message} ({error.http_status_code})"
            ) from None
        except (httpx.HTTPError, OSError, LookupError, ValueError, TypeError, AttributeError) as error:
            raise StoreError(
                f"no schema registry at {self.place} ({type(error).__name__}: {error}): "
                f"start it, or set TIDEMILL_REGISTRY_URL to where it is"
            ) from None


class _MissingError(StoreError):
    """The subject does not exist, or nothing is set for it."""


def _client(url: str, ca: str) -> Any:
    if url.startswith("mock://"):
        if url not in _mocks:
            _mocks[url] = confluent.SchemaRegistryClient.new_client({"url": url})
        return _mocks[url]
    # The password goes in a header: httpx puts the address that it is given into its log lines.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    parts = urlsplit(url)
    settings = {
        "url": urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])),
        "timeout": TIMEOUT_SECONDS,
        "max.retries": 1,
    }
    if ca:
        settings["ssl.ca.location"] = ca
    if parts.username is not None:
        settings["basic.auth.user.info"] = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    client = confluent.SchemaRegistryClient(settings)
    session = client._rest_client.session
    session._transport = _Bounded(session._transport)
    return client


class _Bounded(httpx.BaseTransport):
    """Hands on answers of another transport as far as their limits go; they may not be packed."""

    def __init__(self, transport: httpx.BaseTransport) -> None:
        self._transport = transport

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.headers["Accept-Encoding"] = "identity"
        answer = self._transport.handle_request(request)
        answer.stream = _BoundedStream(answer)
        return answer

    def close(self) -> None:
        self._transport.close()


class _BoundedStream(httpx.SyncByteStream):
    def __init__(self, answer: httpx.Response) -> None:
        self._stream: Any = answer.stream
        self._encoding = answer.headers.get("content-encoding", "identity")
        self._until = time.monotonic() + REGISTRY_SECONDS.max

    def __iter__(self) -> Iterator[bytes]:
        if self._encoding != "identity":  # a few kilobytes may be gigabytes
            raise httpx.DecodingError(f"its answer is packed ({self._encoding}), which was not asked for")
        size = 0
        for part in self._stream:
            size += len(part)
            if size > REGISTRY_BYTES.max:
                raise httpx.ReadError(REGISTRY_BYTES.excess(size))
            if time.monotonic() > self._until:
                raise httpx.ReadTimeout(f"{REGISTRY_SECONDS.subject} takes more than {REGISTRY_SECONDS.max} seconds")
            yield part

    def close(self) -> None:
        self._stream.close()
