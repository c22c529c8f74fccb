"""The gateway answers whatever is asked of it, by whoever: requests made up from its own schema."""

from __future__ import annotations

import json

import pytest
import schemathesis
from gateway_in_memory import BOTH_KEY, COMMANDERS_KEY, HOLDERS, READERS_KEY, SENDERS_KEY, Shop
from hypothesis import HealthCheck, settings
from small import declaration

from tidemill import Pipeline, load
from tidemill.encoding.json_schema import example, json_schema
from tidemill.tokens import Permission

pytestmark = pytest.mark.slow

_FUZZED = Shop(Pipeline(**declaration()))
_FUZZED.sender.is_running = False
_FUZZED.river.why_not_ready = ""
_SENDING = ("/v1/predict", "/v1/events", "/v1/labels")
_PUBLIC = ("/livez", "/readyz", "/metrics")
schema = schemathesis.openapi.from_dict(_FUZZED.app.openapi()).exclude(path="/v1/stream/predictions")  # never ends


@pytest.fixture(scope="module", autouse=True)
def _running():
    with _FUZZED:
        yield


@pytest.mark.parametrize(
    "key",
    [None, READERS_KEY, SENDERS_KEY, BOTH_KEY, COMMANDERS_KEY],
    ids=["nobody", "reader", "sender", "both", "commander"],
)
@schema.parametrize()
@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
def test_nothing_that_is_asked_makes_it_fail_or_answers_who_may_not_ask(
    case: schemathesis.Case, key: str | None
) -> None:
    if "timeout_ms" in (case.query or {}):
        case.query["timeout_ms"] = 1
    answer = _FUZZED.client.request(
        case.method,
        case.formatted_path,
        params={name: str(value) for name, value in (case.query or {}).items()},
        headers={"Authorization": f"Bearer {key}"} if key else {"Authorization": ""},
        content=json.dumps(case.body) if isinstance(case.body, (dict, list, int, float, bool)) else str(case.body),
    )
    assert answer.status_code < 500, answer.text
    is_route = answer.status_code != 405 and answer.text != '{"detail":"Not Found"}'  # methods are made up as well
    if str(case.path) in _PUBLIC or not is_route:
        return
    is_command = str(case.path).startswith("/v1/commands")
    needed = Permission.COMMAND if is_command else Permission.PRODUCE if str(case.path) in _SENDING else Permission.READ
    if key is None:
        assert answer.status_code in (401, 429)
    elif not HOLDERS[key].may(needed):
        assert answer.status_code == 403
    else:
        assert answer.status_code not in (401, 403)


@pytest.mark.parametrize("name", ["flights", "plain"])
def test_the_body_in_the_openapi_is_the_declared_schema(name: str) -> None:
    for stream in (load(name).events, load(name).labels):
        made = json_schema(stream.avro)
        assert [*made["properties"]] == [field["name"] for field in stream.avro["fields"]]
        assert set(example(stream.avro)) == set(made["properties"])
