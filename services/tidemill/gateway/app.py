"""The HTTP interface of the gateway: each route needs a key; events and labels are JSON by the declared schemas."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from starlette._exception_handler import wrap_app_handling_exceptions
from starlette.types import Receive, Scope, Send

from tidemill import __version__
from tidemill.durations import FIRST_TIME_MS, LAST_TIME_MS
from tidemill.errors import BrokerError, Reject, Retry, SettingsError, StoreError
from tidemill.features.store import now
from tidemill.gateway import cloudevents, schemas
from tidemill.gateway.asking import CODES, Answer, Asked, Gateway, count
from tidemill.gateway.checking import split
from tidemill.gateway.commands import LEFT_TO_PEOPLE
from tidemill.gateway.requests import IDEMPOTENCY_KEY, Call, body_of, chunks, lines
from tidemill.limits import GATEWAY_QUESTIONS, GATEWAY_RECORDS, GATEWAY_STREAMS, Limit
from tidemill.metrics import GATEWAY_REQUESTS, GATEWAY_SECONDS
from tidemill.tokens import Holder, Permission
from tidemill.web import health
from tidemill.web.access import GuardedRoute, as_shown, needs, sees_personal, status_of
from tidemill.web.edge import HEADERS
from tidemill.wire.records import Prediction

DEFAULT_WAIT_MS, MAX_WAIT_MS = 5_000, 60_000
#: A stream that has nothing to tell says so this often, and hears as often whether the gateway ends.
HEARTBEAT_SECONDS, DRAIN_CHECK_SECONDS = 15.0, 1.0
PAGE = Path(__file__).parent / "page"
NDJSON = "application/x-ndjson"

#: A score to compare with; nan would fit none.
Bound = Annotated[float | None, Query(allow_inf_nan=False)]
Wait = Annotated[int, Query(ge=0, le=MAX_WAIT_MS, description="How long to wait for the prediction.")]
_wait: TypeAdapter[int] = TypeAdapter(Wait)


class CountedRoute(GuardedRoute):
    """A guarded route whose answers are counted and timed, and carry the request's ids."""

    def guard(self, handle: Callable[[Request], Any]) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle, seconds = super().guard(handle), GATEWAY_SECONDS.labels(self.path)
        requests = cache(GATEWAY_REQUESTS.labels)  # to look for a metric by its labels costs more than to count

        async def counted(request: Request) -> Response:
            began, code = time.perf_counter(), 500
            request.state.call = call = Call.of(request, self.path)
            request.state.body_bytes = 0
            try:
                response: Response = await handle(request)
                code = response.status_code
                response.headers.update(call.http_headers())
                return response
            except HTTPException as error:
                code = error.status_code
                error.headers = {**call.http_headers(), **(error.headers or {})}
                raise
            except RequestValidationError:
                code = 422
                raise
            finally:
                request.app.state.parts.body_bytes -= request.state.body_bytes
                call.end(code)
                requests(self.path, code).inc()
                seconds.observe(time.perf_counter() - began)

        return counted


class Application(FastAPI):
    """The routes; those that many requests are for are answered apart from them.

    FastAPI's layers and its search for arguments were about half of what the gateway itself does for a prediction.
    What the route does is the same, and so is what its errors are answered with.
    """

    def answer_apart(self, answers: Mapping[Callable[..., Any], Callable[[Request], Any]]) -> None:
        """Answer POST routes, by their endpoints, by functions of the request alone; their paths have no parameters."""
        routes = [route for route in router.routes if isinstance(route, CountedRoute) and route.endpoint in answers]
        self._apart = {(route.path, "POST"): route.guard(answers[route.endpoint]) for route in routes}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        answer = self._apart.get((scope.get("path", ""), scope.get("method", "")))
        if answer is None:
            await super().__call__(scope, receive, send)
            return
        scope.update({"app": self, "starlette.exception_handlers": (self.exception_handlers, {})})
        request = Request(scope, receive, send)

        async def answered(scope: Scope, receive: Receive, send: Send) -> None:
            response = await answer(request)
            await response(scope, receive, send)

        await wrap_app_handling_exceptions(answered, request)(scope, receive, send)


async def _index() -> FileResponse:
    return FileResponse(PAGE / "index.html", headers=HEADERS)


async def gateway_of(request: Request) -> Gateway:
    """Return what the application is made of."""
    gateway: Gateway = request.app.state.parts
    return gateway


class FeaturesRequest(BaseModel):
    """Entities by the event field that names them; perhaps only some views; as of when, in ms of event time."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"example": {"entities": {"dest": ["BOS", "LAX"]}, "at": "now"}}
    )

    entities: dict[str, list[Annotated[str, Field(max_length=500)]]]
    views: list[str] = []
    at: Annotated[int, Field(ge=FIRST_TIME_MS, le=LAST_TIME_MS)] | Literal["now", "latest"] = "now"


FromApp = Annotated[Gateway, Depends(gateway_of)]
router = APIRouter(prefix="/v1", route_class=CountedRoute)


def build(gateway: Gateway) -> FastAPI:
    """Return the application."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        gateway.river.start()
        yield
        await asyncio.get_running_loop().run_in_executor(None, gateway.river.stop)

    app = Application(
        title="Tidemill gateway",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        description=f"Ask the pipeline `{gateway.pipeline.name}`, and be answered by the river itself.",
    )
    app.state.parts = gateway
    for error in (BrokerError, Retry, SettingsError, StoreError):
        app.exception_handler(error)(_unavailable)
    app.exception_handler(RequestValidationError)(_invalid)
    app.include_router(health.router)
    app.include_router(router)
    app.get("/", include_in_schema=False)(_index)
    # What it shows of a prediction, and how, is as on the page of the status service.
    app.mount("/page", StaticFiles(directory=PAGE, packages=[("tidemill.watch.status", "page")]), name="page")
    alone = {endpoint: partial(_alone, endpoint) for endpoint in (events, labels, features)}
    app.answer_apart({predict: _predict, **alone})
    made = app.openapi
    app.openapi = lambda: schemas.completed(made(), gateway.pipeline)  # type: ignore[method-assign]
    return app


@router.post("/predict", openapi_extra=schemas.body("Event", "Events"), responses=schemas.ANSWERS)
@needs(Permission.PRODUCE)
async def predict(request: Request, gateway: FromApp, timeout_ms: Wait = DEFAULT_WAIT_MS) -> Response:
    """Send an event, and be answered with its prediction; or several, each with its own answer.

    202 after `timeout_ms`: the event is sent, and its prediction can be asked for. An id that came before is not sent
    again: it has the first answer.
    """
    began = time.monotonic()
    gateway.check_ready()
    records, is_list = await _records(request, gateway, GATEWAY_QUESTIONS)
    gateway.check_behind()
    call = request.state.call
    asked = [gateway.send_event(record, call) for record in records]
    deadline = began + timeout_ms / 1000
    answers = [count("events", await gateway.predicted(one, deadline)) for one in asked]
    for answer in answers:
        answer["trace_id"] = call.trace_id
    if is_list:
        return _json(answers)
    response = _json(answers[0], CODES[answers[0]["state"]])
    if answers[0]["state"] == "predicted" and call.is_cloud_event:
        name, one = gateway.pipeline.name, answers[0]
        response.headers.update(cloudevents.answer_headers(name, one["event_id"], one["entity_id"]))
    return response


async def _predict(request: Request) -> Response:
    try:
        timeout_ms = _wait.validate_python(request.query_params.get("timeout_ms", DEFAULT_WAIT_MS))
    except ValidationError as error:
        raise _refused(error, "query", "timeout_ms") from None
    return await predict(request, request.app.state.parts, timeout_ms)


async def _alone(answer: Callable[[Request, Gateway], Any], request: Request) -> Response:
    response: Response = await answer(request, request.app.state.parts)
    return response


@router.post("/events", openapi_extra=schemas.body("Event", "Events", NDJSON), responses=schemas.OUTCOMES)
@needs(Permission.PRODUCE)
async def events(request: Request, gateway: FromApp) -> Response:
    """Send events without waiting for their predictions: answers what became of each once Kafka has it."""
    gateway.check_ready()
    return await _send(request, gateway, "events", gateway.send_event)


@router.post("/labels", openapi_extra=schemas.body("Label", "Labels", NDJSON), responses=schemas.OUTCOMES)
@needs(Permission.PRODUCE)
async def labels(request: Request, gateway: FromApp) -> Response:
    """Send labels: answers what became of each once Kafka has it."""
    gateway.check_ready()
    return await _send(request, gateway, "labels", gateway.send_label)


@router.get("/predictions/{event_id:path}", responses=schemas.ANSWERS | schemas.problems(404))
@needs(Permission.READ)
async def prediction(
    event_id: str, request: Request, gateway: FromApp, timeout_ms: Wait = 0, *, log: bool = False
) -> Response:
    """The prediction of an event, waiting for it until `timeout_ms`; `log`: look in the log for one that is older."""
    gateway.check_ready()
    known = gateway.river.events.get(event_id)
    if known is None and log and (logged := await gateway.in_log(event_id)):
        return _json(_shown(request, gateway, {"state": "predicted", **logged, "repeated": False}))
    event = await gateway.river.settled(event_id, timeout_ms / 1000) or gateway.river.events.get(event_id)
    if event is None:
        where = "in the log" if log else "among the latest here; log=true looks in the log"
        raise HTTPException(404, f"no prediction of event {event_id[:500]!r} {where}")
    answer = _shown(request, gateway, gateway.answer(event, event_id))
    return _json(answer, CODES[answer["state"]])


def _shown(request: Request, gateway: Gateway, known: Any) -> Any:
    """Return what was found as who asks may see it."""
    return as_shown(request, known, gateway.lookup.records.mask.named)


@router.post("/what-if", openapi_extra=schemas.body("Event"), responses=schemas.WHAT_IF)
@needs(Permission.READ)
async def what_if(request: Request, gateway: FromApp) -> Response:
    """What would be predicted of an event: its vector as of now, and every model's score. Nothing is written.

    It is a look at the stored views and the models in use: the river's own answer, made later, may differ.
    """
    records, is_list = await _records(request, gateway, GATEWAY_QUESTIONS)
    if is_list:
        raise HTTPException(422, "one event was expected")
    answer = await gateway.asked_what_if(records[0], request.state.call)
    return _json(_shown(request, gateway, answer), CODES[answer["state"]])


@router.post("/features", openapi_extra=schemas.json_body(FeaturesRequest), responses=schemas.FEATURES)
@needs(Permission.READ)
async def features(request: Request, gateway: FromApp) -> Response:
    """The online features of many entities in one call: as of now, or of any time, with their ages."""
    holder: Holder = request.state.holder
    try:
        asked = FeaturesRequest.model_validate_json(await body_of(request))
    except ValidationError as error:
        raise _refused(error, "body") from None
    request.state.subject = " ".join(f"{entity}={id_}" for entity, ids in asked.entities.items() for id_ in ids)
    entities = sum(map(len, asked.entities.values()))
    if entities > GATEWAY_QUESTIONS.max:
        raise HTTPException(413, GATEWAY_QUESTIONS.excess(entities))
    views = gateway.pipeline.views
    if unknown := asked.entities.keys() - {view.entity for view in views}:
        raise HTTPException(422, f"no view is kept of {min(unknown)[:100]!r}")
    if unknown := set(asked.views) - {view.label for view in views}:
        known_views = ", ".join(view.label for view in views)
        raise HTTPException(422, f"no view is called {min(unknown)[:100]!r}: it keeps {known_views}")
    gateway.rates.take(holder.name, entities)
    at = None if asked.at == "latest" else now() if asked.at == "now" else asked.at
    read = partial(gateway.store.get_many, asked.entities, at, asked.views)
    known = await asyncio.get_running_loop().run_in_executor(None, read)
    rows = [
        {
            "entity": entity,
            "entity_id": entity_id,
            "views": [{**one.as_dict(), "age_seconds": one.age_seconds, "stale": not one.whole} for one in several],
        }
        for (entity, entity_id), several in known.items()
    ]
    return _json([_shown(request, gateway, row) for row in rows])


@router.get("/example", responses=schemas.TRYING)
@needs(Permission.READ)
async def example(request: Request, gateway: FromApp) -> Response:
    """An event with a new id, and a label for it, to begin with: like the latest in the log.

    Where the records have personal fields, and the key is not for them, it is made up.
    """
    like_others = sees_personal(request) or not gateway.lookup.records.mask.is_on
    return _json(await gateway.looked_up(partial(gateway.journeys.example, like_others=like_others)))


@router.get("/journeys/{event_id:path}", responses=schemas.TRYING)
@needs(Permission.READ)
async def journey(event_id: str, request: Request, gateway: FromApp) -> Response:
    """An event's way through the river, from the log: as valid event, vector, scores and label, and where each is."""
    known = await gateway.looked_up(partial(gateway.journeys.of, event_id))
    if known is None:
        raise HTTPException(404, f"no prediction of event {event_id[:500]!r} in the log")
    return _json(_shown(request, gateway, known))


@router.post("/commands", status_code=202, openapi_extra=schemas.COMMAND, responses=schemas.COMMANDED)
@needs(Permission.COMMAND)
async def command(request: Request, gateway: FromApp) -> Response:
    """Ask the gate to promote, roll back, pin, unpin or train: the status service signs it. An id is carried out once.

    503: it was not given, nor will it be carried out later. 504: that is not known; send it again with the same id.
    """
    holder: Holder = request.state.holder
    body = await body_of(request)
    try:
        asked = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise HTTPException(422, f"a command as a JSON object was expected: {error}") from error
    request.state.subject = " ".join(str(asked.get(name, "")) for name in ("kind", "target", "id"))
    if asked.get("kind") in LEFT_TO_PEOPLE:
        raise HTTPException(403, f"{asked['kind']} is for people, at the status service")
    gateway.rates.take(holder.name, 1)
    code, answer = await gateway.commanded(partial(gateway.commands.send, asked, holder.name))
    return _relayed(code, answer)


@router.get("/commands/{command_id}", responses=schemas.COMMANDED)
@needs(Permission.COMMAND)
async def decision(command_id: str, gateway: FromApp) -> Response:
    """What the gate decided; null if it has not decided yet, or does not know the command."""
    return _relayed(*await gateway.commanded(partial(gateway.commands.decision, command_id)))


@router.get("/stream/predictions", responses=schemas.STREAM | schemas.problems(503))
@needs(Permission.READ)
async def stream(
    request: Request,
    gateway: FromApp,
    entity_id: str | None = None,
    model: str | None = None,
    min_score: Bound = None,
    max_score: Bound = None,
) -> Response:
    """Predictions as they come, as server-sent events: those of an entity, a model, or with a score in a range."""
    gateway.check_ready()
    if len(gateway.river.streams) >= GATEWAY_STREAMS.max:
        raise HTTPException(503, f"{GATEWAY_STREAMS.excess(GATEWAY_STREAMS.max + 1)}; close one")

    def fits(one: Prediction) -> bool:
        champion = one["champion"]
        return (
            entity_id in (None, one["entity_id"])
            and model in (None, champion["model"])
            and (min_score is None or champion["score"] >= min_score)
            and (max_score is None or champion["score"] <= max_score)
        )

    shown = partial(_shown, request, gateway)
    return StreamingResponse(_stream(request, gateway, fits, shown), media_type="text/event-stream")


async def _stream(
    request: Request,
    gateway: Gateway,
    fits: Callable[[Prediction], bool],
    shown: Callable[[Prediction], Any] = lambda one: one,
) -> AsyncIterator[bytes]:
    queue: asyncio.Queue[tuple[str, Prediction] | None] = asyncio.Queue()
    gateway.river.streams.add(queue)
    quiet = 0.0
    try:
        yield b": predictions from now on\n\n"
        while not gateway.is_draining and not await request.is_disconnected():
            try:
                item = await asyncio.wait_for(queue.get(), DRAIN_CHECK_SECONDS)
            except TimeoutError:
                quiet += DRAIN_CHECK_SECONDS
                if quiet >= HEARTBEAT_SECONDS:
                    quiet = 0.0
                    yield b": nothing new\n\n"
                continue
            if item is None:  # its reader is too slow
                yield b"event: lost\ndata: {}\n\n"
                return
            place, one = item
            if fits(one):
                data = msgspec.json.encode(shown(one))
                yield b"id: %s\nevent: prediction\ndata: %s\n\n" % (place.encode(), data)
    finally:
        gateway.river.streams.discard(queue)


async def _records(request: Request, gateway: Gateway, most: Limit) -> tuple[list[bytes], bool]:
    """Return the records of a body, and whether they came as a list, once its key may send so many."""
    holder: Holder = request.state.holder
    body = await body_of(request)
    try:
        is_cloud_event = request.state.call.is_cloud_event
        records, is_list = cloudevents.split(request, body) if is_cloud_event else split(body)
    except Reject as reject:
        raise HTTPException(422, str(reject)) from reject
    if len(records) > most.max:
        raise HTTPException(413, most.excess(len(records)))
    gateway.keys.check(holder.name, request, body)
    gateway.rates.take(holder.name, len(records))
    return records, is_list


async def _send(request: Request, gateway: Gateway, stream_name: str, send: Callable[[bytes, Call], Asked]) -> Response:
    """Send the records of a body as they come, and answer what became of each, in their order."""
    holder: Holder = request.state.holder
    is_ndjson = request.headers.get("content-type", "").partition(";")[0].strip().lower() == NDJSON
    asked: list[Asked] = []
    stopped: HTTPException | None = None
    if is_ndjson:
        try:
            async for line in lines(_parts(request, gateway)):
                if len(asked) >= GATEWAY_RECORDS.max:
                    raise HTTPException(413, GATEWAY_RECORDS.excess(len(asked) + 1))
                gateway.rates.take(holder.name, 1, may_overdraw=bool(asked))
                asked.append(send(line, request.state.call))
        except HTTPException as error:
            if not asked:
                raise
            stopped = error  # what became of those that are sent is answered all the same
        is_list = True
    else:
        records, is_list = await _records(request, gateway, GATEWAY_RECORDS)
        asked = [send(record, request.state.call) for record in records]
    answers = [count(stream_name, await gateway.written(one)) for one in asked]
    if is_ndjson:
        code, headers = (stopped.status_code, stopped.headers) if stopped else (200, None)
        if stopped:
            answers.append({"state": "unwritten", "message": f"{stopped.detail}: from here on nothing was read"})
        return Response(b"".join(msgspec.json.encode(one) + b"\n" for one in answers), code, headers, NDJSON)
    return _json(answers) if is_list else _json(answers[0], CODES[answers[0]["state"]])


async def _parts(request: Request, gateway: Gateway) -> AsyncIterator[bytes]:
    """Yield a body as it comes; only once all of it is here where a key stands for it."""
    if IDEMPOTENCY_KEY in request.headers:
        body = await body_of(request)
        gateway.keys.check(request.state.holder.name, request, body)
        yield body
        return
    async for part in chunks(request):
        yield part


#: An event is shown as it can be sent: its decimals as numbers.
_encode = msgspec.json.Encoder(decimal_format="number").encode


def _json(answer: Answer | list[Answer], code: int = 200) -> Response:
    headers = {"Retry-After": "1"} if code == 503 else None
    return Response(_encode(answer), code, headers, "application/json")


def _relayed(code: int, answer: bytes) -> Response:
    return Response(answer, code, {"Retry-After": "1"} if code in (429, 503) else None, "application/json")


def _refused(error: ValidationError, *place: str) -> RequestValidationError:
    """Return what FastAPI would have raised for this part of a request."""
    return RequestValidationError([{**one, "loc": (*place, *one["loc"])} for one in error.errors()])


async def _invalid(request: Request, error: Exception) -> Response:
    problems: Sequence[Any] = error.errors() if isinstance(error, RequestValidationError) else []
    detail = [{name: one[name] for name in ("loc", "msg", "type")} for one in problems]
    return _with_ids(request, _json({"detail": detail}, 422))


async def _unavailable(request: Request, error: Exception) -> Response:
    return _with_ids(request, _json({"detail": str(error)}, status_of(error)))


def _with_ids(request: Request, response: Response) -> Response:
    call: Call | None = getattr(request.state, "call", None)  # probes have none
    response.headers.update(call.http_headers() if call else {})
    return response
