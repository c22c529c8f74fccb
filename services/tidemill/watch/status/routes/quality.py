"""How good predictions are and what their input is like, window by window; alerts and dead letters."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Query

from tidemill.tokens import Role
from tidemill.watch.status.bodies import Acknowledgement, AlertId, WindowCount, problems
from tidemill.watch.status.overview import EXAMPLES, PREDICTIONS
from tidemill.watch.status.parts import FromApp, FromToken, limit_changes
from tidemill.web.access import GuardedRoute, needs

router = APIRouter(prefix="/api", tags=["quality"], route_class=GuardedRoute)


@router.get("/windows")
@needs(Role.VIEWER)
def windows(
    parts: FromApp,
    source: Annotated[str, Query(pattern="^(prediction-log|examples)$")] = EXAMPLES,
    last: WindowCount = 50,
) -> list[dict[str, Any]]:
    """The last windows with all their figures, oldest first."""
    return parts.follower.latest(source, last)


@router.get("/performance")
@needs(Role.VIEWER)
def performance(parts: FromApp, last: WindowCount = 50) -> dict[str, Any]:
    """How good the models were, by window, segment and version."""
    return parts.overview.performance(parts.follower.latest(EXAMPLES, last))


@router.get("/drift")
@needs(Role.VIEWER)
def drift(parts: FromApp, last: WindowCount = 50) -> dict[str, Any]:
    """How far features, scores and labels are from the reference."""
    follower = parts.follower
    return parts.overview.drift(follower.latest(PREDICTIONS, last), follower.latest(EXAMPLES, last))


@router.get("/freshness")
@needs(Role.VIEWER)
def freshness(parts: FromApp, last: WindowCount = 50) -> dict[str, Any]:
    """How old the features of each view were when they were served, in event time, and how often they were missing."""
    return parts.overview.freshness(parts.follower.latest(PREDICTIONS, last))


@router.get("/alerts")
@needs(Role.VIEWER)
def alerts(parts: FromApp) -> dict[str, Any]:
    """Open alerts, and the ones resolved last."""
    return parts.overview.alerts()


@router.post(
    "/alerts/{alert:path}/acknowledge",
    dependencies=[Depends(limit_changes)],
    responses=problems(401, 403, 404, 413, 421, 429, 503, 504),
)
@needs(Role.OPERATOR)
def acknowledge(alert: AlertId, acknowledgement: Acknowledgement, parts: FromApp, holder: FromToken) -> dict[str, str]:
    """Record that the token's holder knows of an open alert."""
    if alert not in parts.follower.alerts:
        raise HTTPException(404, f"no open alert {alert!r}")
    parts.acknowledge(alert, holder.name, acknowledgement.why)
    return {"id": alert, "by": holder.name, "why": acknowledgement.why}


@router.get("/rules")
@needs(Role.VIEWER)
def rules(parts: FromApp, last: WindowCount = 50) -> dict[str, Any]:
    """Value skew: by rule, the share of records that it refused and that it warned of, window by window."""
    return parts.overview.rules(parts.follower.latest(PREDICTIONS, last))


@router.get("/dead-letters")
@needs(Role.VIEWER)
def dead_letters(
    parts: FromApp,
    reason: Annotated[str | None, Query(max_length=100)] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 100,
) -> dict[str, Any]:
    """Dead letters by reason, and the latest, with why and where they came from."""
    with parts.follower.lock:
        latest = [letter for letter in parts.follower.letters if reason is None or letter["reason"] == reason]
    return parts.overview.dead_letters() | {"latest": latest[:limit]}


@router.get("/refused-records")
@needs(Role.VIEWER)
def refused_records(parts: FromApp) -> list[dict[str, Any]]:
    """Signed records (models, decisions, alerts) that were refused, the latest first: where they are, and why."""
    return parts.overview.refused()
