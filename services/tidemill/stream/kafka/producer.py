"""Sending to Kafka: a transactional producer that commits outputs and offsets together, and a plain sender."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer  # noqa: TID251  this is where Kafka clients live

from tidemill.errors import Aborted, BrokerError, Fenced
from tidemill.stream import api
from tidemill.stream.api import Headers, Position, TopicPartition
from tidemill.stream.kafka.consumer import CALL_SECONDS, KafkaConsumer, committable
from tidemill.stream.kafka.errors import kafka_error, service_error
from tidemill.stream.origin import with_origin

log = logging.getLogger(__name__)
_client_log = logging.getLogger("librdkafka")

TRANSACTION_TIMEOUT_SECONDS = 10
#: A call of a transaction is made again until it is decided; between two of them a signal and a probe are heard.
SHORT_CALL_SECONDS = 1.0
#: How long a commit is tried before the transaction is given up.
DECIDED_SECONDS = 30.0
INITIALISED_SECONDS = 60.0
#: A call that has not come back by then, five times its own timeout, will not: see `_HungCallWatch`.
HUNG_SECONDS = 5.0


class _HungCallWatch:
    """Ends this process when a call of the client never comes back.

    `send_offsets_to_transaction` ignores its timeout (librdkafka#5456) and waits for ever where the group's coordinator
    went away (#5511): a broker that restarts is enough. Nothing in this process can end such a call. The process that
    is started in its place fences off what is left of it, and begins at what is committed.
    """

    CHECK_SECONDS = 0.5

    def __init__(self) -> None:
        self._began = 0.0
        self._doing = ""
        threading.Thread(target=self._run, name="watch", daemon=True).start()

    def __call__(self, doing: str, call: Callable[[], None]) -> None:
        """Make a call, watched."""
        self._doing, self._began = doing, time.monotonic()
        try:
            call()
        finally:
            self._began = 0.0

    def _run(self) -> None:
        last_began, checks = 0.0, 0
        while True:
            time.sleep(_HungCallWatch.CHECK_SECONDS)
            # Counted in checks, not by the clock: a process that was paused as a whole has not waited.
            began = self._began
            checks = checks + 1 if began and began == last_began else 0
            last_began = began
            if checks * _HungCallWatch.CHECK_SECONDS >= HUNG_SECONDS:
                log.critical(
                    "the Kafka client hangs; this process ends, so that another takes its place",
                    extra={"doing": self._doing},
                )
                logging.shutdown()
                os._exit(1)


class KafkaProducer:
    """Commits what it sent and the offsets that were read in one transaction, or one after the other."""

    def __init__(self, common: Mapping[str, Any], name: str, beat: Callable[[], None], *, exactly_once: bool) -> None:
        self._beat = beat
        self._watch = _HungCallWatch()
        self._exactly_once = self.is_transactional = exactly_once
        self._failed: KafkaError | None = None
        self._open = False
        self._config: dict[str, Any] = {
            **common,
            "client.id": name,
            "enable.idempotence": True,
            # Java and Faust clients place a key by murmur2; so must we where topics are shared.
            "partitioner": "murmur2_random",
            "linger.ms": 1,
            "retry.backoff.ms": 5,
            "retry.backoff.max.ms": 200,
            "queue.buffering.max.messages": 200_000,
            # A dead letter is all that was received, and why: more than the broker's limit for a message.
            "message.max.bytes": 2**21,
        }
        if self._exactly_once:
            self._config |= {"transactional.id": name, "transaction.timeout.ms": TRANSACTION_TIMEOUT_SECONDS * 1000}
        else:
            self._config |= {"delivery.timeout.ms": 30_000, "delivery.report.only.error": True}
        self._client = self._connect()

    def _connect(self) -> Producer:
        callbacks = {} if self._exactly_once else {"on_delivery": self._delivered}
        client = Producer(self._config | callbacks, logger=_client_log)
        if self._exactly_once:
            try:
                self._insist("initialising", lambda: client.init_transactions(SHORT_CALL_SECONDS), INITIALISED_SECONDS)
            except KafkaException as error:
                raise BrokerError(f"transactions can't be started: {kafka_error(error).str()}") from error
        return client

    def _delivered(self, error: KafkaError | None, _: Any) -> None:
        if error is not None:
            self._failed = error

    def emit(
        self,
        topic: str,
        value: bytes,
        key: bytes | None = None,
        timestamp: int = 0,
        headers: Headers | None = None,
        partition: int = -1,
    ) -> None:
        if not self._open:
            self._begin()
        all_headers = with_origin(timestamp, headers)
        while True:
            try:
                if all_headers is None:
                    self._client.produce(topic, value, key, partition)
                else:
                    self._client.produce(topic, value, key, partition, headers=list(all_headers))
                return
            except BufferError:
                # The queue is full: the broker is slower than we are. Wait for it; nothing more is read meanwhile.
                self._client.poll(0.05)
                self._beat()
            except KafkaException as error:
                raise service_error(error, f"sending to {topic}") from error

    def _begin(self) -> None:
        if self._exactly_once:
            try:
                self._client.begin_transaction()
            except KafkaException as error:
                raise service_error(error, "beginning a transaction") from error
        self._open = True

    def commit(self, offsets: Mapping[TopicPartition, Position], consumer: api.Consumer | None) -> None:
        if not self._exactly_once:
            self._flush()
            if offsets:
                assert isinstance(consumer, KafkaConsumer)  # noqa: S101  the same broker made both
                consumer.commit(offsets)
            self._open = False
            return
        if not self._open:
            self._begin()
        if offsets:
            assert isinstance(consumer, KafkaConsumer)  # noqa: S101  the same broker made both
            metadata = consumer.group_metadata()
            self._decide("sending offsets", self._client.send_offsets_to_transaction, committable(offsets), metadata)
        self._decide("committing", self._client.commit_transaction)
        self._open = False

    def _decide(self, doing: str, call: Callable[..., None], *arguments: Any) -> None:
        """Make a call of the transaction until it is decided. Raises Aborted or Fenced."""
        try:
            self._insist(doing, lambda: call(*arguments, SHORT_CALL_SECONDS), DECIDED_SECONDS)
        except KafkaException as error:
            raise service_error(error, doing) from error

    def _insist(self, doing: str, call: Callable[[], None], patience: float) -> None:
        """Make a call again as long as it times out; a call that is made again goes on with what it had begun."""
        deadline = time.monotonic() + patience
        while True:
            try:
                self._watch(doing, call)
                return
            except KafkaException as error:
                cause = kafka_error(error)
                if not cause.retriable() or cause.txn_requires_abort() or time.monotonic() > deadline:
                    raise
            self._beat()

    def _flush(self) -> None:
        deadline = time.monotonic() + DECIDED_SECONDS
        while self._client.flush(SHORT_CALL_SECONDS) and self._failed is None and time.monotonic() < deadline:
            self._beat()
        left = len(self._client)
        failed, self._failed = self._failed, None
        if failed is not None or left:
            cause = failed.str() if failed else f"{left} records not acknowledged in time"
            raise Aborted(f"sending: {cause}")

    def abort(self) -> None:
        if not self._open:
            return
        self._open = False
        if not self._exactly_once:
            self._client.purge()
            self._client.flush(1.0)
            self._failed = None
            return
        try:
            self._insist("aborting", lambda: self._client.abort_transaction(SHORT_CALL_SECONDS), CALL_SECONDS)
        except KafkaException as error:
            cause = service_error(error, "aborting")
            if isinstance(cause, Fenced):
                raise cause from error
            # What state the transaction is in is not known any more; a new producer of this name settles it.
            log.warning("producer discarded", extra={"cause": str(cause)})
            self._client = self._connect()

    def close(self) -> None:
        """Leave. An open transaction is aborted; where Kafka can't be told, it times out."""
        if not self._exactly_once:
            self._client.flush(SHORT_CALL_SECONDS)
        elif self._open:
            with contextlib.suppress(KafkaException):
                self._client.abort_transaction(SHORT_CALL_SECONDS)


class Sender:
    """A plain idempotent producer, as an application outside of the pipeline would use one."""

    def __init__(self, servers: str, extra: Mapping[str, Any] | None = None) -> None:
        self._failed: KafkaError | None = None
        self._client = Producer(
            {
                "bootstrap.servers": servers,
                "enable.idempotence": True,
                "partitioner": "murmur2_random",
                "linger.ms": 2,
                "delivery.report.only.error": True,
                "log_level": 4,
                **(extra or {}),
                "on_delivery": self._delivered,
            },
            logger=_client_log,
        )

    def _delivered(self, error: KafkaError | None, _: Any) -> None:
        if error is not None:
            self._failed = error

    def send(
        self,
        topic: str,
        value: bytes,
        key: bytes | None = None,
        headers: Headers | None = None,
        partition: int = -1,
    ) -> None:
        """Send one record, by default to its key's partition; waits while the queue is full."""
        while True:
            try:
                self._client.produce(topic, value, key, partition, headers=list(headers or []))
                return
            except BufferError:
                self._client.poll(0.05)

    def poll(self) -> None:
        """Serve what came back."""
        self._client.poll(0)

    def flush(self) -> None:
        """Wait until everything is acknowledged. Raises BrokerError where something could not be sent."""
        left = self._client.flush(30)
        refused, self._failed = self._failed, None
        if refused is not None or left:
            cause = refused.str() if refused else f"{left} records not acknowledged in 30 s"
            raise BrokerError(f"sending: {cause}")
