"""The bare parts of each role, without the runtime: a process of its own, one JSON line as its result.

``python -m tests.bench.raw producer|consumer|parts OPTIONS`` with the options as one JSON object.
"""

import asyncio
import json
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from itertools import count
from typing import Any, cast

import msgspec
import psycopg
import redis
import uvloop
from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition

from hiveio.kafka.delivery import Headers
from hiveio.redis import Script
from hiveio.transaction.cache import Cache
from hiveio.transaction.entry import Watermark
from hiveio.transaction.rule import IdWindow
from tests.actors.bench import Visited
from tests.actors.stored import POSTGRES, SQLITE, TABLES

Options = dict[str, Any]
WINDOW = IdWindow(10_000, 3_600_000)  # as the settings have it by default
DURABLE = {"acks": "all", "enable.idempotence": True, "socket.nagle.disable": True}


def percentiles(taken: list[float]) -> dict[str, float]:
    ordered = sorted(taken)
    return {"p50_ms": ordered[len(ordered) // 2] * 1e3, "p99_ms": ordered[len(ordered) * 99 // 100] * 1e3}


# -- producer: the client alone, each delivery awaited on the event loop


async def producer(o: Options) -> dict[str, float]:
    """``clients`` tasks, each of which sends a record and awaits its delivery. Settings as the role's sender has them.

    Deliveries are handed to the loop in groups, which is the fastest way known to us.
    """
    loop = asyncio.get_running_loop()
    client = Producer(DURABLE | {"bootstrap.servers": o["brokers"], "linger.ms": o["linger_ms"]})
    reported: list[tuple[asyncio.Future[None], KafkaError | None]] = []
    ended = False

    def settle(group: list[tuple[asyncio.Future[None], KafkaError | None]]) -> None:
        for future, error in group:
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(RuntimeError(error.str()))

    def poll() -> None:
        nonlocal reported
        while not ended:
            client.poll(0.1)
            if reported:
                group, reported = reported, []
                loop.call_soon_threadsafe(settle, group)

    async def one(until: float) -> None:
        while (started := time.perf_counter()) < until:
            future: asyncio.Future[None] = loop.create_future()

            def report(error: KafkaError | None, message: Message, future: asyncio.Future[None] = future) -> None:
                reported.append((future, error))

            id = f"raw-{next(numbers)}"
            headers: Headers = [
                ("hive-actor", b"Visits"),
                ("content-type", b"application/json"),
                ("hive-id", id.encode()),
            ]
            client.produce(o["topic"], value, id, headers=headers, on_delivery=report)
            await future
            taken.append(time.perf_counter() - started)

    value = b'{"type":"Visited","payload":{"page":"/products/17","duration_ms":1250}}'
    numbers = count(1)
    taken: list[float] = []
    thread = threading.Thread(target=poll)
    thread.start()
    try:
        await one(time.perf_counter() + 0.3)  # connections and topic metadata
        taken.clear()
        started, cpu = time.perf_counter(), time.process_time()
        async with asyncio.TaskGroup() as group:
            for _ in range(o["clients"]):
                group.create_task(one(started + o["seconds"]))
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    finally:
        ended = True
        thread.join()
    return {"requests": len(taken), "failed": 0, "seconds": seconds, "cpu_s": cpu, **percentiles(taken)}


# -- consumer: a loop that consumes in batches, reads the headers, decodes the value, and may store it

Stored = tuple[str, int]


def into_sqlite(place: str) -> Callable[[list[Stored], int], None]:
    """A transaction a batch, with the position, in a file as SqliteProjection opens it."""
    db = sqlite3.connect(place, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.executescript(f"{TABLES}; CREATE TABLE position (next INTEGER); INSERT INTO position VALUES (0)")

    def store(rows: list[Stored], next: int) -> None:
        db.execute("BEGIN IMMEDIATE")
        for row in rows:
            db.execute(SQLITE, row)
        db.execute("UPDATE position SET next = ?", (next,))
        db.execute("COMMIT")

    return store


def into_postgres(place: str) -> Callable[[list[Stored], int], None]:
    """A transaction a batch, with the position, and a statement an event without waiting for its answer."""
    url, schema = place.rsplit("#", 1)
    db = psycopg.connect(url, autocommit=True, prepare_threshold=None)
    db.execute(f"CREATE SCHEMA {schema}")
    db.execute(f"SET search_path TO {schema}")
    db.execute(f"{TABLES}; CREATE TABLE position (next BIGINT); INSERT INTO position VALUES (0)")

    def store(rows: list[Stored], next: int) -> None:
        with db.transaction(), db.pipeline():
            for row in rows:
                db.execute(POSTGRES, row)
            db.execute("UPDATE position SET next = %s", (next,))

    return store


STORES = {"sqlite": into_sqlite, "postgres": into_postgres}


class Wire(msgspec.Struct, tag_field="type", tag="Visited"):
    payload: Visited
    meta: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


def consumer(o: Options) -> dict[str, float]:
    client = Consumer(
        {
            "bootstrap.servers": o["brokers"],
            "group.id": f"raw-{time.time_ns()}",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            **o["config"],
        }
    )
    client.assign([TopicPartition(o["topic"], 0, 0)])
    decode, steps = msgspec.json.Decoder(Wire).decode, o["steps"]
    seen, records, warm, clocks = 0, o["records"], o["records"] // 10, []
    store = STORES[o["store"]](o["place"]) if "store" in o else None
    while seen < records:
        rows: list[Stored] = []
        for message in client.consume(500, 1.0):
            assert message.error() is None, message.error()
            if "headers" in steps:
                position = None
                headers: Any = message.headers() or ()
                for name, text in headers:
                    if name == "hive-position":
                        position = text
                assert position is None or position
            if "value" in steps:
                value = message.value()
                assert value is not None
                event = decode(value)
                if store is not None:
                    key: Any = message.key()
                    rows.append((key.decode(), event.payload.duration_ms))
            seen += 1
            if seen in (warm, records):
                clocks.append((time.monotonic(), time.process_time()))
        if store is not None and rows:
            store(rows, seen)
    client.close()
    return {
        "requests": records - warm,
        "failed": 0,
        "seconds": clocks[-1][0] - clocks[0][0],
        "cpu_s": clocks[-1][1] - clocks[0][1],
        "p50_ms": 0.0,
        "p99_ms": 0.0,
    }


# -- stream processor: its Redis calls, the append and the read-back, one after the other


class Call(Exception):
    """A call to Redis, as the runtime's cache makes it."""


class Calls:
    """Takes the place of the Redis of a cache, and returns what would be sent."""

    def call(self, *call: Any) -> Any:
        raise Call(*call)


class Parts:
    """Rounds of ``clients`` commands at once: lock and begin in one write, append, read back, apply and unlock.

    The runtime's own scripts on keys like its own. Nothing overlaps, and nothing is decided.
    """

    def __init__(self, o: Options) -> None:
        self.o = o
        self.redis = redis.Redis.from_url(o["url"], protocol=2)
        self.shas = {name: self.redis.script_load(Script(name).text) for name in ("lock", "read", "apply")}
        self.producer = Producer(DURABLE | {"bootstrap.servers": o["brokers"], "linger.ms": 0})
        self.tail = Consumer(
            {"bootstrap.servers": o["brokers"], "group.id": "parts", "enable.auto.commit": False,
             "fetch.wait.max.ms": 100, "isolation.level": "read_uncommitted"}
        )  # fmt: skip
        self.cache = Cache(cast("Any", Calls()), o["topic"], "id", "raw")
        self.scope, self.mark = self.cache.scope(0), self.cache.mark(0)
        end = self.tail.get_watermark_offsets(TopicPartition(o["topic"], 0), 10)[1]
        self.watermark = Watermark(end, 0, "topic", "g")
        self.redis.set(self.mark, self.watermark.text)
        self.tail.assign([TopicPartition(o["topic"], 0, end)])
        self.numbers = count(1)
        self.begun: list[float] = []
        self.appended: list[float] = []
        self.applied: list[float] = []
        self.done = 0
        event = '{"type":"Added","payload":{"amount":5}}'
        self.record = (
            '{"kind":"commit","command":["Tally/%s","0123456789abcdef-%s"],'
            f'"writes":[["Tally/%s","0123456789abcdef-%s",1,[{event}]]]}}'
        )

    def scripts(self, *calls: tuple[str, str, list[Any]]) -> list[Any]:
        """One write, one read."""
        pipeline: Any = self.redis.pipeline(transaction=False)
        for name, key, arguments in calls:
            pipeline.execute_command("EVALSHA", self.shas[name], 1, key, *arguments)
        return list(pipeline.execute())

    def timed(self, into: list[float], step: Callable[[], None]) -> None:
        started = time.perf_counter()
        step()
        into.append(time.perf_counter() - started)

    def round(self) -> None:
        n = self.o["clients"]
        numbers = [next(self.numbers) for _ in range(n)]
        names = [f"Tally/{number % self.o['population']}" for number in numbers]
        distinct = list(dict.fromkeys(names))
        txs = {f"0123456789abcdef-{number}".encode() for number in numbers}

        locks = [2000, 260, 200, *(part for name in distinct for part in ("token", 0, 1, name, ""))]
        unlocks = [2000, 260, 200, *(part for name in distinct for part in ("token", -1, 1, name, ""))]

        def begin() -> None:
            reads = [1_000_000, *(part for name in distinct for part in (1, name, ""))]
            self.scripts(("lock", self.scope, locks), ("read", self.mark, reads))

        def append() -> None:
            for number, name in zip(numbers, names, strict=True):
                value = self.record % (name, number, name, number)
                self.producer.produce(self.o["topic"], value, f"0123456789abcdef-{number}", 0)
            self.producer.poll(0)
            waiting = set(txs)
            while waiting:
                first = self.tail.poll(10)
                assert first is not None, "nothing to read back"
                for message in (first, *self.tail.consume(2000, 0)):
                    assert message.error() is None, message.error()
                    waiting.discard(message.key())

        def apply() -> None:
            offset = self.watermark.offset
            to = self.watermark._replace(offset=offset + n, transaction="x")
            entries = [(name, b'1 0123456789abcdef-1 {"sum":5,"count":1}') for name in distinct]
            ids = [(f"7:{name}/{number}", f"{offset}:0:0") for number, name in zip(numbers, names, strict=True)]
            applying = self.cache.apply(
                0, self.watermark, to, "1" * n, entries, ids, IdWindow(10_000, 3_600_000), 0, (), (), ()
            )
            try:
                applying.send(None)
            except Call as call:
                _, key, _, arguments = call.args
            moved, _ = self.scripts(("apply", key, arguments), ("lock", self.scope, unlocks))
            assert moved[0] == 1, moved
            self.watermark = to

        self.timed(self.begun, begin)
        self.timed(self.appended, append)
        self.timed(self.applied, apply)
        self.done += n

    def run(self) -> dict[str, float]:
        warm = time.perf_counter() + 0.5
        while time.perf_counter() < warm:
            self.round()
        self.done = 0
        for taken in (self.begun, self.appended, self.applied):
            taken.clear()
        started, cpu = time.perf_counter(), time.process_time()
        while time.perf_counter() < started + self.o["seconds"]:
            self.round()
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        self.tail.close()
        # The answer goes out at the verdict: applying and unlocking come after it.
        answered = [sum(parts) for parts in zip(self.begun, self.appended, strict=True)]
        return {
            "requests": self.done,
            "failed": 0,
            "seconds": seconds,
            "cpu_s": cpu,
            **percentiles(answered),
            "begin_ms": percentiles(self.begun)["p50_ms"],
            "append_ms": percentiles(self.appended)["p50_ms"],
            "apply_ms": percentiles(self.applied)["p50_ms"],
        }


if __name__ == "__main__":
    what, options = sys.argv[1], json.loads(sys.argv[2])
    if what == "producer":
        result = uvloop.run(producer(options))
    else:
        result = consumer(options) if what == "consumer" else Parts(options).run()
    print(json.dumps(result))
