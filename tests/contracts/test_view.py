"""One contract for every online store: absolute values with their offset, and no write from the past."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest
import redis
from running import until
from small import VIEW

from tidemill.errors import StoreError
from tidemill.features.memory import MemoryView
from tidemill.features.ports import Change
from tidemill.features.redis import RedisReader, RedisView, connect
from tidemill.features.tiles import Entity, Plan
from tidemill.local.processes import end, free_port, spawn
from tidemill.local.servers import Redis


class Store:
    """A view, and how to look at what readers see of it."""

    def __init__(self, view, url: str | None) -> None:
        self.view, self.url = view, url

    def features(self, entity: str) -> dict[str, str]:
        if self.url is None:
            return {name: str(value) for name, value in self.view.features.get(entity, {}).items()}
        return redis.Redis.from_url(self.url, decode_responses=True).hgetall(f"p:v:{entity}")

    def empty(self) -> None:
        if self.url is None:
            self.view.__init__()
        else:
            redis.Redis.from_url(self.url).flushall()


@pytest.fixture(params=["memory", "redis"])
def store(request: pytest.FixtureRequest) -> Store:
    if request.param == "memory":
        return Store(MemoryView(), None)
    url = request.getfixturevalue("redis_url")
    return Store(RedisView(connect(url), "p", "v"), url)


def test_nothing_is_held_at_first(store: Store) -> None:
    assert store.view.load(0) is None


def test_what_is_written_is_read_and_loaded(store: Store) -> None:
    assert store.view.write(0, 0, 5, {"a:b/c é": Change({"n": 2.0, "m": None}, {"0": "{}", "60": "[1]"})}) == "written"
    assert store.features("a:b/c é") == {"n": "2.0"}
    assert store.view.load(0) == (5, {"a:b/c é": {"0": "{}", "60": "[1]"}})
    assert store.view.load(1) is None


def test_a_feature_without_a_value_any_more_is_gone(store: Store) -> None:
    store.view.write(0, 0, 5, {"a": Change({"n": 2.0, "m": 1.0}, {})})
    store.view.write(0, 5, 6, {"a": Change({"n": 3.0, "m": None}, {})})
    assert store.features("a") == {"n": "3.0"}


def test_tiles_that_are_gone_are_gone_and_whole_replaces_all(store: Store) -> None:
    store.view.write(0, 0, 5, {"a": Change({"n": 1}, {"0": "x", "60": "y"})})
    store.view.write(0, 5, 6, {"a": Change({"n": 1}, {"120": "z"}, ("0",))})
    assert store.view.load(0) == (6, {"a": {"60": "y", "120": "z"}})
    store.view.write(0, 6, 7, {"a": Change({"k": 1}, {"180": "w"}, whole=True)})
    assert store.view.load(0) == (7, {"a": {"180": "w"}})
    assert store.features("a") == {"k": "1"}


def test_a_write_from_the_past_is_refused_and_changes_nothing(store: Store) -> None:
    store.view.write(0, 0, 9, {"a": Change({"n": 9}, {})})
    assert store.view.write(0, 0, 8, {"a": Change({"n": 8}, {})}) == "refused"
    assert store.features("a") == {"n": "9"}
    assert store.view.write(0, 5, 10, {"a": Change({"n": 10}, {})}) == "written", (
        "absolute values cover what lies between"
    )


def test_an_emptied_store_says_that_it_is_behind(store: Store) -> None:
    store.view.write(0, 0, 9, {"a": Change({"n": 9}, {})})
    store.empty()
    assert store.view.write(0, 9, 10, {"a": Change({"n": 10}, {})}) == "behind"
    assert store.features("a") == {}
    assert store.view.write(0, 0, 10, {"a": Change({"n": 10}, {}, whole=True)}) == "written"


def test_a_reset_forgets_one_partition(store: Store) -> None:
    store.view.write(0, 0, 5, {"a": Change({"n": 1}, {"0": "x"})})
    store.view.write(1, 0, 5, {"b": Change({"n": 1}, {"0": "x"})})
    store.view.reset(0)
    assert store.view.load(0) is None
    assert store.features("a") == {}
    assert store.view.load(1) == (5, {"b": {"0": "x"}})


def test_many_entities_load(store: Store) -> None:
    store.view.write(3, 0, 1, {f"e{n}": Change({"n": n}, {"0": str(n)}) for n in range(2500)})
    offset, found = store.view.load(3)
    assert (offset, len(found), found["e2499"]) == (1, 2500, {"0": "2499"})


def test_a_redis_that_evicts_is_refused(redis_url: str) -> None:
    client = redis.Redis.from_url(redis_url)
    client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(StoreError, match="noeviction"):
            connect(redis_url)
    finally:
        client.config_set("maxmemory-policy", "noeviction")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "what"), [(("--cluster-enabled", "yes"), "Redis Cluster"), (("--sentinel",), "is a Sentinel")]
)
def test_a_cluster_and_a_sentinel_are_refused(tmp_path: Path, more: tuple[str, ...], what: str) -> None:
    binary, port, config = shutil.which("redis-server") or Redis._bundled(), free_port(), tmp_path / "redis.conf"
    config.write_text(f"port {port}\nbind 127.0.0.1\ndir {tmp_path}\n")
    process = spawn([binary, str(config), *more], tmp_path / "redis.log")
    try:
        until(lambda: _listens(port), "it does not start")
        with pytest.raises(StoreError, match=what) as caught:
            connect(f"redis://127.0.0.1:{port}/0")
        assert "TIDEMILL_REDIS_URL" in str(caught.value)
    finally:
        end(process)


def _listens(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def test_a_redis_that_is_away_is_named_without_its_password() -> None:
    with pytest.raises(StoreError) as caught:
        connect("redis://user:secretword@127.0.0.1:1/0")
    assert "127.0.0.1:1" in str(caught.value)
    assert "secretword" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis://HOST/0", "refuses a client without a password"),
        ("redis://:wrongword@HOST/0", "refuses the password of TIDEMILL_REDIS_URL"),
        ("rediss://:wrongword@HOST/0", "rediss:// speaks TLS"),
    ],
)
def test_a_wrong_password_or_tls_on_a_plain_port_is_one_clear_line(redis_url: str, url: str, words: str) -> None:
    client = redis.Redis.from_url(redis_url)
    host = redis_url.removeprefix("redis://").partition("/")[0]
    client.config_set("requirepass", "secretword")
    try:
        with pytest.raises(StoreError) as caught:
            connect(url.replace("HOST", host))
    finally:
        client.execute_command("AUTH", "secretword")
        client.config_set("requirepass", "")
    assert words in str(caught.value)
    assert "TIDEMILL_REDIS_URL" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "word@" not in str(caught.value)


def test_a_full_redis_says_so_and_evicts_nothing(redis_url: str) -> None:
    client = redis.Redis.from_url(redis_url)
    view = RedisView(connect(redis_url), "p", "v")
    view.write(0, 0, 1, {"a": Change({"n": 1}, {"0": "x"})})
    client.config_set("maxmemory", 1)
    try:
        with pytest.raises(StoreError, match="maxmemory"):
            view.write(0, 1, 2, {"b": Change({"n": 1}, {"0": "y" * 1000})})
        assert view.load(0) == (1, {"a": {"0": "x"}})
    finally:
        client.config_set("maxmemory", 0)
    assert view.write(0, 1, 2, {"b": Change({"n": 1}, {"0": "y"})}) == "written"


def test_a_key_that_something_else_wrote_is_named_once_and_the_rest_goes_on(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    client = redis.Redis.from_url(redis_url)
    client.set("p:v:a", "not ours")
    client.lpush("p:v/tiles:b", "nor this")
    view = RedisView(connect(redis_url), "p", "v")
    for offset in (5, 6):
        changes = {name: Change({"n": float(offset)}, {"0": "x"}) for name in ("a", "b", "c")}
        assert view.write(0, offset - 1 if offset > 5 else 0, offset, changes) == "written"
    assert client.get("p:v:a") == b"not ours"
    assert client.hgetall("p:v:c") == {b"n": b"6.0"}
    named = [record.key for record in caplog.records if "did not write" in record.message]
    assert sorted(named) == ["p:v/tiles:b", "p:v:a"]
    tiles, notes = RedisReader(connect(redis_url), "p").read({"v": ["b", "c"]}, 1)
    assert (tiles["v", "c"], notes) == ({"0": "x"}, {"v": [""]})
    with pytest.raises(ValueError, match="foreign"):
        Entity.load(Plan(VIEW), tiles["v", "b"])
    assert view.load(0) is None, "what was not stored is not believed: the log has it"
    client.delete("p:v:a", "p:v/tiles:b")
    assert view.write(0, 6, 7, {"a": Change({"n": 1.0}, {"0": "x"}, whole=True)}) == "written"
    assert client.hgetall("p:v:a") == {b"n": b"1.0"}
