"""The online store: Redis hashes that people and other services can read, which know the source offset they stand for.

Keys of a view (pipeline `flights`, view `origin`, entity `JFK`, partition 2):

    flights:origin:JFK           hash: feature -> value, and `event_time`: what a reader wants
    flights:origin/tiles:JFK     hash: tile's start in ms -> its columns as JSON: what the features are made of
    flights:origin/partition:2   hash: `offset`: the next source offset, everything before it is in the hashes above;
                                       `note`: the tiles' length and number, and until when the view is partial
    flights:origin/entities:2    set: the partition's entities
    flights:origin/schema        text: JSON: what the view's features mean

One write is one MULTI: absolute values and their offset together, guarded by WATCH on the partition's offset. A
process that lost its partitions, and writes late, finds a later offset there and writes nothing.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import redis  # noqa: TID251  this is where Redis clients live
from redis.backoff import NoBackoff  # noqa: TID251
from redis.retry import Retry as RedisRetry  # noqa: TID251

from tidemill.errors import StoreError, StoreNotAllowed, TidemillError
from tidemill.features.ports import Change, EntitiesByView, StoredNotes, StoredTiles

log = logging.getLogger(__name__)

Redis = redis.Redis

#: What stands for tiles of an entity whose key something else has written: they can't be read either.
FOREIGN_TILES = {"foreign": "not a tile"}
#: Keys that are told of, of those that something else has written.
MAX_FOREIGN_KEYS = 100


class _UnfitError(redis.RedisError):
    """Redis drops keys when its memory is full, or is not one Redis."""


def shown_url(url: str) -> str:
    """Return where Redis is, without user, password and files."""
    return url.rsplit("@", 1)[-1].partition("?")[0]


def connect(url: str, *, must_answer: bool = True) -> redis.Redis:
    """Return a client for `url` that never repeats a command by itself.

    At each connection it refuses a Redis that is set to evict keys (which loses features without an error), a Redis
    Cluster and a Sentinel. Raises StoreError where Redis does not answer or is refused, unless `must_answer` is False:
    then the first command says so.
    """
    shown = shown_url(url)
    is_warned = False

    def greet(connection: Any) -> None:
        nonlocal is_warned
        connection.on_connect()
        try:
            policy = _setting(connection, "maxmemory-policy", "noeviction")
            is_cluster = _setting(connection, "cluster-enabled", "no") == "yes"
        except redis.ResponseError as error:
            if "unknown command" in str(error) and _is_sentinel(connection):
                raise _UnfitError(
                    f"{shown} is a Sentinel, which holds no features: set TIDEMILL_REDIS_URL to an address that leads "
                    f"to the primary, also after a failover"
                ) from error
            if not is_warned:
                log.warning(
                    "Redis does not let us read its configuration; make sure that maxmemory-policy is noeviction"
                )
            is_warned = True
            return
        if is_cluster:
            raise _UnfitError(
                f"Redis at {shown} is of a Redis Cluster, where a view and the offset it stands for can't be written "
                f"as one: set TIDEMILL_REDIS_URL to a Redis with cluster-enabled no"
            )
        if policy != "noeviction":
            raise _UnfitError(
                f"Redis at {shown} has maxmemory-policy {policy}, which drops features without an error: "
                f"set maxmemory-policy noeviction"
            )

    try:
        client = redis.Redis.from_url(
            url,
            decode_responses=True,
            encoding_errors="backslashreplace",  # bytes of somebody else are no value of ours, and end nobody
            socket_timeout=5,
            socket_connect_timeout=3,
            retry=RedisRetry(NoBackoff(), 0),
            redis_connect_func=greet,
        )
    except ValueError as error:
        raise StoreError(f"redis_url {shown!r}: {error}; expected redis://host:port/db") from error
    if not must_answer:
        return client
    try:
        client.ping()
    except redis.exceptions.NoPermissionError as error:
        raise _failed(f"Redis at {shown}", error) from error
    except _UnfitError as error:
        raise StoreError(str(error)) from error
    except redis.RedisError as error:
        raise StoreError(_unreachable(url, shown, error)) from error
    return client


def _answer(connection: Any, *command: str) -> Any:
    connection.send_command(*command)
    return connection.read_response()


def _is_sentinel(connection: Any) -> bool:
    try:
        return bool(_answer(connection, "ROLE")[0] == "sentinel")
    except redis.ResponseError:
        return False


def _setting(connection: Any, name: str, otherwise: str) -> str:
    answer = _answer(connection, "CONFIG", "GET", name)
    held = answer if isinstance(answer, dict) else dict(zip(answer[::2], answer[1::2], strict=True))  # RESP3, RESP2
    return str(held.get(name, otherwise))


def _unreachable(url: str, shown: str, error: redis.RedisError) -> str:
    """Return what is wrong, and what to set."""
    text = str(error)
    # Redis answers so to the greeting of a client that has no password, before any other command.
    if isinstance(error, redis.AuthenticationError) or "authenticat" in text.lower():
        given, names = (
            "a client without a password",
            "TIDEMILL_REDIS_USER and TIDEMILL_REDIS_PASSWORD, or TIDEMILL_REDIS_URL with both",
        )
        if urlsplit(url).username:
            given = "user and password"
        elif "@" in url:
            given, names = "the password of TIDEMILL_REDIS_URL", "the right one, here or in TIDEMILL_REDIS_PASSWORD"
        return f"Redis at {shown} refuses {given}: set {names}"
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return f"Redis at {shown} has a certificate that is not trusted ({text}): set TIDEMILL_REDIS_CA"
    if "DB index" in text:
        return f"Redis at {shown} has no database of this number ({text}): set TIDEMILL_REDIS_URL to one that it has"
    fix = "start it or set TIDEMILL_REDIS_URL"
    if url.startswith("rediss:") and "refused" not in text:
        fix = (
            "rediss:// speaks TLS: set TIDEMILL_REDIS_URL to redis:// where it speaks no TLS, or "
            "TIDEMILL_REDIS_CERTIFICATE if it wants one"
        )
    elif "closed by server" in text or "reset by peer" in text:
        fix = "set TIDEMILL_REDIS_URL to rediss:// where it speaks TLS"
    return f"no Redis at {shown}: {error}; {fix}"


#: What to do about an error that Redis gives in these words.
_FIXES = {
    "WRONGTYPE": "something else has a key of this view: delete or rename it",
    "read only replica": "set TIDEMILL_REDIS_URL to its primary",
    "'maxmemory'": "it is full: give it more maxmemory, or views shorter windows",
}


def _failed(doing: str, error: redis.RedisError) -> TidemillError:
    """Return StoreNotAllowed where the user lacks a right, which no further try can change; else StoreError."""
    if isinstance(error, redis.exceptions.NoPermissionError):
        return StoreNotAllowed(
            f"{doing}: Redis does not allow it ({error}); grant it to the service's user, as `tidemill acl` lists it"
        )
    fix = next((fix for words, fix in _FIXES.items() if words in str(error)), "")
    return StoreError(f"{doing}: {error}{fix and '; '}{fix}")


def _fields(values: Mapping[str, Any]) -> Mapping[Any, Any]:
    return values  # redis-py's own type is invariant in its keys


def _offset(text: Any) -> int | None:
    """Return the offset that is stored; None where there is none, or what no service has written."""
    try:
        return int(text)
    except (TypeError, ValueError):
        return None


class OnlineStore:
    """What other services read: entities' features. It connects when it is asked, and again after an outage."""

    def __init__(self, url: str, pipeline: str) -> None:
        self.url, self.pipeline = url, pipeline
        self._client: redis.Redis | None = None

    def _connected(self) -> redis.Redis:
        if self._client is None:
            self._client = connect(self.url)
        return self._client

    def check(self) -> None:
        """Raise StoreError where Redis does not answer."""
        try:
            self._connected().ping()
        except redis.RedisError as error:
            raise StoreError(f"no Redis at {shown_url(self.url)}: {error}") from error

    def features(self, view: str, entity: str) -> dict[str, str]:
        """Return an entity's features in a view, as text; none where it is unknown. Raises StoreError."""
        try:
            stored = self._connected().hgetall(f"{self.pipeline}:{view}:{entity}")
        except redis.RedisError as error:
            raise StoreError(f"no Redis at {shown_url(self.url)}: {error}") from error
        return {str(name): str(value) for name, value in stored.items()}

    def read(self, wanted: EntitiesByView, partitions: int) -> tuple[StoredTiles, StoredNotes]:
        """Read as `ViewReader.read` says."""
        return RedisReader(self._connected(), self.pipeline).read(wanted, partitions)


def stored_keys(client: redis.Redis, pipeline: str, views: Iterable[str]) -> dict[str, int]:
    """Return how many keys each view of a pipeline has: the given ones, and those that were declared before.

    Raises StoreError where Redis is away.
    """
    try:
        described = (str(key) for key in client.scan_iter(f"{pipeline}:*/schema", 1000))
        names = dict.fromkeys([*views, *(key[len(pipeline) + 1 : -len("/schema")] for key in described)])
        return {name: sum(1 for _ in _keys_of(client, pipeline, name)) for name in names}
    except redis.RedisError as error:
        raise _failed(f"Redis: reading the keys of {pipeline}", error) from error


def delete_keys(client: redis.Redis, pipeline: str, view: str) -> None:
    """Delete all keys of a view. Raises StoreError where Redis is away."""
    try:
        for key in _keys_of(client, pipeline, view):
            client.delete(key)
    except redis.RedisError as error:
        raise _failed(f"Redis: deleting the keys of {pipeline}:{view}", error) from error


def dump_keys(client: redis.Redis, pipeline: str, views: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Yield each key of these views with its value, as Redis' own DUMP has it. Raises StoreError."""
    try:
        for view in views:
            for key in _keys_of(client, pipeline, view):
                if (data := client.dump(key)) is not None:
                    yield key, data
    except redis.RedisError as error:
        raise _failed(f"Redis: reading the keys of {pipeline}", error) from error


def restore_keys(client: redis.Redis, dumped: Iterable[tuple[str, bytes]]) -> int:
    """Write keys that `dump_keys` has yielded; returns how many.

    Raises StoreError where Redis is away, or older than the one that they are of.
    """
    count = 0
    try:
        for key, data in dumped:
            client.restore(key, 0, data, replace=True)
            count += 1
    except redis.RedisError as error:
        raise _failed("Redis: restoring keys", error) from error
    return count


def _keys_of(client: redis.Redis, pipeline: str, view: str) -> Iterator[str]:
    for between in (":", "/"):
        yield from client.scan_iter(f"{pipeline}:{view}{between}*", 1000)


class RedisReader:
    """Reads several views of one pipeline in one round trip."""

    def __init__(self, client: redis.Redis, pipeline: str) -> None:
        self.client, self.pipeline = client, pipeline

    def read(self, wanted: EntitiesByView, partitions: int) -> tuple[StoredTiles, StoredNotes]:
        """Read as `ViewReader.read` says."""
        pipe = self.client.pipeline(transaction=False)
        keys = [(view, entity) for view, entities in wanted.items() for entity in entities]
        for view in wanted:
            for partition in range(partitions):
                pipe.hget(f"{self.pipeline}:{view}/partition:{partition}", "note")
        for view, entity in keys:
            pipe.hgetall(f"{self.pipeline}:{view}/tiles:{entity}")
        count = len(wanted) * partitions
        try:
            answers = pipe.execute(raise_on_error=False)
            for number, answer in enumerate(answers):
                if isinstance(answer, redis.RedisError if number < count else redis.exceptions.NoPermissionError):
                    raise answer
        except redis.RedisError as error:
            raise _failed(f"Redis: reading {', '.join(wanted)} of {self.pipeline}", error) from error
        # No view can read what something else has put there: that view is stale for this batch, and no other one.
        answers = [FOREIGN_TILES if isinstance(answer, redis.RedisError) else answer for answer in answers]
        notes = {view: answers[n * partitions : (n + 1) * partitions] for n, view in enumerate(wanted)}
        return dict(zip(keys, answers[count:], strict=True)), notes


class RedisView:
    """One view of one pipeline in Redis; see the module's text for the keys.

    `schema` is what the view's features mean: it is kept beside them, for those who read them.
    """

    def __init__(self, client: redis.Redis, pipeline: str, view: str, schema: Mapping[str, Any] | None = None) -> None:
        self.client, self.schema = client, schema
        self.prefix = f"{pipeline}:{view}"
        self._is_described = False
        self._said: set[str] = set()

    def load(self, partition: int) -> tuple[int, dict[str, dict[str, str]]] | None:
        """Return (offset, tiles by entity), or None. Raises StoreError where Redis is away."""
        try:
            place = f"{self.prefix}/partition:{partition}"
            offset = self.client.hget(place, "offset")
            if offset is None:
                return None
            entities = sorted(str(name) for name in self.client.smembers(f"{self.prefix}/entities:{partition}"))
            tiles: dict[str, dict[str, str]] = {}
            for start in range(0, len(entities), 1000):
                some = entities[start : start + 1000]
                pipe = self.client.pipeline(transaction=False)
                for entity in some:
                    pipe.hgetall(f"{self.prefix}/tiles:{entity}")
                tiles |= dict(zip(some, pipe.execute(raise_on_error=False), strict=True))
            if self._foreign((f"{self.prefix}/tiles:{entity}", answer) for entity, answer in tiles.items()):
                return None
            # What was read must stand at one offset: if another process wrote meanwhile, it is not usable.
            if self.client.hget(place, "offset") != offset:
                return None
            at = _offset(offset)
            return None if at is None else (at, tiles)
        except redis.RedisError as error:
            raise _failed(f"Redis: loading {self.prefix}, partition {partition}", error) from error

    def reset(self, partition: int) -> None:
        """Forget a partition. Raises StoreError where Redis is away."""
        members = f"{self.prefix}/entities:{partition}"
        try:
            entities = [str(name) for name in self.client.smembers(members)]
            keys = [key for e in entities for key in (f"{self.prefix}:{e}", f"{self.prefix}/tiles:{e}")]
            self.client.delete(f"{self.prefix}/partition:{partition}", members, *keys)
        except redis.RedisError as error:
            raise _failed(f"Redis: clearing {self.prefix}, partition {partition}", error) from error

    def note(self, partition: int) -> str:
        """Return the note beside the offset. Raises StoreError where Redis is away."""
        place = f"{self.prefix}/partition:{partition}"
        try:
            return str(self.client.hget(place, "note") or "")
        except redis.RedisError as error:
            raise _failed(f"Redis: reading {place}", error) from error

    def write(self, partition: int, base: int, offset: int, changes: Mapping[str, Change], note: str = "") -> str:
        """Write as `ViewStore.write` says. Raises StoreError where Redis is away or full: nothing was written then."""
        place, members = f"{self.prefix}/partition:{partition}", f"{self.prefix}/entities:{partition}"
        try:
            with self.client.pipeline() as pipe:
                pipe.watch(place)  # type: ignore[no-untyped-call]
                answer = pipe.hget(place, "offset")
                stored = _offset(answer) or 0
                if stored > offset:
                    return "refused"
                if stored < base:
                    return "behind"
                pipe.multi()
                if self.schema is not None and (answer is None or not self._is_described):
                    pipe.set(f"{self.prefix}/schema", json.dumps(self.schema))
                for entity, change in changes.items():
                    key, tiles = f"{self.prefix}:{entity}", f"{self.prefix}/tiles:{entity}"
                    if change.whole:
                        pipe.delete(key, tiles)
                    if change.whole and not change.tiles:
                        pipe.srem(members, entity)
                        continue
                    pipe.sadd(members, entity)
                    present = {name: value for name, value in change.features.items() if value is not None}
                    pipe.hset(key, mapping=_fields(present))
                    if len(present) < len(change.features):
                        pipe.hdel(key, *(change.features.keys() - present.keys()))
                    if change.gone:
                        pipe.hdel(tiles, *change.gone)
                    if change.tiles:
                        pipe.hset(tiles, mapping=_fields(change.tiles))
                pipe.hset(place, mapping={"offset": offset, "note": note})
                commands = pipe.command_stack
                answers = pipe.execute(raise_on_error=False)
                self._is_described = True
                if isinstance(answers[-1], redis.RedisError):
                    raise answers[-1]
                # Something else has a key of ours: its entity is not stored, and all others are.
                self._foreign((str(command[0][1]), answer) for command, answer in zip(commands, answers, strict=True))
                return "written"
        except redis.WatchError:
            # Another process wrote between our read and our write; the next commit tries again.
            return "refused" if self._stored(place) > offset else "raced"
        except redis.RedisError as error:
            raise _failed(f"Redis: writing {self.prefix}, partition {partition}", error) from error

    def _foreign(self, answers: Iterable[tuple[str, Any]]) -> bool:
        """Say which keys hold what we did not write, by their answers, each once; returns whether there is any."""
        foreign = {key: answer for key, answer in answers if isinstance(answer, redis.RedisError)}
        for key, error in foreign.items():
            if isinstance(error, redis.exceptions.NoPermissionError):
                raise error
            if key not in self._said and len(self._said) < MAX_FOREIGN_KEYS:
                self._said.add(key)
                log.error(
                    "a key of the view holds something that Tidemill did not write: features of its entity are not "
                    "stored; delete or rename the key",
                    extra={"view": self.prefix, "key": key, "cause": str(error)},
                )
        return bool(foreign)

    def _stored(self, place: str) -> int:
        try:
            return _offset(self.client.hget(place, "offset")) or 0
        except redis.RedisError as error:
            raise _failed(f"Redis: reading {place}", error) from error
