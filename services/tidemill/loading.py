"""The folder of the pipeline's file while it is being loaded: files that a declaration names are looked for there first."""

from __future__ import annotations

import contextvars
from pathlib import Path

loading: contextvars.ContextVar[Path | None] = contextvars.ContextVar("loading", default=None)
