"""Processes that end in the middle: a crash at a chosen moment, with nothing cleaned up."""

from __future__ import annotations

from typing import Any

from tidemill.errors import Aborted
from tidemill.stream.memory import MemoryBroker


class Crash(Exception):  # noqa: N818  it is no error of anybody's
    """The process is gone."""


class Bomb:
    """Goes off at one chosen moment."""

    def __init__(self, at: int | None) -> None:
        self.left = at
        self.fired = False

    def tick(self) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                self.left, self.fired = None, True
                raise Crash


class Fragile:
    """A broker whose producers may crash before a record is emitted, and before and after a commit."""

    def __init__(self, inner: MemoryBroker, bomb: Bomb) -> None:
        self.inner, self.bomb = inner, bomb

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def producer(self, name: str) -> Any:
        producer, bomb = self.inner.producer(name), self.bomb
        emit, commit = producer.emit, producer.commit

        def fragile_emit(*arguments: Any) -> None:
            bomb.tick()
            emit(*arguments)

        def fragile_commit(*arguments: Any) -> None:
            bomb.tick()
            commit(*arguments)
            bomb.tick()

        producer.emit, producer.commit = fragile_emit, fragile_commit
        return producer


class Aborting:
    """A broker of which every third commit fails."""

    def __init__(self, inner: MemoryBroker) -> None:
        self.inner, self.commits = inner, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def producer(self, name: str) -> Any:
        producer = self.inner.producer(name)
        commit = producer.commit

        def sometimes(*arguments: Any) -> None:
            self.commits += 1
            if self.commits % 3 == 0:
                raise Aborted("the broker said so")
            commit(*arguments)

        producer.commit = sometimes  # type: ignore[method-assign]
        return producer
