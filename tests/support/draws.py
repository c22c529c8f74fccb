"""How many examples Hypothesis draws: a quarter of what `make test-long` draws."""

import os


def draws(many: int) -> int:
    """Return `many` in `make test-long`, and a quarter of them elsewhere."""
    return many if os.environ.get("TIDEMILL_DEEP_TESTS") else many // 4
