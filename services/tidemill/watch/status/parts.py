"""What the routes depend on: the state that they show, and who may use them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, HTTPException, Request

from tidemill.offline.lookup import LogLookup
from tidemill.registry.decisions import ModelRef
from tidemill.tokens import Holder
from tidemill.watch.status.access import Access
from tidemill.watch.status.bodies import CommandRequest
from tidemill.watch.status.follower import TopicFollower
from tidemill.watch.status.overview import Overview
from tidemill.watch.status.scrape import Scraper

#: How often an open page gets the overview.
LIVE_SECONDS = 1.0
#: Look-ups in the log at once: each may read for 20 s.
MAX_LOOKUPS = 3
#: Pages that may be open at once.
MAX_LIVE_PAGES = 100


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
    overview_json: OverviewJson = field(init=False)
    live_pages: int = field(default=0, init=False)
    lookup_slots: threading.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        self.overview_json = OverviewJson(self.overview.as_dict)
        self.lookup_slots = threading.BoundedSemaphore(MAX_LOOKUPS)


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


def limit_lookups(parts: FromApp) -> Iterator[None]:
    """Refuse a look-up while too many are running."""
    if not parts.lookup_slots.acquire(blocking=False):
        raise HTTPException(503, f"{MAX_LOOKUPS} look-ups are running; try again in a moment")
    try:
        yield
    finally:
        parts.lookup_slots.release()
