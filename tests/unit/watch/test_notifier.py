"""Who is to know is told: once where all goes well, again where not, in order, and whatever another receiver does."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small
from hypothesis import given, settings
from hypothesis import strategies as st
from running import until
from signing_keys import KEY
from webhook_receiver import OK, SECRET, Answer, WebhookReceiver, status

from tidemill import Fuse, metrics
from tidemill.client import verify
from tidemill.declare.pipeline import Pipeline
from tidemill.errors import SettingsError, Stopped
from tidemill.keys import Keyring
from tidemill.local.processes import free_port
from tidemill.registry import signing
from tidemill.registry.alerts import MONITOR, alerts
from tidemill.registry.decisions import NOBODY, Decision, ModelRef, decisions
from tidemill.registry.signing import Chains, LogWriter, past_of
from tidemill.runtime.run import topic_table
from tidemill.stages.validator import service as validator
from tidemill.stream.loop import Loop
from tidemill.stream.memory import MemoryBroker
from tidemill.stream.topic import Topic
from tidemill.watch.notifier import delivery
from tidemill.watch.notifier.delivery import DeliveryError, Send
from tidemill.watch.notifier.notices import Notice, Notices
from tidemill.watch.notifier.service import MAX_REFUSALS, Notifier
from tidemill.webhooks import Receiver, secret_bytes
from tidemill.wire import topics
from tidemill.wire.services import service

PIPELINE = small.make(fuse=Fuse(10, 0.0))
HOUR = 3600.0
T0 = 1_700_000_000.0


def alert(subject: str = "drift:distance", state: str = "opened") -> dict[str, Any]:
    return {
        "id": subject, "state": state, "by": "monitor", "kind": "drift", "model": "", "segment": "", "feature": "distance",
        "figure": "psi", "value": 0.9, "limit": 0.4, "since": 0, "start": 0, "end": 100, "opened_at": 3,
        "message": "the distribution has moved", "look_at": "its source", "evidence": {"psi": 0.9}, "signature": {},
    }  # fmt: skip


class Inline(Executor):
    """Makes attempts at once."""

    def submit(self, call: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(call(*arguments, **named))
        except Exception as error:
            future.set_exception(error)
        return future


class Book:
    """A receiver that writes down what it takes, and refuses while it is told to."""

    def __init__(self, *, why: DeliveryError | None = None) -> None:
        self.taken: list[Notice] = []
        self.offered: list[str] = []
        self.why = why

    def __call__(self, notice: Notice) -> None:
        self.offered.append(notice.id)
        if self.why:
            raise self.why
        self.taken.append(notice)

    @property
    def kinds(self) -> list[str]:
        return [notice.kind for notice in self.taken]


class River:
    """The topics that the notifier reads, and notifiers that come and go."""

    def __init__(self, pipeline: Pipeline = PIPELINE, **books: Book) -> None:
        self.pipeline, self.books, self.now = pipeline, books, T0
        self.broker = MemoryBroker({name: partitions for _, name, partitions in topic_table(pipeline)})
        self.alerts, self.decisions = Chains(alerts(pipeline, KEY)), Chains(decisions(pipeline, KEY))
        self.about = ("alert", "decision", "circuit_breaker")

    def alert(self, state: str = "opened", subject: str = "drift:distance") -> None:
        kind = "acknowledgement" if state == "acknowledged" else "alert"
        value = self.alerts.sign(alert(subject, state), MONITOR, kind=kind)
        self.broker.append(topics.ALERTS.name(self.pipeline), value, subject.encode(), int(self.now * 1000), None, 0)

    def decide(self, kind: str = "promoted", champion: str = "slow") -> None:
        made = Decision("7", kind, "gate", "better", 1, 2, 3, 4, "", ModelRef(champion), ModelRef(champion), NOBODY)
        value = self.decisions.sign(made, "gate")
        self.broker.append(topics.PROMOTIONS.name(self.pipeline), value, b"7", int(self.now * 1000), None, 0)

    def notifier(self, keys: Keyring | None = KEY) -> Notifier:
        receivers = {name: Receiver(name, "https://h", (), self.about) for name in self.books}
        senders: dict[str, Send] = dict(self.books)
        return Notifier(
            self.pipeline, keys, receivers, senders,
            patience=24 * HOUR, past=past_of(self.broker), executor=Inline(), clock=lambda: self.now,
        )  # fmt: skip

    def append(self, topic: Topic, value: bytes) -> None:
        """Append bytes, as anybody can who may write to the topic."""
        self.broker.append(topic.name(self.pipeline), value, b"k", int(self.now * 1000), None, 0)

    def values(self, topic: Topic) -> list[bytes]:
        return [record.value() or b"" for record in self.broker.records(topic.name(self.pipeline))]

    def run(self, rounds: int = 12, step: float = 0.1, *, clean: bool = True) -> Notifier:
        """Run a notifier from where the last one was; without `clean` it is gone without a last commit."""
        processor = self.notifier()
        loop = Loop(service("notifier", self.pipeline, processor), self.broker, max_delay=0.0, sleep=lambda _: None)
        consumer = self.broker.consumer(loop.service.group, loop.service.topics, loop.instance)
        producer = self.broker.producer(loop.instance)
        for _ in range(rounds):
            loop.run_once(consumer, producer)
            self.now += step
        if clean:
            loop._finish(consumer, producer)
            loop._publish((), consumer)
        producer.close()
        consumer.close()
        return processor


def count(name: str, receiver: str) -> float:
    return metrics.COUNTS[name].labels("notifier", receiver)._value.get()


def test_notices_come_in_order_once_with_what_they_are_about() -> None:
    river = River(ops=Book(), team=Book())
    for state in ("opened", "continuing", "continuing", "acknowledged", "resolved"):
        river.alert(state)
    river.decide()
    river.run()
    river.run()
    for book in river.books.values():
        assert sorted(book.kinds) == ["alert.acknowledged", "alert.opened", "alert.resolved", "decision.promoted"]
        assert [kind for kind in book.kinds if kind.startswith("alert")] == [
            "alert.opened",
            "alert.acknowledged",
            "alert.resolved",
        ]
        assert book.offered == [notice.id for notice in book.taken]
        assert len(set(book.offered)) == 4
    opened = json.loads(river.books["ops"].taken[0].body)
    if opened["type"] == "alert.opened":
        assert opened["data"] == {name: value for name, value in alert().items() if name != "signature"}
        assert opened["timestamp"] == "2023-11-14T22:13:20.000Z"
        assert opened["text"] == "the distribution has moved; psi is 0.9, the limit 0.4. Look at: its source"
    promoted = json.loads(
        next(notice for notice in river.books["ops"].taken if notice.kind == "decision.promoted").body
    )
    assert promoted["title"] == "small: promoted slow; slow serves"
    assert promoted["data"]["champion"] == {"model": "slow", "version": 0}


def test_a_receiver_gets_only_what_it_wants() -> None:
    river = River(ops=Book())
    river.about = ("alert.resolved", "decision")
    for state in ("opened", "resolved"):
        river.alert(state)
    river.decide("kept")
    river.run()
    assert sorted(river.books["ops"].kinds) == ["alert.resolved", "decision.kept"]


def test_one_that_is_away_holds_up_nobody_and_has_all_of_it_in_order_when_it_is_back() -> None:
    river = River(ops=Book(), away=Book(why=DeliveryError("no answer")))
    before = count("notice_failures", "away")
    for n in range(5):
        river.alert(subject=f"drift:{n}")
    river.run(30, step=1.0)
    assert len(river.books["ops"].taken) == 5
    assert set(river.books["away"].offered) == {river.books["ops"].offered[0]}, "it is asked for the first again"
    assert 4 <= len(river.books["away"].offered) <= 8, "ever more rarely"
    assert count("notice_failures", "away") - before == len(river.books["away"].offered)
    river.books["away"].why = None
    river.run(20, step=1.0)
    assert [notice.id for notice in river.books["away"].taken] == river.books["ops"].offered
    assert len(river.books["ops"].offered) == 5, "who has had it is not told again"


@pytest.mark.parametrize("clean", [True, False])
def test_a_new_process_goes_on_for_each_receiver_where_it_was(clean: bool) -> None:
    river = River(ops=Book(), away=Book(why=DeliveryError("no answer")))
    river.alert("opened")
    river.decide()
    for _ in range(4):
        river.run(clean=clean)
        river.alert("resolved")
    river.books["away"].why = None
    river.run(clean=clean)
    assert len(river.books["ops"].offered) == len(set(river.books["ops"].offered)) == 6
    assert sorted(notice.id for notice in river.books["away"].taken) == sorted(river.books["ops"].offered)


def test_a_new_receiver_begins_with_what_comes() -> None:
    river = River(ops=Book(why=DeliveryError("no")))
    river.alert("opened")
    river.run()
    river.books["new"] = Book()
    river.alert("resolved")
    river.run()
    assert river.books["new"].kinds == ["alert.resolved"]


def test_what_is_too_old_is_given_up_and_counted_and_its_records_are_in_the_log(caplog) -> None:
    river = River(ops=Book(why=DeliveryError("it answered 500")))
    before = count("undelivered", "ops")
    river.alert("opened")
    river.alert("resolved")
    river.run(3)
    river.now += 25 * HOUR
    with caplog.at_level(logging.ERROR):
        river.run(3)
    assert count("undelivered", "ops") - before == 2
    (line,) = [record for record in caplog.records if record.message == "notices given up"]
    assert (line.receiver, line.notices, line.records) == ("ops", 2, "small.alerts[0]@0 to small.alerts[0]@1")
    river.books["ops"].why = None
    river.alert("opened")
    river.run(5)
    assert river.books["ops"].kinds == ["alert.opened"]
    assert count("undelivered", "ops") - before == 2


def test_a_content_that_is_refused_is_given_up_and_the_next_goes_on() -> None:
    refusing = Book(why=DeliveryError("it answered 422", is_final=True))
    river = River(ops=refusing)
    before = count("undelivered", "ops")
    river.alert("opened")
    river.run(60, step=1.0)
    assert len(refusing.offered) == MAX_REFUSALS
    assert count("undelivered", "ops") - before == 1
    refusing.why = None
    river.alert("resolved")
    river.run()
    assert refusing.kinds == ["alert.resolved"]


def test_more_than_can_wait_is_given_up_the_oldest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidemill.watch.notifier.service.MAX_WAITING", 3)
    river, before = River(ops=Book(why=DeliveryError("no"))), count("undelivered", "ops")
    for n in range(5):
        river.alert(subject=f"drift:{n}")
    river.run(2)
    assert count("undelivered", "ops") - before == 2
    river.books["ops"].why = None
    river.run()
    assert [notice.data["id"] for notice in river.books["ops"].taken] == ["drift:2", "drift:3", "drift:4"]


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(["alert", "decide", "replay", "run", "crash", "break", "fix", "wait"]), max_size=25))
def test_whatever_happens_each_gets_all_in_order_and_a_repeated_one_has_its_id(steps: Sequence[str]) -> None:
    river = River(ops=Book(), team=Book())
    for step in steps:
        if step == "alert":
            river.alert()
        elif step == "decide":
            river.decide()
        elif step == "replay":
            for topic in (topics.ALERTS, topics.PROMOTIONS):
                for value in river.values(topic)[:2]:
                    river.append(topic, value)
        elif step in ("run", "crash"):
            river.run(3, clean=step == "run")
        elif step == "wait":
            river.now += 600
        else:
            river.books["team"].why = DeliveryError("away") if step == "break" else None
    river.books["team"].why = None
    river.run(60, step=60.0)
    sent = {
        r.value()
        for topic in (topics.ALERTS, topics.PROMOTIONS)
        for r in river.broker.records(topic.name(river.pipeline))
    }
    for book in river.books.values():
        assert len({notice.id for notice in book.taken}) == len(sent)
        for kind in ("alert", "decision"):
            first = list(dict.fromkeys(notice.id for notice in book.taken if notice.kind.startswith(kind)))
            offsets = [int(one.split("-")[-2]) for one in first]
            assert offsets == sorted(offsets)


def refused(topic: Topic, reason: str) -> float:
    return metrics.REFUSED.labels(topic.name(PIPELINE), reason)._value.get()


def replayed(river: River, topic: Topic) -> bytes:
    return river.values(topic)[0]


def of_other_pipeline(_: River, topic: Topic) -> bytes:
    other = replace(PIPELINE, name="other")
    return sign_in(topic, other, Chains(alerts(other, KEY)), Chains(decisions(other, KEY)))


def of_other_topic(river: River, topic: Topic) -> bytes:
    return river.values(topics.PROMOTIONS if topic is topics.ALERTS else topics.ALERTS)[0]


def of_another_branch(_: River, topic: Topic) -> bytes:
    return sign_in(topic, PIPELINE, Chains(alerts(PIPELINE, KEY)), Chains(decisions(PIPELINE, KEY)), 2)


def without_those_between(river: River, topic: Topic) -> bytes:
    return sign_in(topic, PIPELINE, river.alerts, river.decisions, 2)  # the first of the two is lost


def truncated(river: River, topic: Topic) -> bytes:
    return river.values(topic)[-1][:-1]


def sign_in(topic: Topic, pipeline: Pipeline, warned: Chains[Any], decided: Chains[Decision], count: int = 1) -> bytes:
    """Return the last of so many records that follow in these chains."""
    value = b""
    for _ in range(count):
        made = Decision("9", "promoted", "gate", "w", 1, 2, 3, 4, "", ModelRef("slow"), ModelRef("slow"), NOBODY)
        is_alert = topic is topics.ALERTS
        value = warned.sign(alert("drift:forged"), MONITOR) if is_alert else decided.sign(made, "gate")
    return value


@pytest.mark.parametrize("restart", [False, True], ids=["while it runs", "after a restart"])
@pytest.mark.parametrize("topic", [topics.ALERTS, topics.PROMOTIONS], ids=lambda topic: topic.name("small"))
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (replayed, "old"), (of_other_pipeline, "foreign"), (of_other_topic, "damaged"), (of_another_branch, "forked"),
        (without_those_between, "gap"), (truncated, "damaged"),
    ],
)  # fmt: skip
@pytest.mark.slow
def test_what_other_readers_refuse_is_counted_and_nobody_is_told(
    make: Callable[[River, Topic], bytes], reason: str, topic: Topic, restart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signing, "refusals", signing.Refusals())
    river = River(ops=Book())
    for _ in range(3):
        river.alert()
        river.decide()
    if restart:
        river.run()
        told = list(river.books["ops"].offered)
        assert len(told) == 6
    before = refused(topic, reason)
    river.append(topic, make(river, topic))
    river.run()
    assert len(river.books["ops"].offered) == len(set(river.books["ops"].offered)) == 6
    assert refused(topic, reason) == before + 1
    river.alert("resolved")
    river.decide("kept")
    river.run()
    assert {"alert.resolved", "decision.kept"} <= set(river.books["ops"].kinds), "what follows in its chain is told"
    assert len(river.books["ops"].offered) == 8


def test_an_old_record_is_refused_although_its_chain_began_before_all_that_is_read_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(signing, "refusals", signing.Refusals())
    monkeypatch.setattr(signing, "MAX_PAST_RECORDS", 5)
    river = River(ops=Book())
    writer = LogWriter(alerts(PIPELINE, KEY), river.broker, "status-0")
    for _ in range(3):
        writer.begin()
        river.append(topics.ALERTS, writer.sign(alert(state="acknowledged"), "acknowledgement"))
    for _ in range(10):
        river.alert("continuing")
    river.run()
    assert river.books["ops"].kinds == ["alert.acknowledged"] * 3
    before = refused(topics.ALERTS, "old")
    river.append(topics.ALERTS, replayed(river, topics.ALERTS))
    river.append(topics.ALERTS, river.values(topics.ALERTS)[2])
    river.run()
    assert refused(topics.ALERTS, "old") == before + 2
    another = LogWriter(alerts(PIPELINE, KEY), river.broker, "status-1")
    another.begin()
    river.append(topics.ALERTS, another.sign(alert(state="acknowledged"), "acknowledgement"))
    river.run()
    assert len(river.books["ops"].kinds) == 4, "a new process of the status service begins a chain"


def test_nobody_is_told_of_what_no_key_of_ours_has_signed() -> None:
    river = River(ops=Book())
    river.alert("opened")
    stranger = Chains(alerts(PIPELINE, Keyring.generate())).sign(alert("drift:dest"), MONITOR)
    for value in (stranger, b"noise", b""):
        river.broker.append(topics.ALERTS.name(PIPELINE), value, b"k", int(T0 * 1000), None, 0)
    river.broker.append(topics.WARNINGS.name(PIPELINE), b"noise", b"k", int(T0 * 1000), None, 0)
    river.run()
    assert [notice.data["id"] for notice in river.books["ops"].taken] == ["drift:distance"]


def test_an_open_circuit_breaker_is_told_once_however_often_the_validator_is_started() -> None:
    river = River(ops=Book())
    for _ in range(30):
        river.broker.append("small.events", b"\x01poison", None, int(T0 * 1000), None, 0)
    for _ in range(4):
        loop = Loop(validator.build(PIPELINE), river.broker, max_delay=0.0, sleep=lambda _: None)
        consumer = river.broker.consumer(loop.service.group, loop.service.topics, loop.instance)
        producer = river.broker.producer(loop.instance)
        loop.run_once(consumer, producer)
        with pytest.raises(Stopped):
            loop.run_once(consumer, producer)
        consumer.close()
    river.run()
    (notice,) = river.books["ops"].taken
    assert notice.kind == "circuit_breaker.opened"
    assert notice.title == "small: the validator has stopped, too much is refused of events"
    assert notice.text.startswith("10 in a row were refused (bad_magic 10)")
    assert "0x01" not in notice.body.decode(), "no value of a record leaves"


# What receivers may do.


def webhook(url: str) -> Send:
    return delivery.sender(Receiver("ops", url, (secret_bytes(SECRET),)))


NOTICE = Notices(PIPELINE, None).test(T0)


def test_a_webhook_is_signed_and_verified() -> None:
    with WebhookReceiver() as receiver:
        webhook(receiver.url)(NOTICE)
        (request,) = receiver.requests
    assert request.line == "POST /hook HTTP/1.1"
    assert request.headers["content-type"] == "application/json"
    notice = verify(request.headers, request.body, SECRET)
    assert (notice["id"], notice["type"], notice["pipeline"]) == (NOTICE.id, "test", "small")
    assert request.headers["webhook-id"] == NOTICE.id
    assert "." not in NOTICE.id


CHUNK = b"10000\r\n" + b"x" * 65536 + b"\r\n"
ENDLESS = b"HTTP/1.1 500 No\r\ntransfer-encoding: chunked\r\n\r\n"
HOSTILE: list[tuple[str, Callable[[WebhookReceiver], Answer], str]] = [
    ("no answer", lambda one: one.drip(b"", iter(lambda: b"", None)), "no answer in"),
    ("headers that never end", lambda one: one.drip(b"HTTP/1.1 200 OK\r\n", iter(lambda: b"a: b\r\n", None)), "no answer in"),
    ("a line that never ends", lambda one: one.drip(b"HTTP/1.1 200 ", iter(lambda: b"O", None)), "no answer in"),
    ("a body that drips", lambda one: one.drip(ENDLESS, iter(lambda: b"1\r\nx\r\n", None)), "no answer in"),
    ("a body without end", lambda one: one.drip(ENDLESS, iter(lambda: CHUNK, None), 0), "it answered 500: xxx"),
    ("a closed connection", lambda _: lambda connection: None, "RemoteProtocolError"),
    ("noise", lambda _: lambda connection: connection.sendall(b"\0\xff" * 50), "RemoteProtocolError"),
    ("a packed bomb", lambda _: status("503 No", "content-encoding: gzip\r\n", b"\x1f\x8b" + b"\0" * 500), "it answered 503"),
    ("an escape for terminals", lambda _: status("500 No", "", b"\x1b[2Jgone"), "it answered 500"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answer", "words"), [(answer, words) for _, answer, words in HOSTILE], ids=[name for name, *_ in HOSTILE]
)
def test_a_hostile_receiver_costs_a_bounded_time_and_is_an_error(
    answer: Callable[[WebhookReceiver], Answer], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "ATTEMPT_SECONDS", 1.5)
    with WebhookReceiver() as receiver:
        receiver.answers = [answer(receiver)]
        began = time.monotonic()
        with pytest.raises(DeliveryError) as error:
            webhook(receiver.url)(NOTICE)
        assert time.monotonic() - began < 60  # it ends, on the slowest machine too
        assert len(receiver.requests) == 1
    assert words in str(error.value)
    assert "\x1b" not in str(error.value)
    assert not error.value.is_final


@pytest.mark.slow
@pytest.mark.parametrize("code", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(code: int) -> None:
    with WebhookReceiver() as other, WebhookReceiver(status(f"{code} Moved", f"location: {other.url}\r\n")) as receiver:
        with pytest.raises(DeliveryError, match=str(code)):
            webhook(receiver.url)(NOTICE)
        assert (len(receiver.requests), other.requests) == (1, [])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "is_final"),
    [("400 No", True), ("422 No", True), ("401 Who", False), ("404 Where", False), ("429 Later", False)],
)
def test_what_a_content_is_refused_for_is_told_from_what_may_change(line: str, is_final: bool) -> None:
    with WebhookReceiver(status(line)) as receiver, pytest.raises(DeliveryError) as error:
        webhook(receiver.url)(NOTICE)
    assert error.value.is_final is is_final


def test_where_nobody_listens_it_is_an_error_without_the_address() -> None:
    with WebhookReceiver() as receiver:
        url = receiver.url + "/topsecret"
    for address in (url, "http://no-such-host.invalid/topsecret", "http://%zz/topsecret"):
        with pytest.raises(DeliveryError) as error:
            webhook(address)(NOTICE)
        assert "topsecret" not in str(error.value)


def test_no_address_is_in_any_log_line(caplog) -> None:
    with caplog.at_level(logging.DEBUG), WebhookReceiver() as receiver:
        webhook(receiver.url + "/topsecret")(NOTICE)
    assert "topsecret" not in caplog.text


@pytest.mark.slow
def test_apprise_sends_what_people_read() -> None:
    with WebhookReceiver() as receiver:
        send = delivery.sender(Receiver("team", receiver.url.replace("http://", "json://")))
        send(NOTICE)
        (request,) = receiver.requests
    sent = json.loads(request.body)
    assert (sent["title"], sent["message"]) == (NOTICE.title, NOTICE.text)
    with WebhookReceiver(status("500 No")) as receiver:
        send = delivery.sender(Receiver("team", receiver.url.replace("http://", "json://")))
        with pytest.raises(DeliveryError, match="apprise"):
            send(NOTICE)


@pytest.mark.slow
def test_an_address_that_apprise_does_not_know_is_an_error_of_the_settings() -> None:
    with pytest.raises(SettingsError, match="receiver team") as error:
        delivery.sender(Receiver("team", "nobody://topsecret"))
    assert "topsecret" not in str(error.value)


def test_a_receiver_that_takes_it_again_can_tell_by_the_id() -> None:
    """It fails after it has taken the first two: three come, each verified, and one is shown."""
    with WebhookReceiver(status("500 No"), lambda connection: None, OK) as receiver:
        send, failures = webhook(receiver.url), 0
        while True:
            try:
                send(NOTICE)
                break
            except DeliveryError:
                failures += 1
        shown = {}
        for request in receiver.requests:
            notice = verify(request.headers, request.body, SECRET)
            shown.setdefault(notice["id"], notice)
    assert (failures, len(receiver.requests), len(shown)) == (2, 3, 1)


def is_taken(send: Send) -> bool:
    try:
        send(NOTICE)
    except DeliveryError:
        return False
    return True


@pytest.mark.slow
def test_the_receiver_of_the_docs_shows_a_notice_once(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs/how-to/notify.md").read_text()
    (program,) = re.findall(r'```python title="receiver.py"\n(.*?)```', page, re.S)
    port, environment = free_port(), {"PATH": "", "PYTHONPATH": os.environ.get("PYTHONPATH", ""), "SECRET": SECRET}
    environment["PORT"] = str(port)
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment, text=True
    ) as process:
        try:
            send = webhook(f"http://127.0.0.1:{port}/")
            until(lambda: is_taken(send), "the program does not start")
            send(NOTICE)
            send(NOTICE)
            stranger = Receiver("ops", f"http://127.0.0.1:{port}/", (b"another secret of thirty bytes",))
            with pytest.raises(DeliveryError, match="401"):
                delivery.sender(stranger)(Notices(PIPELINE, None).test(T0))
        finally:
            process.terminate()
        assert process.stdout is not None
        assert process.stdout.read().splitlines() == [f"{NOTICE.title} - {NOTICE.text}"]
