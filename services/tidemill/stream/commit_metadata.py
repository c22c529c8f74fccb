"""What a processor keeps beside a committed offset: small, because Kafka's brokers refuse more than 4,096 bytes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Self

from tidemill.watermark import State

#: What brokers accept by default (offset.metadata.max.bytes).
MAX_BYTES = 4096

#: As `rebuild_from`: nothing before the committed offset is needed.
AT_COMMITTED_OFFSET = -1


@dataclass(frozen=True)
class CommitMetadata:
    """What is kept beside one committed offset.

    Parameters
    ----------
    rebuild_from
        First offset that a rebuild of the state must read; None where nothing is known of it.
    watermark
        The state of the watermark before the record at `rebuild_from`; empty before the first record of all.
    entities
        Entities whose views have had updates since their beginning or since a "begins".
    circuit_breaker
        Counts of the validator: refused in a row, records, refused among them; empty where there is nothing to keep.
    undelivered
        Of the notifier: receivers for which records before the offset wait, each with the first of them.
    instance
        Who committed it: the next one in the partition ends what it has left open.
    offset
        The committed offset itself: an offset that anything else has set lacks it, or has another one.
    topic_id
        Kafka's id of the topic: one that was deleted and created again has another. Empty where it is not known.
    last
        Offset and fingerprint of a record before the offset, one of the last: a log that was cut and has grown again
        has another there. Empty where none was read.
    corrections
        Of the gate: examples so far, and corrections of labels since a candidate was last trained on them.
    chained
        The instance whose chain does the group's work: what was done since is in the group's progress alone.
    erased
        How much had been erased from the log when the state was made; see `Processor.erased`.
    """

    rebuild_from: int | None = None
    watermark: State = ()
    entities: tuple[str, ...] = ()
    circuit_breaker: tuple[int, ...] = ()
    undelivered: tuple[tuple[str, int], ...] = ()
    instance: str = ""
    offset: int | None = None
    topic_id: str = ""
    last: str = ""
    chained: str = ""
    corrections: tuple[int, ...] = ()
    erased: int = 0

    def encode(self) -> str:
        """Return it as text, empty where there is nothing to keep. Raises ValueError above `MAX_BYTES`."""
        kept = {
            name: value
            for name, value in vars(self).items()
            if value not in (None, (), "") and (name, value) != ("erased", 0)
        }
        if not kept:
            return ""
        text = json.dumps(kept, separators=(",", ":"))
        if len(text) > MAX_BYTES:  # json.dumps writes ASCII: a character is a byte
            raise ValueError(f"commit metadata of {len(text)} bytes where {MAX_BYTES} are allowed: {text[:200]}")
        return text

    @classmethod
    def decode(cls, text: str) -> Self:
        """Return what was encoded. Raises ValueError where another program wrote it."""
        if not text:
            return cls()
        try:
            kept = json.loads(text)
            metadata = cls(
                kept.pop("rebuild_from", None),
                tuple(kept.pop("watermark", ())),
                tuple(kept.pop("entities", ())),
                tuple(kept.pop("circuit_breaker", ())),
                tuple((name, offset) for name, offset in kept.pop("undelivered", ())),
                kept.pop("instance", ""),
                kept.pop("offset", None),
                kept.pop("topic_id", ""),
                kept.pop("last", ""),
                kept.pop("chained", ""),
                tuple(kept.pop("corrections", ())),
                kept.pop("erased", 0),
            )
            if kept:
                raise ValueError(f"unknown fields {', '.join(map(repr, kept))}")
            return metadata
        except (TypeError, AttributeError, ValueError, RecursionError) as error:
            raise ValueError(f"{text[:200]!r} is no commit metadata of this version: {error}") from error
