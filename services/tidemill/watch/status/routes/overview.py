"""The pipeline at a glance: everything that the page shows, once or as a stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import StreamingResponse

from tidemill.offline.check import CheckReport
from tidemill.tokens import Role
from tidemill.watch.status.access import GuardedRoute, needs
from tidemill.watch.status.bodies import problems
from tidemill.watch.status.parts import LIVE_SECONDS, MAX_LIVE_PAGES, FromApp

router = APIRouter(prefix="/api", tags=["overview"], route_class=GuardedRoute)


@router.get("/overview")
@needs(Role.VIEWER)
def overview(parts: FromApp) -> Response:
    """Everything that the page shows."""
    return Response(parts.overview_json.text(), media_type="application/json")


@router.get("/live", response_class=StreamingResponse, responses=problems(503))
@needs(Role.VIEWER)
async def follow(request: Request, parts: FromApp) -> StreamingResponse:
    """The overview, once a second, as server-sent events called `snapshot`."""
    if parts.live_pages >= MAX_LIVE_PAGES:
        raise HTTPException(503, f"{MAX_LIVE_PAGES} pages are open already; close one")

    async def events() -> AsyncIterator[str]:
        parts.live_pages += 1
        try:
            while not await request.is_disconnected():
                yield f"event: snapshot\ndata: {await asyncio.to_thread(parts.overview_json.text)}\n\n"
                await asyncio.sleep(LIVE_SECONDS)
        finally:
            parts.live_pages -= 1

    return StreamingResponse(events(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


@router.get("/pipeline")
@needs(Role.VIEWER)
def pipeline(parts: FromApp) -> dict[str, Any]:
    """The declaration: topics, vector, models, rules."""
    return CheckReport(parts.overview.pipeline).as_dict()


@router.get("/pipelines")
@needs(Role.VIEWER)
def pipelines(parts: FromApp) -> list[str]:
    """The pipelines that this service shows."""
    return [parts.overview.pipeline.name]


@router.get("/services")
@needs(Role.VIEWER)
def services(parts: FromApp) -> list[dict[str, Any]]:
    """Every process with its health, rate, lag and delay."""
    return [instance.as_dict() for instance in parts.scraper.instances]
