"""What the routes depend on: the state that they show, and who may use them."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, NoReturn, TypeVar

from fastapi import Depends, HTTPException, Request

from tidemill.errors import SettingsError
from tidemill.limits import ENTITY_LOOKUPS, LOG_LOOKUPS, STATUS_CHANGES, STATUS_COMMANDS, Limit
from tidemill.offline.lookup import LogLookup
from tidemill.registry.decisions import ModelRef
from tidemill.registry.forgetting import Waiting
from tidemill.tokens import Holder
from tidemill.watch.status.bodies import CommandRequest
from tidemill.watch.status.follower import TopicFollower
from tidemill.watch.status.overview import Overview
from tidemill.watch.status.scrape import Scraper
from tidemill.web.access import Access

T = TypeVar("T")

#: How often an open page gets the overview.
LIVE_SECONDS = 1.0


class OverviewJson:
    """The overview as JSON, made at most twice a second however many clients ask for it."""

    def __init__(self, as_dict: Callable[[], dict[str, Any]]) -> None:
        self._as_dict, self._lock = as_dict, threading.Lock()
        self._text, self._made_at = "", 0.0

    def text(self) -> str:
        """Return it."""
        with self._lock:
            if time.monotonic() - self._made_at > LIVE_SECONDS / 2:
                self._text = json.dumps(self._as_dict(), allow_nan=False, default=str)
                self._made_at = time.monotonic()
            return self._text


class AcceptedCommands:
    """The commands that were written lately, by their ids: one that is sent again is not written again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._commands: OrderedDict[str, tuple[str, CommandRequest]] = OrderedDict()

    def is_repeated(self, request: CommandRequest, by: str) -> bool:
        """Return whether this very command was written. Raises HTTPException where its id is another one's."""
        with self._lock:
            earlier = self._commands.get(request.id)
        if earlier is not None and earlier != (by, request):
            raise HTTPException(409, f"id {request.id!r} is that of another command: choose a new one")
        return earlier is not None

    def add(self, request: CommandRequest, by: str) -> None:
        """Take note of a command that was written."""
        with self._lock:
            self._commands[request.id] = by, request
            if len(self._commands) > STATUS_COMMANDS.max:
                self._commands.popitem(last=False)


def _nobody_is_forgotten() -> NoReturn:
    raise SettingsError("this service takes no requests to forget")


@dataclass
class Parts:
    """What the application is made of."""

    follower: TopicFollower
    scraper: Scraper
    overview: Overview
    lookup: LogLookup
    ready: Callable[[], str | None]
    acknowledge: Callable[[str, str, str], None]
    ask: Callable[[CommandRequest, ModelRef, str], None]
    access: Access
    forgetting: Callable[[], Waiting] = _nobody_is_forgotten
    overview_json: OverviewJson = field(init=False)
    streams: Counter[str] = field(default_factory=Counter, init=False)
    log_lookups: threading.Semaphore = field(init=False)
    entity_lookups: threading.Semaphore = field(init=False)
    changes: threading.Semaphore = field(init=False)
    accepted: AcceptedCommands = field(init=False)

    def __post_init__(self) -> None:
        self.changes, self.accepted = threading.BoundedSemaphore(STATUS_CHANGES.max), AcceptedCommands()
        self.overview_json = OverviewJson(self.overview.as_dict)
        self.log_lookups = threading.BoundedSemaphore(LOG_LOOKUPS.max)
        self.entity_lookups = threading.BoundedSemaphore(ENTITY_LOOKUPS.max)


async def parts_of(request: Request) -> Parts:
    """Return what the application is made of."""
    parts: Parts = request.app.state.parts
    return parts


FromApp = Annotated[Parts, Depends(parts_of)]


async def holder_of(request: Request) -> Holder:
    """Return who holds the token that a request came with."""
    holder: Holder = request.state.holder
    return holder


FromToken = Annotated[Holder, Depends(holder_of)]


def refuse(limit: Limit, advice: str = "try again in a moment") -> NoReturn:
    """Refuse a request that would be one too many."""
    raise HTTPException(503, f"{limit.excess(limit.max + 1)}; {advice}")


def limit_entity_lookups(parts: FromApp) -> Iterator[None]:
    """Refuse a look-up in the online store while too many are running."""
    if not parts.entity_lookups.acquire(blocking=False):
        refuse(ENTITY_LOOKUPS)
    try:
        yield
    finally:
        parts.entity_lookups.release()


def limit_changes(parts: FromApp) -> Iterator[None]:
    """Refuse a command or an acknowledgement while too many wait for Kafka."""
    if not parts.changes.acquire(blocking=False):
        refuse(STATUS_CHANGES)
    try:
        yield
    finally:
        parts.changes.release()


async def in_log(parts: Parts, request: Request, search: Callable[[Callable[[], bool]], T]) -> T:
    """Run a look-up in the log in a thread; it is given a function that says whether its asker has gone.

    Raises HTTPException while too many are running. One whose asker has gone counts until its thread has ended.
    """
    if not parts.log_lookups.acquire(blocking=False):
        refuse(LOG_LOOKUPS)
    gone = threading.Event()
    searching = asyncio.get_running_loop().run_in_executor(None, search, gone.is_set)
    searching.add_done_callback(lambda _: parts.log_lookups.release())
    asker = asyncio.create_task(_disconnected(request))
    try:
        either: set[asyncio.Future[Any]] = {searching, asker}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not searching.done():
            gone.set()
        return await searching
    finally:
        gone.set()
        asker.cancel()


async def _disconnected(request: Request) -> None:
    """Wait until the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
