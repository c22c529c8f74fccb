"""The embedded broker: librdkafka's mock cluster in this process; other processes of this machine connect to it.

Its C interface is used, for what the Python client's configuration can't say: how many partitions a topic has, and
that a group need not wait for further members before it gives out its partitions.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable

from confluent_kafka import cimpl  # noqa: TID251  this is where Kafka clients live

from tidemill.errors import BrokerError

_PRODUCER = 0
_ERROR_BYTES = 512
#: How long a group waits for further members: they start within moments of each other.
GROUP_WAIT_MS = 100


class EmbeddedBroker:
    """A broker that lives as long as this process; `servers` is where it listens."""

    def __init__(self) -> None:
        self._library = library = ctypes.CDLL(cimpl.__file__)  # and what it is linked with: librdkafka
        for name, result, arguments in (
            ("rd_kafka_conf_new", ctypes.c_void_p, ()),
            ("rd_kafka_conf_set", ctypes.c_int, (ctypes.c_void_p, *3 * (ctypes.c_char_p,), ctypes.c_size_t)),
            ("rd_kafka_new", ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t)),
            ("rd_kafka_mock_cluster_new", ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_int)),
            ("rd_kafka_mock_cluster_bootstraps", ctypes.c_char_p, (ctypes.c_void_p,)),
            ("rd_kafka_mock_group_initial_rebalance_delay_ms", None, (ctypes.c_void_p, ctypes.c_int32)),
            (
                "rd_kafka_mock_topic_create",
                ctypes.c_int,
                (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_int),
            ),
        ):
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
        error = ctypes.create_string_buffer(_ERROR_BYTES)
        configuration = library.rd_kafka_conf_new()
        library.rd_kafka_conf_set(configuration, b"log_level", b"3", error, _ERROR_BYTES)
        client = library.rd_kafka_new(_PRODUCER, configuration, error, _ERROR_BYTES)
        self._cluster = library.rd_kafka_mock_cluster_new(client, 1) if client else None
        if not self._cluster:
            raise BrokerError(f"the embedded broker can't start: {error.value.decode()}")
        library.rd_kafka_mock_group_initial_rebalance_delay_ms(self._cluster, GROUP_WAIT_MS)
        self.servers: str = library.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()

    def create(self, topics: Iterable[str | tuple[str, int]]) -> None:
        """Create topics, given by name, with 4 partitions, or by name and number of partitions."""
        for topic in topics:
            name, partitions = (topic, 4) if isinstance(topic, str) else topic
            if self._library.rd_kafka_mock_topic_create(self._cluster, name.encode(), partitions, 1):
                raise BrokerError(f"the embedded broker did not create the topic {name}")
