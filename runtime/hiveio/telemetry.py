"""OpenTelemetry: spans and metrics of HTTP, send, process and transaction, joined over the ``traceparent`` header.

The only user of the OpenTelemetry SDK, imported where TELEMETRY is on and nowhere else. Names are those of the semantic
conventions for HTTP and messaging. What the ``OTEL_*`` variables say (sampler, exporter, batches, resource) is the
for the SDK to read; see docs/telemetry.md.
"""

import asyncio
import logging
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import msgspec
from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.metrics import Counter, Histogram
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from hiveio.actor import Contract
from hiveio.config import Settings
from hiveio.envelope import Envelope, Handler, Outcome
from hiveio.errors import ConfigError, Problem, text_of
from hiveio.headers import Headers, HeaderView, trace_context
from hiveio.http.edge import METHODS
from hiveio.service import Untraced
from hiveio.types import App, DeliveryFuture, Observer

FLUSH_S = 3.0  # at most, at the end
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)  # of the conventions
_ALLOWED = {
    "OTEL_EXPORTER_OTLP_PROTOCOL": {"http/protobuf"},
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": {"http/protobuf"},
    "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": {"http/protobuf"},
    "OTEL_EXPORTER_OTLP_COMPRESSION": {"none", "gzip", "deflate"},
    "OTEL_TRACES_EXPORTER": {"otlp", "none"},
    "OTEL_METRICS_EXPORTER": {"otlp", "prometheus", "none"},  # prometheus: /metrics is there in any case
    "OTEL_TRACES_SAMPLER": {
        *("always_on", "always_off", "traceidratio"),
        *("parentbased_always_on", "parentbased_always_off", "parentbased_traceidratio"),
    },
}

Attributes = dict[str, Any]


def check() -> None:
    """Raises ConfigError for ``OTEL_*`` variables that the SDK would ignore; reads the secret ones from files."""
    for name in ("", "TRACES_", "METRICS_"):
        name = f"OTEL_EXPORTER_OTLP_{name}HEADERS"
        if path := os.environ.get(f"{name}_FILE"):
            try:
                with open(path, encoding="utf-8") as file:
                    os.environ[name] = file.read().strip()
            except OSError as error:
                raise ConfigError(f"{name}_FILE={path!r} cannot be read: {error.strerror}") from None
    for name, allowed in _ALLOWED.items():
        value = os.environ.get(name, "").strip().lower()
        if value and value not in allowed:
            raise ConfigError(f"{name}={value!r} is wrong: it takes {', '.join(sorted(allowed))}")


class Telemetry(Untraced):
    """The spans and metrics of one worker. A Component of its service: it ends after all others, and flushes then.

    A collector that is away costs spans, never a request: the queue is bounded, and readiness does not ask for it.
    """

    name = "telemetry"
    active = True

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._traces, self._metrics = _providers(settings)
        trace.set_tracer_provider(self._traces)  # for the instrumentation that an actor brings along
        metrics.set_meter_provider(self._metrics)
        self._start = self._traces.get_tracer("hiveio").start_span
        self._extract = TraceContextTextMapPropagator().extract
        meter = self._metrics.get_meter("hiveio")

        def seconds(name: str) -> Histogram:
            return meter.create_histogram(name, unit="s", explicit_bucket_boundaries_advisory=SECONDS)

        def messages(name: str) -> Counter:
            return meter.create_counter(name, unit="{message}")

        self._http_seconds = seconds("http.server.request.duration")
        self._send_seconds = seconds("messaging.client.operation.duration")
        self._process_seconds = seconds("messaging.process.duration")
        self._sent = messages("messaging.client.sent.messages")
        self._consumed = messages("messaging.client.consumed.messages")
        for handler in logging.getLogger().handlers:
            handler.addFilter(_correlate)

    # -- component

    async def start(self) -> None:
        """Nothing is left to do: handlers are wrapped before any component starts."""

    async def stop(self) -> None:
        """Send what is left, within FLUSH_S. On a thread that nobody joins: the SDK would wait for up to a minute."""
        loop = asyncio.get_running_loop()
        flushed = asyncio.Event()

        def flush() -> None:
            self._traces.shutdown()
            self._metrics.shutdown()
            try:
                loop.call_soon_threadsafe(flushed.set)
            except RuntimeError:  # the loop is closed
                pass

        threading.Thread(target=flush, name="telemetry flush", daemon=True).start()
        try:
            async with asyncio.timeout(FLUSH_S):
                await flushed.wait()
        except TimeoutError:
            logging.getLogger("hiveio").warning(
                "the last spans could not be sent to the collector within %g s", FLUSH_S
            )

    async def ready(self) -> str | None:
        return None

    def alive(self) -> bool:
        return True

    # -- what is wrapped

    def serving(self, app: App, template: Callable[[bytes], str | None]) -> App:
        """A span and the duration of every request to an actor's path; probes and unknown paths have none."""

        async def serve(scope: Any, receive: Any, send: Any) -> None:
            path = template(scope["raw_path"]) if scope["type"] == "http" else None
            if path is None:
                return await app(scope, receive, send)
            method = scope["method"] if scope["method"] in METHODS else "_OTHER"
            labels: Attributes = {
                "http.request.method": method,
                "http.route": path,
                "url.scheme": scope["scheme"],
                "network.protocol.version": scope["http_version"],
            }
            headers = HeaderView(dict(scope["headers"]), scope["headers"])
            attributes = labels | {"url.path": scope["path"]}
            if agent := headers.get("user-agent"):
                attributes["user_agent.original"] = agent
            status = 0

            async def send_on(message: Any) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                await send(message)

            began = perf_counter()
            try:
                with self._current(
                    f"{method} {path}", SpanKind.SERVER, attributes, self._extract(trace_context(headers))
                ) as span:
                    try:
                        await app(scope, receive, send_on)
                    finally:
                        if status:
                            span.set_attribute("http.response.status_code", status)
                        if status >= 500:
                            labels["error.type"] = str(status)
                            span.set_attribute("error.type", str(status))
                            span.set_status(Status(StatusCode.ERROR))
            finally:
                if status:  # else the client hung up before there was an answer
                    labels["http.response.status_code"] = status
                    self._http_seconds.record(perf_counter() - began, labels)

        return serve

    def transacting(self, handler: Handler, contract: Contract) -> Handler:
        """A span from the command to its verdict; its context goes into the transaction's record and to its events."""
        name, actor = f"transaction {contract.name}", contract.name

        async def handle(envelope: Envelope) -> Outcome:
            attributes = {"hive.actor": actor, "hive.aggregate.id": envelope.id}
            with self._current(name, SpanKind.INTERNAL, attributes) as span:
                outcome = await handler(_carrying(envelope, span))
                if position := outcome.headers.get("Hive-Position"):
                    span.set_attribute("hive.position", position)
                return outcome

        return handle

    def processing(self, handler: Handler, group: str = "") -> Handler:
        """A span for each record that is handled, a child of the one that wrote it. Queries have that of their request.

        The handler is given every record's context (``Consumer(with_record=True)``). ``group`` is that of its consumer,
        where it is not EVENT_STORE_GROUP_ID.
        """
        group, client = group or self._settings.group_id, self._settings.client_id

        async def handle(envelope: Envelope) -> Outcome:
            record, count = envelope.record, 1
            if record is None:
                return await handler(envelope)
            if isinstance(record, list):  # a batch has the offset of its first event, and no single parent
                record, count = record[0], len(record)
            labels = _messaging("process", record.topic) | {"messaging.consumer.group.name": group}
            attributes = labels | {
                "messaging.client.id": client,
                "messaging.destination.partition.id": str(record.partition),
                "messaging.kafka.offset": record.offset,
                "messaging.kafka.message.key": (record.key or b"").decode("utf-8", "replace"),
            }
            if record is not envelope.record:
                attributes["messaging.batch.message_count"] = count
            parent = self._extract({} if record is not envelope.record else trace_context(record.headers))
            began = perf_counter()
            self._consumed.add(count, labels)
            try:
                with self._current(f"process {record.topic}", SpanKind.CONSUMER, attributes, parent) as span:
                    return await handler(_carrying(envelope, span))
            except BaseException as error:
                labels["error.type"] = type(error).__name__
                raise
            finally:
                self._process_seconds.record(perf_counter() - began, labels)

        return handle

    def observer(self) -> Observer:
        return self._sending

    def _sending(self, topic: str, key: str | bytes | None, headers: list[Any], stored: DeliveryFuture) -> list[Any]:
        """A span from a record's acceptance to its delivery report. Returns its headers with the span's context."""
        labels = _messaging("send", topic)
        attributes = labels | {"messaging.client.id": self._settings.client_id}
        if key:
            attributes["messaging.kafka.message.key"] = key if isinstance(key, str) else key.decode("utf-8", "replace")
        parent = None
        if not trace.get_current_span().get_span_context().is_valid:
            parent = self._extract(trace_context(Headers(headers)))
        span = self._start(f"send {topic}", parent, SpanKind.PRODUCER, attributes)
        began = perf_counter()

        def reported(done: DeliveryFuture) -> None:
            error = None if done.cancelled() else done.exception()
            if error is not None:
                labels["error.type"] = type(error).__name__
                _failed(span, error)
            elif not done.cancelled():
                partition, offset = done.result()
                span.set_attribute("messaging.destination.partition.id", str(partition))
                if offset >= 0:  # a publisher does not ask for it
                    span.set_attribute("messaging.kafka.offset", offset)
            span.end()
            self._sent.add(1, labels)
            self._send_seconds.record(perf_counter() - began, labels)

        stored.add_done_callback(reported)
        own = _own_context(span)
        return [*(pair for pair in headers if pair[0] not in own), *(pair for pair in own.items() if pair[1])]

    @contextmanager
    def _current(
        self, name: str, kind: SpanKind, attributes: Attributes, parent: Context | None = None
    ) -> Iterator[Span]:
        """A span that is the current one inside: of the log lines, and of what an actor's own libraries trace."""
        span = self._start(name, parent, kind, attributes)
        with trace.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
            try:
                yield span
            except BaseException as error:
                _failed(span, error)
                raise


def _providers(settings: Settings) -> tuple[TracerProvider, MeterProvider]:
    # Of each worker its own: two counting under one name would be one that jumps.
    resource = Resource.create({"service.instance.id": str(uuid.uuid4()), "process.pid": os.getpid()})
    name = settings.telemetry_service_name
    if not name and str(resource.attributes["service.name"]).startswith("unknown_service"):
        name = settings.client_id
    if name:
        resource = resource.merge(Resource({"service.name": name}))
    traces = TracerProvider(resource=resource, shutdown_on_exit=False)
    readers = []
    try:
        if _exporter("TRACES") == "otlp":
            exporter = OTLPSpanExporter(settings.telemetry_url_traces or None)
            traces.add_span_processor(BatchSpanProcessor(exporter))
        if _exporter("METRICS") == "otlp":
            readers.append(PeriodicExportingMetricReader(OTLPMetricExporter(settings.telemetry_url_metrics or None)))
    except (ValueError, OSError) as error:
        raise ConfigError(f"The OTEL_* variables cannot be used: {error}") from None
    return traces, MeterProvider(readers, resource, shutdown_on_exit=False)


def _exporter(signal: str) -> str:
    return os.environ.get(f"OTEL_{signal}_EXPORTER", "").strip().lower() or "otlp"


def _messaging(operation: str, topic: str | None) -> Attributes:
    return {
        "messaging.system": "kafka",
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        "messaging.destination.name": topic,
    }


def _carrying(envelope: Envelope, span: Span) -> Envelope:
    """The envelope with this span's context as its own: what it leads to names the span as its parent."""
    if not (own := _own_context(span)):
        return envelope
    return msgspec.structs.replace(envelope, headers=envelope.headers.replacing(own))


def _own_context(span: Span) -> dict[str, str]:
    """As headers. Empty where the SDK is disabled (OTEL_SDK_DISABLED) and no client has begun a trace."""
    context = span.get_span_context()
    if not context.is_valid:
        return {}
    parent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    return {"traceparent": parent, "tracestate": context.trace_state.to_header()}


def _failed(span: Span, error: BaseException) -> None:
    """Mark a span as failed. A refusal is an answer like others, and no error of the span."""
    span.set_attribute("error.type", type(error).__name__)
    if not isinstance(error, Problem) or error.status >= 500:
        span.set_status(Status(StatusCode.ERROR, text_of(error)))


def _correlate(record: logging.LogRecord) -> bool:
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        record.trace_id, record.span_id = f"{context.trace_id:032x}", f"{context.span_id:016x}"
    return True
