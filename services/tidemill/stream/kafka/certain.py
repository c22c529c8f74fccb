"""Sending a record that is written now or never: for requests of people, who are told which of the two it was.

A plain producer keeps what it could not deliver, and delivers it when the broker is back, long after its sender was
told that it failed. A broker that was only paused still has the request in its socket. So each record is a transaction:
until it is committed, no reader sees it, and what was not committed is given up.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from confluent_kafka import KafkaException, Producer  # noqa: TID251  this is where Kafka clients live

from tidemill.errors import BrokerError, UnknownOutcome
from tidemill.stream.kafka.errors import kafka_error

_client_log = logging.getLogger("librdkafka")

#: How long sending one record may take in all.
SEND_SECONDS = 8.0
#: A transaction is not committed in less time than this: then it is rather given up.
MIN_COMMIT_SECONDS = 2.0
SHORT_CALL_SECONDS = 0.5
#: After this long the broker gives up a transaction whose sender has gone.
TRANSACTION_TIMEOUT_SECONDS = 10


class CertainSender:
    """Sends one record at a time.

    Parameters
    ----------
    common
        librdkafka properties of every client of the cluster: `KafkaBroker.common`.
    name
        The transactional id: this process's own, for another one with it fences this one off.
    """

    def __init__(self, common: Mapping[str, Any], name: str, *, seconds: float = SEND_SECONDS) -> None:
        self.seconds = seconds
        self._config: dict[str, Any] = {
            **common,
            "partitioner": "murmur2_random",
            "linger.ms": 0,
            "transactional.id": name,
            "transaction.timeout.ms": TRANSACTION_TIMEOUT_SECONDS * 1000,
        }
        self._client: Producer | None = None
        self._turn = threading.Lock()

    def send(self, topic: str, value: Callable[[], bytes], key: bytes | None = None) -> None:
        """Write one record to partition 0, for the order of its topic is that of a chain of signed records.

        `value` returns it; it is called once what was sent before is decided.

        Raises UnknownOutcome where it may have been written, and another BrokerError where it was not and never will
        be.
        """
        deadline = time.monotonic() + self.seconds
        if not self._turn.acquire(timeout=self.seconds - MIN_COMMIT_SECONDS):
            raise BrokerError("nothing was written, nor will be: others are being sent; try again")
        try:
            # It is kept only where everything went well: another one of this name ends what this one left open.
            client, self._client = self._client, None
            self._client = self._write(client, deadline, topic, value, key)
        finally:
            self._turn.release()

    def _write(
        self, client: Producer | None, deadline: float, topic: str, value: Callable[[], bytes], key: bytes | None
    ) -> Producer:
        reports: list[Any] = []
        try:
            if client is None:
                client = Producer(self._config, logger=_client_log)
                _insist(client.init_transactions, deadline - MIN_COMMIT_SECONDS)
            data = value()
            client.begin_transaction()
            client.produce(topic, data, key, 0, on_delivery=lambda error, _: reports.append(error))
            while not reports and time.monotonic() < deadline - MIN_COMMIT_SECONDS:
                client.poll(SHORT_CALL_SECONDS)
            if not reports:
                raise BrokerError(f"nothing was written, nor will be: Kafka did not answer within {self.seconds:.0f} s")
            if reports[0] is not None:
                raise KafkaException(reports[0])
        except KafkaException as error:
            _give_up(client)
            raise BrokerError(f"nothing was written, nor will be: {kafka_error(error).str()}") from error
        except BrokerError:
            _give_up(client)
            raise
        try:
            _insist(client.commit_transaction, deadline)
        except KafkaException as error:
            cause = kafka_error(error)
            _give_up(client)
            if cause.txn_requires_abort():
                raise BrokerError(f"nothing was written, nor will be: {cause.str()}") from error
            raise UnknownOutcome(f"it is not known whether it was written: {cause.str()}") from error
        return client


def _insist(call: Callable[[float], None], deadline: float) -> None:
    """Make a call again as long as it times out; a call that is made again goes on with what it had begun."""
    while True:
        try:
            call(SHORT_CALL_SECONDS)
            return
        except KafkaException as error:
            cause = kafka_error(error)
            if not cause.retriable() or cause.txn_requires_abort() or time.monotonic() > deadline:
                raise


def _give_up(client: Producer | None) -> None:
    """Have a client send nothing more, and close it in the background: that may take a while."""
    if client is None:
        return
    client.purge()

    def close(client: Producer = client) -> None:
        # So that readers need not wait. Else the next client of this name does it, or the broker after the timeout.
        with contextlib.suppress(KafkaException):
            client.abort_transaction(SHORT_CALL_SECONDS)

    threading.Thread(target=close, name="closing", daemon=True).start()
