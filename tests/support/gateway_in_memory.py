"""The gateway's application before a pipeline in memory: what it sends, the pipeline's own services handle at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from fastapi.testclient import TestClient

from tidemill.features.memory import MemoryReader
from tidemill.features.store import Store
from tidemill.gateway import river
from tidemill.gateway.app import build
from tidemill.gateway.asking import Gateway
from tidemill.gateway.commands import Commands
from tidemill.gateway.requests import Rates
from tidemill.gateway.river import River
from tidemill.gateway.what_if import WhatIf
from tidemill.offline.lookup import LogLookup
from tidemill.stream.api import Headers
from tidemill.testing import Pipeline
from tidemill.tokens import Holder, Permission, Tokens, token_hash
from tidemill.web.access import Access
from tidemill.wire import topics

BOTH_KEY, SENDERS_KEY, READERS_KEY, COMMANDERS_KEY = (
    f"{name}-key-for-these-tests-0123456789" for name in ("both", "sender", "reader", "commander")
)
HOLDERS = {
    BOTH_KEY: Holder("shop", Permission.PRODUCE | Permission.READ), SENDERS_KEY: Holder("till", Permission.PRODUCE),
    READERS_KEY: Holder("screen", Permission.READ), COMMANDERS_KEY: Holder("ci", Permission.COMMAND),
}  # fmt: skip


river.READ_SECONDS = 0.005  # nothing here comes from afar


class MemorySender:
    """Appends to the topics in memory; written at once, unless `why_not` says why it is not."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline, self.why_not, self.is_full, self.is_running = pipeline, "", False, True
        self.is_silent = False
        self.sent: list[tuple[str, bytes, bytes, Headers]] = []

    def try_send(
        self, topic: str, value: bytes, key: bytes, headers: Headers, on_delivery: Callable[[str], None]
    ) -> bool:
        if self.is_full:
            return False
        if not self.why_not:
            self.sent.append((topic, value, key, headers))
            self.pipeline.broker.append(topic, value, key, headers=headers)
            if self.is_running:
                self.pipeline._run()
        if not self.is_silent:
            on_delivery(self.why_not)
        return True

    def poll(self, seconds: float = 0.0) -> None:
        time.sleep(seconds)

    def flush(self) -> None:
        pass


class Learned:
    """The models of a pipeline in memory, as the scorer's feed hands them over."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline, self.started = pipeline, 0

    def start(self) -> None:
        self.started += 1

    def take(self) -> list[Any]:
        folds = {name: fold for name, fold in self.pipeline.folds.items() if fold.version}
        return [
            SimpleNamespace(
                manifest=SimpleNamespace(model=name, version=fold.version, epoch=0),
                snapshot=SimpleNamespace(model=fold.running),
            )
            for name, fold in folds.items()
        ]


class Status(Commands):
    """A status service that takes every command, and knows of no decision."""

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:1", "")

    def _ask(self, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        return 202 if body else 200, b'{"decision":null}'


class Shop:
    """A gateway with its river; a context manager: within it the gateway reads."""

    def __init__(
        self, declaration: Any, *, rate: float = 0.0, pipeline: Pipeline | None = None, commands: Commands | None = None
    ) -> None:
        self.pipeline = pipeline or Pipeline(declaration)
        declared = self.pipeline.declaration
        self.sender, self.refused = MemorySender(self.pipeline), list[str]()
        self.river = River(declared, self.pipeline.broker, self.sender)
        self.store = Store(declared, "redis://127.0.0.1:1")
        views = self.pipeline.views
        self.store._store.read = lambda wanted, count: MemoryReader(views).read(wanted, count)
        tokens = Tokens({token_hash(key): holder for key, holder in HOLDERS.items()})
        self.gateway = Gateway(
            declared, self.river, LogLookup(declared, self.pipeline.broker, lambda *_: {}, lambda *_: None),
            Access(tokens, reading_is_free=False, count_refused=self.refused.append, setting="TIDEMILL_GATEWAY_KEYS"),
            Rates(rate), self.store, WhatIf(declared, self.store, lambda: Learned(self.pipeline)),
            commands or Status(),
        )  # fmt: skip
        self.app = build(self.gateway)
        self.client = TestClient(
            self.app, headers={"Authorization": f"Bearer {BOTH_KEY}"}, raise_server_exceptions=False
        )

    def __enter__(self) -> Shop:
        self.client.__enter__()
        while self.client.get("/readyz").status_code != 200:
            pass
        return self

    def __exit__(self, *error: object) -> None:
        self.client.__exit__(*error)

    def predict(self, event: Any, code: int | None = 200, /, timeout_ms: int = 5000, **headers: str) -> Any:
        answer = self.client.post(f"/v1/predict?timeout_ms={timeout_ms}", json=event, headers=headers)
        assert code is None or answer.status_code == code, answer.text
        return answer.json()

    def predictions(self) -> list[Any]:
        records = self.pipeline.broker.records(topics.PREDICTIONS.name(self.pipeline.declaration.name))
        return [self.pipeline.records.read_prediction(record.value()) for record in records]

    def sent_events(self) -> int:
        return sum(topic.endswith(".events") for topic, *_ in self.sender.sent)
