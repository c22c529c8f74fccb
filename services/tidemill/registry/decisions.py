"""Decisions and commands: which model serves, since when, who decided and on what evidence; signed, on two topics."""

from __future__ import annotations

import dataclasses
import hmac
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from tidemill.declare.pipeline import Pipeline
from tidemill.encoding.codec import Codec
from tidemill.errors import ArtifactError
from tidemill.stream.api import Broker, Record
from tidemill.stream.ranges import full_range
from tidemill.wire import topics
from tidemill.wire.records import Records

log = logging.getLogger(__name__)

_MODEL_REF = re.compile(r"([a-z][a-z0-9_-]*(?:~[0-9]{1,18})?)(?:@([0-9]{1,18}))?")


@dataclass(frozen=True, order=True)
class ModelRef:
    """A model as it learns (version 0), or one version of it; without a model: nobody."""

    model: str = ""
    version: int = 0

    @staticmethod
    def of(text: str) -> ModelRef:
        """Return the model or version that `MODEL` or `MODEL@VERSION` names. Raises ValueError."""
        match = _MODEL_REF.fullmatch(text)
        if not match:
            raise ValueError(f"{text!r} where MODEL or MODEL@VERSION was expected, as logreg or logreg@12000")
        return ModelRef(match[1], int(match[2] or 0))

    def __bool__(self) -> bool:
        return bool(self.model)

    def __str__(self) -> str:
        return f"{self.model}@{self.version}" if self.version else self.model


NOBODY = ModelRef()


@dataclass(frozen=True)
class EvidenceLine:
    """One line of evidence; see schemas/tidemill/decision.v1.avsc."""

    segment: str
    questions: int
    champion: float
    challenger: float
    difference: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Decision:
    """A decision, and the serving model after it; the fields are those of schemas/tidemill/decision.v1.avsc."""

    id: str
    kind: str
    by: str
    why: str
    time: int
    event_time: int
    examples: int
    since: int
    command: str
    subject: ModelRef
    champion: ModelRef
    before: ModelRef
    on_probation_against: ModelRef = NOBODY
    pinned: bool = False
    candidate: str = ""
    loss: str = ""
    rate: float = 0.0
    evidence: Sequence[EvidenceLine] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    epochs: Mapping[str, int] = field(default_factory=dict)
    signature: str = ""

    @property
    def model_refs(self) -> tuple[ModelRef, ...]:
        """The models that answer beside the declared ones: champion, the one before while on probation, candidate."""
        refs = dict.fromkeys((self.champion, self.on_probation_against, ModelRef(self.candidate)))
        return tuple(ref for ref in refs if ref)

    @property
    def changes(self) -> bool:
        """Whether the decision changes the serving model."""
        return self.champion != self.before

    def as_dict(self) -> dict[str, Any]:
        """Return the decision with its evidence for programs. Times are ms since the epoch."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "signature"}


@dataclass(frozen=True)
class Command:
    """A person's request to the gate; the fields are those of schemas/tidemill/command.v1.avsc."""

    id: str
    kind: str
    target: ModelRef
    steps: int
    begin: int
    by: str
    why: str
    time: int
    signature: str = ""


Signed = TypeVar("Signed", bound="Decision | Command")


class SignedCodec(Generic[Signed]):
    """Encodes and decodes one kind of signed record."""

    def __init__(self, kind: type[Signed], codec: Codec, key: bytes) -> None:
        self.kind, self.codec, self._key = kind, codec, key

    def _signature(self, record: Mapping[str, Any]) -> str:
        return hmac.new(self._key, self.codec.encode({**record, "signature": ""}), "sha256").hexdigest()

    def _is_signed(self, record: Mapping[str, Any]) -> bool:
        return hmac.compare_digest(record["signature"].encode(), self._signature(record).encode())

    def encode(self, signed: Signed) -> bytes:
        """Return the signed bytes for the topic."""
        record = dataclasses.asdict(signed)
        return self.codec.encode({**record, "signature": self._signature(record)})

    def decode(self, data: bytes) -> Signed:
        """Return the record in `data`. Raises ArtifactError where it is damaged, forged, or signed with another key."""
        name = self.kind.__name__.lower()
        try:
            record = self.codec.decode(data)
            again = self.codec.encode(record)
        except Exception as error:  # forged bytes may make the decoder raise anything
            raise ArtifactError(f"a {name} can't be decoded: {type(error).__name__}: {error}") from error
        if again != data or not self._is_signed(record):
            raise ArtifactError(
                f"a {name} has a wrong signature: it is damaged, forged, or signed with another TIDEMILL_SIGNING_KEY"
            )
        return self.kind(**_fields(record))

    def valid(self, record: Record) -> Signed | None:
        """Return a record's content; None, and a line in the log, where it is damaged or forged."""
        try:
            return self.decode(record.value() or b"")
        except ArtifactError as error:
            log.error("record refused", extra={"cause": str(error), "topic": record.topic(), "offset": record.offset()})
            return None


def _fields(record: Mapping[str, Any]) -> dict[str, Any]:
    fields = dict(record)
    for name in ("subject", "champion", "before", "on_probation_against", "target"):
        if name in fields:
            fields[name] = ModelRef(**fields[name])
    if "evidence" in fields:
        fields["evidence"] = tuple(EvidenceLine(**line) for line in fields["evidence"])
    return fields


def decisions(pipeline: Pipeline, key: bytes) -> SignedCodec[Decision]:
    """Return the codec of a pipeline's decisions."""
    return SignedCodec(Decision, Records(pipeline).decision, key)


class _Unchecked(SignedCodec[Decision]):
    """Reads decisions without a key to check their signatures."""

    def _is_signed(self, record: Mapping[str, Any]) -> bool:  # noqa: ARG002
        return True


def unchecked(pipeline: Pipeline) -> SignedCodec[Decision]:
    """Return a codec that reads a pipeline's decisions for people, whoever signed them."""
    return _Unchecked(Decision, Records(pipeline).decision, b"")


def commands(pipeline: Pipeline, key: bytes) -> SignedCodec[Command]:
    """Return the codec of a pipeline's commands."""
    return SignedCodec(Command, Records(pipeline).command, key)


def all_decisions(pipeline: Pipeline, broker: Broker, codec: SignedCodec[Decision]) -> list[Decision]:
    """Return every valid decision on the promotions topic, the oldest first. There are few of them."""
    topic = topics.PROMOTIONS.name(pipeline.name)
    records = (record for batch in broker.read(full_range(broker, topic)) for record in batch)
    return [decision for record in records if (decision := codec.valid(record))]


def kept_versions(decided: Sequence[Decision]) -> set[tuple[str, int]]:
    """Return the versions that decisions name; pruning keeps them."""
    refs = {ref for one in decided for ref in (one.champion, one.before, one.on_probation_against, one.subject)}
    return {(ref.model, ref.version) for ref in refs if ref.version}
