"""What the status service shows is verified, with public keys alone; what was refused is shown as refused."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from signing_keys import KEY
from site_by_hand import FLIGHTS, RECORDS, Site, alert, decision

from tidemill.errors import MAX_QUOTING_CHARACTERS, BrokerError
from tidemill.keys import Keyring
from tidemill.models.fold import Fold
from tidemill.registry.alerts import alerts
from tidemill.registry.decisions import GATE, decisions
from tidemill.registry.manifests import Registry
from tidemill.registry.signing import NO_HEAD, UNSIGNED, Chains, SignedCodec
from tidemill.registry.store import ArtifactStore
from tidemill.stream.memory import MemoryBroker, MemoryRecord
from tidemill.watch.status.follower import START_RECORDS, TopicFollower
from tidemill.watch.status.service import Dependencies
from tidemill.wire import topics

pytestmark = pytest.mark.slow

OTHER = Keyring.generate()


@pytest.fixture
def site() -> Site:
    """A site that has public keys alone, and no record yet."""
    site = Site()
    follower = TopicFollower(site.follower.broker, FLIGHTS, KEY.verifier())
    for topic, (codec, _) in follower._signed.items():
        follower._chains[topic] = Chains(codec, follower._refuse)
    parts = site.app.state.parts
    site.follower = parts.follower = parts.overview.follower = follower
    return site


def signed(codec: SignedCodec[Any], data: bytes, **how: Any) -> bytes:
    return codec.sign(codec.parse(data), NO_HEAD, **how)


def arrives(site: Site, topic: Any, data: bytes, key: bytes = b"k", offset: int = 0) -> None:
    name = topic.name(FLIGHTS.name)
    site.follower._handle(MemoryRecord(name, data, key, 1000, partition=0, offset=offset))


def test_what_a_key_of_ours_has_signed_is_shown_as_verified(site: Site) -> None:
    arrives(site, topics.PROMOTIONS, signed(decisions(FLIGHTS, KEY), decision()))
    arrives(site, topics.ALERTS, signed(alerts(FLIGHTS, KEY), alert(), chain="monitor"))
    promoted, declared = site.get("/api/promotions")
    assert (promoted["kind"], promoted["verified"], promoted["decision"]["verified"]) == ("promoted", True, True)
    assert declared["verified"] is True
    assert [one["verified"] for one in site.get("/api/alerts")["alerts"]] == [True]
    assert site.get("/api/refused-records") == []


@pytest.mark.parametrize("how", ["unsigned", "another's key", "altered", "damaged", "another pipeline's"])
def test_what_is_forged_is_not_shown_but_said_to_be_refused(site: Site, how: str) -> None:
    codec, data = decisions(FLIGHTS, KEY), decision(champion="slow@70")
    record = {
        "unsigned": lambda: data,
        "another's key": lambda: signed(decisions(FLIGHTS, OTHER), data),
        "altered": lambda: RECORDS.decision.encode(
            RECORDS.decision.decode(signed(codec, data)) | {"why": "something else"}
        ),
        "damaged": lambda: signed(codec, data)[:-3],
        "another pipeline's": lambda: codec.sign(codec.parse(data), NO_HEAD),
    }[how]()
    if how == "another pipeline's":
        elsewhere = decisions(FLIGHTS, KEY)
        elsewhere.pipeline = "other"
        record = signed(elsewhere, data)
    arrives(site, topics.PROMOTIONS, record, offset=7)
    assert [row["kind"] for row in site.get("/api/promotions")] == ["declared"]
    assert site.get("/api/overview")["champion"] == FLIGHTS.champion
    (refused,) = site.get("/api/refused-records")
    assert (refused["topic"], refused["offset"]) == ("flights.promotions", 7)
    assert refused["reason"] in ("forged", "damaged", "foreign")
    assert site.get("/api/overview")["refused"] == [refused]


def test_a_forged_acknowledgement_silences_no_alert(site: Site) -> None:
    arrives(site, topics.ALERTS, signed(alerts(FLIGHTS, KEY), alert(), chain="monitor"))
    arrives(site, topics.ALERTS, alert(state="acknowledged", by="anna"), offset=1)
    arrives(site, topics.ALERTS, signed(alerts(FLIGHTS, OTHER), alert(state="resolved"), chain="monitor"), offset=2)
    (open_,) = site.get("/api/alerts")["alerts"]
    assert (open_["acknowledged"], open_["verified"]) == (False, True)
    assert [refused["offset"] for refused in site.get("/api/refused-records")] == [2, 1]


def test_without_keys_nothing_is_called_verified() -> None:
    site = Site()
    site.tell(topics.PROMOTIONS, decision())
    assert site.get("/api/promotions")[0]["verified"] is False


def test_however_many_records_are_refused_few_are_kept(site: Site) -> None:
    for offset in range(500):
        arrives(site, topics.PROMOTIONS, b"damaged", offset=offset)
    refused = site.get("/api/refused-records")
    assert len(refused) <= 100
    assert refused[0]["offset"] == 499
    json.dumps(site.get("/api/overview"), allow_nan=False)


# A topic with more records than a start reads.

PROMOTIONS, MODELS = topics.PROMOTIONS.name(FLIGHTS.name), topics.MODELS.name(FLIGHTS.name)


def started(broker: MemoryBroker) -> TopicFollower:
    """What the status service knows after a start."""
    follower = TopicFollower(cast(Any, broker), FLIGHTS, KEY.verifier())
    for topic, last in START_RECORDS.items():
        if topic.name(FLIGHTS.name) in follower._signed:
            follower._restore(topic.name(FLIGHTS.name), last)
    return follower


@pytest.mark.parametrize("is_away", [False, True])
def test_it_is_known_at_once_whether_the_topics_can_be_read(monkeypatch: pytest.MonkeyPatch, *, is_away: bool) -> None:
    follower = TopicFollower(cast(Any, None), FLIGHTS, None)

    def read(*_: object) -> list[Any]:
        follower._ending.set()
        if is_away:
            raise BrokerError("away")
        return []

    reader = SimpleNamespace(poll=read, close=lambda: None)
    follower.broker = cast(Any, SimpleNamespace(partitions=lambda _: 1, follow_topics=lambda *_: reader))
    monkeypatch.setattr(follower, "_restore", lambda *_: None)
    follower.run()
    assert follower.has_tried.is_set()
    assert follower.error == ("away" if is_away else None)


def test_the_first_check_waits_until_the_topics_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    follower = TopicFollower(cast(Any, None), FLIGHTS, None)
    monkeypatch.setattr(follower.has_tried, "wait", lambda _: setattr(follower, "error", None))
    broker = cast(Any, SimpleNamespace(connect=lambda: None))
    Dependencies(broker, cast(Any, SimpleNamespace(check=lambda: None)), follower)._kafka()


def empty() -> MemoryBroker:
    return MemoryBroker({topic.name(FLIGHTS.name): topic.partitions or 4 for topic in topics.TOPICS})


@pytest.mark.parametrize("more", ["garbage", "forged", "old"])
def test_whatever_is_appended_the_champion_is_known_and_the_chain_goes_on(more: str) -> None:
    broker, codec = empty(), decisions(FLIGHTS, KEY)
    chains = Chains(codec)
    many = START_RECORDS[topics.PROMOTIONS]
    for number in range(many):
        content = codec.parse(decision(number, champion="slow" if number == many - 1 else "logreg"))
        broker.append(PROMOTIONS, chains.sign(content, GATE), b"k")
    forged = signed(decisions(FLIGHTS, OTHER), decision())
    for record in broker.records(PROMOTIONS)[: many - 1]:
        broker.append(PROMOTIONS, {"garbage": b"damaged", "forged": forged, "old": record.value()}[more], b"k")
    follower = started(broker)
    assert follower.champion == ("slow", 0)
    assert follower.refused
    end = len(broker.records(PROMOTIONS))
    next_ = chains.sign(codec.parse(decision(many, champion="logreg")), GATE)
    follower._handle(MemoryRecord(PROMOTIONS, next_, b"k", 0, partition=0, offset=end))
    assert follower.champion == ("logreg", 0), "the chain goes on after the newest"


def test_a_model_that_publishes_no_more_has_a_version_after_thousands_of_another(tmp_path: Path) -> None:
    broker = empty()
    registry = Registry(FLIGHTS, ArtifactStore(str(tmp_path)), KEY)
    made = Registry(FLIGHTS, registry.store, KEY).publish("logreg", Fold(FLIGHTS, "logreg").snapshot(), ())
    for version in range(1, START_RECORDS[topics.MODELS] + 200):
        for model in ("slow", "logreg") if version < 3 else ("logreg",):
            manifest = registry.sign(replace(made, model=model, version=version, examples=version))
            broker.append(MODELS, registry.encode(manifest), model.encode())
    follower = started(broker)
    assert {name: manifest["version"] for name, manifest in follower.manifests.items()} == {
        "slow": 2, "logreg": START_RECORDS[topics.MODELS] + 199,
    }  # fmt: skip
    assert not follower.refused


def test_however_long_a_refused_record_is_why_is_one_line() -> None:
    broker = empty()
    place = dataclasses.asdict(UNSIGNED) | {"topic": PROMOTIONS, "kind": "decision", "chain": GATE, "sequence": 1}
    pipeline = "two\nlines \x1b[2J" + "x" * 500_000
    long = RECORDS.decision.encode(RECORDS.decision.decode(decision()) | {"signature": place | {"pipeline": pipeline}})
    for _ in range(3):
        broker.append(PROMOTIONS, long, b"k")
    follower = started(broker)
    assert [one["reason"] for one in follower.refused] == ["foreign"] * 3
    assert all(one["why"].isprintable() and len(one["why"]) <= MAX_QUOTING_CHARACTERS for one in follower.refused)
