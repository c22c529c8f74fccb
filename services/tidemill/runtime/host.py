"""What a service needs of its process: to show how it is, and to hear when it is to stop."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence

from tidemill import probes
from tidemill.settings import Settings


class Host:
    """A process of one service: its probes are on the port of its settings, and signals stop it."""

    def __init__(self, signals: Sequence[int] = (signal.SIGTERM, signal.SIGINT)) -> None:
        self.signals = signals

    def serve(self, settings: Settings, health: probes.Health) -> None:
        """Serve `/metrics`, `/livez` and `/readyz`; port 0 is none, None the first that is free."""
        if settings.http_port is None:
            probes.serve_on_a_free_port(health)
        elif settings.http_port:
            probes.serve(settings.http_port, health, tls=settings.server_context())

    def on_stop(self, stop: Callable[..., None]) -> None:
        """Call `stop` when the service is to end; it may be called again, and must be safe in a signal handler."""
        for number in self.signals:
            signal.signal(number, stop)
