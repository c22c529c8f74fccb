"""A record that was answered with "nothing was written" is never there later, whatever became of the broker."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from real_kafka import RealKafka
from running import until

from tidemill.errors import BrokerError, UnknownOutcome
from tidemill.local.processes import free_port
from tidemill.stream.embedded import EmbeddedBroker
from tidemill.stream.kafka import certain
from tidemill.stream.kafka.broker import KafkaBroker
from tidemill.stream.kafka.certain import CertainSender
from tidemill.stream.kafka.producer import Sender
from tidemill.stream.ranges import full_range
from tidemill.stream.topic import Topic

TOPIC = Topic("commands", key="", record="command", writers=(), readers=())


def written(servers: str, topic: str) -> list[bytes]:
    broker = KafkaBroker(servers)
    return [record.value() or b"" for batch in broker.read(full_range(broker, topic)) for record in batch]


@pytest.mark.slow
def test_what_was_sent_is_there_once_and_in_order() -> None:
    broker = EmbeddedBroker()
    broker.create(["commands"])
    sender = CertainSender(KafkaBroker(broker.servers).common, "x")
    for n in range(5):
        sender.send("commands", lambda n=n: b"%d" % n, b"k")
    assert written(broker.servers, "commands") == [b"0", b"1", b"2", b"3", b"4"]


@pytest.mark.slow
def test_the_records_of_all_keys_are_in_one_order() -> None:
    broker = EmbeddedBroker()  # whose topics have four partitions
    broker.create(["commands"])
    sender = CertainSender(KafkaBroker(broker.servers).common, "x")
    for key in range(8):
        sender.send("commands", lambda key=key: b"%d" % key, b"key %d" % key)
    reader = KafkaBroker(broker.servers)
    records = [r for batch in reader.read(full_range(reader, "commands")) for r in batch]
    assert [(r.partition(), r.value()) for r in records] == [(0, b"%d" % key) for key in range(8)]


@pytest.mark.slow
def test_without_a_broker_it_is_said_that_nothing_was_written() -> None:
    sender = CertainSender({"bootstrap.servers": f"127.0.0.1:{free_port()}"}, "x", seconds=2.5)
    for _ in range(2):
        with pytest.raises(BrokerError, match="nothing was written, nor will be") as refused:
            sender.send("commands", lambda: b"lost", b"k")
        assert not isinstance(refused.value, UnknownOutcome)


@pytest.fixture(scope="module")
def own(kafka: RealKafka, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealKafka]:
    """A broker that may be taken away."""
    del kafka  # skipped where there is none
    broker = RealKafka(tmp_path_factory.mktemp("own"))
    KafkaBroker(broker.servers).create([(TOPIC, "commands", 1)])
    yield broker
    broker.stop()


class TestKafkaAlone:
    """What only a real broker shows."""

    @pytest.mark.slow
    @pytest.mark.parametrize("away", [pytest.param("killed", marks=pytest.mark.long), "paused"])
    def test_a_record_that_failed_while_the_broker_was_away_does_not_come_later(
        self, own: RealKafka, away: str
    ) -> None:
        sender = CertainSender(KafkaBroker(own.servers).common, f"sender-{away}")
        plain = Sender(own.servers)
        before = written(own.servers, "commands")
        sender.send("commands", lambda: f"before {away}".encode(), b"k")
        if away == "killed":
            own.kill()
        else:
            own.process.send_signal(signal.SIGSTOP)
        plain.send("commands", f"plain {away}".encode(), b"k")  # what a plain producer does, shows that time was enough
        with pytest.raises(BrokerError, match="nothing was written, nor will be") as refused:
            sender.send("commands", lambda: f"lost {away}".encode(), b"k")
        assert not isinstance(refused.value, UnknownOutcome)
        if away == "killed":
            own.start()
        else:
            own.process.send_signal(signal.SIGCONT)

        def goes_on() -> bool:
            try:
                sender.send("commands", lambda: f"after {away}".encode(), b"k")
            except BrokerError:  # the broker is busy with its return
                return False
            return True

        until(goes_on, "the sender does not go on", 60)
        plain.flush()
        # A reader of what is committed gets there only once every transaction before it is decided.
        until(lambda: f"after {away}".encode() in written(own.servers, "commands"), "it is not there", 60)
        assert sorted(written(own.servers, "commands")) == sorted(
            [*before, f"before {away}".encode(), f"plain {away}".encode(), f"after {away}".encode()]
        )


def test_a_commit_has_time_left_before_the_broker_gives_the_transaction_up() -> None:
    assert certain.MIN_COMMIT_SECONDS < certain.SEND_SECONDS < certain.TRANSACTION_TIMEOUT_SECONDS
