"""One prediction, or one entity, looked up on request."""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import APIRouter, Depends, HTTPException, Request

from tidemill.tokens import Role
from tidemill.watch.status.bodies import EntityId, EventId, problems
from tidemill.watch.status.parts import FromApp, in_log, limit_entity_lookups
from tidemill.web.access import GuardedRoute, as_shown, needs

router = APIRouter(prefix="/api", tags=["look-ups"], route_class=GuardedRoute)


@router.get(
    "/predictions/{event_id:path}",
    responses=problems(404, 503, 504),
)
@needs(Role.VIEWER)
async def prediction(event_id: EventId, request: Request, parts: FromApp) -> dict[str, Any]:
    """One prediction with all that made it: event, vector, scores, versions, label, and where each came from."""
    record = await in_log(parts, request, partial(parts.lookup.prediction, event_id))
    if record is None:
        asks = f"; `tidemill replay {parts.lookup.pipeline.name} ...` says whether it was forgotten"
        hint = asks if parts.lookup.pipeline.forgetting else ""
        raise HTTPException(404, f"no prediction of event {event_id!r} in the log{hint}")
    shown: dict[str, Any] = as_shown(request, record, parts.lookup.records.mask.named)
    return shown


@router.get("/entities/{entity_id:path}", responses=problems(404, 503), dependencies=[Depends(limit_entity_lookups)])
@needs(Role.VIEWER)
def entity(entity_id: EntityId, request: Request, parts: FromApp) -> dict[str, Any]:
    """One entity's features, as they are in the online store."""
    features = parts.lookup.entity(entity_id)
    if features is None:
        raise HTTPException(404, f"no features of entity {entity_id!r} in the online store")
    shown: dict[str, Any] = as_shown(request, features, parts.lookup.records.mask.named)
    return shown
