"""OTEL_* variables say whether spans are made, and where they go; what is wrong with them is said in one line."""

from __future__ import annotations

import builtins
import time

import pytest

from tidemill.errors import SettingsError
from tidemill.runtime.tracing import exporter_names, tracing
from tidemill.stream.trace import Traces

ENDPOINT = "http://localhost:4318"


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("variables", "names"),
    [
        ({}, []),
        ({"OTEL_TRACES_EXPORTER": ""}, []),
        ({"OTEL_SERVICE_NAME": "x"}, []),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, ["otlp_proto_http"]),
        ({"OTEL_TRACES_EXPORTER": "console, otlp"}, ["console", "otlp_proto_http"]),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ENDPOINT}, ["otlp_proto_http"]),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, ["otlp_proto_grpc"]),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ENDPOINT, "OTEL_TRACES_EXPORTER": "none"}, []),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ENDPOINT, "OTEL_SDK_DISABLED": "TRUE"}, []),
    ],
)
def test_they_are_opentelemetrys_own(variables: dict[str, str], names: list[str]) -> None:
    assert exporter_names(variables) == names


def test_without_them_nothing_of_opentelemetry_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refusing(name: str, *rest: object, **more: object) -> object:
        assert not name.startswith("opentelemetry")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refusing)
    with tracing("small.scorer") as traces:
        assert type(traces("scorer")) is Traces


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, ["OTEL_TRACES_EXPORTER", "'zipkin'", "otlp", "console"]),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, ["OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"]),
        ({"OTEL_TRACES_EXPORTER": "otlp_proto_grpc"}, ["opentelemetry-exporter-otlp-proto-grpc"]),
        ({"OTEL_TRACES_EXPORTER": "console", "OTEL_BSP_MAX_QUEUE_SIZE": "-1"}, ["OTEL_", "queue"]),
    ],
)  # fmt: skip
def test_a_wrong_one_is_named(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], words: list[str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as raised, tracing("small.scorer"):
        pass
    assert all(word.lower() in str(raised.value).lower() for word in words), raised.value


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", ENDPOINT)
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.sdk.trace.export", None)
    with pytest.raises(SettingsError, match=r"tidemill\[otel\]"), tracing("small.scorer"):
        pass


def test_the_process_names_the_spans_unless_a_variable_does(monkeypatch: pytest.MonkeyPatch) -> None:
    from tidemill.runtime.tracing import provider_of

    assert provider_of("small.scorer").resource.attributes["service.name"] == "small.scorer"
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=mine,deployment.environment.name=test")
    attributes = provider_of("small.scorer").resource.attributes
    assert (attributes["service.name"], attributes["deployment.environment.name"]) == ("mine", "test")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "named")
    assert provider_of("small.scorer").resource.attributes["service.name"] == "named"


@pytest.mark.slow
def test_a_collector_that_is_away_does_not_hold_up_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidemill.runtime.tracing.LAST_SPANS_SECONDS", 0.5)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    with tracing("small.gateway") as traces:
        _, end = traces("gateway").request(None, "GET", "/")
        end(200)
        began = time.monotonic()
    assert time.monotonic() - began < 3
