"""Sending dead letters back after a fix, each once: the original bytes, to where their producer had sent them.

A letter goes back with its key, its producer's headers and a mark (which letter, which attempt), in one transaction
with a record on <pipeline>.redrives that says so. So a crash sends nothing twice, a second redrive knows what went
back, and of two at once the older is fenced off: its open transaction is given up, and the other goes on from what is
committed.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

from tidemill.declare.pipeline import Pipeline
from tidemill.errors import Aborted, BrokerError, Fenced
from tidemill.limits import MESSAGE_BYTES
from tidemill.offline.dead_letters import DeadLetters, LetterFilter
from tidemill.stream.api import Broker, Producer, Progress, Record, TopicPartition
from tidemill.wire import dead_letters, topics
from tidemill.wire.dead_letters import DeadLetter, RedriveMark
from tidemill.wire.records import Records

#: Letters of one transaction, which wait in memory.
BATCH_LETTERS = 500
#: Bytes after which a transaction has enough letters.
BATCH_BYTES = 16_000_000
#: A letter that goes back, its record, and the topic that it goes to.
Going = tuple[DeadLetter, Record, str]


@dataclass
class RedriveCounts:
    """Letters that go back, by (topic that they go to, reason); that went back before; that can't, by why."""

    going: Counter[tuple[str, str]] = field(default_factory=Counter)
    redriven_before: int = 0
    unsendable: Counter[str] = field(default_factory=Counter)

    def by_topic(self) -> Counter[str]:
        """Return how many letters go to each topic."""
        counts: Counter[str] = Counter()
        for (to, _), count in self.going.items():
            counts[to] += count
        return counts


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
        wanted: LetterFilter,
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
        self._to = {"events": topics.EVENTS.name(pipeline), "labels": topics.LABELS.name(pipeline)}

    def plan(self, letters: DeadLetters, progress: Progress | None = None) -> RedriveCounts:
        """Return what `run` would do with these letters, and will keep to: later ones are not among those it sends."""
        counts = RedriveCounts()
        self._ends = {slot: end for slot, (_, end) in letters.ranges.items()}
        for _ in self._each(letters, counts, progress):
            pass
        return counts

    def run(self, progress: Progress | None = None) -> RedriveCounts:
        """Send them; returns what was done. Raises Fenced where another redrive has started meanwhile.

        Whatever it raises: what was committed went back once, the rest did not, and another run goes on from there.
        """
        # A producer of the same name settles what an earlier redrive left open: only then do the redrives list all that
        # went back.
        producer = self.broker.producer(f"{self.pipeline.name}.redrive")
        try:
            return self._send(producer, progress)
        except Fenced as error:
            raise Fenced(
                f"another redrive of {self.pipeline.name!r} has started meanwhile and goes on from here; this one sent "
                f"{self.committed:,} letters back, which the other knows of"
            ) from error
        except Aborted as error:
            raise BrokerError(
                f"{error}; at least {self.committed:,} letters went back before that: run it again for the rest"
            ) from error
        finally:
            producer.close()

    def _send(self, producer: Producer, progress: Progress | None) -> RedriveCounts:
        counts, letters = RedriveCounts(), DeadLetters(self.pipeline, self.broker)
        letters.only_before(self._ends)
        for batch in _batches(self._each(letters, counts, progress)):
            for letter, record, to in batch:
                self._back(letter, record, to, producer)
            producer.commit({}, None)
            self.committed += len(batch)
        return counts

    def _each(self, letters: DeadLetters, counts: RedriveCounts, progress: Progress | None) -> Iterator[Going]:
        """Yield the letters that go back, each with the topic that it goes to, and count them and all others."""
        sent = 0
        for letter, record in letters.read(self.wanted, progress):
            source = letters.sources.get(letter.topic)
            if source is None:
                counts.unsendable[f"it is about {_short(letter.topic)}, which a service of ours writes"] += 1
            elif letter.cut_from is not None:
                counts.unsendable["it is a part of its record, which was too large to be kept"] += 1
            elif _size(record) > MESSAGE_BYTES.max:
                counts.unsendable[f"it has more than {MESSAGE_BYTES.max:,} bytes, which the validator never takes"] += 1
            elif letter.place in letters.redriven and not self.again:
                counts.redriven_before += 1
            else:
                to = self._to[source]
                counts.going[to, letter.reason] += 1
                yield letter, record, to
                sent += 1
                if sent == self.most:
                    return

    def _back(self, letter: DeadLetter, record: Record, to: str, producer: Producer) -> None:
        mark = RedriveMark(letter.place, letter.attempt + 1)
        # No timestamp, so it is now: the delay is measured from it, and the hours until the rule was fixed are not the
        # pipeline's. The event's own time is in its bytes.
        producer.emit(
            to, record.value() or b"", record.key(), 0, dead_letters.producer_headers(record) + mark.headers()
        )
        now = int(self.clock() * 1000)
        name = str(letter.place)
        entry = {"letter": name, "to": to, "attempt": mark.attempt, "reason": letter.reason, "time": now}
        producer.emit(self._redrives, self._encode(entry), name.encode(), now)


def _batches(letters: Iterable[Going]) -> Iterator[list[Going]]:
    """Gather the letters of one transaction before it begins.

    Millions of others may lie between two of them, and a transaction that stays open meanwhile times out.
    """
    some: list[Going] = []
    size = 0
    for going in letters:
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
