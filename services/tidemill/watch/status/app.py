"""The HTTP interface: JSON for programs, server-sent events and a page for people. Reading is free, changing needs a token."""

from __future__ import annotations

import asyncio
import hmac
import json
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, Header, HTTPException, Query, Request, Response
from fastapi import Path as PathParameter
from fastapi.responses import FileResponse, PlainTextResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field, SecretStr

from tidemill import __version__
from tidemill.errors import BrokerError, StoreError
from tidemill.offline.check import CheckReport
from tidemill.offline.lookup import Lookup, TooFarBackError
from tidemill.registry.decisions import NOBODY, ModelRef
from tidemill.watch.status.feed import Feed
from tidemill.watch.status.overview import Overview
from tidemill.watch.status.scrape import Scraper

PAGE = Path(__file__).parent / "page"
LIVE_SECONDS = 1.0
MOST_BODY = 16_384
"""Bytes of a request's body: the one that there is fits into a fraction of it."""
MOST_LOOKUPS = 3
"""Look-ups in the log at once: each reads for up to 20 s."""
MOST_LIVE = 100
"""Pages that may be open at once."""
POLICY = "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'; object-src 'none'"
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}

EventId = Annotated[
    str, PathParameter(min_length=1, max_length=500, description="The event's id, as its producer gave it")
]
EntityId = Annotated[str, PathParameter(min_length=1, max_length=500)]


class Problem(BaseModel):
    """What went wrong, in one sentence."""

    detail: str


class Acknowledgement(BaseModel):
    """Who has seen an alert, and what they say to it."""

    by: str = Field(min_length=1, max_length=100)
    why: str = Field(min_length=1, max_length=1000)


class CommandRequest(BaseModel):
    """What somebody asks of the gate."""

    id: str = Field(
        min_length=8, max_length=100, pattern=r"^[A-Za-z0-9._-]+$", description="Made by who asks; carried out once."
    )
    kind: Literal["promote", "rollback", "pin", "unpin", "train"]
    target: str = Field("", max_length=200, description="MODEL or MODEL@VERSION; empty for rollback and unpin.")
    steps: int = Field(1, ge=1, le=1000, description="rollback: how many champions back.")
    begin: int = Field(
        0, gt=-(10**18), lt=10**18, description="train: offset of the first example; below 0: so many of the latest."
    )
    by: str = Field(min_length=1, max_length=100)
    why: str = Field(min_length=1, max_length=1000)


def _problems(*codes: int) -> dict[int | str, dict[str, Any]]:
    return {code: {"model": Problem} for code in codes}


class Parts(BaseModel, arbitrary_types_allowed=True):
    """What the application is made of."""

    feed: Feed
    scraper: Scraper
    overview: Overview
    lookup: Lookup
    ready: Callable[[], str | None]
    acknowledge: Callable[[str, str, str], None]
    ask: Callable[[CommandRequest, ModelRef], None]
    token: SecretStr


class Snapshot:
    """The overview as JSON, made at most twice a second however many look at it."""

    def __init__(self, told: Callable[[], Any]) -> None:
        self._told, self._lock = told, threading.Lock()
        self._text, self._at = "", 0.0

    def text(self) -> str:
        """Return it."""
        with self._lock:
            if time.monotonic() - self._at > LIVE_SECONDS / 2:
                self._text = json.dumps(self._told(), allow_nan=False, default=str)
                self._at = time.monotonic()
            return self._text


def build(parts: Parts) -> FastAPI:
    """Return the application."""
    app = FastAPI(
        title="Tidemill status", version=__version__, docs_url=None, redoc_url=None,
        description=f"What the pipeline `{parts.overview.pipeline.name}` does now, and how well.",
    )  # fmt: skip
    snapshot, viewers = Snapshot(parts.overview.told), 0
    looking = threading.BoundedSemaphore(MOST_LOOKUPS)

    def alone() -> Iterator[None]:
        if not looking.acquire(blocking=False):
            raise HTTPException(503, f"{MOST_LOOKUPS} look-ups are going on; try again in a moment")
        try:
            yield
        finally:
            looking.release()

    @app.middleware("http")
    async def guard(request: Request, proceed: Callable[[Request], Awaitable[Response]]) -> Response:
        if _size(request) > MOST_BODY:
            return Response('{"detail": "the body is too large"}', 413, HEADERS, "application/json")
        answer = await proceed(request)
        answer.headers.update(HEADERS)
        return answer

    @app.exception_handler(BrokerError)
    @app.exception_handler(StoreError)
    async def away(_: Request, error: Exception) -> Response:
        code = 504 if isinstance(error, TooFarBackError) else 503
        return Response(json.dumps({"detail": str(error)}), code, media_type="application/json")

    def authorised(authorization: Annotated[str | None, Header()] = None) -> None:
        expected = parts.token.get_secret_value()
        if not expected:
            raise HTTPException(403, "nothing can be changed here: no token is set; set TIDEMILL_STATUS_TOKEN")
        given = (authorization or "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), expected.encode()):
            raise HTTPException(401, "a token is needed: Authorization: Bearer ...", {"WWW-Authenticate": "Bearer"})

    @app.get("/", include_in_schema=False)
    async def index() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    @app.get("/livez", response_class=PlainTextResponse, tags=["health"])
    async def alive() -> str:
        """Whether this process answers."""
        return "ok\n"

    @app.get(
        "/readyz", response_class=PlainTextResponse, tags=["health"], responses={503: {"description": "what is away"}}
    )
    async def ready() -> Response:
        """Whether Kafka and Redis can be reached; if not, which."""
        wrong = parts.ready()
        return PlainTextResponse(f"{wrong or 'ok'}\n", 503 if wrong else 200)

    @app.get("/metrics", response_class=PlainTextResponse, tags=["health"])
    async def metrics() -> Response:
        """This process's own metrics, for Prometheus."""
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/api/overview", tags=["overview"])
    def overview() -> Response:
        """Everything that the page shows."""
        return Response(snapshot.text(), media_type="application/json")

    @app.get("/api/live", tags=["overview"], response_class=StreamingResponse, responses=_problems(503))
    async def follow(request: Request) -> StreamingResponse:
        """The overview, again and again, as server-sent events called `snapshot`."""
        if viewers >= MOST_LIVE:
            raise HTTPException(503, f"{MOST_LIVE} pages are open already; close one")

        async def events() -> AsyncIterator[str]:
            nonlocal viewers
            viewers += 1
            try:
                while not await request.is_disconnected():
                    yield f"event: snapshot\ndata: {await asyncio.to_thread(snapshot.text)}\n\n"
                    await asyncio.sleep(LIVE_SECONDS)
            finally:
                viewers -= 1

        return StreamingResponse(events(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    @app.get("/api/pipeline", tags=["overview"])
    def pipeline() -> dict[str, Any]:
        """The declaration: topics, vector, models, rules."""
        return CheckReport(parts.overview.pipeline).as_dict()

    @app.get("/api/pipelines", tags=["overview"])
    def pipelines() -> list[str]:
        """The pipelines that this service tells of."""
        return [parts.overview.pipeline.name]

    @app.get("/api/services", tags=["overview"])
    def services() -> list[dict[str, Any]]:
        """Every process with its health, rate, lag and delay."""
        return [instance.told() for instance in parts.scraper.instances]

    @app.get("/api/models", tags=["models"])
    def models() -> list[dict[str, Any]]:
        """Every model with its newest version and its metrics."""
        return parts.overview.models()

    @app.get("/api/models/{model}/versions", tags=["models"], responses=_problems(404))
    def versions(model: Annotated[str, PathParameter(max_length=100)]) -> list[dict[str, Any]]:
        """The latest versions of one model, the newest first."""
        if not parts.overview.pipeline.knows(model):
            raise HTTPException(404, f"no model {model!r}: there are {', '.join(parts.overview.pipeline.model_names)}")
        with parts.feed.lock:
            return [manifest for (name, _), manifest in reversed(parts.feed.versions.items()) if name == model]

    @app.get("/api/promotions", tags=["models"])
    def promotions() -> list[dict[str, Any]]:
        """Every decision about who serves, the latest first, with its evidence."""
        return parts.overview.promotions()

    @app.post("/api/commands", tags=["models"], status_code=202, dependencies=[Depends(authorised)],
              responses=_problems(401, 403, 413, 422, 503))  # fmt: skip
    def command(wish: CommandRequest) -> dict[str, Any]:
        """Ask the gate to promote, roll back, pin, unpin or train. Needs the token. The same id is carried out once."""
        try:
            target = ModelRef.of(wish.target) if wish.target else NOBODY
        except ValueError as error:
            raise HTTPException(422, f"target {error}") from None
        if parts.feed.decided(wish.id) is None:
            parts.ask(wish, target)
        return answer(wish.id)

    @app.get("/api/commands/{command_id}", tags=["models"])
    def answer(command_id: Annotated[str, PathParameter(max_length=100)]) -> dict[str, Any]:
        """What the gate decided; null while it has not, or does not know of the command."""
        return {"id": command_id, "decision": parts.feed.decided(command_id)}

    @app.get("/api/windows", tags=["quality"])
    def windows(
        source: Annotated[str, Query(pattern="^(prediction-log|examples)$")] = "examples",
        last: Annotated[int, Query(ge=1, le=400)] = 50,
    ) -> list[dict[str, Any]]:
        """The last windows with all their figures, oldest first."""
        return parts.feed.latest(source, last)

    @app.get("/api/performance", tags=["quality"])
    def performance(last: Annotated[int, Query(ge=1, le=400)] = 50) -> dict[str, Any]:
        """How good the models were, by window, segment and version."""
        return parts.overview.performance(parts.feed.latest("examples", last))

    @app.get("/api/drift", tags=["quality"])
    def drift(last: Annotated[int, Query(ge=1, le=400)] = 50) -> dict[str, Any]:
        """How far features, scores and labels are from the reference."""
        return parts.overview.drift(parts.feed.latest("prediction-log", last), parts.feed.latest("examples", last))

    @app.get("/api/freshness", tags=["quality"])
    def freshness(last: Annotated[int, Query(ge=1, le=400)] = 50) -> dict[str, Any]:
        """How old the features of each view were when they were served, in event time, and how often they were missing."""
        return parts.overview.freshness(parts.feed.latest("prediction-log", last))

    @app.get("/api/alerts", tags=["quality"])
    def alerts() -> dict[str, Any]:
        """Alerts that are open, and those that were resolved last."""
        return parts.overview.alerts()

    @app.post("/api/alerts/{alert:path}/acknowledge", tags=["quality"], dependencies=[Depends(authorised)],
              responses=_problems(401, 403, 404, 413, 503))  # fmt: skip
    def acknowledge(alert: Annotated[str, PathParameter(max_length=500)], said: Acknowledgement) -> dict[str, str]:
        """Say that somebody knows of an open alert. Needs the token."""
        if alert not in parts.feed.alerts:
            raise HTTPException(404, f"no open alert {alert!r}")
        parts.acknowledge(alert, said.by, said.why)
        return {"id": alert, "by": said.by, "why": said.why}

    @app.get("/api/rules", tags=["quality"])
    def rules(last: Annotated[int, Query(ge=1, le=400)] = 50) -> dict[str, Any]:
        """Value skew: by rule, the share of records that it refused and that it warned of, window by window."""
        return parts.overview.rules(parts.feed.latest("prediction-log", last))

    @app.get("/api/dead-letters", tags=["quality"])
    def dead_letters(
        reason: Annotated[str | None, Query(max_length=100)] = None, limit: Annotated[int, Query(ge=1, le=200)] = 100
    ) -> dict[str, Any]:
        """Dead letters by reason, and the latest, with why and where they came from."""
        found = parts.overview.dead_letters()
        with parts.feed.lock:
            found["latest"] = [x for x in parts.feed.letters if reason is None or x["reason"] == reason][:limit]
        return found

    @app.get("/api/predictions/{event_id:path}", tags=["look-ups"], responses=_problems(404, 503, 504),
             dependencies=[Depends(alone)])  # fmt: skip
    def prediction(event_id: EventId) -> dict[str, Any]:
        """One prediction with all that made it: event, vector, scores, versions, label, and where each came from."""
        found = parts.lookup.prediction(event_id)
        if found is None:
            raise HTTPException(404, f"no prediction of event {event_id!r} in the log")
        return found

    @app.get("/api/entities/{entity_id:path}", tags=["look-ups"], responses=_problems(404, 503))
    def entity(entity_id: EntityId) -> dict[str, Any]:
        """One entity's features, as they are in the online store."""
        found = parts.lookup.entity(entity_id)
        if found is None:
            raise HTTPException(404, f"no features of entity {entity_id!r} in the online store")
        return found

    app.mount("/page", StaticFiles(directory=PAGE), name="page")
    return app


def _size(request: Request) -> int:
    """Return how long a body says that it is; one that does not say counts as too long, for it would have to be counted."""
    if "chunked" in request.headers.get("transfer-encoding", "").lower():
        return MOST_BODY + 1
    length = request.headers.get("content-length", "0")
    return int(length) if length.isascii() and length.isdigit() else MOST_BODY + 1
