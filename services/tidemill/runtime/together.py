"""Several services of a pipeline in one process, a thread each.

They share one port: `/metrics`, `/livez` and `/readyz` are of all of them, `/NAME/metrics` and so on of one. When one
ends, all end, for what has become of its state nobody knows; whoever runs the process starts it again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from tidemill import probes
from tidemill.declare.pipeline import Pipeline
from tidemill.errors import TidemillError
from tidemill.runtime import run as running
from tidemill.runtime.host import Host
from tidemill.settings import Settings
from tidemill.wire.topics import WITH_INTERFACE

log = logging.getLogger(__name__)

#: How long the others may take to end.
STOP_SECONDS = 10.0


class Member(NamedTuple):
    """One service of the process; `model` is the learner's."""

    service: str
    model: str | None
    settings: Settings


class _Seat(Host):
    """The place of one service in a process of several."""

    def __init__(self, name: str, group: Together) -> None:
        super().__init__()
        self.name, self.group = name, group

    def serve(self, settings: Settings, health: probes.Health) -> None:  # noqa: ARG002  they share one
        self.group.members[self.name] = health

    def on_stop(self, stop: Callable[..., None]) -> None:
        self.group.stops.append(stop)
        if self.group.is_stopping:
            stop()


class Starting(probes.Health):
    """A service that has no probes yet."""

    def alive(self) -> str | None:
        """Nothing is wrong yet."""
        return None

    def ready(self) -> str | None:
        """Return what it waits for."""
        return "it starts"


class Together(probes.Health):
    """The services of one process, by name."""

    def __init__(self, pipeline: Pipeline, services: Mapping[str, Member]) -> None:
        self.pipeline, self.services = pipeline, services
        # Those with an interface have a port of their own.
        self.members: dict[str, probes.Health] = {
            name: Starting() for name, member in services.items() if member.service not in WITH_INTERFACE
        }
        self.stops: list[Callable[..., None]] = []
        self.is_stopping = False
        self.error: BaseException | None = None
        self._ended = threading.Event()

    def alive(self) -> str | None:
        """Return what is wrong with the first that is not, or None."""
        return next((f"{n}: {wrong}" for n, member in self.members.items() if (wrong := member.alive())), None)

    def ready(self) -> str | None:
        """Return what is wrong with the first that is not, or None."""
        return next((f"{n}: {wrong}" for n, member in self.members.items() if (wrong := member.ready())), None)

    def run(self, port: int, host: Host) -> None:
        """Run until asked to stop. Raises what the first service that ended by itself has raised."""
        threads = [threading.Thread(target=self._run_one, args=(n,), name=n, daemon=True) for n in self.services]
        host.on_stop(self.stop)
        probes.serve(port, self, self.members)
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads) and not self.is_stopping:
            self._ended.wait(0.2)
        until = time.monotonic() + STOP_SECONDS
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
        if late := [thread.name for thread in threads if thread.is_alive()]:
            log.error("services did not end in time", extra={"services": ", ".join(late)})
        if self.error is not None:
            raise self.error

    def stop(self, *_: object) -> None:
        """Have all services finish what they have in hand, and end."""
        if not self.is_stopping:
            self.is_stopping = True
            for stop in self.stops:
                stop()

    def _run_one(self, name: str) -> None:
        service, model, settings = self.services[name]
        error: BaseException | None = None
        try:
            running.run(service, self.pipeline, settings, model, _Seat(name, self))
        except BaseException as raised:
            error = raised
        if not self.is_stopping:
            self.error = error or TidemillError(f"{name} has ended")
            if not isinstance(self.error, TidemillError):
                log.critical("service failed", exc_info=self.error)
            self.stop()
        elif error is not None and not isinstance(error, SystemExit):
            log.warning("ended with an error while it was stopped", extra={"of": name, "cause": repr(error)})
        self._ended.set()
