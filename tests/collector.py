"""A collector of OpenTelemetry for tests: takes OTLP over HTTP, and shows what came."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.process import wait_until

KINDS = ("", "internal", "server", "client", "producer", "consumer")


class Span(NamedTuple):
    name: str
    kind: str
    trace: str
    id: str
    parent: str
    error: bool
    attributes: dict[str, Any]
    resource: dict[str, Any]

    @property
    def traceparent(self) -> str:
        return f"00-{self.trace}-{self.id}-01"


class Point(NamedTuple):
    """The latest value of one series; ``total`` is a counter's sum or the number of a histogram's observations."""

    total: int
    attributes: dict[str, Any]
    unit: str


class Collector:
    """Listens on a free port as a context manager. Takes only requests with these headers."""

    def __init__(self, headers: Mapping[str, str] | None = None) -> None:
        self.spans: list[Span] = []
        self.points: dict[tuple[str, str, str], Point] = {}  # by metric, instance and attributes
        collector, needed = self, dict(headers or {})

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers["content-encoding"] == "gzip":
                    body = gzip.decompress(body)
                welcome = all(self.headers[name] == value for name, value in needed.items())
                if welcome:
                    collector.take(self.path, body)
                self.send_response(200 if welcome else 401)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    @property
    def settings(self) -> dict[str, str]:
        """For a role that is to send here, soon."""
        return {
            "TELEMETRY": "true",
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.url,
            "OTEL_BSP_SCHEDULE_DELAY": "50",
            "OTEL_METRIC_EXPORT_INTERVAL": "100",
        }

    def span(self, name: str, **attributes: Any) -> Span:
        """The first span of this name with these attributes (``_`` for ``.``), once it has come."""

        def found() -> Span | None:
            for span in list(self.spans):
                if (
                    span.name == name
                    and attributes.items()
                    <= {key.replace(".", "_"): value for key, value in span.attributes.items()}.items()
                ):
                    return span
            return None

        span: Span = wait_until(found, 30, f"a span {name} {attributes} among {[s.name for s in self.spans]}")
        return span

    def points_of(self, name: str) -> list[Point]:
        return [point for (metric, _, _), point in list(self.points.items()) if metric == name]

    def take(self, path: str, body: bytes) -> None:
        if path == "/v1/traces":
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                about = _plain(resource.resource.attributes)
                self.spans += [_span(span, about) for scope in resource.scope_spans for span in scope.spans]
        elif path == "/v1/metrics":
            for group in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                instance = _plain(group.resource.attributes)["service.instance.id"]
                for metric in (metric for scope in group.scope_metrics for metric in scope.metrics):
                    for point in metric.histogram.data_points or metric.sum.data_points:
                        attributes = _plain(point.attributes)
                        total = int(point.count if metric.HasField("histogram") else point.as_int)
                        self.points[metric.name, instance, repr(attributes)] = Point(total, attributes, metric.unit)


def _span(span: Any, resource: dict[str, Any]) -> Span:
    return Span(
        span.name,
        KINDS[span.kind],
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.status.code == 2,
        _plain(span.attributes),
        resource,
    )


def _plain(attributes: Any) -> dict[str, Any]:
    return {item.key: getattr(item.value, item.value.WhichOneof("value")) for item in attributes}
