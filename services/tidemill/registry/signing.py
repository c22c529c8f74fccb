"""Signed records: manifests, decisions, commands and alerts, each a link of a chain on its topic.

A record's signature covers where the record belongs: pipeline, topic, kind, chain, sequence, and the SHA-256 of the
record before it in its chain. So a record that is copied to another place, repeated, left out or put in between is
refused. One that vouches for its predecessor by its hash vouches for all before it, whoever's key signed them.

chains  manifests: one a model; decisions: one; commands: one a process of the status service; alerts: the monitor's,
        and one a process of the status service for acknowledgements
reading `Chains.restore` takes what is in the log, in any part of it; `Chains.take` each record that comes after
writing `Chains.sign` continues a chain after its head, which is read from the log
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from tidemill import metrics
from tidemill.encoding.codec import Codec
from tidemill.keys import Keyring, RefusedError
from tidemill.stream.api import Broker, Record, TopicPartition

log = logging.getLogger(__name__)

#: What is signed begins with this, so that no signature of ours is one of another program's.
DOMAIN = b"tidemill signed record 1\0"

#: Refused records that are remembered, so that one that is read again is not counted again.
MAX_REFUSED_REMEMBERED = 10_000

#: How many offsets are read first where a topic is read backwards; each further read is four times as long.
FIRST_READ_OFFSETS = 250

#: Hashes of earlier records that a chain remembers, to tell a repeated record from a forked one.
MAX_HASHES = 1_000

#: Records that are read before the offset where a service goes on, the latest: what is among them is not obeyed again.
MAX_PAST_RECORDS = 100_000

#: Takes a topic and an offset; returns the records before it, `MAX_PAST_RECORDS` at most.
Past = Callable[[str, int], Iterable[Record]]


def no_past(_topic: str, _end: int) -> Iterable[Record]:
    """Return no records: nothing was read before."""
    return ()


def past_of(broker: Broker) -> Past:
    """Return what reads the one partition of a topic before an offset."""

    def past(topic: str, end: int) -> Iterator[Record]:
        partition = TopicPartition(topic, 0)
        low, high = broker.offset_range(partition)
        begin, end = max(low, end - MAX_PAST_RECORDS), min(end, high)
        for batch in broker.read({partition: (begin, end)}) if end > begin else ():
            yield from batch

    return past


@dataclass(frozen=True)
class Signature:
    """Where a record belongs, and the signature over all of it; see schemas/tidemill/manifest.v1.avsc.

    `position` is where the topic ended when it was signed, or -1: what comes after it in its chain lies from there on.
    """

    pipeline: str = ""
    topic: str = ""
    kind: str = ""
    chain: str = ""
    sequence: int = 0
    previous: str = ""
    key_id: str = ""
    value: str = ""
    position: int = -1


UNSIGNED = Signature()


class Head(NamedTuple):
    """The newest record of a chain: the next one has the next sequence, and this one's hash."""

    sequence: int = 0
    sha256: str = ""
    key_id: str = ""


NO_HEAD = Head()

Content = TypeVar("Content")


def sha256(data: bytes) -> str:
    """Return the SHA-256 of `data`, in hex."""
    return hashlib.sha256(data).hexdigest()


class SignedCodec(Generic[Content]):
    """Encodes, signs, decodes and verifies the signed records of one topic.

    Parameters
    ----------
    codec
        Of the record, whose field `signature` is a `Signature`.
    make
        Returns the content of a decoded record; its `Signature` is in `signature_of`.
    kinds
        The kinds that the topic may have.
    chain_of
        Returns the name of the chain that a content must be in, which is the record's key as well; None: any chain.
    """

    def __init__(
        self,
        pipeline: str,
        topic: str,
        kinds: Sequence[str],
        codec: Codec,
        keys: Keyring | None,
        make: Callable[[dict[str, Any]], Content],
        chain_of: Callable[[Content], str] | None = None,
    ) -> None:
        self.pipeline, self.topic, self.kinds, self.codec, self.keys = pipeline, topic, tuple(kinds), codec, keys
        self._make, self._chain_of = make, chain_of
        self.is_keyed = chain_of is not None

    def signature_of(self, content: Content) -> Signature:
        """Return a content's signature."""
        signature = content["signature"] if isinstance(content, dict) else content.signature  # type: ignore[attr-defined]
        return Signature(**signature) if isinstance(signature, dict) else signature

    def _record(self, content: Content) -> dict[str, Any]:
        return dict(content) if isinstance(content, dict) else dataclasses.asdict(content)  # type: ignore[call-overload]

    def _message(self, record: Mapping[str, Any], signature: Signature) -> bytes:
        unsigned = dataclasses.asdict(signature) | {"value": ""}
        return DOMAIN + self.codec.encode({**record, "signature": unsigned})

    def head(self, content: Content) -> Head:
        """Return a content as the newest record of its chain."""
        signature = self.signature_of(content)
        return Head(signature.sequence, sha256(self.encode(content)), signature.key_id)

    def encode(self, content: Content) -> bytes:
        """Return the content as it is on the topic."""
        record = self._record(content)
        if isinstance(record["signature"], Signature):
            record["signature"] = dataclasses.asdict(record["signature"])
        return self.codec.encode(record)

    def sign(
        self, content: Content, head: Head = NO_HEAD, *, kind: str = "", chain: str = "", position: int = -1
    ) -> bytes:
        """Return the bytes of a content that comes after `head`, signed. Raises SettingsError without a private key.

        By default its kind is the topic's first, and the chain the content's own.
        """
        if self.keys is None:
            raise ValueError("a codec without keys signs nothing")
        record, signed = self._record(content), UNSIGNED

        def message(key_id: str) -> bytes:
            nonlocal signed
            signed = Signature(
                self.pipeline,
                self.topic,
                kind or self.kinds[0],
                chain or (self._chain_of(content) if self._chain_of else ""),
                head.sequence + 1,
                head.sha256,
                key_id,
                position=position,
            )
            return self._message(record, signed)

        value = self.keys.sign(message)
        return self.codec.encode({**record, "signature": dataclasses.asdict(signed) | {"value": value}})

    def parse(self, data: bytes) -> Content:
        """Return the content of `data`, whoever signed it. Raises RefusedError ("damaged") for any other bytes."""
        what = self.kinds[0]
        try:
            record = self.codec.decode(data)
            again = self.codec.encode(record)
            content = self._make(record)
        except Exception as error:  # forged bytes may make the decoder raise anything
            raise RefusedError("damaged", f"a {what} can't be decoded: {type(error).__name__}: {error}") from error
        if again != data:
            raise RefusedError("damaged", f"a {what} can't be decoded: its bytes are not as we write them")
        return content

    def verify(self, content: Content) -> None:
        """Raise RefusedError where no key of ours that may do so has signed a content, or where it is over."""
        if self.keys is None:
            return
        signature = self.signature_of(content)
        message = self._message(self._record(content), signature)
        self.keys.verify(signature.kind, signature.key_id, message, signature.value)

    def belongs(self, content: Content, key: bytes | None = None) -> None:
        """Raise RefusedError ("foreign") where a content is of another pipeline, topic, kind, chain or record key."""
        signature = self.signature_of(content)
        wanted = {"pipeline": self.pipeline, "topic": self.topic}
        for name, value in wanted.items():
            if getattr(signature, name) != value:
                raise RefusedError("foreign", f"it is of {name} {getattr(signature, name)!r} where {value!r} is read")
        if signature.kind not in self.kinds:
            raise RefusedError("foreign", f"it is a {signature.kind!r} where {' or '.join(self.kinds)} was expected")
        if getattr(content, "pipeline", self.pipeline) != self.pipeline:
            raise RefusedError("foreign", f"it is about pipeline {content.pipeline!r}")  # type: ignore[attr-defined]
        if self._chain_of is None:
            return
        chain = self._chain_of(content)
        if signature.chain != chain:
            raise RefusedError("foreign", f"it is of chain {signature.chain!r} where {chain!r} was expected")
        if key is not None and key != chain.encode():
            raise RefusedError("foreign", f"it is of {chain!r}, and under the key {key.decode(errors='replace')!r}")

    def decode(self, data: bytes) -> Content:
        """Return the content of `data`, verified; where it is in its chain is not looked at. Raises RefusedError."""
        content = self.parse(data)
        self.verify(content)
        self.belongs(content)
        return content


class Refusals:
    """Counts and logs what is refused, each record once a process."""

    def __init__(self) -> None:
        self._seen: OrderedDict[tuple[str, int, str], None] = OrderedDict()

    def note(self, topic: str, offset: int, data: bytes, error: RefusedError) -> None:
        """Count a refused record, and log why."""
        seen = (topic, offset, sha256(data))
        if seen in self._seen:
            return
        self._seen[seen] = None
        while len(self._seen) > MAX_REFUSED_REMEMBERED:
            self._seen.popitem(last=False)
        metrics.REFUSED.labels(topic, error.reason).inc()
        log.error(
            "signed record refused",
            extra={"topic": topic, "offset": offset, "reason": error.reason, "cause": str(error)},
        )


refusals = Refusals()


class Vouched(Generic[Content]):
    """Verifies records that are read backwards: by their signature, or by the hash in a later record of their chain."""

    def __init__(self, codec: SignedCodec[Content]) -> None:
        self.codec = codec
        self._vouched: set[str] = set()

    def check(self, record: Record) -> Content:
        """Return a record's content. Raises RefusedError; whether it is in its place is not looked at."""
        data = record.value() or b""
        content = self.codec.parse(data)
        if sha256(data) not in self._vouched:
            self.codec.verify(content)
        self.codec.belongs(content, record.key())
        self._vouched.add(self.codec.signature_of(content).previous)
        return content


class _Entry(NamedTuple):
    content: Any
    signature: Signature
    digest: str
    record: Record

    @property
    def head(self) -> Head:
        return Head(self.signature.sequence, self.digest, self.signature.key_id)


class Chains(Generic[Content]):
    """The chains of one topic, and what may come next in each; `on_refused` is called with what is refused.

    `position` returns where the topic ends now, or -1 where that is not known; what is signed says so.
    """

    def __init__(
        self, codec: SignedCodec[Content], on_refused: Callable[[Record, RefusedError], None] = lambda _, __: None
    ) -> None:
        self.codec, self._on_refused = codec, on_refused
        self.heads: dict[str, Head] = {}
        self._hashes: dict[str, OrderedDict[int, str]] = {}
        self._since: dict[str, int] = {}
        self._after_gap: dict[str, str] = {}
        self._known_from = 0
        self.position: Callable[[], int] = lambda: -1

    def forget(self, chains: Iterable[str] | None = None) -> None:
        """Know nothing of these chains any more, or of none at all: what was not committed is not in the log."""
        self._known_from = 0
        for known in (self.heads, self._hashes, self._since, self._after_gap):
            for chain in list(known if chains is None else chains):
                known.pop(chain, None)

    def restore_last(
        self, broker: Broker, partition: TopicPartition, last: int, newest_of: Collection[str] = ()
    ) -> tuple[list[Content], int]:
        """Return what is valid among the latest records, in the order of the log, and the topic's end.

        Those are `last`, and more until half of `last` are valid. The newest record of each chain in `newest_of` is
        returned after them where it lies before them. Each refused record is told once.
        """
        refused: dict[int, tuple[Record, RefusedError]] = {}
        quiet = Chains(self.codec, lambda record, error: refused.update({record.offset(): (record, error)}))
        low, high = broker.offset_range(partition)
        records: deque[Record] = deque()
        contents: list[Content] = []
        for begin, end in backwards(low, high, last, growth=2):
            read = [record for batch in broker.read({partition: (begin, end)}) for record in batch]
            records.extendleft(reversed(read))
            quiet.forget()
            contents = quiet.restore_in_order(records)
            if len(contents) >= last / 2:
                break
        probe = Chains(self.codec, quiet._on_refused)
        for chain, newest in read_newest(broker, partition, probe, dict.fromkeys(newest_of, 1))[0].items():
            if newest and probe.heads[chain].sequence > quiet.heads.get(chain, NO_HEAD).sequence:
                contents += newest
                quiet._take_over(chain, probe)
        self.forget()
        for chain in quiet.heads:
            self._take_over(chain, quiet)
        self._known_from = records[0].offset() if records else 0
        for record, error in refused.values():
            self._on_refused(record, error)
        return contents, high

    def _take_over(self, chain: str, other: Chains[Content]) -> None:
        """Go on in a chain where another does."""
        self.heads[chain], self._since[chain] = other.heads[chain], other._since[chain]
        self._hashes[chain] = other._hashes[chain]

    def restore(self, records: Iterable[Record], only: Collection[str] | None = None) -> dict[str, list[Content]]:
        """Return what is valid of records in the order of the log, by chain, the newest first; chains go on after it.

        A chain's newest record is the one with the highest sequence, wherever it is: an older one that was appended
        again is passed over. The records may begin anywhere in a chain. `only`: these chains, and no others.
        """
        restored = self._restore(records, only)
        return {chain: [entry.content for entry in entries] for chain, entries in restored.items()}

    def restore_in_order(self, records: Iterable[Record]) -> list[Content]:
        """Return the same of all chains, in the order of the log."""
        return [content for _, content in self.restore_with_records(records)]

    def restore_with_records(self, records: Iterable[Record]) -> list[tuple[Record, Content]]:
        """Return the same, each with its record."""
        entries = [entry for valid in self._restore(records, None).values() for entry in valid]
        return [(one.record, one.content) for one in sorted(entries, key=lambda one: one.record.offset())]

    def restore_before(self, past: Past, end: int) -> None:
        """Know of all chains what is before the offset `end`: a chain that is not among it has begun since."""
        self.forget()
        first: list[int] = []

        def noted() -> Iterator[Record]:
            for record in past(self.codec.topic, end):
                if not first:
                    first.append(record.offset())
                yield record

        self.restore(noted())
        self._known_from = first[0] if first else 0

    def _restore(self, records: Iterable[Record], only: Collection[str] | None) -> dict[str, list[_Entry]]:
        by_chain: dict[str, list[_Entry]] = {}
        end = 0
        for record in records:
            data, end = record.value() or b"", max(end, record.offset() + 1)
            try:
                content = self.codec.parse(data)
                self.codec.belongs(content, record.key())
            except RefusedError as error:
                self._refuse(record, error)
                continue
            signature = self.codec.signature_of(content)
            if only is None or signature.chain in only:
                by_chain.setdefault(signature.chain, []).append(_Entry(content, signature, sha256(data), record))
        restored = {}
        for chain, entries in by_chain.items():
            valid = self._settle(entries)
            if valid:
                restored[chain] = valid
                self.heads[chain], self._since[chain] = valid[0].head, end
                self._hashes[chain] = OrderedDict(
                    (entry.signature.sequence, entry.digest) for entry in reversed(valid[:MAX_HASHES])
                )
        return restored

    def _settle(self, entries: Sequence[_Entry]) -> list[_Entry]:
        """Return the valid records of one chain, the newest first, and refuse the others."""
        forked = self._forked(entries)
        valid: list[_Entry] = []
        accepted: set[str] = set()
        for entry in sorted(entries, key=lambda one: (-one.signature.sequence, one.record.offset())):
            try:
                if entry.digest in accepted:
                    raise RefusedError("old", _old(entry.signature))
                last = valid[-1].signature if valid else None
                if last is None or entry.digest != last.previous:
                    self.codec.verify(entry.content)
                    gap = last.sequence - entry.signature.sequence if last else 2
                    if gap < 2 or entry.digest in forked:
                        raise RefusedError("forked", _forked(entry.signature))
            except RefusedError as error:
                self._refuse(entry.record, error)
                continue
            valid.append(entry)
            accepted.add(entry.digest)
        return valid

    def _forked(self, entries: Sequence[_Entry]) -> set[str]:
        """Return the hashes of records whose place in the chain was taken before, and of all that come after them."""
        taken: dict[int, set[str]] = {}
        for entry in entries:
            taken.setdefault(entry.signature.sequence, set()).add(entry.digest)
        if all(len(digests) == 1 for digests in taken.values()):
            return set()
        forked: set[str] = set()
        first: dict[int, str] = {}
        for entry in sorted(entries, key=lambda one: (one.signature.sequence, one.record.offset())):
            sequence = entry.signature.sequence
            if first.get(sequence, entry.digest) != entry.digest or entry.signature.previous in forked:
                forked.add(entry.digest)
            elif len(taken[sequence]) > 1:
                try:
                    self.codec.verify(entry.content)
                except RefusedError:
                    continue  # it takes no place
                first[sequence] = entry.digest
        return forked

    def take(self, record: Record) -> Content | None:
        """Return the content of the record that comes next; None where it is refused, which is counted and logged."""
        try:
            return self.next(record)
        except RefusedError as error:
            self._refuse(record, error)
            return None

    def next(self, record: Record) -> Content | None:
        """Return the content of the record that comes next; None where it was restored. Raises RefusedError."""
        data = record.value() or b""
        content = self.codec.parse(data)
        signature = self.codec.signature_of(content)
        if record.offset() < self._since.get(signature.chain, 0):
            return None
        self.codec.verify(content)
        self.codec.belongs(content, record.key())
        digest = sha256(data)
        hashes = self._hashes.setdefault(signature.chain, OrderedDict())
        head = self.heads.get(signature.chain, NO_HEAD)
        if head.sequence:
            if signature.sequence <= head.sequence:
                if hashes.get(signature.sequence, digest) != digest:
                    raise RefusedError("forked", _forked(signature))
                raise RefusedError("old", _old(signature))
            if signature.sequence > head.sequence + 1:
                # What follows a record that was refused so shows that its writer goes on from there.
                if signature.previous != self._after_gap.get(signature.chain):
                    self._after_gap[signature.chain] = digest
                    raise RefusedError(
                        "gap",
                        f"record {signature.sequence} of chain {signature.chain!r} came after record {head.sequence}: "
                        f"the records between are missing; it goes on with the one that follows, or when this process "
                        f"is started again",
                    )
            elif signature.previous != head.sha256:
                raise RefusedError("forked", _forked(signature))
        elif 0 <= signature.position < self._known_from:
            raise RefusedError("old", _old(signature))  # its chain would be known if it had come when it was signed
        self._after_gap.pop(signature.chain, None)
        self.heads[signature.chain] = Head(signature.sequence, digest, signature.key_id)
        hashes[signature.sequence] = digest
        while len(hashes) > MAX_HASHES:
            hashes.popitem(last=False)
        return content

    def read_again(self, records: Iterable[Record]) -> list[Content]:
        """Return what comes next in the records of a topic that was created again, cut or restored, from its beginning.

        The chains go on after what was read before: nothing older counts, and that it is there again is no news.
        """
        self._since.clear()
        self._known_from = 0
        contents = []
        for record in records:
            try:
                content = self.next(record)
            except RefusedError as error:
                if error.reason != "old":
                    self._refuse(record, error)
                continue
            contents += [content] if content is not None else []
        return contents

    def sign(self, content: Content, chain: str, *, kind: str = "") -> bytes:
        """Return the bytes of a content, signed as the next of a chain, which goes on after it."""
        head, position = self.heads.get(chain, NO_HEAD), self.position()
        data = self.codec.sign(content, head, kind=kind, chain=chain, position=position)
        signature = self.codec.signature_of(self.codec.parse(data))
        self.heads[chain] = Head(signature.sequence, sha256(data), signature.key_id)
        return data

    def is_by_present_key(self, chain: str) -> bool:
        """Whether the key that signs now has signed a chain's newest record; of a chain without records, yes."""
        keys, head = self.codec.keys, self.heads.get(chain, NO_HEAD)
        return not head.sequence or keys is None or head.key_id == keys.signs_with

    def _refuse(self, record: Record, error: RefusedError) -> None:
        refusals.note(record.topic(), record.offset(), record.value() or b"", error)
        self._on_refused(record, error)


def _old(signature: Signature) -> str:
    return f"record {signature.sequence} of chain {signature.chain!r} was read before: it is appended again"


def _forked(signature: Signature) -> str:
    return f"record {signature.sequence} of chain {signature.chain!r} does not follow from what was read before it"


def read_newest(
    broker: Broker, partition: TopicPartition, chains: Chains[Content], wanted: Mapping[str, int], since: int = 0
) -> tuple[dict[str, list[Content]], int]:
    """Return the last records of chains (`wanted`: how many of each at most), newest first, and the topic's end.

    The topic is read backwards, from its end to the offset `since` at most, and as far as what was found may have
    something after it: where old records are at the end again, however many, the newest lies before them. The chains go
    on after what was read. Where a topic's records have the chain as their key, others are not decoded.
    """
    low, high = broker.offset_range(partition)
    records: deque[Record] = deque()
    newest: dict[str, list[Content]] = {chain: [] for chain in wanted}
    chains.forget(wanted)
    keys = {chain.encode() for chain in wanted} if chains.codec.is_keyed else None
    for begin, end in backwards(max(low, since), high, FIRST_READ_OFFSETS, growth=4):
        if all(len(newest[chain]) >= many for chain, many in wanted.items()) and end <= _first_after(chains, newest):
            break
        read = [record for batch in broker.read({partition: (begin, end)}) for record in batch]
        records.extendleft(record for record in reversed(read) if keys is None or record.key() in keys)
        restored = chains.restore(records, wanted)
        newest |= {chain: restored.get(chain, [])[:many] for chain, many in wanted.items()}
    return newest, high


def _first_after(chains: Chains[Content], newest: Mapping[str, Sequence[Content]]) -> int:
    """Return from which offset on everything must be read, so that nothing comes after the newest of each chain."""
    positions = [chains.codec.signature_of(contents[0]).position for contents in newest.values() if contents]
    return min((position for position in positions if position >= 0), default=sys.maxsize)


def backwards(low: int, high: int, step: int, growth: int = 1, most: int | None = None) -> Iterator[tuple[int, int]]:
    """Yield ranges [begin, end) of offsets from `high` back to `low`.

    The first range has `step` offsets, each further one `growth` times as many, and `most` at most.
    """
    while high > low:
        yield (begin := max(low, high - step)), high
        high, step = begin, step * growth if most is None else min(step * growth, most)


class LogWriter(Generic[Content]):
    """Signs records of one chain for a producer without transactions.

    What is in the log decides: before records are signed, `begin` reads what has come to the topic, so that the chain
    goes on after its newest record there, whoever wrote it and whatever was lost.
    """

    def __init__(self, codec: SignedCodec[Content], broker: Broker, chain: str) -> None:
        self.chains, self._broker, self._chain = Chains(codec), broker, chain
        self.topic, self._partition = codec.topic, TopicPartition(codec.topic, 0)
        self._next: int | None = None
        self._head = NO_HEAD

    def begin(self) -> None:
        """Read what has come to the topic. Raises BrokerError."""
        end = self._broker.offset_range(self._partition)[1]
        if self._next is None or end < self._next:
            self.chains = Chains(self.chains.codec)
            self.chains.position = lambda: -1 if self._next is None else self._next
            end = read_newest(self._broker, self._partition, self.chains, {self._chain: 1})[1]
        else:
            self.chains.heads[self._chain] = self._head
            batches = self._broker.read({self._partition: (self._next, end)}) if end > self._next else ()
            for record in [record for batch in batches for record in batch]:
                self.chains.take(record)
        self._next, self._head = end, self.chains.heads.setdefault(self._chain, NO_HEAD)

    def sign(self, content: Content, kind: str = "") -> bytes:
        """Return the bytes of a content, signed as the next of the chain."""
        return self.chains.sign(content, self._chain, kind=kind)
