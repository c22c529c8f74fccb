"""Requests to forget entities, and what came of them: signed records on <pipeline>.forgotten.

A record has no id that was forgotten: it has their HMACs, by a key that is made of the private key that `tidemill keys
new forget` makes. So whoever has that key can say of an id whether, and when, it was forgotten; nobody can read ids.
"""

from __future__ import annotations

import base64
import hmac
import json
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cryptography.fernet import Fernet, InvalidToken

from tidemill.declare.forgetting import Forgetting as Declared
from tidemill.declare.pipeline import Pipeline
from tidemill.durations import milliseconds, minute
from tidemill.errors import SettingsError
from tidemill.keys import Keyring
from tidemill.registry.signing import UNSIGNED, Chains, Signature, SignedCodec
from tidemill.registry.store import ArtifactStore
from tidemill.stream.api import Broker, TopicPartition
from tidemill.wire import topics
from tidemill.wire.records import Records

Entity = tuple[str, str]

#: The chain of `tidemill forget`, and the kind of its records.
CHAIN, KIND = "forget", "forgetting"
#: Of the HMAC of an event's id, or of a vector, so many bytes are kept: 8 of them are no other's by chance.
SHORT_BYTES = 8


@dataclass(frozen=True)
class Forgetting:
    """A request ("asked"), its end ("done"), what it takes out of the registry ("erasing"), or one that waits.

    Those that wait ("waiting") are carried out together, by one that is asked then.

    The fields are those of schemas/tidemill/forgetting.v1.avsc.
    """

    id: str
    state: str
    by: str
    why: str
    time: int
    entities: Sequence[str]
    events: bytes = b""
    vectors: bytes = b""
    content: str = ""
    signature: Signature = UNSIGNED

    def __str__(self) -> str:
        return f"forgotten on {minute(self.time)} UTC, request {self.id}"

    @property
    def why_gone(self) -> str:
        """Why a version that had learned from the forgotten can't be had any more."""
        return f"what it had learned was {self}"


def forgetting_codec(pipeline: Pipeline, keys: Keyring | None) -> SignedCodec[Forgetting]:
    """Return the codec of a pipeline's requests; without keys it verifies nothing."""

    def make(fields: dict[str, Any]) -> Forgetting:
        return Forgetting(**{**fields, "signature": Signature(**fields["signature"])})

    topic = topics.FORGOTTEN.name(pipeline.name)
    return SignedCodec(pipeline.name, topic, (KIND,), Records(pipeline).forgetting, keys, make)


class Hashes:
    """The HMACs of ids and vectors of one pipeline. Raises SettingsError where the keys can't sign."""

    def __init__(self, pipeline: str, keys: Keyring) -> None:
        self._key = keys.secret(b"tidemill forgotten ids\0" + pipeline.encode())

    def entity(self, field: str, id_: str) -> str:
        """Return the hash of an entity, hex."""
        return hmac.digest(self._key, f"entity\0{field}\0{id_}".encode(), "sha256").hex()

    def short(self, data: bytes) -> bytes:
        """Return the short hash of an event's id, or of a vector."""
        return hmac.digest(self._key, b"short\0" + data, "sha256")[:SHORT_BYTES]

    def seal(self, data: bytes) -> bytes:
        """Return `data` encrypted, by a key that is made of the same private key."""
        return self._sealer.encrypt(data)

    def unseal(self, data: bytes) -> bytes:
        """Return what `seal` encrypted. Raises SettingsError for what another key did."""
        try:
            return self._sealer.decrypt(data)
        except InvalidToken:
            raise SettingsError(
                "the ids of a request were encrypted with another key: set the one of `tidemill keys new forget` that "
                "it was made with"
            ) from None

    @property
    def _sealer(self) -> Fernet:
        return Fernet(base64.urlsafe_b64encode(hmac.digest(self._key, b"ids", "sha256")))

    def joined(self, items: Iterable[bytes]) -> bytes:
        """Return the short hashes of all of these, sorted, as a record has them."""
        return b"".join(sorted({self.short(one) for one in items}))


def split(joined: bytes) -> frozenset[bytes]:
    """Return the short hashes that a record has."""
    return frozenset(joined[at : at + SHORT_BYTES] for at in range(0, len(joined), SHORT_BYTES))


class Waiting:
    """Makes requests that wait, until `tidemill forget --due` carries out all of them.

    Until then the artifact store has their ids, encrypted.

    Parameters
    ----------
    store
        The artifact store.
    write
        Signs a request, and writes it.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        broker: Broker,
        store: ArtifactStore,
        keys: Keyring,
        write: Callable[[Forgetting], None],
    ) -> None:
        self.pipeline, self.broker, self.store, self.keys, self.write = pipeline, broker, store, keys, write
        self.hashes = Hashes(pipeline.name, keys)

    def ask(self, entities: Iterable[Entity], by: str, why: str) -> Forgetting:
        """Write a request, and return it, or the one of the same entities that waits. Raises SettingsError."""
        entities = sorted(set(entities))
        check_entities(self.pipeline, entities, why)
        hashed = [self.hashes.entity(*entity) for entity in entities]
        for one in Requests(self.pipeline, self.broker, self.keys).open:
            if one.state == "waiting" and one.entities == hashed:
                return one
        sealed = self.store.put(self.hashes.seal(json.dumps(entities).encode()))
        now, content = int(time.time() * 1000), json.dumps({"ids": sealed})
        request = Forgetting(uuid.uuid4().hex[:12], "waiting", by, why, now, hashed, content=content)
        self.write(request)
        return request


def check_entities(pipeline: Pipeline, entities: Iterable[Entity], why: str = "", dashes: str = "--") -> None:
    """Raise SettingsError for a field that names none, and for a reason that names an id; options have `dashes`."""
    for name, id_ in entities:
        if name not in pipeline.forgettable:
            raise SettingsError(
                f"{dashes}entity {name}=...: expected one of {', '.join(pipeline.forgettable) or 'none'}: the key, the "
                f"entities of views, and forgetting.fields"
            )
        if id_ in why:
            raise SettingsError(
                f"{dashes}why names an id that is to be forgotten, and it is kept for ever: say it without"
            )


def refold_at(pipeline: Pipeline, waiting: Forgetting) -> int:
    """Return when a request that waits is carried out, ms since the epoch."""
    return waiting.time + milliseconds(_declared(pipeline).every or "0s")


def deadline(pipeline: Pipeline, request: Forgetting) -> int:
    """Return until when a request has to be done, ms since the epoch."""
    return request.time + milliseconds(_declared(pipeline).within)


def _declared(pipeline: Pipeline) -> Declared:
    if pipeline.forgetting is None:
        raise SettingsError(f"pipeline {pipeline.name!r} does not declare forgetting")
    return pipeline.forgetting


class Requests:
    """The requests of a pipeline, in the order of the log; those that no key of ours has signed are left out."""

    def __init__(self, pipeline: Pipeline, broker: Broker, keys: Keyring | None) -> None:
        codec, self.records = forgetting_codec(pipeline, keys), list[Forgetting]()
        if broker.partitions(codec.topic):
            partition = TopicPartition(codec.topic, 0)
            batches = broker.read({partition: broker.offset_range(partition)})
            self.records = Chains(codec).restore_in_order(record for batch in batches for record in batch)

    @cached_property
    def done(self) -> dict[str, Forgetting]:
        """The ends of requests, by id; one that was carried out with others has the end of all of them."""
        done = dict[str, Forgetting]()
        for one in self.records:
            if one.state == "done":
                done |= dict.fromkeys((one.id, *json.loads(one.content).get("requests", ())), one)
        return done

    @cached_property
    def erased(self) -> dict[tuple[str, int], Forgetting]:
        """What erased manifests, by their chain and their place in it."""
        erasing = (one for one in self.records if one.state == "erasing")
        return {(chain, place): one for one in erasing for chain, place in json.loads(one.content)["manifests"]}

    def of_version(self, model: str, version: int, epoch: int | None = None, begin: int = 0) -> Forgetting | None:
        """Return the last request whose examples a model had learned; without an epoch, in any life of it."""
        for one in reversed(self.records):
            content = json.loads(one.content) if one.state == "asked" else {"models": {}}
            if model not in content["models"] or (first := content["first_example"]) is None:
                continue
            if begin <= first < version and (epoch is None or epoch <= content["models"][model][0]):
                return one
        return None

    @property
    def open(self) -> list[Forgetting]:
        """Requests that are not done."""
        return [one for one in self.records if one.state in ("asked", "waiting") and one.id not in self.done]

    def of_event(self, hashes: Hashes, event_id: str) -> Forgetting | None:
        """Return the last request that an event was forgotten with; None for none."""
        short = hashes.short(event_id.encode())
        with_it = (one for one in reversed(self.records) if one.state == "asked" and short in split(one.events))
        return next(with_it, None)
