"""Whether spans are made and where they go, by OpenTelemetry's own variables (OTEL_*); without them nothing is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from tidemill.errors import SettingsError
from tidemill.stream.trace import Traces

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
#: How long a service that ends waits until its last spans are sent.
LAST_SPANS_SECONDS = 3.0

#: Takes a service's name; returns how it carries traces on.
TracesOf = Callable[[str], Traces]


def exporter_names(variables: Mapping[str, str]) -> list[str]:
    """Return the exporters that the variables name, as Python packages register them; none where no spans are made."""
    named = variables.get("OTEL_TRACES_EXPORTER", "")
    if variables.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return []
    if not named:
        named = "otlp" if any(variables.get(name) for name in _ENDPOINTS) else "none"
    protocol = next((variables[name] for name in _PROTOCOLS if variables.get(name)), "http/protobuf")
    if protocol not in ("http/protobuf", "grpc"):
        raise SettingsError(f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol!r}: expected http/protobuf or grpc")
    otlp = "otlp_proto_grpc" if protocol == "grpc" else "otlp_proto_http"
    names = [name.strip() for name in named.split(",")]
    return [otlp if name == "otlp" else name for name in names if name != "none"]


@contextmanager
def tracing(service: str) -> Iterator[TracesOf]:
    """Yield what returns how a service's traces are carried on; at the end its last spans are sent.

    `service` is the process, as other tools call it: `flights.scorer`. Raises SettingsError where a variable is wrong,
    or a package is missing.
    """
    names = exporter_names(os.environ)
    if not names:
        yield lambda _: Traces()
        return
    try:
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        exporters = [_exporter(name) for name in names]
        provider = provider_of(service, *map(BatchSpanProcessor, exporters))
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"OTEL_* variables ask for traces, which need {error.name}: pip install 'tidemill[otel]', or set "
            f"OTEL_SDK_DISABLED=true"
        ) from error
    except ValueError as error:  # what OpenTelemetry makes of a variable of its own
        raise SettingsError(f"a variable OTEL_* can't be used: {error}") from error
    try:
        yield traces_by(provider)
    finally:
        _close(provider)


def provider_of(service: str, *processors: SpanProcessor) -> TracerProvider:
    """Return a tracer provider of its own, whose spans go to these processors; OTEL_* name it, and say what it samples.

    It is not the global one: several services may share a process.
    """
    from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider

    resource = Resource({SERVICE_NAME: service}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=Resource.create().merge(resource), shutdown_on_exit=False)
    for processor in processors:
        provider.add_span_processor(processor)
    return provider


def traces_by(provider: TracerProvider) -> TracesOf:
    """Return what returns how a service's traces are carried on, with spans of this provider."""
    from tidemill import __version__
    from tidemill.stream.spans import Spans

    tracer = provider.get_tracer("tidemill", __version__)
    return lambda service: Spans(tracer, service)


def _exporter(name: str) -> SpanExporter:
    known = {entry.name: entry for entry in entry_points(group="opentelemetry_traces_exporter")}
    if name in known:
        made: SpanExporter = known[name].load()()
        return made
    if name == "otlp_proto_http":
        raise ModuleNotFoundError(name="opentelemetry.exporter.otlp")
    if name == "otlp_proto_grpc":
        raise SettingsError(
            "OTEL_EXPORTER_OTLP_PROTOCOL=grpc: pip install opentelemetry-exporter-otlp-proto-grpc, or set it to "
            "http/protobuf"
        )
    raise SettingsError(
        f"OTEL_TRACES_EXPORTER: no exporter {name!r}: expected otlp, {', '.join(sorted(known))} or none"
    )


def _close(provider: TracerProvider) -> None:
    """Send the last spans; what can't be sent in time is given up, for the service ends."""
    import threading

    closing = threading.Thread(target=provider.shutdown, daemon=True)
    closing.start()
    closing.join(LAST_SPANS_SECONDS)
