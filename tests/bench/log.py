"""A transaction log that is filled directly, and what it costs to fold it at a start without a cache."""

import time

import redis
from confluent_kafka import Producer

from hiveio.config import Settings
from hiveio.kafka.delivery import Headers
from hiveio.transaction import record as records
from hiveio.transaction.record import FORMAT, Commit, Format
from hiveio.transaction.rule import HASH
from tests.bench.bench import BULK, LOG, Bench, Served
from tests.bench.measure import RedisUsage, Row, Sample, Usage
from tests.process import ROOT, wait_until

ADDED = ("Tally", '{"type":"Added","payload":{"amount":5}}')
PAGE = 700_000  # bytes of a large snapshot
FILLED = ("Page", f'{{"type":"Filled","payload":{{"size":{PAGE}}}}}')
FEW = 1_000
BEGINS = "is folded from offset"  # in the line: the start of the process costs as much as some 10,000 records
PARTS = ("Redis µs", "Redis in", "Redis out")


def fold(bench: Bench) -> None:
    """A start without a cache: a record of each aggregate, many records of 1,000 aggregates, and large snapshots."""
    most, large = max(bench.aggregates), max(bench.records // 1_000, 3)
    cases = [
        (f"{most:,} aggregates, a record each", most, most, ADDED),
        (f"{most:,} records of {FEW:,} aggregates", most, FEW, ADDED),
        (f"{large:,} aggregates of 700 kB, a record each", large, large, FILLED),
    ]
    for what, count, aggregates, event in cases:
        topic = bench.topic()
        with bench.console.status(f"fold: writing a log of {count:,} records"):
            fill(bench, topic, count, aggregates, event)
        samples = []
        for number in range(bench.rounds):
            with bench.console.status(f"fold: {what}, round {number + 1} of {bench.rounds}"):
                samples.append(started(bench, topic, count, event))
        bench.add([Row("fold", what, 0, tuple(samples))])
    bench.show("fold", parts=PARTS)


def started(bench: Bench, topic: str, count: int, event: tuple[str, str]) -> Sample:
    """The fold of a start; afterwards the cache is empty again."""
    module = {"Tally": "tally:Tallies", "Page": "pages:Pages"}[event[0]]
    folder = ROOT / "tests" / ("actors" if event is ADDED else "integration")
    role = bench.role("stream-processor", module, EVENT_STORE_TOPIC=topic, ACTOR_PATH=str(folder))
    role.wait = False
    with role:
        sample = until_ready(bench, role, count)
    with redis.Redis.from_url(bench.redis.url) as client:
        for key in client.scan_iter(f"hive:{{{topic}.transactions*", 10_000):
            client.unlink(key)
    return sample


def until_ready(bench: Bench, role: Served, count: int) -> Sample:
    """From the line of the log with which a fold of ``count`` records begins, to readiness."""
    wait_until(lambda: any(BEGINS in line["message"] for line in role.logs()), 30, "the start of its fold")
    usage, cache, began = Usage(role.process.pid), RedisUsage(bench.redis.url), time.monotonic()
    role.ready(600)
    seconds, spent = time.monotonic() - began, usage.each_us(count)
    return Sample(count / seconds, 0, 0, spent.pop("all"), parts=spent | cache.each(count))


def fill(bench: Bench, topic: str, count: int, aggregates: int = 0, event: tuple[str, str] = ADDED) -> None:
    """A log that writes each of the aggregates in turn, and an event topic that says all is published.

    Without ``aggregates`` each record writes another one.
    """
    settings, aggregates = Settings(), aggregates or count
    name, body = event
    bench.make_topic(topic)
    bench.make_topic(f"{topic}.transactions", LOG)
    client = Producer(BULK | {"bootstrap.servers": bench.kafka.brokers})
    log = f"{topic}.transactions"
    first = Format(FORMAT, 1, HASH, settings.idempotency_count, settings.idempotency_time_s * 1000)
    client.produce(log, records.encode(first), b"format-bench", 0)
    for number in range(count):
        aggregate, version = f"{name}/{number % aggregates}", number // aggregates
        head = f"fill-{number - aggregates}" if version else ""
        text = (
            f'{{"kind":"commit","command":["{aggregate}","fill-{number}"],'
            f'"writes":[["{aggregate}","{head}",{version},[{body}]]]}}'
        ).encode()
        if not number:
            assert isinstance(records.decode(text), Commit)
        client.produce(log, text, b"fill-%d" % number, 0)
        if number % 5_000 == 0:
            client.poll(0)
    last = b"%d" % ((count - 1) % aggregates)
    headers: Headers = [("hive-position", b"0:%d:0" % count), ("hive-id", b"fill-%d.0" % (count - 1))]
    client.produce(topic, body.encode(), last, 0, headers=headers)
    assert client.flush(120) == 0
