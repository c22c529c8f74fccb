"""Ask the gateway from Python: send events and labels, and have predictions and features; sync and async.

    from tidemill.client import Client

    with Client("http://localhost:8001", key) as gateway:
        prediction = gateway.predict(event)

Without arguments, address and key are those of TIDEMILL_GATEWAY_URL and TIDEMILL_GATEWAY_KEY. What fails on the way,
and what the gateway asks to be sent later, is sent again until the timeout. That can't double anything: an event's id
is predicted once, and of a label that comes again the joiner keeps the first.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Any, Literal, TypeVar
from urllib.parse import quote

try:
    import httpx
except ModuleNotFoundError as missing:  # pragma: no cover
    raise ModuleNotFoundError("the client needs httpx: pip install 'tidemill[client]'") from missing

from tidemill.errors import TidemillError
from tidemill.webhooks import WebhookError as WebhookError
from tidemill.webhooks import verify as verify

Event = Mapping[str, Any]
Result = TypeVar("Result")
#: What is done on the way to a result: a request to send, or seconds to wait.
Steps = Generator["httpx.Request | float", "httpx.Response | httpx.TransportError | None", Result]

#: The longest that one request waits for its prediction; a longer timeout is several requests.
MAX_WAIT_MS = 30_000
#: How long an answer may take beyond what it waits for.
ANSWER_SECONDS = 10.0
FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 0.05, 2.0
RETRIED_CODES = (429, 502, 503, 504)


class GatewayError(TidemillError):
    """The gateway can't be asked, or does not answer so: no key, another role, too much. `code` is 0 without answer."""

    def __init__(self, code: int, detail: str) -> None:
        super().__init__(f"the gateway answered {code}: {detail}" if code else detail)
        self.code = code


class PendingError(GatewayError):
    """The event was sent, and its prediction had not come in time: ask for it by its id."""

    def __init__(self, event_id: str) -> None:
        super().__init__(202, f"no prediction of event {event_id!r} yet")
        self.event_id = event_id


class RefusedError(GatewayError):
    """A record is refused, or its id is that of another one; the fields are those of its dead letter."""

    def __init__(self, answer: Mapping[str, Any]) -> None:
        super().__init__(409 if answer["state"] == "conflict" else 422, str(answer.get("message", answer["state"])))
        self.answer = dict(answer)
        self.event_id, self.reason = answer.get("event_id", ""), answer.get("reason", answer["state"])
        self.rule, self.field = answer.get("rule", ""), answer.get("field", "")


@dataclass(frozen=True)
class Prediction:
    """The prediction of one event. Times are ms since the epoch; see schemas/tidemill/prediction.v1.avsc.

    `repeated`: the id had come before, and this is its first answer.
    """

    event_id: str
    entity_id: str
    event_time: int
    model: str
    version: int
    epoch: int
    score: float
    probabilities: Mapping[str, float]
    answered: bool
    as_of: Mapping[str, int]
    stale: Sequence[str]
    repeated: bool = False
    trace_id: str = ""


def _prediction(answer: Mapping[str, Any]) -> Prediction:
    known = {**answer["champion"], **answer}
    return Prediction(**{field.name: known[field.name] for field in fields(Prediction) if field.name in known})


class _Calls:
    """What both clients do, as steps that each takes in its own way."""

    def __init__(self, url: str = "", key: str = "", *, timeout: float = 30.0, retries: bool = True) -> None:
        self.url = (url or os.environ.get("TIDEMILL_GATEWAY_URL", "http://localhost:8001")).rstrip("/")
        self._headers = {"Authorization": f"Bearer {key or os.environ.get('TIDEMILL_GATEWAY_KEY', '')}"}
        self.timeout, self.retries = timeout, retries

    def _ask(
        self, method: str, path: str, until: float, *, wait: bool = False, **content: Any
    ) -> Steps[tuple[int, Any]]:
        """Ask until there is an answer or the time is over; `wait`: the gateway waits for a prediction meanwhile."""
        pause, why = FIRST_PAUSE_SECONDS, GatewayError(0, f"no answer from {self.url} in time")
        params = content.pop("params", {})
        while True:
            left = until - time.monotonic()
            if wait:
                params["timeout_ms"] = str(max(0, min(MAX_WAIT_MS, int(left * 1000))))
            timeout = dict.fromkeys(("connect", "read", "write", "pool"), max(left, 0.0) + ANSWER_SECONDS)
            request = {"params": params, "headers": self._headers, "extensions": {"timeout": timeout}, **content}
            answer = yield httpx.Request(method, self.url + path, **request)
            if isinstance(answer, httpx.Response):
                if answer.status_code not in RETRIED_CODES and not (wait and answer.status_code == 202):
                    return answer.status_code, _content(answer)
                if answer.status_code == 202:
                    why = PendingError(str(_content(answer).get("event_id", "")))
                else:
                    why = GatewayError(answer.status_code, _detail(_content(answer)))
                    asked = answer.headers.get("retry-after", "")
                    pause = max(pause, float(asked)) if asked.isdigit() else pause
            else:
                why = GatewayError(0, f"{self.url}: {answer}")
            if not self.retries or time.monotonic() + pause >= until:
                raise why
            yield pause * random.uniform(0.5, 1.0)  # noqa: S311  clients that failed together come again apart
            pause = min(2 * pause, MAX_PAUSE_SECONDS)

    def _predict(self, event: Event, timeout: float | None) -> Steps[Prediction]:
        until = time.monotonic() + (self.timeout if timeout is None else timeout)
        code, answer = yield from self._ask("POST", "/v1/predict", until, wait=True, json=dict(event))
        return _prediction(_checked(code, answer))

    def _predict_all(self, events: Iterable[Event], timeout: float | None) -> Steps[list[Prediction | GatewayError]]:
        until = time.monotonic() + (self.timeout if timeout is None else timeout)
        body = [dict(event) for event in events]
        code, answers = yield from self._ask("POST", "/v1/predict", until, wait=True, json=body)
        results: list[Prediction | GatewayError] = []
        for one in _checked(code, answers):
            if one["state"] == "predicted":
                results.append(_prediction(one))
            elif one["state"] == "pending":
                results.append(PendingError(one["event_id"]))
            else:
                results.append(GatewayError(503, one["message"]) if one["state"] == "unwritten" else RefusedError(one))
        return results

    def _send(self, what: str, records: Iterable[Event]) -> Steps[list[dict[str, Any]]]:
        until, body = time.monotonic() + self.timeout, [dict(record) for record in records]
        code, answers = yield from self._ask("POST", f"/v1/{what}", until, json=body)
        return list(_checked(code, answers))

    def _find(self, event_id: str, timeout: float, *, log: bool) -> Steps[Prediction | None]:
        until, path = time.monotonic() + timeout, f"/v1/predictions/{quote(event_id, safe='')}"
        params = {"log": str(log).lower()}
        code, answer = yield from self._ask("GET", path, until, wait=True, params=params)
        return None if code == 404 else _prediction(_checked(code, answer))

    def _what_if(self, event: Event) -> Steps[dict[str, Any]]:
        code, answer = yield from self._ask("POST", "/v1/what-if", time.monotonic() + self.timeout, json=dict(event))
        return dict(_checked(code, answer))

    def _features(
        self, entities: Mapping[str, Sequence[str]], at: int | str, views: Sequence[str]
    ) -> Steps[list[dict[str, Any]]]:
        until = time.monotonic() + self.timeout
        body = {"entities": {name: list(ids) for name, ids in entities.items()}, "at": at, "views": list(views)}
        code, answers = yield from self._ask("POST", "/v1/features", until, json=body)
        return list(_checked(code, answers))


class Client(_Calls):
    """Asks the gateway, and waits for the answer; a context manager, which closes the connections.

    Parameters
    ----------
    url, key
        Where the gateway is, and a key; by default those of the environment.
    timeout
        How long a call may take with all its repetitions, in s.
    retries
        Whether to send again what failed on the way.
    http
        A client of httpx, as with certificates or a proxy of yours.
    """

    def __init__(
        self,
        url: str = "",
        key: str = "",
        *,
        timeout: float = 30.0,
        retries: bool = True,
        http: httpx.Client | None = None,
    ) -> None:
        super().__init__(url, key, timeout=timeout, retries=retries)
        self._http = http or httpx.Client()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._http.close()

    def predict(self, event: Event, timeout: float | None = None) -> Prediction:
        """Send an event and return its prediction. Raises PendingError, RefusedError, or another GatewayError."""
        return self._run(self._predict(event, timeout))

    def predict_all(self, events: Iterable[Event], timeout: float | None = None) -> list[Prediction | GatewayError]:
        """Send events and return for each, in their order, its prediction or why there is none."""
        return self._run(self._predict_all(events, timeout))

    def send(self, events: Iterable[Event]) -> list[dict[str, Any]]:
        """Send events without waiting for their predictions; returns what became of each once Kafka has it."""
        return self._run(self._send("events", events))

    def label(self, labels: Iterable[Event]) -> list[dict[str, Any]]:
        """Send labels; returns what became of each once Kafka has it."""
        return self._run(self._send("labels", labels))

    def prediction(self, event_id: str, timeout: float = 0.0, *, log: bool = False) -> Prediction | None:
        """Return the prediction of an event that was sent; None where none is known. `log`: also from the log."""
        return self._run(self._find(event_id, timeout, log=log))

    def features(
        self,
        entities: Mapping[str, Sequence[str]],
        at: int | Literal["now", "latest"] = "now",
        views: Sequence[str] = (),
    ) -> list[dict[str, Any]]:
        """Return what each view knows of entities, given by the event field that names them."""
        return self._run(self._features(entities, at, views))

    def what_if(self, event: Event) -> dict[str, Any]:
        """Return the vector of an event as of now, and every model's score; nothing is sent or written."""
        return self._run(self._what_if(event))

    def _run(self, steps: Steps[Result]) -> Result:
        answer: httpx.Response | httpx.TransportError | None = None
        while True:
            try:
                step = steps.send(answer)
            except StopIteration as end:
                result: Result = end.value
                return result
            answer = None
            if isinstance(step, float):
                time.sleep(step)
                continue
            try:
                answer = self._http.send(step)
            except httpx.TransportError as error:
                answer = error


class AsyncClient(_Calls):
    """Asks the gateway without holding up others; otherwise as `Client`."""

    def __init__(
        self,
        url: str = "",
        key: str = "",
        *,
        timeout: float = 30.0,
        retries: bool = True,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        super().__init__(url, key, timeout=timeout, retries=retries)
        self._http = http or httpx.AsyncClient()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def predict(self, event: Event, timeout: float | None = None) -> Prediction:
        """As `Client.predict`."""
        return await self._run(self._predict(event, timeout))

    async def predict_all(
        self, events: Iterable[Event], timeout: float | None = None
    ) -> list[Prediction | GatewayError]:
        """As `Client.predict_all`."""
        return await self._run(self._predict_all(events, timeout))

    async def send(self, events: Iterable[Event]) -> list[dict[str, Any]]:
        """As `Client.send`."""
        return await self._run(self._send("events", events))

    async def label(self, labels: Iterable[Event]) -> list[dict[str, Any]]:
        """As `Client.label`."""
        return await self._run(self._send("labels", labels))

    async def prediction(self, event_id: str, timeout: float = 0.0, *, log: bool = False) -> Prediction | None:
        """As `Client.prediction`."""
        return await self._run(self._find(event_id, timeout, log=log))

    async def features(
        self,
        entities: Mapping[str, Sequence[str]],
        at: int | Literal["now", "latest"] = "now",
        views: Sequence[str] = (),
    ) -> list[dict[str, Any]]:
        """As `Client.features`."""
        return await self._run(self._features(entities, at, views))

    async def what_if(self, event: Event) -> dict[str, Any]:
        """As `Client.what_if`."""
        return await self._run(self._what_if(event))

    async def _run(self, steps: Steps[Result]) -> Result:
        answer: httpx.Response | httpx.TransportError | None = None
        while True:
            try:
                step = steps.send(answer)
            except StopIteration as end:
                result: Result = end.value
                return result
            answer = None
            if isinstance(step, float):
                await asyncio.sleep(step)
                continue
            try:
                answer = await self._http.send(step)
            except httpx.TransportError as error:
                answer = error


def _content(answer: httpx.Response) -> Any:
    try:
        return answer.json()
    except ValueError:
        return {"detail": answer.text[:200]}


def _detail(content: Any) -> str:
    return (
        str(content.get("detail") or content.get("message") or content) if isinstance(content, dict) else str(content)
    )


def _checked(code: int, content: Any) -> Any:
    """Return an answer's content. Raises GatewayError for any but what was asked for."""
    if isinstance(content, dict) and content.get("state") in ("refused", "conflict"):
        raise RefusedError(content)
    if code != 200:
        raise GatewayError(code, _detail(content))
    return content
