"""Sending to Kafka: a transactional producer that commits outputs and offsets together, and a plain sender."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

from confluent_kafka import KafkaError, KafkaException, Producer  # noqa: TID251  this is where Kafka clients live

from tidemill.errors import Aborted, BrokerError, Fenced, NotAllowed, Refused
from tidemill.stream import api
from tidemill.stream.api import NOT_EXPECTED, Emit, Headers, Position, Record, TopicPartition
from tidemill.stream.kafka.consumer import CALL_SECONDS, KafkaConsumer, committable
from tidemill.stream.kafka.errors import is_refusal, kafka_error, service_error
from tidemill.stream.origin import with_origin
from tidemill.stream.partition import partition_of
from tidemill.stream.topic import MAX_RECORD_BYTES
from tidemill.stream.unique_keys import UniqueKeys

log = logging.getLogger(__name__)
_client_log = logging.getLogger("librdkafka")

TRANSACTION_TIMEOUT_SECONDS = 10
#: A call of a transaction is made again until it is decided; between two of them a signal and a probe are heard.
SHORT_CALL_SECONDS = 1.0
#: How long a commit is tried before the transaction is given up.
DECIDED_SECONDS = 30.0
INITIALISED_SECONDS = 60.0
#: librdkafka's own `batch.size`, and what a batch takes around its only record.
DEFAULT_BATCH_BYTES = 1_000_000
BATCH_BYTES = 100
#: A call that has not come back by then, five times its own timeout, will not: see `_HungCallWatch`.
HUNG_SECONDS = 5.0


def _look_up(client: Producer, topic: str, known: set[str]) -> None:
    """Ask for a topic before its first record: of one that is new to it, the client looks for the leader once a second.

    What is wrong with the topic shows when the record is sent.
    """
    known.add(topic)
    with contextlib.suppress(KafkaException):
        client.list_topics(topic, timeout=SHORT_CALL_SECONDS)


#: No topic of which single records may have to be erased.
NOTHING_ERASABLE: Mapping[str, int] = MappingProxyType({})


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


class _Failure(NamedTuple):
    """What was not delivered: why, the record that it was made of, and produce's arguments to send it again."""

    error: KafkaError
    source: Record | None
    arguments: Mapping[str, Any]


class KafkaProducer:
    """Commits what it sent and the offsets that were read in one transaction, or one after the other.

    Without transactions a failed batch must not take back what was delivered with it. So what Kafka refuses is sent
    again in ever smaller parts, until only what it will not take in any company is left: `Refused` names its sources.

    Parameters
    ----------
    limits
        Asks how large a message a topic takes. Once one was too large for its topic, it is asked, and later ones are
        refused before they are sent, when a transaction with all that is in it need not be given up for a second.
    counted
        Topics whose offsets `commit` compares with what is expected.
    erasable
        Topics whose records get unique keys, and how many partitions each has: the natural key chooses the partition.
    """

    def __init__(
        self,
        common: Mapping[str, Any],
        name: str,
        beat: Callable[[], None],
        limits: Callable[[str], int | None],
        counted: Collection[str] = (),
        *,
        exactly_once: bool,
        erasable: Mapping[str, int] = NOTHING_ERASABLE,
    ) -> None:
        self._beat = beat
        self._erasable, self._unique_key = erasable, UniqueKeys()
        self._watch = _HungCallWatch()
        self._exactly_once = self.is_transactional = exactly_once
        self._failures: list[_Failure] = []
        self._open = False
        self._limits = limits
        self._max_bytes: dict[str, int] = {}
        self._must_reconnect = False
        self._counted = frozenset(counted)
        self._last_offsets: dict[TopicPartition, int] = {}
        self._config: dict[str, Any] = {
            **common,
            "client.id": name,
            "enable.idempotence": True,
            # Java and Faust clients place a key by murmur2; so must we where topics are shared.
            "partitioner": "murmur2_random",
            "linger.ms": 3,
            "retry.backoff.ms": 5,
            "retry.backoff.max.ms": 200,
            "queue.buffering.max.messages": 200_000,
            "message.max.bytes": MAX_RECORD_BYTES,
        }
        self._config["delivery.report.only.error"] = not self._counted
        if self._exactly_once:
            self._config |= {"transactional.id": name, "transaction.timeout.ms": TRANSACTION_TIMEOUT_SECONDS * 1000}
        else:
            self._config["delivery.timeout.ms"] = 30_000
        self._client = self._connect()

    def _connect(self) -> Producer:
        self._known = set[str]()
        callbacks = {"on_delivery": partial(self._delivered, None)} if self._exactly_once else {}
        client = Producer(self._config | callbacks, logger=_client_log)
        if self._exactly_once:
            try:
                self._insist("initialising", lambda: client.init_transactions(SHORT_CALL_SECONDS), INITIALISED_SECONDS)
            except KafkaException as error:
                cause = service_error(error, "starting transactions")
                if isinstance(cause, NotAllowed):
                    raise cause from error
                raise BrokerError(f"transactions can't be started: {kafka_error(error).str()}") from error
        return client

    @property
    def end_markers(self) -> int:
        return 1 if self._exactly_once else 0

    def _delivered(self, source: Record | None, error: KafkaError | None, message: Any) -> None:
        if error is None:
            if (topic := message.topic()) in self._counted:
                self._last_offsets[TopicPartition(topic, message.partition())] = message.offset()
            return
        arguments = {
            "topic": message.topic(),
            "value": message.value(),
            "key": message.key(),
            "partition": message.partition(),
            "headers": message.headers() or [],
        }
        self._failures.append(_Failure(error, source, arguments))

    def emit(
        self,
        topic: str,
        value: bytes,
        key: bytes | None = None,
        timestamp: int = 0,
        headers: Headers | None = None,
        partition: int = -1,
    ) -> None:
        if not self._exactly_once:
            self._emit_of(None, topic, value, key, timestamp, headers, partition)
            return
        if not self._open:
            self._begin()
        if topic in self._erasable:
            key, partition = self._own_key(topic, key, partition)
        all_headers = with_origin(timestamp, headers)
        if self._max_bytes and (why := self._too_large(topic, value, key, all_headers)):
            raise Refused(f"sending to {topic}: {why}", is_early=True)
        if topic not in self._known:
            _look_up(self._client, topic, self._known)
        while True:
            try:
                if all_headers is None:
                    self._client.produce(topic, value, key, partition)
                else:
                    self._client.produce(topic, value, key, partition, headers=list(all_headers))
                return
            except BufferError:
                self._wait_for_room()
            except KafkaException as error:
                raise self._error(error, f"sending to {topic}") from error

    def _own_key(self, topic: str, key: bytes | None, partition: int) -> tuple[bytes, int]:
        if partition < 0 and key is not None:
            partition = partition_of(key, self._erasable[topic])
        return self._unique_key(key), partition

    def wait(self) -> None:
        """Wait until Kafka has taken all that was emitted. Raises Refused, or another Aborted, where it does not."""
        if not self._exactly_once:
            self._deliver()
            return
        deadline = time.monotonic() + DECIDED_SECONDS
        while self._client.flush(SHORT_CALL_SECONDS) and not self._failures and time.monotonic() < deadline:
            self._beat()
        if self._failures:
            raise self._error(KafkaException(self._failures[0].error), "sending")

    def _too_large(self, topic: str, value: bytes, key: bytes | None, headers: Headers | None) -> str:
        """Return why a record is too large for a topic of which one was; nothing where it is not, or not any more."""
        if topic not in self._max_bytes:
            return ""
        size = BATCH_BYTES + len(value) + len(key or b"")
        size += sum(len(name) + len(data or b"") + 10 for name, data in headers or ())
        if size > self._max_bytes[topic]:
            self._learn_limit(topic)
        limit = self._max_bytes[topic]
        return f"{size:,} bytes where its max.message.bytes is {limit:,}" if size > limit else ""

    def _learn_limit(self, topic: str) -> None:
        limit = self._limits(topic) or MAX_RECORD_BYTES
        if self._max_bytes.get(topic) != limit:
            self._max_bytes[topic] = limit
            self._must_reconnect = self._exactly_once

    def _wait_for_room(self) -> None:
        """Wait, because the queue is full: the broker is slower than we are. Nothing more is read meanwhile."""
        self._client.poll(0.05)
        self._beat()

    def emit_of(self, source: Callable[[], Record | None]) -> Emit:
        """Return how to send what is made of the record that `source` returns at that moment."""

        def emit(
            topic: str,
            value: bytes,
            key: bytes | None = None,
            timestamp: int = 0,
            headers: Headers | None = None,
            partition: int = -1,
        ) -> None:
            self._emit_of(source(), topic, value, key, timestamp, headers, partition)

        return emit

    def _emit_of(
        self,
        source: Record | None,
        topic: str,
        value: bytes,
        key: bytes | None,
        timestamp: int,
        headers: Headers | None,
        partition: int,
    ) -> None:
        self._open = True
        if topic in self._erasable:
            key, partition = self._own_key(topic, key, partition)
        self._send(
            source,
            {
                "topic": topic,
                "value": value,
                "key": key,
                "partition": partition,
                "headers": list(with_origin(timestamp, headers) or ()),
            },
        )

    def _send(self, source: Record | None, arguments: Mapping[str, Any]) -> None:
        """Send without a transaction; what fails is in `_failures` later."""
        if self._max_bytes and (why := self._too_large(*(arguments[n] for n in ("topic", "value", "key", "headers")))):
            error = KafkaError(KafkaError.MSG_SIZE_TOO_LARGE, why)
            self._failures.append(_Failure(error, source, arguments))
            return
        if arguments["topic"] not in self._known:
            _look_up(self._client, arguments["topic"], self._known)
        while True:
            try:
                self._client.produce(**arguments, on_delivery=partial(self._delivered, source))
                return
            except BufferError:
                self._wait_for_room()
            except KafkaException as error:
                if not is_refusal(kafka_error(error)):
                    raise service_error(error, f"sending to {arguments['topic']}") from error
                self._failures.append(_Failure(kafka_error(error), source, arguments))  # the client itself refuses it
                return

    def _begin(self) -> None:
        try:
            self._client.begin_transaction()
        except KafkaException as error:
            raise service_error(error, "beginning a transaction") from error
        self._open = True

    def commit(
        self,
        offsets: Mapping[TopicPartition, Position],
        consumer: api.Consumer | None,
        expected: Mapping[TopicPartition, int] = NOT_EXPECTED,
    ) -> None:
        if not self._exactly_once:
            self._deliver()
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
        if expected:
            self._compare(expected)
        self._decide("committing", self._client.commit_transaction)
        self._open = False

    def _compare(self, expected: Mapping[TopicPartition, int]) -> None:
        """Raise Aborted where the records of this transaction have other offsets than what was made of them says."""
        self.wait()
        actual, self._last_offsets = self._last_offsets, {}
        for partition, offset in expected.items():
            if actual.get(partition) != offset:
                raise Aborted(
                    f"{partition.topic}[{partition.partition}] has offset {actual.get(partition)} where {offset} was "
                    f"expected: another process writes to it"
                )

    def _decide(self, doing: str, call: Callable[..., None], *arguments: Any) -> None:
        """Make a call of the transaction until it is decided. Raises Aborted or Fenced."""
        try:
            self._insist(doing, lambda: call(*arguments, SHORT_CALL_SECONDS), DECIDED_SECONDS)
        except KafkaException as error:
            raise self._error(error, doing) from error

    def _error(self, error: KafkaException, doing: str) -> BrokerError:
        """Return the error of a call; after a record was refused, all that calls in its transaction say is "state"."""
        with contextlib.suppress(KafkaException):  # one that was fenced can't even be asked
            self._client.poll(0)
        for failure in self._failures:
            if is_refusal(failure.error):
                topic = failure.arguments["topic"]
                refused = service_error(KafkaException(failure.error), f"sending to {topic}")
                if failure.error.code() == KafkaError.MSG_SIZE_TOO_LARGE and isinstance(refused, Refused):
                    self._learn_limit(topic)
                    refused.next_is_early = True
                return refused
        cause = service_error(error, doing)
        if isinstance(cause, NotAllowed) and (names := self._unsent_topics()):
            return service_error(error, f"{doing} what is for {names}")
        return cause

    def _unsent_topics(self) -> str:
        """Return the topics of what was not sent: the error of a transaction does not name the one that is denied."""
        self._client.purge()
        self._client.flush(SHORT_CALL_SECONDS)
        denied = [one for one in self._failures if one.error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED]
        return ", ".join(sorted({failure.arguments["topic"] for failure in denied or self._failures}))

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

    def _deliver(self) -> None:
        """Wait until all is acknowledged. Raises Refused where all but some records are, and Aborted where not."""
        refused = self._apart(self._flush())
        if refused:
            topics = sorted({failure.arguments["topic"] for failure in refused})
            for topic in topics:
                self._learn_limit(topic)
            sources = [failure.source for failure in refused if failure.source is not None]
            message = f"sending to {', '.join(topics)}: {refused[0].error.str()} ({refused[0].error.name()})"
            raise Refused(message, sources if len(sources) == len(refused) else ())

    def _apart(self, failures: Sequence[_Failure]) -> list[_Failure]:
        """Send again what was refused, by halves: a batch is refused as a whole. Returns what is refused alone."""
        if len(failures) < 2:
            return list(failures)
        refused = []
        middle = len(failures) // 2
        for half in (failures[:middle], failures[middle:]):
            for failure in half:
                self._send(failure.source, failure.arguments)
            refused += self._apart(self._flush())
        return refused

    def _flush(self) -> list[_Failure]:
        """Wait until all is acknowledged or refused; returns what was refused. Raises Aborted for all else."""
        deadline = time.monotonic() + DECIDED_SECONDS
        while self._client.flush(SHORT_CALL_SECONDS) and time.monotonic() < deadline:
            if not all(is_refusal(failure.error) for failure in self._failures):
                break
            self._beat()
        left = len(self._client)
        failures, self._failures = self._failures, []
        for failure in failures:
            if not is_refusal(failure.error):
                raise service_error(KafkaException(failure.error), f"sending to {failure.arguments['topic']}")
        if left:
            raise Aborted(f"sending: {left} records not acknowledged in time")
        return failures

    def abort(self) -> None:
        if not self._open:
            return
        self._open = False
        if not self._exactly_once:
            self._client.purge()
            self._client.flush(1.0)
            self._failures = []
            return
        if self._must_reconnect:
            # With smaller batches from now on: a batch that is larger than its topic takes is refused as a record is.
            self._must_reconnect = False
            self._config["batch.size"] = min(DEFAULT_BATCH_BYTES, *self._max_bytes.values())
            self._client.purge()
            self._client = self._connect()
            self._failures = []
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
        self._failures = []
        self._last_offsets.clear()

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
        self._known = set[str]()
        self._client = Producer(
            {
                "bootstrap.servers": servers,
                "enable.idempotence": True,
                "partitioner": "murmur2_random",
                "message.max.bytes": MAX_RECORD_BYTES,
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
        if topic not in self._known:
            _look_up(self._client, topic, self._known)
        while True:
            try:
                self._client.produce(topic, value, key, partition, headers=list(headers or []))
                return
            except BufferError:
                self._client.poll(0.05)

    def try_send(
        self, topic: str, value: bytes, key: bytes | None, headers: Headers, on_delivery: Callable[[str], None]
    ) -> bool:
        """Send one record, and return True; False while the queue is full.

        `on_delivery` is called by `poll`, with why it was not written; with "" of what was written, where
        `delivery.report.only.error` is false.
        """

        if topic not in self._known:
            _look_up(self._client, topic, self._known)

        def delivered(error: KafkaError | None, _: Any) -> None:
            on_delivery(error.str() if error else "")

        try:
            self._client.produce(topic, value, key, headers=list(headers), on_delivery=delivered)
        except BufferError:
            return False
        except KafkaException as error:  # the client itself refuses it
            on_delivery(kafka_error(error).str())
        return True

    def poll(self, seconds: float = 0.0) -> None:
        """Serve what came back, waiting so long for the first."""
        self._client.poll(seconds)

    def drain(self, seconds: float) -> None:
        """Wait so long at most until everything is acknowledged; what is not then is lost."""
        self._client.flush(seconds)

    def flush(self) -> None:
        """Wait until everything is acknowledged. Raises BrokerError where something could not be sent."""
        left = self._client.flush(30)
        refused, self._failed = self._failed, None
        if refused is not None or left:
            cause = refused.str() if refused else f"{left} records not acknowledged in 30 s"
            raise BrokerError(f"sending: {cause}")
