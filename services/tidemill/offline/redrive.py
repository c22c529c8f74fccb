"""Sending dead letters back after a fix, each once: the original bytes, to where their producer had sent them.

A letter goes back with its key, its producer's headers and a mark (which letter, which attempt), in one transaction with a
record on <pipeline>.redrives that says so. So a crash sends nothing twice, a second redrive knows what went back, and of two at
once the older is fenced off: its open transaction is given up, and the other goes on from what is committed.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

from tidemill.declare.pipeline import Pipeline
from tidemill.errors import Aborted, BrokerError, Fenced
from tidemill.offline.dead_letters import Letters, Progress, Wanted
from tidemill.stages.validator.decode import MAX_MESSAGE_BYTES
from tidemill.stream.api import Broker, Producer, Record, TopicPartition
from tidemill.wire import dead_letters, topics
from tidemill.wire.dead_letters import DeadLetter, RedriveMark
from tidemill.wire.records import Records

#: Letters of one transaction, which wait in memory.
BATCH_LETTERS = 500
#: Bytes after which a transaction has enough letters.
BATCH_BYTES = 16_000_000
Going = tuple[DeadLetter, Record, str]
"""A letter that goes back, its record, and the topic that it goes to."""


@dataclass
class Found:
    """What a redrive met: letters by (topic that they go to, reason); those that went back before; those that can't, and why."""

    going: Counter[tuple[str, str]] = field(default_factory=Counter)
    there: int = 0
    cannot: Counter[str] = field(default_factory=Counter)

    def by_topic(self) -> Counter[str]:
        """Return how many letters go to each topic."""
        found: Counter[str] = Counter()
        for (to, _), count in self.going.items():
            found[to] += count
        return found


class Redrive:
    """Sends letters back.

    Parameters
    ----------
    again
        Also those that went back before.
    most
        Send no more than so many, the oldest of each partition first; None is all.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        broker: Broker,
        wanted: Wanted,
        *,
        again: bool = False,
        most: int | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.pipeline, self.broker, self.wanted = pipeline, broker, replace(wanted, state=None)
        self.again, self.most, self.clock = again, most, clock
        self.committed = 0
        self._ends: dict[TopicPartition, int] = {}
        self._redrives = topics.REDRIVES.name(pipeline.name)
        self._encode = Records(pipeline).redrive.encode
        self._to = {"events": topics.EVENTS.name(pipeline.name), "labels": topics.LABELS.name(pipeline.name)}

    def plan(self, there: Letters, progress: Progress | None = None) -> Found:
        """Return what `run` would do with these letters, and will keep to: later ones are not among those it sends."""
        found = Found()
        self._ends = {slot: end for slot, (_, end) in there.ranges.items()}
        for _ in self._each(there, found, progress):
            pass
        return found

    def run(self, progress: Progress | None = None) -> Found:
        """Send them; returns what was done. Raises Fenced where another redrive has begun meanwhile.

        Whatever it raises: what was committed went back once, the rest did not, and another run goes on from there.
        """
        # What an earlier redrive left open is settled by the time there is a producer of its name: only then does reading
        # the redrives tell all that went back.
        producer = self.broker.producer(f"{self.pipeline.name}.redrive")
        try:
            return self._send(producer, progress)
        except Fenced as error:
            raise Fenced(
                f"another redrive of {self.pipeline.name!r} has begun meanwhile and goes on from here; this one sent "
                f"{self.committed:,} letters back, which the other knows of"
            ) from error
        except Aborted as error:
            raise BrokerError(
                f"{error}; at least {self.committed:,} letters went back before that: run it again for the rest"
            ) from error
        finally:
            producer.close()

    def _send(self, producer: Producer, progress: Progress | None) -> Found:
        found, there = Found(), Letters(self.pipeline, self.broker)
        there.only_before(self._ends)
        for batch in _batches(self._each(there, found, progress)):
            for letter, record, to in batch:
                self._back(letter, record, to, producer)
            producer.commit({}, None)
            self.committed += len(batch)
        return found

    def _each(self, there: Letters, found: Found, progress: Progress | None) -> Iterator[Going]:
        """Yield the letters that go back, each with the topic that it goes to, and count them and all others."""
        sent = 0
        for letter, record in there.read(self.wanted, progress):
            source = there.sources.get(letter.topic)
            if source is None:
                found.cannot[f"it is about {_short(letter.topic)}, which a service of ours writes"] += 1
            elif _size(record) > MAX_MESSAGE_BYTES:
                found.cannot[f"it has more than {MAX_MESSAGE_BYTES:,} bytes, which the validator never takes"] += 1
            elif letter.place in there.redriven and not self.again:
                found.there += 1
            else:
                to = self._to[source]
                found.going[to, letter.reason] += 1
                yield letter, record, to
                sent += 1
                if sent == self.most:
                    return

    def _back(self, letter: DeadLetter, record: Record, to: str, producer: Producer) -> None:
        mark = RedriveMark(letter.place, letter.attempt + 1)
        # No timestamp, which is now: the delay is measured from there, and the hours until the rule was fixed are not the
        # pipeline's. The event's own time is in its bytes.
        producer.emit(
            to, record.value() or b"", record.key(), 0, dead_letters.producer_headers(record) + mark.headers()
        )
        now = int(self.clock() * 1000)
        name = str(letter.place)
        said = {"letter": name, "to": to, "attempt": mark.attempt, "reason": letter.reason, "time": now}
        producer.emit(self._redrives, self._encode(said), name.encode(), now)


def _batches(letters_: Iterable[Going]) -> Iterator[list[Going]]:
    """Gather what goes into one transaction before that is begun: those that are wanted may lie millions of others apart, and a
    transaction that is open while they are looked for runs out of its time.
    """  # fmt: skip
    some: list[Going] = []
    size = 0
    for going in letters_:
        some.append(going)
        size += _size(going[1])
        if len(some) >= BATCH_LETTERS or size >= BATCH_BYTES:
            yield some
            some, size = [], 0
    if some:
        yield some


def _short(topic: str) -> str:
    return topic or "a topic that it does not name"


def _size(record: Record) -> int:
    headers = sum(len(name) + len(data or b"") for name, data in dead_letters.producer_headers(record))
    return len(record.value() or b"") + len(record.key() or b"") + headers
