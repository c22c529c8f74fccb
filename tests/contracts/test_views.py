"""What Redis holds at the end is what pandas says of all events, for every aggregate: out of order, late, doubled, restarted."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from river import dummy, stats
from test_aggregates import CASES, STREAMS

from tidemill import Pipeline, Stream, View
from tidemill.features.redis import RedisView
from tidemill.features.store import Store
from tidemill.features.views import schema
from tidemill.stages.materializer.service import Materializer
from tidemill.stream.api import Position, TopicPartition, discard
from tidemill.stream.memory import MemoryRecord
from tidemill.testing.aggregates import EVERY, TILES, Sent, assert_same, frame
from tidemill.wire.records import Records

SCHEMA = {
    "type": "record", "name": "tick",
    "fields": [{"name": name, "type": of} for name, of in {
        "id": "string", "t": "long", "k": "string", "e": "string", "x": ["null", "double"], "s": ["null", "string"],
    }.items()],
}  # fmt: skip
names = itertools.count()


@pytest.fixture(scope="module")
def ticks(tmp_path_factory: pytest.TempPathFactory) -> Stream:
    path = tmp_path_factory.mktemp("schemas") / "tick.avsc"
    path.write_text(json.dumps(SCHEMA))
    return Stream(str(path), id="id", time="t", key="k")


def pipeline(ticks: Stream, partitions: int) -> Pipeline:
    return Pipeline(
        name=f"ticks{next(names)}", events=ticks, labels=Stream(ticks.schema, id="id", time="t", value="x"), task="regression",
        request={"x": "x"}, views=[View("e", every="1m", aggregates=[case.keep for case in CASES.values()])],
        models={"m": dummy.StatisticRegressor(stats.Mean())}, champion="m", partitions=partitions,
    )  # fmt: skip


class River:
    """Updates by partition, and one materializer after another over them, as restarts and crashes have it."""

    def __init__(self, declared: Pipeline, client: redis.Redis) -> None:
        self.declared, self.client = declared, client
        self.encode = Records(declared).update.encode
        self.logs: dict[int, list[MemoryRecord]] = {p: [] for p in range(declared.partitions)}
        self.committed = dict.fromkeys(self.logs, 0)
        self.start()

    def start(self) -> None:
        """Begin as a process that has just been started does."""
        self.step = Materializer(self.declared, {"e": RedisView(self.client, self.declared.name, "e")})
        for partition, log in self.logs.items():
            at = self.step.assign(TopicPartition("updates", partition), Position(self.committed[partition]))
            self.step.process(log[at.rebuild_from : at.live_from], discard)
        self.step.committed()

    def send(self, entity: str, sent: Sent) -> None:
        t, x, s = sent
        update = {"control": "", "source": "events", "entity": "e", "entity_id": entity, "time": t, "event_id": "",
                  "numbers": {} if x is None else {"x": x}, "texts": {} if s is None else {"s": s}}  # fmt: skip
        partition = ord(entity) % len(self.logs)
        log = self.logs[partition]
        log.append(MemoryRecord("updates", self.encode(update), partition=partition, offset=len(log)))

    def work(self, *, crashes: bool) -> None:
        """Handle what has come; where it crashes, Kafka has the commit, and Redis has not been written."""
        for partition, log in self.logs.items():
            self.step.process(log[self.committed[partition] :], discard)
            self.committed[partition] = len(log)
        if crashes:
            self.start()
        else:
            self.step.committed()


def kept(of: list[Sent]) -> list[Sent]:
    """Return an entity's events but those that came when no window could reach them any more."""
    there: list[Sent] = []
    newest = -1
    for event in of:
        tile = event[0] // EVERY
        if there and tile <= newest - TILES:
            continue
        there.append(event)
        newest = max(newest, tile)
    return [event for event in there if event[0] // EVERY > newest - TILES]


@pytest.mark.slow
@pytest.mark.parametrize("partitions", [1, 4])
def test_what_redis_holds_equals_the_definitions(ticks: Stream, redis_url: str, partitions: int) -> None:
    client = redis.Redis.from_url(redis_url, decode_responses=True)
    cases = [(name, case) for case in CASES.values() for name in (f"e_{case.keep[0].name}",)]

    @settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(
        STREAMS,
        st.lists(st.sampled_from("abc"), min_size=45, max_size=45),
        st.dictionaries(st.integers(0, 44), st.booleans()),
    )
    def check(drawn: Any, entities: list[str], stops: dict[int, bool]) -> None:
        declared = pipeline(ticks, partitions)
        river, sent = River(declared, client), defaultdict(list)
        for number, (event, entity) in enumerate(zip(drawn, entities, strict=False)):
            river.send(entity, event)
            sent[entity].append(event)
            if number in stops:
                river.work(crashes=stops[number])
        river.work(crashes=False)
        for entity, events in sent.items():
            there = kept(events)
            now = max(t for t, _, _ in there)
            held = client.hgetall(f"{declared.name}:e:{entity}")
            assert held.pop("event_time") == str(now)
            (known,) = Store(declared, redis_url).get("e", entity, at=now)
            for name, case in cases:
                expected = case.definition(frame(there, now), now)
                assert_same(float(held.pop(name)) if name in held else None, expected, case.rel)
                assert_same(known.features[name], expected, case.rel)
            assert not held
        assert client.smembers(f"{declared.name}:e/entities:0") <= set("abc")

    check()


def test_the_schema_beside_a_view_says_what_its_fields_are(ticks: Stream, redis_url: str) -> None:
    declared = pipeline(ticks, 1)
    client = redis.Redis.from_url(redis_url, decode_responses=True)
    RedisView(client, declared.name, "e", schema(declared, declared.views[0])).write(0, 0, 0, {})
    said = json.loads(client.get(f"{declared.name}:e/schema"))
    assert said["features"]["e_mean_x_10m"] == {"type": "double", "kind": "mean", "of": "x", "window": "10m"}
    assert said["features"].keys() == set(declared.views[0].features)
    assert (said["entity"], said["source"], said["key"]) == ("e", "events", f"{declared.name}:e:<e>")
