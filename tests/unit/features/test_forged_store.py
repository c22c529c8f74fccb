"""What nobody of ours has written into a store stops no service, and is in no vector: views are rebuilt, or missing."""

from __future__ import annotations

import json
import random
from contextlib import suppress
from typing import Any

import pytest
import redis
import small
from test_store_away import Line, asked_at_every_turn, by_id, undisturbed

from tidemill import View, features
from tidemill.errors import SettingsError, StoreError
from tidemill.features.lookup import StoredRemoteViews
from tidemill.features.memory import MemoryReader, MemoryView
from tidemill.features.ports import Change
from tidemill.features.redis import RedisReader, RedisView, connect
from tidemill.features.tiles import Entity, Plan
from tidemill.stages.featurizer.service import Featurizer
from tidemill.stream.api import Position, TopicPartition
from tidemill.stream.memory import MemoryRecord
from tidemill.wire.records import Records

pytestmark = pytest.mark.slow

__all__ = ["asked_at_every_turn"]

KEPT = small.VIEW.aggregates
DEST = small.make(views=[View("dest", every="1m", aggregates=KEPT)])
PLAN = Plan(DEST.remote_views[0])
VALUES: list[Any] = [
    None, True, -1, 0, 1e308, 10**400, float("nan"), float("inf"), "", "x", "nan", "-inf", "zz" * 50, [], [None], [[]], [1, "x", []],
    [["a", 10**400]], {}, {"a": 1}, {"1": "x"}, {"1": 10**400},
]  # fmt: skip


def cells(value: Any, column: str) -> str:
    """Return one tile of the view whose column holds a value; the others are empty."""
    return json.dumps({c.name: value if c.name == column else None for c in PLAN.columns} | _time(value, column))


def _time(value: Any, column: str) -> dict[str, Any]:
    return {"time": value if column == "time" else 60_000, "n": value if column == "n" else 1.0}


def forged() -> list[str]:
    texts = ["", "{", "5", "null", "[]", '"x"', "{}", "[" * 100_000, '{"n": 1}', "\x00", "1" * 10_000]
    texts += [cells(value, column.name) for column in PLAN.columns for value in VALUES]
    return texts


@pytest.mark.parametrize("start", ["60000", "x", "-1", "1e9", str(10**30)])
def test_a_forged_tile_of_another_entity_is_missing_in_the_vector_and_ends_nobody(start: str) -> None:
    store = MemoryView(offsets={0: 1, 1: 1}, notes={0: PLAN.shape, 1: PLAN.shape})
    step = Featurizer(DEST, {}, StoredRemoteViews(DEST, MemoryReader({"dest": store}), 2))
    step.assign(TopicPartition("small.events.valid", 0), Position(0))
    codec, unread = Records(DEST), 0
    for number, text in enumerate(forged()):
        store.tiles = {0: {"LAX": {start: text}}}
        out = small.Emitted()
        event = codec.event.encode(small.event(f"e{number}", 61_000))
        step.process([MemoryRecord("small.events.valid", event, b"JFK", offset=number)], out)
        (record,) = out.of("small.features")
        served = codec.features.decode(record.value() or b"")
        assert all(v is None or v - v == 0 for v in served["vector"].values() if not isinstance(v, str))
        unread += served["stale"] == ["dest"]
        step.remote_views._away_until = float("-inf")
    assert unread > 50


@pytest.mark.slow
def test_a_featurizer_that_starts_on_a_forged_store_rebuilds_it_from_the_log() -> None:
    plan = Plan(small.VIEW)
    texts = ["", "5", "[]", "{}", "[" * 100_000] + [
        json.dumps({c.name: None for c in plan.columns} | {"time": 60_000, "n": 1.0, column.name: value})
        for column in plan.columns
        for value in random.Random(1).sample(VALUES, 4)
    ]
    for text in texts:
        line = Line(small.make())
        line.send(random.Random(2), 12)
        line.start()
        line.run()
        for partition, entities in line.store.tiles.items():
            for entity in entities:
                line.store.tiles[partition][entity] = {"60000": text}
        line.start()
        line.send(random.Random(3), 12)
        line.run()
        assert len(by_id(line.vectors)) == 24
        assert all(
            v is None or isinstance(v, str) or v - v == 0 for vector in line.vectors for v in vector["vector"].values()
        )


@pytest.mark.parametrize("note", ["", "x", f"{Plan(small.VIEW).shape} partial until soon", "é" * 5000])
def test_a_forged_note_is_that_of_another_declaration(note: str) -> None:
    line = Line(small.make())
    line.send(random.Random(4), 12)
    line.start()
    line.run()
    line.store.notes = dict.fromkeys(line.store.notes, note)
    line.start()
    line.send(random.Random(5), 12)
    line.run()
    whole = undisturbed(line)
    assert by_id(line.vectors) == by_id(whole.vectors)
    assert line.held == whole.held


@pytest.mark.parametrize("offset", ["", "x", "1.5", "é", b"\xff", "9" * 400])
def test_a_forged_offset_in_redis_is_none(redis_url: str, offset: str | bytes) -> None:
    view = RedisView(connect(redis_url), "p", "v")
    view.write(0, 0, 5, {"a": Change({"n": 1}, {"0": "{}"})})
    redis.Redis.from_url(redis_url).hset("p:v/partition:0", "offset", offset)
    if offset == "9" * 400:
        assert view.load(0) is not None, "it is ahead of what is committed: the view is rebuilt"
    else:
        assert view.load(0) is None
        assert view.write(0, 5, 7, {"a": Change({"n": 2}, {"0": "{}"})}) == "behind", "it needs everything again"
        assert view.write(0, 0, 7, {"a": Change({"n": 2}, {"0": "{}"}, whole=True)}) == "written"
        assert view.load(0) == (7, {"a": {"0": "{}"}})


def test_bytes_that_are_no_text_end_nobody(redis_url: str) -> None:
    """As a pickle in a hash of the same name, of whoever shares the Redis."""
    client, view = redis.Redis.from_url(redis_url), RedisView(connect(redis_url), "small", "dest")
    view.write(0, 0, 5, {"LAX": Change({"n": 1}, {"0": "{}"}), "JFK": Change({"n": 1}, {"0": "{}"})}, PLAN.shape)
    client.hset("small:dest/tiles:LAX", b"\x80\x04", b"\x95\xff\n")
    client.sadd("small:dest/entities:0", b"\xfe")
    loaded = view.load(0)
    assert loaded is not None
    assert loaded[1]["LAX"] == {"0": "{}", "\\x80\x04": "\\x95\\xff\n"}
    with pytest.raises(ValueError, match="invalid literal"):
        Entity.load(PLAN, loaded[1]["LAX"])
    tiles, _ = RedisReader(connect(redis_url), "small").read({"dest": ["LAX", "JFK"]}, 1)
    assert tiles["dest", "JFK"] == {"0": "{}"}
    with pytest.raises(SettingsError, match="'dest' of 'LAX' was stored by another declaration"):
        features.Store(DEST, redis_url).get("dest", "LAX", at=61_000)
    client.hset("small:dest/partition:0", "note", b"\xff")
    assert view.note(0) == "\\xff"
    view.reset(0)
    assert view.load(0) is None


def test_who_reads_a_forged_view_gets_finite_features_or_a_sentence(redis_url: str) -> None:
    client = redis.Redis.from_url(redis_url)
    store = features.Store(DEST, redis_url)
    for text in forged():
        client.delete("small:dest/tiles:LAX")
        client.hset("small:dest/tiles:LAX", "60000", text)
        with suppress(SettingsError):
            (known,) = store.get("dest", "LAX", at=61_000)
            assert all(value is None or value - value == 0 for value in known.features.values())
    client.hset("small:dest/tiles:LAX", "60000", cells(10**400, "time"))
    with pytest.raises(SettingsError, match="'dest' of 'LAX' was stored by another declaration"):
        store.get("dest", "LAX", at=61_000)


def test_what_redis_refuses_is_said_with_what_to_do(redis_url: str) -> None:
    client = redis.Redis.from_url(redis_url)
    view = RedisView(connect(redis_url), "p", "v")

    def refused() -> str:
        with pytest.raises(StoreError) as error:
            view.write(0, 0, 5, {"a": Change({"n": 1}, {"0": "{}"})})
        return str(error.value)

    client.set("p:v/partition:0", "somebody else's")
    assert "something else has a key of this view: delete or rename it" in refused()
    client.flushall()
    client.execute_command("REPLICAOF", "127.0.0.1", "1")
    try:
        assert "set TIDEMILL_REDIS_URL to its primary" in refused()
    finally:
        client.execute_command("REPLICAOF", "NO", "ONE")
    client.config_set("maxmemory", 1)
    try:
        assert "it is full: give it more maxmemory" in refused()
    finally:
        client.config_set("maxmemory", 0)
    assert view.write(0, 0, 5, {"a": Change({"n": 1}, {"0": "{}"})}) == "written"
    with pytest.raises(StoreError, match="has no database of this number"):
        connect(f"{redis_url.rpartition('/')[0] if redis_url.count('/') > 2 else redis_url}/99")
