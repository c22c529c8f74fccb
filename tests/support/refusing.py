"""Dead letters made by hand, and sent back."""

from __future__ import annotations

from typing import Any

from tidemill import load
from tidemill.errors import Reject
from tidemill.offline.dead_letters import LetterFilter
from tidemill.offline.redrive import Redrive, RedriveCounts
from tidemill.runtime.run import topic_table
from tidemill.stream.memory import MemoryBroker, MemoryRecord
from tidemill.wire import topics
from tidemill.wire.dead_letters import Place, send_dead_letter
from tidemill.wire.records import Records

PLAIN = load("plain")
RECORDS = Records(PLAIN)
EVENTS, LABELS, DLQ = (topic.name("plain") for topic in (topics.EVENTS, topics.LABELS, topics.DLQ))
VALID, REDRIVES = topics.EVENTS_VALID.name("plain"), topics.REDRIVES.name("plain")
ALL = LetterFilter()
OWN = [("trace", b"t-1"), ("tidemill.reason", b"the producer's own"), ("nothing", None)]


def new_broker() -> MemoryBroker:
    return MemoryBroker({name: count for _, name, count in topic_table(PLAIN)})


def refuse(
    broker: MemoryBroker, record: MemoryRecord, reason: str = "out_of_range", stage: str = "validator", **of: Any
) -> None:
    send_dead_letter(record, Reject(reason, f"{reason} it is", **of), broker.append, DLQ, stage)


def back(broker: Any, wanted: LetterFilter = ALL, **options: Any) -> RedriveCounts:
    return Redrive(PLAIN, broker, wanted, **options).run()


def with_letters() -> MemoryBroker:
    """Return a broker with 23 dead letters, each with bytes of its own."""
    broker = new_broker()
    for number in range(23):
        refuse(broker, MemoryRecord(EVENTS, b"%d" % number, b"k%d" % number))
    return broker


def place(record: MemoryRecord) -> Place:
    """Return where a letter is."""
    return Place(record.partition(), record.offset())
