"""OpenTelemetry spans, where the extra ``traces`` is installed and an endpoint is named; otherwise nothing.

OpenTelemetry's own variables hold: ``OTEL_EXPORTER_OTLP_ENDPOINT``, ``OTEL_SERVICE_NAME`` and the others.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from daemon.core.log import get_logger

try:
    from opentelemetry import trace
except ImportError:  # the extra is not installed
    trace = None  # type: ignore[assignment]

log = get_logger("errata.traces")
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
_SERVICE = "OTEL_SERVICE_NAME"


def configure_tracing(service: str) -> bool:
    """Send spans of this process to the endpoint that the environment names; whether there is one.

    To be called after a fork: the exporter works in a thread.
    """
    if not os.environ.get(ENDPOINT):
        return False
    if trace is None:
        log.warning("no traces", hint="pip install 'errata[traces]'")
        return False
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create({"service.name": os.environ.get(_SERVICE, service)})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    return True


@contextmanager
def span(name: str, **attributes: str | int) -> Iterator[None]:
    """Time the block as a span below the one that is open; costs next to nothing where nobody listens."""
    if trace is None:
        yield
        return
    named = {f"errata.{key}": value for key, value in attributes.items()}
    with trace.get_tracer("errata").start_as_current_span(f"errata.{name}", attributes=named):
        yield
