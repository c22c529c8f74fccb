"""For orchestrators and Prometheus: is this process alive and ready, and its metrics."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

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
async def metrics() -> Response:
    """This process's own metrics, for Prometheus."""
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)
