"""Requests to forget entities: who asked when, and until when it has to be done."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Depends, HTTPException, Request

from tidemill.declare.pipeline import Pipeline
from tidemill.errors import SettingsError
from tidemill.registry.forgetting import Forgetting, Requests, check_entities, deadline, refold_at
from tidemill.tokens import Extra, Role
from tidemill.watch.status.bodies import ForgetRequest, problems
from tidemill.watch.status.parts import FromApp, FromToken, in_log, limit_changes
from tidemill.web.access import GuardedRoute, needs

router = APIRouter(prefix="/api", tags=["forgetting"], route_class=GuardedRoute)


@router.get("/forgetting", responses=problems(503))
@needs(Role.VIEWER)
async def requests(parts: FromApp, http: Request) -> list[dict[str, Any]]:
    """Every request to forget entities, the latest first. Times are ms since the epoch; no request names an id."""
    pipeline, lookup = parts.overview.pipeline, parts.lookup
    if pipeline.forgetting is None:
        return []
    known = await in_log(parts, http, lambda _: Requests(pipeline, lookup.broker, lookup.keys))
    return [
        _shown(pipeline, one, known.done.get(one.id))
        for one in reversed(known.records)
        if one.state in ("asked", "waiting")
    ]


@router.post(
    "/forgetting",
    status_code=202,
    dependencies=[Depends(limit_changes)],
    responses=problems(401, 403, 409, 413, 421, 422, 429, 503, 504),
)
@needs(Extra.FORGET)
def forget(request: ForgetRequest, http: Request, parts: FromApp, holder: FromToken) -> dict[str, Any]:
    """Ask for entities to be forgotten; `tidemill forget --due` does it. The same entities wait once.

    503: it was not written, nor will it be later. 504: that is not known; send it again.
    """
    pipeline = parts.overview.pipeline
    http.state.subject = f"forget {', '.join(request.entities)}"  # not whom: the access log is kept
    if pipeline.forgetting is None:
        raise HTTPException(409, f"pipeline {pipeline.name!r} does not declare forgetting")
    if pipeline.forgetting.every is None:
        raise HTTPException(
            409, "requests do not wait here: `tidemill forget` carries each out at once; declare Forgetting(every=...)"
        )
    entities = [(name, id_) for name, ids in request.entities.items() for id_ in ids]
    try:
        check_entities(pipeline, entities, request.why, dashes="")
    except SettingsError as error:
        raise HTTPException(422, str(error)) from None
    return _shown(pipeline, parts.forgetting().ask(entities, holder.name, request.why))


def _shown(pipeline: Pipeline, request: Forgetting, done: Forgetting | None = None) -> dict[str, Any]:
    begins = refold_at(pipeline, request) if request.state == "waiting" else None
    until = deadline(pipeline, request)
    return {
        "id": request.id, "state": "done" if done else request.state, "by": request.by, "why": request.why,
        "asked": request.time, "begins": begins, "until": until, "done": done.time if done else None,
        "is_late": not done and until < time.time() * 1000,
    }  # fmt: skip
