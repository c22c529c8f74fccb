"""A service that copies a topic to another, exactly once: `python copying.py SERVERS FROM TO`, with any version of the client.

What it copies it sends to itself, so that a transaction follows the other.
"""

import sys
from collections.abc import Sequence

from tidemill.logs import setup
from tidemill.stream.api import Emit, Processor, Record
from tidemill.stream.group import Service
from tidemill.stream.kafka.broker import KafkaBroker
from tidemill.stream.loop import Loop


class Copy(Processor):
    """Sends each record to another topic, and once more to its own."""

    def __init__(self, source: str, sink: str) -> None:
        super().__init__()
        self.source, self.sink = source, sink

    def process(self, records: Sequence[Record], emit: Emit) -> bool:
        """Handle a batch."""
        for record in records:
            for topic in (self.sink, self.source):
                emit(topic, record.value() or b"", record.key())
        return True


def main() -> None:
    """Copy until it is ended."""
    servers, source, sink = sys.argv[1:]
    setup("copy", "INFO")
    Loop(Service(f"{source}.copy", f"{source}.copy", (source,), Copy(source, sink)), KafkaBroker(servers)).run()


if __name__ == "__main__":
    main()
