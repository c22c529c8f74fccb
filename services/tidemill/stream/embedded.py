"""The embedded broker: librdkafka's mock cluster in this process; other processes of this machine connect to it."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from confluent_kafka import Producer  # noqa: TID251  this is where Kafka clients live

from tidemill.errors import BrokerError

_client_log = logging.getLogger("librdkafka.mock")


class EmbeddedBroker:
    """A broker that lives as long as this object; `servers` is where it listens."""

    def __init__(self) -> None:
        _client_log.setLevel(logging.ERROR)  # it announces itself as a warning
        self._client = Producer({"test.mock.num.brokers": 1, "log_level": 3}, logger=_client_log)
        brokers = self._client.list_topics(timeout=5).brokers.values()
        self.servers = ",".join(f"{b.host}:{b.port}" for b in brokers)

    def create(self, topics: Sequence[str]) -> None:
        """Make topics exist, by asking about them; each gets 4 partitions."""
        deadline = time.monotonic() + 5
        for name in topics:
            while not self._client.list_topics(name, timeout=5).topics[name].partitions:
                if time.monotonic() > deadline:
                    raise BrokerError(f"the embedded broker did not make the topic {name}")
                time.sleep(0.01)
