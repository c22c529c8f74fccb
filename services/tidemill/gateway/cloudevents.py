"""CloudEvents over HTTP: what comes in binary, structured or batched mode has records; a prediction is answered as one.

Source: CloudEvents 1.0, JSON format and HTTP protocol binding.
"""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import quote, unquote

import msgspec
from fastapi import Request

from tidemill.encoding.envelopes import event_data
from tidemill.errors import Reject
from tidemill.wire.cloudevents import TYPE

#: A CloudEvent; a list of them. In binary mode the content type is that of the data.
STRUCTURED, BATCHED = "application/cloudevents+json", "application/cloudevents-batch+json"
_ATTRIBUTE = "ce-"
#: What a header's value keeps as it is: what can be printed, but for blank, quotation mark and per cent.
_SAFE = "".join(set(map(chr, range(0x21, 0x7F))) - {'"', "%"})

_NOT_JSON = (msgspec.MsgspecError, RecursionError, ValueError)
_raw = msgspec.json.Decoder(msgspec.Raw).decode
_items = msgspec.json.Decoder(list[msgspec.Raw]).decode


def is_one(request: Request) -> bool:
    """Return whether a request brings CloudEvents."""
    return _form(request) in (STRUCTURED, BATCHED) or f"{_ATTRIBUTE}specversion" in request.headers


def split(request: Request, body: bytes) -> tuple[list[bytes], bool]:
    """Return a request's CloudEvents, each in structured mode, and whether they came as a list.

    Raises Reject where they are no JSON.
    """
    form = _form(request)
    try:
        if form == BATCHED:
            return [bytes(item) for item in _items(body)], True
        if form == STRUCTURED:
            return [body], False
        data = _raw(body)  # checked, so that it is one value
        return [msgspec.json.encode({**_attributes(request), "data": data})], False
    except _NOT_JSON as error:
        raise _not_json(error) from error


def data_of(event: bytes, fields: Collection[str]) -> bytes:
    """Return the data of a CloudEvent, with those of its attributes that are `fields`. Raises Reject."""
    try:
        return msgspec.json.encode(event_data(msgspec.json.decode(event), (), fields))
    except _NOT_JSON as error:
        raise _not_json(error) from error


def answer_headers(pipeline: str, event_id: str, entity_id: str) -> dict[str, str]:
    """Return the headers by which an answer is a CloudEvent in binary mode."""
    known = {"specversion": "1.0", "type": TYPE.decode(), "source": f"/tidemill/{pipeline}", "id": event_id}
    known |= {"subject": entity_id} if entity_id else {}
    return {_ATTRIBUTE + name: quote(value, safe=_SAFE) for name, value in known.items()}


def _form(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _attributes(request: Request) -> dict[str, str]:
    given = request.headers.items()
    return {name[len(_ATTRIBUTE) :]: unquote(value) for name, value in given if name.startswith(_ATTRIBUTE)}


def _not_json(error: Exception) -> Reject:
    return Reject("not_json", f"the CloudEvent has bytes that are no JSON: {error}")
