"""Spans and metrics of real roles, as a collector sees them: joined from the request over Kafka to the consumer."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.collector import Collector
from tests.integration.topics import make_topic, read_all
from tests.process import Role, wait_until
from tests.services import Kafka, Redis

ACTOR = """
import logging
import sys

from hiveio import Actor, Command, Event, Model, Query, Rejected

log = logging.getLogger("accounts")

class Open(Command):
    owner: str
class Opened(Event):
    owner: str
class Account(Model):
    owner: str
class Modules(Query):
    path = "/modules"

class AccountActor(Actor):
    path = "/accounts/{id}"

    def perform(self, account: Account | None, command: Open) -> Opened:
        log.info("opening %s", command.owner)
        if command.owner == "nobody":
            raise Rejected("nobody opens nothing")
        if command.owner == "fault":
            raise KeyError(command.owner)
        return Opened(command.owner)

    def replay(self, account: Account | None, event: Opened) -> Account:
        return Account(event.owner)

class SlowActor(AccountActor):
    name = "AccountActor"

    async def perform(self, account: Account | None, command: Open) -> Opened:
        return super().perform(account, command)

class Register(Actor):
    def perform(self, message: Opened | Modules) -> list[str] | None:
        if isinstance(message, Modules):
            return sorted(sys.modules)
        log.info("registering %s", message.owner)
        return None
"""
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE, CALLER = PARENT.split("-")[1:3]
pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


def role(name: str, actor: str, *settings: dict[str, str], wait: bool = True, **more: str) -> Role:
    merged: dict[str, str] = {}
    for each in (*settings, more):
        merged |= each
    return Role(name, merged, actor=ACTOR, module=f"accounts:{actor}", wait=wait)


def store(kafka: Kafka, topic: str) -> dict[str, str]:
    return {
        "EVENT_STORE_BROKERS": kafka.brokers,
        "EVENT_STORE_TOPIC": topic,
        "EVENT_STORE_GROUP_ID": topic,
        "EVENT_STORE_FROM_START": "true",
    }


def post(service: Role, owner: str, id: str = "1", **headers: str | tuple[str, ...]) -> httpx.Response:
    """With a tuple the header occurs several times."""
    sent = [(name, each) for name, value in headers.items() for each in ((value,) if isinstance(value, str) else value)]
    return httpx.post(f"{service.url}/accounts/{id}", json={"owner": owner}, headers=sent, timeout=30)


def traceparents(kafka: Kafka, topic: str, name: str = "traceparent") -> list[str | None]:
    found = [dict(message.headers() or []).get(name) for message in read_all(kafka.brokers, topic)]
    return [value.decode() if isinstance(value, bytes) else value for value in found]


def tracestates(kafka: Kafka, topic: str) -> list[str | None]:
    return traceparents(kafka, topic, "tracestate")


def logged(service: Role, message: str) -> dict[str, Any]:
    line: dict[str, Any] = wait_until(lambda: next(iter(service.logs(message)), None), what=message)
    return line


def test_one_trace_from_the_request_over_the_producer_to_the_consumer(
    kafka: Kafka, topic: str, collector: Collector
) -> None:
    settings = store(kafka, topic) | collector.settings
    with (
        role("producer", "AccountActor", settings, TELEMETRY_SERVICE_NAME="till") as producer,
        role("consumer", "Register", settings, EVENT_STORE_ID="register") as consumer,
    ):
        assert post(producer, "Ada", traceparent=PARENT, tracestate=("a=1", "b=2")).status_code == 200
        served = collector.span("POST /accounts/{id}")
        sent = collector.span(f"send {topic}")
        processed = collector.span(f"process {topic}")
        assert logged(producer, "opening Ada")["span_id"] == served.id
        line = logged(consumer, "registering Ada")
        assert (line["trace_id"], line["span_id"]) == (TRACE, processed.id)
        numbers = {
            "http.server.request.duration": "s",
            "messaging.client.sent.messages": "{message}",
            "messaging.client.operation.duration": "s",
            "messaging.client.consumed.messages": "{message}",
            "messaging.process.duration": "s",
        }
        for name, unit in numbers.items():
            wait_until(partial(collector.points_of, name), 30, name)
            (point,) = collector.points_of(name)
            assert (point.total, point.unit) == (1, unit)
    assert producer.complaints() == consumer.complaints() == []
    assert {span.trace for span in (served, sent, processed)} == {TRACE}
    assert (served.parent, sent.parent, processed.parent) == (CALLER, served.id, sent.id)
    assert [span.kind for span in (served, sent, processed)] == ["server", "producer", "consumer"]
    assert traceparents(kafka, topic) == [sent.traceparent]
    assert tracestates(kafka, topic) == ["a=1,b=2"]
    assert served.attributes.items() >= {
        "http.request.method": "POST",
        "http.route": "/accounts/{id}",
        "http.response.status_code": 200,
        "url.path": "/accounts/1",
        "url.scheme": "http",
    }.items()  # fmt: skip
    shared = {
        "messaging.system": "kafka",
        "messaging.destination.name": topic,
        "messaging.destination.partition.id": "0",
        "messaging.kafka.offset": 0,
        "messaging.kafka.message.key": "1",
    }
    send = {"messaging.operation.name": "send", "messaging.operation.type": "send", "messaging.client.id": "hiveio"}
    assert sent.attributes == shared | send
    process = {
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.consumer.group.name": topic,
        "messaging.client.id": "register",
    }
    assert processed.attributes == shared | process
    assert (sent.resource["service.name"], processed.resource["service.name"]) == ("till", "register")
    assert sent.resource["service.instance.id"] != processed.resource["service.instance.id"]


@pytest.mark.parametrize("actor", ["AccountActor", "SlowActor"])
def test_one_trace_over_a_transaction_to_its_events(
    kafka: Kafka, redis: Redis, topic: str, collector: Collector, actor: str
) -> None:
    settings = store(kafka, topic) | collector.settings | {"CACHE_URL": redis.url}
    with (
        role("stream-processor", actor, settings) as processor,
        role("consumer", "Register", settings),
    ):
        answer = post(processor, "Ada", traceparent=PARENT, tracestate=("a=1", "b=2"))
        assert answer.status_code == 200, answer.text
        served = collector.span("POST /accounts/{id}")
        transaction = collector.span("transaction AccountActor")
        sent = collector.span(f"send {topic}")
        processed = collector.span(f"process {topic}")
        # The actor does not perform in the task of the request, and still speaks in its name.
        line = logged(processor, "opening Ada")
        assert (line["trace_id"], line["span_id"]) == (TRACE, transaction.id)
        assert line["request_id"] == answer.headers["x-request-id"]
        assert post(processor, "nobody", "2").status_code == 422
        refused = collector.span("transaction AccountActor", hive_aggregate_id="2")
        assert post(processor, "fault", "3").status_code == 500
        fault = collector.span("transaction AccountActor", hive_aggregate_id="3")
        bad = httpx.post(f"{processor.url}/accounts/4", content=b"{")
        assert bad.status_code == 400
        unread = collector.span("POST /accounts/{id}", url_path="/accounts/4")
        failed = collector.span("POST /accounts/{id}", url_path="/accounts/3")
    assert (transaction.kind, transaction.attributes) == (
        "internal",
        {"hive.actor": "AccountActor", "hive.aggregate.id": "1", "hive.position": answer.headers["hive-position"]},
    )
    assert {span.trace for span in (served, transaction, sent, processed)} == {TRACE}
    assert (served.parent, transaction.parent) == (CALLER, served.id)
    assert (sent.parent, processed.parent) == (transaction.id, sent.id)
    assert traceparents(kafka, topic) == [sent.traceparent]
    assert tracestates(kafka, topic) == ["a=1,b=2"]
    assert (sent.kind, sent.attributes["messaging.destination.partition.id"]) == ("producer", "0")
    assert (refused.attributes["error.type"], refused.error) == ("Rejected", False)
    assert (fault.attributes["error.type"], fault.error) == ("KeyError", True)
    assert (unread.attributes["http.response.status_code"], unread.error) == (400, False)
    assert (failed.attributes["error.type"], failed.error) == ("500", True)


@pytest.mark.parametrize("actor", ["AccountActor", "SlowActor"])
def test_the_log_lines_of_a_busy_aggregate_name_their_own_request(
    kafka: Kafka, redis: Redis, topic: str, actor: str
) -> None:
    """Its commands wait in one queue, and whoever comes first performs those behind it."""
    with (
        role("stream-processor", actor, store(kafka, topic), CACHE_URL=redis.url) as processor,
        ThreadPoolExecutor(20) as pool,
    ):
        names = [f"owner-{number}" for number in range(200)]
        answers = pool.map(lambda name: post(processor, name, **{"x-request-id": name}).status_code, names)
        assert set(answers) == {200}
        lines = [line for line in processor.logs() if line["logger"] == "accounts"]
    assert {line["message"] for line in lines} == {f"opening {name}" for name in names}
    assert all(line["message"] == f"opening {line['request_id']}" for line in lines)


@pytest.mark.parametrize("off", [{}, {"TELEMETRY": "true", "OTEL_SDK_DISABLED": "true"}], ids=["off", "disabled"])
def test_the_trace_of_a_client_goes_through_where_telemetry_is_off(
    kafka: Kafka, redis: Redis, topic: str, off: dict[str, str]
) -> None:
    settings = store(kafka, topic) | off
    with role("stream-processor", "AccountActor", settings, CACHE_URL=redis.url) as processor:
        assert post(processor, "Ada", traceparent=PARENT, tracestate=("a=1", "b=2")).status_code == 200
        assert post(processor, "Bob", tracestate="a=1").status_code == 200
        assert post(processor, "Eve", traceparent="x" * 1000).status_code == 200
        others: tuple[str | tuple[str, ...], ...] = (
            (PARENT, PARENT),
            "00-" + "0" * 32 + PARENT[35:],
            PARENT[:36] + "0" * 16 + "-01",
            "ff" + PARENT[2:],
        )
        for number, parent in enumerate(others):
            assert post(processor, "Eve", str(number + 2), traceparent=parent).status_code == 200
        wait_until(lambda: len(read_all(kafka.brokers, topic)) == 7, what="published")
    assert traceparents(kafka, topic) == [PARENT, *[None] * 6]
    assert tracestates(kafka, topic) == ["a=1,b=2", *[None] * 6]
    records = [message.value() or b"" for message in read_all(kafka.brokers, f"{topic}.transactions")]
    assert [b'"trace":' in record for record in records] == [False, True, *[False] * 6]


def test_where_it_is_off_nothing_is_imported(kafka: Kafka, topic: str) -> None:
    make_topic(kafka.brokers, topic)
    with role("consumer", "Register", store(kafka, topic)) as consumer:
        modules = httpx.get(consumer.url + "/modules").json()
    assert "hiveio.http" in modules
    assert not [
        name for name in modules if name.startswith(("opentelemetry", "google", "requests", "hiveio.telemetry"))
    ]


def test_a_trace_that_is_not_sampled_goes_on_as_that(kafka: Kafka, topic: str, collector: Collector) -> None:
    settings = store(kafka, topic) | collector.settings | {"OTEL_TRACES_SAMPLER": "parentbased_always_off"}
    with role("producer", "AccountActor", settings) as producer:
        assert post(producer, "Ada").status_code == 200
        assert post(producer, "Bob", traceparent=PARENT.removesuffix("1") + "0").status_code == 200
        assert post(producer, "Eve", traceparent=PARENT).status_code == 200
        served = collector.span("POST /accounts/{id}")
        wait_until(lambda: sum(p.total for p in collector.points_of("messaging.client.sent.messages")) == 3, 30)
    assert served.parent == CALLER
    assert {span.trace for span in collector.spans} == {TRACE}
    first, second, third = (value or "" for value in traceparents(kafka, topic))
    assert [int(value[-2:], 16) & 1 for value in (first, second, third)] == [0, 0, 1]
    assert second[3:35] == third[3:35] == TRACE


def test_requests_of_two_workers_are_counted_and_probes_are_not(collector: Collector) -> None:
    with role("base", "AccountActor", collector.settings, CLUSTER_SIZE="2") as base:
        for _ in range(20):
            assert post(base, "Ada").status_code == 200
            assert httpx.get(base.url + "/nowhere").status_code == 404
        assert httpx.put(base.url + "/accounts/1").status_code == 405
    counted = collector.points_of("http.server.request.duration")
    assert sum(p.total for p in counted if p.attributes["http.response.status_code"] == 200) == 20
    assert {p.attributes["http.route"] for p in counted} == {"/accounts/{id}"}
    assert {span.name for span in collector.spans} == {"POST /accounts/{id}", "PUT /accounts/{id}"}
    assert len(collector.spans) == 21  # the last of them were sent at the end


def test_a_collector_that_is_away_or_refuses_costs_no_request(tmp_path: Path, collector: Collector) -> None:
    secret = tmp_path / "headers"
    secret.write_text("authorization=Bearer hunter2\n")
    away = collector.settings | {
        "OTEL_EXPORTER_OTLP_HEADERS_FILE": str(secret),
        "TELEMETRY_URL_TRACES": "http://127.0.0.1:1/v1/traces",
        "TELEMETRY_URL_METRICS": "http://127.0.0.1:1/v1/metrics",
    }
    with role("base", "AccountActor", away) as base:
        assert post(base, "Ada").status_code == 200
        wait_until(base.complaints, 30, "a word about the collector")
        assert post(base, "Ada").status_code == 200
        began = time.monotonic()
        assert base.stop() == 0
        assert time.monotonic() - began < 15
    assert "hunter2" not in base.text()
    with Collector({"authorization": "Bearer hunter2"}) as strict:
        with role("base", "AccountActor", strict.settings) as base:
            assert post(base, "Ada").status_code == 200
            wait_until(base.complaints, 30, "a word about the collector")
        assert strict.spans == []
        known = {"OTEL_EXPORTER_OTLP_HEADERS_FILE": str(secret), "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip"}
        with role("base", "AccountActor", strict.settings, known) as base:
            assert post(base, "Ada").status_code == 200
            strict.span("POST /accounts/{id}")
        assert base.complaints() == []
        assert "hunter2" not in base.text()


@pytest.mark.parametrize(
    ("environ", "line"),
    [
        (
            {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "OTEL_EXPORTER_OTLP_PROTOCOL='grpc' is wrong: it takes http/protobuf",
        ),
        (
            {"OTEL_TRACES_EXPORTER": "zipkin"},
            "OTEL_TRACES_EXPORTER='zipkin' is wrong: it takes none, otlp",
        ),
        ({"OTEL_TRACES_SAMPLER": "some"}, "OTEL_TRACES_SAMPLER='some' is wrong: it takes always_off"),
        ({"OTEL_EXPORTER_OTLP_HEADERS_FILE": "/no"}, "OTEL_EXPORTER_OTLP_HEADERS_FILE='/no' cannot be read"),
        ({"OTEL_EXPORTER_OTLP_COMPRESSION": "zip"}, "it takes deflate, gzip, none"),
        ({"TELEMETRY_URL_TRACES": "collector:4318"}, "TELEMETRY_URL_TRACES='collector:4318' is wrong: it takes a URL"),
        ({"TELEMETRY_PLUGINS": "{}"}, "TELEMETRY_PLUGINS={}: this setting is not supported yet; remove it"),
    ],
)
def test_a_wrong_variable_stops_the_start(environ: dict[str, str], line: str) -> None:
    with role("base", "AccountActor", {"TELEMETRY": "true"}, environ, wait=False) as base:
        assert base.ended() == 2
    assert len(base.errors) == 1
    assert line in base.errors[0]
