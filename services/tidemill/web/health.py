"""For orchestrators and Prometheus: is this process alive and ready, and its metrics."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest

router = APIRouter(tags=["health"], default_response_class=PlainTextResponse)


@router.get("/livez")
async def alive() -> str:
    """Whether this process answers."""
    return "ok\n"


@router.get("/readyz", responses={503: {"description": "what can't be reached"}})
async def ready(request: Request) -> Response:
    """Whether Kafka and Redis can be reached and the topics are as declared; if not, what is wrong."""
    wrong = request.app.state.parts.ready()
    return PlainTextResponse(f"{wrong or 'ok'}\n", 503 if wrong else 200)


@router.get("/metrics")
async def metrics(
    names: Annotated[list[str] | None, Query(alias="name[]", description="only these")] = None,
) -> Response:
    """This process's own metrics, for Prometheus."""
    text = generate_latest(REGISTRY.restricted_registry(names) if names else REGISTRY)
    return Response(text, media_type=CONTENT_TYPE_LATEST)
