"""The HTTP interface: JSON for programs, server-sent events and a page for people. Only changes need a token."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles

from tidemill import __version__
from tidemill.errors import BrokerError, StoreError
from tidemill.offline.lookup import TooFarBackError
from tidemill.watch.status.parts import Parts
from tidemill.watch.status.routes import health, lookups, models, overview, quality

PAGE = Path(__file__).parent / "page"
#: Far more than any request needs.
MAX_BODY_BYTES = 16_384
POLICY = (
    "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'; "
    "object-src 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def build(parts: Parts) -> FastAPI:
    """Return the application."""
    app = FastAPI(
        title="Tidemill status",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        description=f"What the pipeline `{parts.overview.pipeline.name}` does now, and how well.",
    )
    app.state.parts = parts
    app.middleware("http")(_guard)
    for error in (BrokerError, StoreError):
        app.exception_handler(error)(_unavailable)
    for room in (health, overview, models, quality, lookups):
        app.include_router(room.router)
    app.get("/", include_in_schema=False)(_index)
    app.mount("/page", StaticFiles(directory=PAGE), name="page")
    return app


async def _index() -> FileResponse:
    return FileResponse(PAGE / "index.html")


async def _guard(request: Request, proceed: Callable[[Request], Awaitable[Response]]) -> Response:
    if _size(request) > MAX_BODY_BYTES:
        return Response('{"detail": "the body is too large"}', 413, HEADERS, "application/json")
    response = await proceed(request)
    response.headers.update(HEADERS)
    return response


async def _unavailable(_: Request, error: Exception) -> Response:
    code = 504 if isinstance(error, TooFarBackError) else 503
    return Response(json.dumps({"detail": str(error)}), code, media_type="application/json")


def _size(request: Request) -> int:
    """Return the length that a body declares. A body without one counts as too long."""
    if "chunked" in request.headers.get("transfer-encoding", "").lower():
        return MAX_BODY_BYTES + 1
    length = request.headers.get("content-length", "0")
    return int(length) if length.isascii() and length.isdigit() else MAX_BODY_BYTES + 1
