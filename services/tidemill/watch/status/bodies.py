"""What requests and error responses carry, and how long it may be."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Path, Query
from pydantic import BaseModel, Field

EventId = Annotated[str, Path(min_length=1, max_length=500, description="The event's id, as its producer gave it")]
EntityId = Annotated[str, Path(min_length=1, max_length=500)]
ModelName = Annotated[str, Path(max_length=100)]
CommandId = Annotated[str, Path(max_length=100)]
AlertId = Annotated[str, Path(max_length=500)]
WindowCount = Annotated[int, Query(ge=1, le=400)]


class Problem(BaseModel):
    """What went wrong, in one sentence."""

    detail: str


def problems(*codes: int) -> dict[int | str, dict[str, Any]]:
    """Return the error responses that a route documents."""
    return {code: {"model": Problem} for code in codes}


class Acknowledgement(BaseModel):
    """A comment of somebody who has seen an alert. Who it is, the token says."""

    why: str = Field(min_length=1, max_length=1000)


class CommandRequest(BaseModel):
    """A command for the gate. Who gives it, the token says."""

    id: str = Field(
        min_length=8,
        max_length=100,
        pattern=r"^[A-Za-z0-9._-]+$",
        description="Chosen by the client; the gate carries out an id once.",
    )
    kind: Literal["promote", "rollback", "pin", "unpin", "train", "train_corrected", "reset"]
    target: str = Field("", max_length=200, description="MODEL or MODEL@VERSION; empty for rollback and unpin.")
    steps: int = Field(1, ge=1, le=1000, description="rollback: how many champions back.")
    begin: int = Field(
        0,
        gt=-(10**18),
        lt=10**18,
        description="train: offset of the first example; a negative number counts from the newest.",
    )
    why: str = Field(min_length=1, max_length=1000)


class ForgetRequest(BaseModel):
    """Whom to forget. Who asks, the token says."""

    entities: dict[
        Annotated[str, Field(max_length=100)],
        Annotated[list[Annotated[str, Field(min_length=1, max_length=500)]], Field(min_length=1, max_length=100)],
    ] = Field(min_length=1, max_length=20, description="Ids by the field that names them.")
    why: str = Field(min_length=1, max_length=1000, description="The reason; it is kept for ever.")
