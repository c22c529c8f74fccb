"""The HTTP interface: JSON for programs, server-sent events and a page for people. Only changes need a token."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles

from tidemill import __version__
from tidemill.errors import BrokerError, SettingsError, StoreError
from tidemill.watch.status.parts import Parts
from tidemill.watch.status.routes import forgetting, lookups, models, overview, quality
from tidemill.web import health
from tidemill.web.access import status_of
from tidemill.web.edge import Edge, Hosts

PAGE = Path(__file__).parent / "page"


def build(parts: Parts, hosts: Sequence[str] = ()) -> FastAPI:
    """Return the application. `hosts`: names that it answers to, besides localhost."""
    app = FastAPI(
        title="Tidemill status",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        description=f"What the pipeline `{parts.overview.pipeline.name}` does now, and how well.",
    )
    app.state.parts = parts
    app.add_middleware(Edge, hosts=Hosts(hosts), count_refused=parts.access.count_refused)
    for error in (BrokerError, StoreError, SettingsError):
        app.exception_handler(error)(_unavailable)
    app.exception_handler(RequestValidationError)(_invalid)
    for room in (health, overview, models, quality, lookups, forgetting):
        app.include_router(room.router)
    app.get("/", include_in_schema=False)(_index)
    app.mount("/page", StaticFiles(directory=PAGE), name="page")
    return app


async def _index() -> FileResponse:
    return FileResponse(PAGE / "index.html")


async def _invalid(_: Request, error: RequestValidationError) -> Response:
    """Say what is wrong with which field, without what was sent: that may be no text at all."""
    problems = [{name: one[name] for name in ("loc", "msg", "type")} for one in error.errors()]
    return Response(json.dumps({"detail": problems}), 422, media_type="application/json")


async def _unavailable(_: Request, error: Exception) -> Response:
    return Response(json.dumps({"detail": str(error)}), status_of(error), media_type="application/json")
