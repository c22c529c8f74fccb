"""The folder of the pipeline's file while it is loaded: files that a declaration names are first looked for there."""

from __future__ import annotations

import contextvars
from pathlib import Path

loading: contextvars.ContextVar[Path | None] = contextvars.ContextVar("loading", default=None)
