"""Base, producer and consumer, each against its bare parts."""

import contextlib
import itertools
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
from confluent_kafka import Producer

from hiveio.kafka.delivery import Headers
from tests.bench.bench import BULK, Bench
from tests.bench.load import Request
from tests.bench.measure import Measure, Row, Sample, memory_mb
from tests.process import wait_until
from tests.services import Postgres

QUOTE = Request("POST", "/quotes", '{"type":"Quote","payload":{"amount":10000}}')
FETCHING = {"queued.min.messages": 10_000, "fetch.queue.backoff.ms": 10}  # as the role's poller has them
VISIT = Request(
    "POST", "/visits/{}", '{"type":"Visit","payload":{"page":"/products/17","duration_ms":1250}}', 1_000_000
)


def base(bench: Bench) -> None:
    """A POST that is decoded, validated, performed and answered, against bare ASGI on the same gunicorn."""
    with bench.bare() as bare, bench.bare("stock") as stock, bench.role("base", "bench:Quotes") as role:
        for clients in bench.clients:
            measures = {
                "bare ASGI": bench.http(bare, QUOTE, clients),
                "bare ASGI, gunicorn's own worker": bench.http(stock, QUOTE, clients),
                "hiveio/base": bench.http(role, QUOTE, clients),
            }
            bench.compare("base", clients, measures, "bare ASGI")
    bench.show("base")


def producer(bench: Bench) -> None:
    """A POST answered when Kafka has stored its event, against the Kafka client alone with the same settings."""
    topic, own = bench.make_topic(), bench.make_topic()
    with bench.bare() as bare, bench.role("producer", "bench:Visits", EVENT_STORE_TOPIC=topic) as role:
        for clients in bench.clients:
            linger_ms = 0 if clients < 8 else 1  # as the sender does
            measures = {
                "raw client, delivery awaited": bench.raw(
                    "producer", brokers=bench.kafka.brokers, topic=own, clients=clients,
                    seconds=bench.seconds, linger_ms=linger_ms,
                ),
                "bare ASGI": bench.http(bare, VISIT, clients),
                "hiveio/producer": bench.http(role, VISIT, clients),
            }  # fmt: skip
            sums = {"raw client + bare ASGI": ("raw client, delivery awaited", "bare ASGI")}
            bench.compare("producer", clients, measures, "raw client, delivery awaited", sums=sums)
    bench.show("producer")
    bench.check("producer: events", bench.stored(topic), role.acknowledged)


def consumer(bench: Bench) -> None:
    """A topic read from its start by an actor that does nothing, against a raw loop over the same topic."""
    topic = bench.make_topic()
    with bench.console.status(f"consumer: writing {bench.records:,} records"):
        fill(bench, topic)
    options = {"brokers": bench.kafka.brokers, "topic": topic, "records": bench.records}
    measures = {
        "raw loop": bench.raw("consumer", **options, config=FETCHING, steps=["headers", "value"]),
        "raw loop, librdkafka's own settings": bench.raw("consumer", **options, config={}, steps=["headers", "value"]),
        "raw loop without decoding": bench.raw("consumer", **options, config=FETCHING, steps=["headers"]),
        "raw loop without headers either": bench.raw("consumer", **options, config=FETCHING, steps=[]),
        "hiveio/consumer": lambda: consumed(bench, topic, "bench:Views"),
        "hiveio/consumer, lists": lambda: consumed(bench, topic, "bench:Lists"),
        "hiveio/consumer, 8 keys at once": lambda: consumed(bench, topic, "bench:Views", CONSUMER_CONCURRENCY="8"),
    }
    bench.compare("consumer", 0, measures, "raw loop")
    bench.show("consumer")


def projections(bench: Bench) -> None:
    """Events stored through once, one by one and in lists, against loops written by hand: SQLite and PostgreSQL."""
    records = max(20_000, bench.records // 4)
    topic = bench.make_topic()
    with bench.console.status(f"projections: writing {records:,} records"):
        fill(bench, topic, records)
    names = (f"b{number}" for number in itertools.count())
    loop: dict[str, Any] = {
        "brokers": bench.kafka.brokers, "topic": topic, "records": records, "config": FETCHING,
        "steps": ["headers", "value"],
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="hiveio-bench-") as folder, Postgres() as postgres:

        def by_hand(store: str) -> Measure:
            def measure() -> Sample:
                place = f"{folder}/{next(names)}" if store == "sqlite" else f"{postgres.url}#{next(names)}"
                return bench.raw("consumer", **loop, store=store, place=place)()

            return measure

        def served(actor: str) -> Measure:
            def measure() -> Sample:
                place = f"{folder}/{next(names)}" if actor.startswith("Sqlite") else next(names)
                module = f"stored:{actor}"
                return consumed(bench, topic, module, records, BENCH_DATABASE=place, POSTGRES_URL=postgres.url)

            return measure

        sqlite = {
            "SQLite, a loop by hand": by_hand("sqlite"),
            "SqliteProjection, one event at a time": served("Sqlite"),
            "SqliteProjection, lists": served("SqliteLists"),
        }
        postgresql = {
            "PostgreSQL, a loop by hand": by_hand("postgres"),
            "PostgresProjection, one event at a time": served("Postgres"),
            "PostgresProjection, lists": served("PostgresLists"),
        }
        bench.compare("projections", 0, sqlite, "SQLite, a loop by hand")
        bench.compare("projections", 0, postgresql, "PostgreSQL, a loop by hand")
    bench.show("projections")


def consumer_memory(bench: Bench) -> None:
    """Memory of the consumer's worker over a long topic (25 times --records: 10 million), at each third of it."""
    records, topic = 25 * bench.records, bench.make_topic()
    with bench.console.status(f"consumer-memory: writing {records:,} records"):
        fill(bench, topic, records, **{"compression.type": "lz4"})
    for actor, what, environ in (
        ("bench:Views", "one at a time", {}),
        ("bench:Lists", "lists", {}),
        ("bench:Views", "8 keys at once", {"CONSUMER_CONCURRENCY": "8"}),
    ):
        rss_mb: dict[str, float] = {}

        def look(count: int, worker: int, rss_mb: dict[str, float] = rss_mb) -> None:
            for name, part in (("MB at a third", 1), ("MB at two thirds", 2), ("MB at the end", 3)):
                if count >= records * part // 3:
                    rss_mb.setdefault(name, memory_mb(worker)["rss_mb"])

        with bench.console.status(f"consumer-memory: {what}"):
            sample = consumed(bench, topic, actor, records, look, **environ)
        bench.add([Row("consumer-memory", what, 0, (replace(sample, parts=rss_mb),))])
        shown = ", ".join(f"{value:.1f} {name}" for name, value in rss_mb.items())
        bench.note(f"{what}: {records:,} records, RSS of the worker {shown}")
    bench.show("consumer-memory")


def fill(bench: Bench, topic: str, records: int = 0, **more: str) -> None:
    """Records of about 200 bytes with four headers."""
    client = Producer(BULK | {"bootstrap.servers": bench.kafka.brokers} | more)
    value = b'{"type":"Visited","payload":{"page":"/products/%s","duration_ms":1250}}' % (b"17" * 60)
    shared: Headers = [
        ("hive-actor", b"Visits"),
        ("content-type", b"application/json"),
        ("traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
    ]
    for number in range(records or bench.records):
        client.produce(topic, value, b"%d" % (number % 10_000), 0, headers=[*shared, ("hive-id", b"%d.0" % number)])
        if number % 5_000 == 0:
            client.poll(0.1 if len(client) > 1_000_000 else 0)
    assert client.flush(60) == 0


def consumed(
    bench: Bench,
    topic: str,
    actor: str,
    records: int = 0,
    look: Callable[[int, int], None] = lambda count, worker: None,
    **more: str,
) -> Sample:
    """``look`` is shown, now and then, the number of records and the worker's process id."""
    records = records or bench.records
    environ = {
        "EVENT_STORE_TOPIC": topic,
        "EVENT_STORE_GROUP_ID": bench.topic(),
        "EVENT_STORE_FROM_START": "true",
        "BENCH_RECORDS": str(records),
        **more,
    }
    with bench.role("consumer", actor, **environ) as role, httpx.Client(base_url=role.url) as client:
        worker = role.workers()[0].pid

        def progress() -> list[list[float]] | None:
            time.sleep(0.1)  # to ask costs the worker time
            with contextlib.suppress(httpx.TransportError):
                found = client.get("/progress").json()
                look(found["count"], worker)
                if found["count"] >= records:
                    return found["clocks"]  # type: ignore[no-any-return]
            return None

        first, last = wait_until(progress, 120 + records / 20_000, f"{records} records are consumed")
    counted = last[2] - first[2]
    seconds, cpu_s = last[0] - first[0], last[1] - first[1]
    return Sample(counted / seconds, 0.0, 0.0, cpu_s / counted * 1e6)
