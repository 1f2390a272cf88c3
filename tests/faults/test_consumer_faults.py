"""Faults 41 to 43: consumers that are killed, rebalanced under load, and given records that nobody can handle."""

import sqlite3
import threading
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import psycopg
import pytest

from hiveio.consumer.dead_letters.format import headers_of
from tests.integration.consumers import wire
from tests.integration.topics import Written, committed, make_topic, read_all, write
from tests.process import Role, wait_until
from tests.services import Kafka

pytestmark = pytest.mark.kafka

# Effects go to a file in one write each, so they outlive the process that had them: key, amount, process.
EFFECTS = """
import asyncio, os, signal
from hiveio import Actor, Context, Event

class Deposited(Event):
    amount: int

def effect(text):
    with open(os.environ["EFFECTS"], "a") as file:
        file.write(text + "\\n")

class Effects(Actor):
    async def perform(self, event: Deposited, context: Context) -> None:
        mode = os.environ.get("MODE", "")
        if mode == "slow":
            effect(f"begin {context.partition} {os.getpid()} {event.amount}")
            await asyncio.sleep(float(os.environ["SLOW"]) if event.amount % 1000 == 7 else 0.002)
        if mode == "poison" and event.amount % 10 == 3:
            raise ValueError(f"{event.amount} is poison")
        effect(f"{context.id} {event.amount} {os.getpid()} {context.partition}")
        if str(event.amount) == os.environ.get("KILL_AT"):
            os.kill(os.getpid(), signal.SIGKILL)
"""

# The process is killed wherever it is then: in an effect, at a commit, between two groups of events. Where the timer is
# late, the count ends it, so that it never comes to the end of the topic.
ONCE = """
import os, random, signal, threading
from hiveio import Context, Event
from hiveio.projection import SqliteProjection
from hiveio.projection.postgres import PostgresProjection

class Deposited(Event):
    amount: int

class Killed:
    killer = None
    begun = 0

    def begin(self):
        self.begun += 1
        if self.begun == 2_000 and os.environ["KILL"]:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.killer is None and os.environ["KILL"]:
            wait_s = random.uniform(0, float(os.environ["KILL"]))
            self.killer = threading.Timer(wait_s, os.kill, (os.getpid(), signal.SIGKILL))
            self.killer.start()

class Sqlite(Killed, SqliteProjection):
    database = os.environ["DATABASE"]
    tables = "CREATE TABLE IF NOT EXISTS line (amount INTEGER)"

    def perform(self, event: Deposited, context: Context) -> None:
        self.begin()
        self.once(context, lambda db: db.execute("INSERT INTO line VALUES (?)", (event.amount,)))

class Postgresql(Killed, PostgresProjection):
    tables = "CREATE TABLE IF NOT EXISTS line (amount BIGINT)"

    async def perform(self, event: Deposited, context: Context) -> None:
        self.begin()
        await self.once(context, lambda db: db.execute("INSERT INTO line VALUES (%s)", (event.amount,)))
"""


def environ(kafka: Kafka, topic: str, **more: object) -> dict[str, str]:
    return {
        "EVENT_STORE_BROKERS": kafka.brokers,
        "EVENT_STORE_TOPIC": topic,
        "EVENT_STORE_GROUP_ID": topic,
        "EVENT_STORE_FROM_START": "true",
        "CONSUMER_BACKOFF": "1",
        **{name: str(value) for name, value in more.items()},
    }


def events(amounts: Sequence[int], partition: int = 0, keys: int = 5) -> list[Written]:
    return [(partition, f"k{partition}-{amount % keys}", wire(amount), {}) for amount in amounts]


@pytest.fixture
def effects(tmp_path: Path) -> Path:
    (tmp_path / "effects.py").write_text(EFFECTS)
    (tmp_path / "once.py").write_text(ONCE)
    path = tmp_path / "effects.txt"
    path.touch()
    return path


def lines(path: Path) -> list[list[str]]:
    return [line.split() for line in path.read_text().splitlines() if not line.startswith("begin")]


@pytest.mark.fault(41)
def test_41_killed_after_the_effect_and_before_the_offset(kafka: Kafka, topic: str, effects: Path) -> None:
    make_topic(kafka.brokers, topic)
    write(kafka.brokers, topic, events(range(2000)))
    settings = environ(kafka, topic, EFFECTS=effects, KILL_AT=700)
    # gunicorn starts a new worker for the one that was killed: it is killed at the same record, again and again
    with Role("consumer", settings, actor_path=effects.parent, module="effects", wait=False) as role:
        wait_until(lambda: sum(line[1] == "700" for line in lines(effects)) >= 3, 60, "three deaths")
        role.kill()
    with Role("consumer", settings | {"KILL_AT": ""}, actor_path=effects.parent, module="effects"):
        wait_until(lambda: "1999" in {line[1] for line in lines(effects)}, 60, "all events")
        wait_until(lambda: committed(kafka.brokers, topic, topic)[0] == 2000, 20, "the offset")
    amounts = [int(line[1]) for line in lines(effects)]
    assert set(amounts) == set(range(2000)), "skipped"
    assert Counter(amounts)[700] >= 4, "delivered again"
    assert amounts[-1300:] == [*range(700, 2000)]


@pytest.mark.fault(41)
@pytest.mark.parametrize("store", ["Sqlite", "Postgresql"])
def test_41_once_where_offset_and_effect_are_stored_together(
    kafka: Kafka, topic: str, effects: Path, store: str, request: pytest.FixtureRequest
) -> None:
    count = 20_000
    make_topic(kafka.brokers, topic)
    write(kafka.brokers, topic, events(range(count)))
    database, url = effects.parent / "projection.sqlite", ""
    if store == "Postgresql":
        url = request.getfixturevalue("postgres").url
        with psycopg.connect(url) as connection:
            connection.execute("DROP SCHEMA IF EXISTS projection CASCADE")
    settings = environ(kafka, topic, DATABASE=database, POSTGRES_URL=url, KILL=0.3 if url else 0.06)

    def booked() -> list[int]:
        if url:
            with psycopg.connect(url) as server:
                return [amount for (amount,) in server.execute("SELECT amount FROM projection.line ORDER BY amount")]
        with sqlite3.connect(database, timeout=10) as connection:
            return [amount for (amount,) in connection.execute("SELECT amount FROM line ORDER BY rowid")]

    with Role("consumer", settings, actor_path=effects.parent, module=f"once:{store}", wait=False) as role:
        pids: set[int] = set()

        def deaths() -> int:
            pids.update(worker.pid for worker in role.workers())
            return len(pids)

        wait_until(lambda: deaths() > 3, 90, "some deaths")
        role.kill()
    assert len(booked()) < count, "it was killed in the middle"
    with Role("consumer", settings | {"KILL": ""}, actor_path=effects.parent, module=f"once:{store}"):
        wait_until(lambda: len(booked()) >= count, 60, "all events")
    assert booked() == [*range(count)]


@pytest.mark.fault(42)
@pytest.mark.parametrize("protocol", ["consumer", "classic"])
def test_42_rebalances_under_load_with_a_handler_slower_than_the_poll_interval(
    kafka: Kafka, topic: str, effects: Path, protocol: str
) -> None:
    partitions = 4
    make_topic(kafka.brokers, topic, partitions)
    limit_ms = 3000 if protocol == "consumer" else 6000  # what the broker takes at least, with its session
    settings = environ(
        kafka, topic, EFFECTS=effects, MODE="slow", EVENT_STORE_BUFFER=20,
        KAFKA_GROUP_PROTOCOL=protocol, KAFKA_MAX_POLL_INTERVAL_MS=limit_ms, SLOW=limit_ms / 1000 + 1,
    )  # fmt: skip
    if protocol == "classic":
        settings["KAFKA_SESSION_TIMEOUT_MS"] = str(limit_ms)
    written = 0
    ended = threading.Event()

    def keep_writing() -> None:
        nonlocal written
        while not ended.wait(0.1):
            for at in range(partitions):
                first = at * 100_000 + written
                write(kafka.brokers, topic, events(range(first, first + 20), at))
            written += 20

    def seen() -> set[int]:
        return {int(line[1]) for line in lines(effects)}

    def busy() -> int:
        """Processes that handled something of late."""
        return len({line[2] for line in lines(effects)[-100:]})

    writer = threading.Thread(target=keep_writing)
    writer.start()
    first, second, third = (Role("consumer", settings, actor_path=effects.parent, module="effects") for _ in range(3))
    with first:
        try:
            wait_until(lambda: len(seen()) > 20, 60, "the first")
            with second:
                wait_until(lambda: busy() == 2, 60, "the second")
                with third:
                    wait_until(lambda: busy() == 3, 60, "the third")
            wait_until(lambda: busy() == 1, 60, "the first alone")
        finally:
            ended.set()
            writer.join()
        everything = {at * 100_000 + i for at in range(partitions) for i in range(written)}
        try:
            wait_until(lambda: seen() == everything, 60)
        except AssertionError:
            missing, more = sorted(everything - seen()), sorted(seen() - everything)
            raise AssertionError(f"missing {len(missing)}: {missing[:50]}; beyond {more[:9]}; {first.text()}") from None
        assert first.process.poll() is None
    assert at_once(effects) == []
    # A handler that is cancelled on revoke has no effect and is called again elsewhere; an offset whose commit came too
    # late is delivered again. Nothing is skipped, and each partition is in order.
    handled = defaultdict(list)
    for _, amount, _, at in lines(effects):
        handled[at].append(int(amount))
    for name, amounts in handled.items():
        assert list(dict.fromkeys(amounts)) == sorted(set(amounts)), f"partition {name}: out of order"


def at_once(path: Path) -> list[str]:
    """Records at which a process was at work while another one was at work in the same partition."""
    at_work: dict[str, tuple[str, str]] = {}  # partition → process and amount
    found = []
    for line in path.read_text().splitlines():
        if line.startswith("begin"):
            _, at, pid, amount = line.split()
            at_work[at] = (pid, amount)
        else:
            _, amount, pid, at = line.split()
            if at_work.get(at) != (pid, amount):
                found.append(f"partition {at}: {amount} by {pid}, while at work was {at_work.get(at)}")
    return found


@pytest.mark.fault(43)
def test_43_poison_and_a_handler_that_always_raises(kafka: Kafka, topic: str, effects: Path) -> None:
    make_topic(kafka.brokers, topic)
    garbage: list[Written] = [(0, "garbage", b"\xff{", {}), (0, "garbage", wire(1), {})]
    write(kafka.brokers, topic, [*events(range(300), keys=10), *garbage])
    settings = environ(kafka, topic, EFFECTS=effects, MODE="poison", CONSUMER_ATTEMPTS=3, EVENT_STORE_BUFFER=50)
    healthy = {amount for amount in range(300) if amount % 10 != 3}
    with Role("consumer", settings, actor_path=effects.parent, module="effects") as role:
        wait_until(lambda: {int(line[1]) for line in lines(effects)} == healthy, 60, "the others")
        wait_until(lambda: committed(kafka.brokers, topic, topic)[0] == 302, 20, "the offset")
        role.kill()
    dead_letters = [headers_of(message) for message in read_all(kafka.brokers, f"{topic}.{topic}.dead")]
    kept = [int(dead_letter["hive-dead-origin"].decode().rpartition("/")[2]) for dead_letter in dead_letters]
    assert kept == [*range(3, 300, 10), 300, 301], "the poison and those behind it, in order, each once"
    reasons = [dead_letter["hive-dead-reason"] for dead_letter in dead_letters]
    assert [reason for reason in reasons if reason != b"parked"] == [b"failed", b"undecodable"]
    with Role("consumer", settings | {"MODE": ""}, actor_path=effects.parent, module="effects"):
        write(kafka.brokers, topic, [(0, "k0-3", wire(303), {}), (0, "k0-4", wire(304), {})])
        wait_until(lambda: lines(effects)[-1][1] == "304", 30, "the next of another key")
        assert "303" not in {line[1] for line in lines(effects)}, "a parked key stays parked after a crash"
