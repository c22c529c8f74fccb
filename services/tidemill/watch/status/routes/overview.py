"""The pipeline at a glance: everything that the page shows, once or as a stream."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from tidemill.limits import STATUS_STREAMS, STATUS_STREAMS_OF_CLIENT
from tidemill.offline.check import CheckReport
from tidemill.tokens import Role
from tidemill.watch.status.bodies import problems
from tidemill.watch.status.parts import LIVE_SECONDS, FromApp, refuse
from tidemill.web.access import GuardedRoute, needs

router = APIRouter(prefix="/api", tags=["overview"], route_class=GuardedRoute)


class _Stream(StreamingResponse):
    """A stream of events that is counted, by its client, until it has ended in whatever way."""

    def __init__(self, streams: Counter[str], client: str, events: AsyncIterator[str]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._streams, self._client = streams, client

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._streams[self._client] -= 1
            self._streams += Counter()  # forgets clients without a stream


@router.get("/overview")
@needs(Role.VIEWER)
def overview(parts: FromApp) -> Response:
    """Everything that the page shows."""
    return Response(parts.overview_json.text(), media_type="application/json")


@router.get("/live", response_class=StreamingResponse, responses=problems(503))
@needs(Role.VIEWER)
async def follow(request: Request, parts: FromApp) -> StreamingResponse:
    """The overview, once a second, as server-sent events called `snapshot`."""
    client = request.client.host if request.client else ""
    if parts.streams.total() >= STATUS_STREAMS.max:
        refuse(STATUS_STREAMS, "close one")
    if parts.streams[client] >= STATUS_STREAMS_OF_CLIENT.max:
        refuse(STATUS_STREAMS_OF_CLIENT, "close one")

    async def events() -> AsyncIterator[str]:
        while not await request.is_disconnected():
            yield f"event: snapshot\ndata: {await asyncio.to_thread(parts.overview_json.text)}\n\n"
            await asyncio.sleep(LIVE_SECONDS)

    parts.streams[client] += 1
    return _Stream(parts.streams, client, events())


@router.get("/pipeline")
@needs(Role.VIEWER)
def pipeline(parts: FromApp) -> dict[str, Any]:
    """The declaration: topics, vector, models, rules."""
    return CheckReport(parts.overview.pipeline).as_dict()


@router.get("/pipelines")
@needs(Role.VIEWER)
def pipelines(parts: FromApp) -> list[str]:
    """The pipeline that this service shows, and those that its page lists."""
    return [parts.overview.pipeline.name, *(other["name"] for other in parts.overview.pipelines())]


@router.get("/services")
@needs(Role.VIEWER)
def services(parts: FromApp) -> list[dict[str, Any]]:
    """Every process with its health, rate, lag and delay."""
    return [instance.as_dict() for instance in parts.scraper.instances]
