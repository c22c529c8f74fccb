"""A receiver of webhooks on a socket, which answers as it is told to, also as no receiver should."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

SECRET = "whsec_" + "dGlkZW1pbGwgdGVzdHMgYSBzZWNyZXQgb2YgMzIgYnl0ZXM="


class Request(NamedTuple):
    """What came."""

    line: str
    headers: dict[str, str]
    body: bytes


#: Answers on a connection, which is closed afterwards.
Answer = Callable[[socket.socket], None]


def status(line: str, headers: str = "", body: bytes = b"") -> Answer:
    text = f"HTTP/1.1 {line}\r\ncontent-length: {len(body)}\r\n{headers}\r\n".encode()
    return lambda connection: connection.sendall(text + body)


OK = status("204 No Content")


class WebhookReceiver:
    """Takes requests, one a connection; each is answered by the next of `answers`, the last of them for ever."""

    def __init__(self, *answers: Answer) -> None:
        self.requests: list[Request] = []
        self.answers = list(answers or (OK,))
        self.is_over = threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/hook"
        threading.Thread(target=self._serve, daemon=True).start()

    def __enter__(self) -> WebhookReceiver:
        return self

    def __exit__(self, *_: object) -> None:
        self.is_over.set()
        self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits for connections
        self._socket.close()

    def drip(self, first: bytes, parts: Iterator[bytes], pause: float = 0.01) -> Answer:
        """Answer with parts that never end."""

        def answer(connection: socket.socket) -> None:
            connection.sendall(first)
            for part in parts:
                if self.is_over.wait(pause):
                    return
                connection.sendall(part)

        return answer

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._one, args=(connection,), daemon=True).start()

    def _one(self, connection: socket.socket) -> None:
        with connection:
            try:
                data = b""
                while b"\r\n\r\n" not in data:
                    data += connection.recv(65536)
                head, _, body = data.partition(b"\r\n\r\n")
                line, *lines = head.decode().split("\r\n")
                headers = {
                    name.strip().lower(): value.strip() for name, _, value in (one.partition(":") for one in lines)
                }
                while len(body) < int(headers["content-length"]):
                    body += connection.recv(65536)
                self.requests.append(Request(line, headers, body))
                answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                answer(connection)
            except OSError:
                return
