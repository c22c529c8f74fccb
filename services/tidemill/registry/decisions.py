"""Decisions and commands: which model serves, since when, who decided and on what evidence; signed, on two topics."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tidemill.declare.pipeline import Pipeline
from tidemill.keys import Keyring, RefusedError
from tidemill.registry.signing import UNSIGNED, Chains, Signature, SignedCodec
from tidemill.stream.api import Broker
from tidemill.stream.ranges import full_range
from tidemill.wire import topics
from tidemill.wire.records import Records

_MODEL_REF = re.compile(r"([a-z][a-z0-9_-]*(?:~[0-9]{1,18}){0,2})(?:@([0-9]{1,18}))?")


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
    signature: Signature = UNSIGNED

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
    signature: Signature = UNSIGNED


def _fields(record: Mapping[str, Any]) -> dict[str, Any]:
    fields = dict(record)
    for name in ("subject", "champion", "before", "on_probation_against", "target"):
        if name in fields:
            fields[name] = ModelRef(**fields[name])
    fields["signature"] = Signature(**fields["signature"])
    if "evidence" in fields:
        fields["evidence"] = tuple(EvidenceLine(**line) for line in fields["evidence"])
    return fields


#: The one chain of a pipeline's decisions.
GATE = "gate"


def decisions(pipeline: Pipeline, keys: Keyring | None) -> SignedCodec[Decision]:
    """Return the codec of a pipeline's decisions. Without keys it reads them for people, whoever signed them."""
    return SignedCodec(
        pipeline.name,
        topics.PROMOTIONS.name(pipeline.name),
        ("decision",),
        Records(pipeline).decision,
        keys,
        lambda record: Decision(**_fields(record)),
    )


def commands(pipeline: Pipeline, keys: Keyring | None) -> SignedCodec[Command]:
    """Return the codec of a pipeline's commands."""
    return SignedCodec(
        pipeline.name,
        topics.COMMANDS.name(pipeline.name),
        ("command",),
        Records(pipeline).command,
        keys,
        lambda record: Command(**_fields(record)),
    )


def all_decisions(
    pipeline: Pipeline, broker: Broker, codec: SignedCodec[Decision], chains: Chains[Decision] | None = None
) -> list[Decision]:
    """Return every valid decision on the promotions topic, the oldest first. There are few of them.

    `chains` goes on after them.
    """
    topic = topics.PROMOTIONS.name(pipeline.name)
    records = (record for batch in broker.read(full_range(broker, topic)) for record in batch)
    chains = Chains(codec) if chains is None else chains
    return list(reversed(chains.restore(records, [GATE]).get(GATE, [])))


def readable_decisions(pipeline: Pipeline, broker: Broker) -> list[Decision]:
    """Return all that can be read as a decision on the promotions topic, also what is refused."""
    codec = decisions(pipeline, None)
    decided = []
    for batch in broker.read(full_range(broker, codec.topic)):
        for record in batch:
            with contextlib.suppress(RefusedError):
                decided.append(codec.parse(record.value() or b""))
    return decided


def kept_versions(decided: Sequence[Decision]) -> set[tuple[str, int]]:
    """Return the versions that decisions name; pruning keeps them."""
    refs = {ref for one in decided for ref in (one.champion, one.before, one.on_probation_against, one.subject)}
    return {(ref.model, ref.version) for ref in refs if ref.version}
