"""What a service needs of its process: to show how it is, and to hear when it is to stop."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence

from tidemill import probes


class Host:
    """A process of one service: its probes are on the port of its settings, and signals stop it."""

    def __init__(self, signals: Sequence[int] = (signal.SIGTERM, signal.SIGINT)) -> None:
        self.signals = signals

    def serve(self, port: int | None, health: probes.Health) -> None:
        """Serve `/metrics`, `/livez` and `/readyz`; 0 is no port, None the first that is free."""
        if port is None:
            probes.serve_on_a_free_port(health)
        elif port:
            probes.serve(port, health)

    def on_stop(self, stop: Callable[..., None]) -> None:
        """Call `stop` when the service is to end; it may be called again, and must be safe in a signal handler."""
        for number in self.signals:
            signal.signal(number, stop)
