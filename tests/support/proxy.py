"""A TCP proxy that makes what is behind it slow, cuts its connections, or is not there at all."""

from __future__ import annotations

import contextlib
import socket
import threading
import time


class Proxy:
    """Forwards 127.0.0.1:`port` to 127.0.0.1:`target`.

    `delay` (s) is waited before each piece of up to 64 KiB goes on, in both directions; it may be changed at any time.
    """

    def __init__(self, port: int, target: int) -> None:
        self.port, self.target, self.delay = port, target, 0.0
        self.cuts = 0
        self._links: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._server = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self._accept, name=f"proxy-{port}", daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
                far = socket.create_connection(("127.0.0.1", self.target))
            except ConnectionRefusedError:
                near.close()
                continue
            except OSError:
                return
            for link in (near, far):
                link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._links |= {near, far}
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(one, other), daemon=True).start()

    def _pump(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                if self.delay:
                    time.sleep(self.delay)
                other.sendall(data)
        self._drop(one, other)

    def _drop(self, *links: socket.socket) -> None:
        with self._lock:
            self._links -= set(links)
        for link in links:
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
            link.close()

    def cut(self) -> None:
        """Cut every connection, in the middle of whatever it carries."""
        with self._lock:
            links = list(self._links)
        self.cuts += len(links) // 2
        self._drop(*links)

    def close(self) -> None:
        """Stop."""
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.cut()
