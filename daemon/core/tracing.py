"""OpenTelemetry spans, if the extra ``traces`` is installed and the environment names an endpoint.

The variables are OpenTelemetry's own, such as ``OTEL_EXPORTER_OTLP_ENDPOINT`` and ``OTEL_SERVICE_NAME``.
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
    """Send spans of this process to the endpoint of the environment and return whether there is one.

    Call it after a fork, because the exporter runs in a thread.
    """
    if not os.environ.get(ENDPOINT):
        return False
    if trace is None:
        log.warning(
            "traces are not sent, because OpenTelemetry is not installed", hint="pip install 'errata[traces]'"
        )
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
    """Record the block as a span below the open one, at almost no cost when tracing is off."""
    if trace is None:
        yield
        return
    named = {f"errata.{key}": value for key, value in attributes.items()}
    with trace.get_tracer("errata").start_as_current_span(f"errata.{name}", attributes=named):
        yield
