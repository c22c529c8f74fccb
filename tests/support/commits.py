"""Commits that fail."""

from __future__ import annotations

from typing import Any

import pytest

from tidemill.errors import Aborted


class FailingCommits:
    """The next `left` commits of a producer are aborted by the broker."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, producer: Any, left: int) -> None:
        self.left = left
        self._commit = producer.commit
        monkeypatch.setattr(producer, "commit", self)

    def __call__(self, *arguments: Any) -> None:
        self.left -= 1
        if self.left >= 0:
            raise Aborted("the broker said so")
        self._commit(*arguments)
