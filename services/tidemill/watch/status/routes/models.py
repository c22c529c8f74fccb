"""Models, their versions, which one serves, and commands to change that."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, HTTPException, Request

from tidemill.registry.decisions import NOBODY, ModelRef
from tidemill.tokens import Role
from tidemill.watch.status.bodies import CommandId, CommandRequest, ModelName, problems
from tidemill.watch.status.parts import FromApp, FromToken, Parts, limit_changes
from tidemill.web.access import GuardedRoute, needs

router = APIRouter(prefix="/api", tags=["models"], route_class=GuardedRoute)


@router.get("/models")
@needs(Role.VIEWER)
def models(parts: FromApp) -> list[dict[str, Any]]:
    """Every model with its newest version and its metrics."""
    return parts.overview.models()


@router.get("/models/{model}/versions", responses=problems(404))
@needs(Role.VIEWER)
def versions(model: ModelName, parts: FromApp) -> list[dict[str, Any]]:
    """The latest versions of one model, the newest first."""
    pipeline = parts.overview.pipeline
    if not pipeline.knows(model):
        raise HTTPException(404, f"no model {model!r}: there are {', '.join(pipeline.model_names)}")
    with parts.follower.lock:
        return [manifest for (name, _), manifest in reversed(parts.follower.versions.items()) if name == model]


@router.get("/promotions")
@needs(Role.VIEWER)
def promotions(parts: FromApp) -> list[dict[str, Any]]:
    """Every decision about which model serves, the latest first, with its evidence."""
    return parts.overview.promotions()


@router.post(
    "/commands",
    status_code=202,
    dependencies=[Depends(limit_changes)],
    responses=problems(401, 403, 409, 413, 421, 422, 429, 503, 504),
)
@needs(Role.OPERATOR)
def command(request: CommandRequest, http: Request, parts: FromApp, holder: FromToken) -> dict[str, Any]:
    """Ask the gate to promote, roll back, pin, unpin, train or reset. The same id is carried out once.

    503: it was not given, nor will it be carried out later. 504: that is not known; send it again with the same id.
    """
    http.state.subject = f"{request.kind} {request.target} {request.id}"
    if request.kind == "reset":  # it takes away what a model has learned
        parts.access.require(holder, Role.ADMIN)
    try:
        target = ModelRef.of(request.target) if request.target else NOBODY
    except ValueError as error:
        raise HTTPException(422, f"target {error}") from None
    if not parts.accepted.is_repeated(request, holder.name):
        decision = parts.follower.decision_on(request.id)
        if decision is None:
            parts.ask(request, target, holder.name)
            parts.accepted.add(request, holder.name)
        elif decision["by"] != holder.name:
            raise HTTPException(409, f"id {request.id!r} is that of another command: choose a new one")
    return _answer(request.id, parts)


@router.get("/commands/{command_id}")
@needs(Role.VIEWER)
def answer(command_id: CommandId, parts: FromApp) -> dict[str, Any]:
    """What the gate decided; null if it has not decided yet, or does not know the command."""
    return _answer(command_id, parts)


def _answer(command_id: str, parts: Parts) -> dict[str, Any]:
    return {"id": command_id, "decision": parts.follower.decision_on(command_id)}
