"""A signed topic, verified: the records that count, those that are refused and why, and what is missing of each chain.

memory   the records that are read, decoded
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from tidemill.keys import RefusedError
from tidemill.registry.decisions import Command, Decision
from tidemill.registry.forgetting import Forgetting
from tidemill.registry.manifests import Manifest
from tidemill.registry.signing import Chains, SignedCodec
from tidemill.stream.api import Broker, Record, TopicPartition


@dataclass(frozen=True)
class RefusedRecord:
    """A record that no service obeys: where it is, why, and what it claims to be; empty where it can't be decoded."""

    topic: str
    offset: int
    time: int
    reason: str
    why: str
    claims: str


@dataclass(frozen=True)
class ChainExtent:
    """What the log has of one chain; `missing` are the sequences [first, last] that it lacks.

    `sha256` is the hash of the newest record: a later audit of the same log has that record in the chain as well.
    """

    chain: str
    records: int
    first: int
    last: int
    sha256: str
    missing: Sequence[tuple[int, int]]


@dataclass(frozen=True)
class SignedTopic:
    """What was read of a topic: the offsets [begin, end), and what was made of them. `valid` is in the log's order."""

    topic: str
    kinds: Sequence[str]
    begin: int
    end: int
    valid: Sequence[tuple[Record, Any]]
    refused: Sequence[RefusedRecord]
    chains: Sequence[ChainExtent]

    def as_dict(self) -> dict[str, Any]:
        """Return the counts and the chains; what is refused is listed elsewhere."""
        return {
            "topic": self.topic,
            "kinds": list(self.kinds),
            "begin": self.begin,
            "end": self.end,
            "valid": len(self.valid),
            "refused": len(self.refused),
            "chains": [vars(chain) for chain in self.chains],
        }


def read_signed(
    broker: Broker, codec: SignedCodec[Any], since: int = 0, erased: Collection[tuple[str, int]] = ()
) -> SignedTopic:
    """Verify what a topic holds from the offset `since` on; `erased`: chains and sequences that may be missing."""
    partition = TopicPartition(codec.topic, 0)
    low, end = broker.offset_range(partition)
    begin = max(low, min(since, end))
    refused: list[RefusedRecord] = []
    chains = Chains(codec, lambda record, error: refused.append(_refused(codec, record, error)))
    batches = broker.read({partition: (begin, end)}) if end > begin else ()
    valid = []
    sequences: dict[str, list[int]] = {}
    for record, content in chains.restore_with_records(record for batch in batches for record in batch):
        signature = codec.signature_of(content)
        sequences.setdefault(signature.chain, []).append(signature.sequence)
        try:
            _check_key(content, record.key())
        except RefusedError as error:
            refused.append(_refused(codec, record, error))
        else:
            valid.append((record, content))
    is_all = begin == low == 0
    extents = [
        ChainExtent(
            chain,
            len(own),
            min(own),
            max(own),
            chains.heads[chain].sha256,
            _missing([*own, *(n for name, n in erased if name == chain and (is_all or n > min(own)))], is_all=is_all),
        )
        for chain, own in sorted(sequences.items())
    ]
    refused.sort(key=lambda one: one.offset)
    return SignedTopic(codec.topic, codec.kinds, begin, end, valid, refused, extents)


def refused_record(topic: str, offset: int, time: int, error: RefusedError, content: Any = None) -> RefusedRecord:
    """Return what is listed of a record that is refused."""
    return RefusedRecord(topic, offset, time, error.reason, str(error), "" if content is None else claims(content))


def _refused(codec: SignedCodec[Any], record: Record, error: RefusedError) -> RefusedRecord:
    try:
        content = codec.parse(record.value() or b"")
    except RefusedError:
        content = None
    return refused_record(record.topic(), record.offset(), record.timestamp()[1], error, content)


def _check_key(content: Any, key: bytes | None) -> None:
    """Raise RefusedError where a record that has an id is not under it: the signature does not cover the key."""
    id_ = content.get("id") if isinstance(content, dict) else getattr(content, "id", None)
    if id_ is not None and key != id_.encode():
        shown = (key or b"").decode(errors="replace")
        raise RefusedError("foreign", f"it is of {id_!r}, and under the key {shown!r}")


def _missing(sequences: Sequence[int], *, is_all: bool) -> list[tuple[int, int]]:
    """Return the gaps among sequences; `is_all`: the log was read from its first record on, so a chain begins at 1."""
    known = sorted({*sequences, 0} if is_all else {*sequences})
    return [(one + 1, other - 1) for one, other in itertools.pairwise(known) if other - one > 1]


def claims(content: Any) -> str:
    """Return in one line what a signed record says, be it true or not."""
    match content:
        case Manifest():
            return f"model {content.model} version {content.version}"
        case Decision():
            return f"{content.kind} {content.subject or ''}, by {content.by}: {content.why}"
        case Command():
            return f"{content.kind} {content.target or ''}, by {content.by}: {content.why}"
        case Forgetting():
            return f"{content.state} {content.id}, by {content.by}: {content.why}"
        case _:
            return f"{content['state']} {content['id']}, by {content['by']}: {content['message']}"
