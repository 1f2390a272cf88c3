"""Faults 69 to 73, and 84: what a consumer's store, the repeats of publishers, and its dead letters may meet."""

import asyncio
import uuid
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from hiveio import Context, Unavailable
from hiveio.cli import main
from hiveio.config import Settings
from hiveio.consumer.dead_letters.format import headers_of
from hiveio.kafka.session import MAX_GROUP, OVERLAPPING
from hiveio.projection import pipeline
from hiveio.projection.postgres import PostgresProjection
from tests.faults.proxy import PRODUCE, Passing, Proxy
from tests.faults.proxy import kafka as of_kafka
from tests.faults.stage import Broker
from tests.integration.consumers import Deposited, Recorder, member, plain, positioned, settings, wire
from tests.integration.test_dead_letters import QUICK, Choosy, Made, ask, keyed
from tests.integration.test_projection import Postgresql, at
from tests.integration.topics import committed, make_topic, read_all, write
from tests.process import wait_until
from tests.services import Kafka, Postgres, ServiceFailed
from tests.unit.consumer.consumer_memory import Partition

__all__ = ["settings"]

pytestmark = pytest.mark.kafka


@pytest.mark.fault(69)
async def test_69_the_connection_to_postgresql_is_cut_at_commit(
    kafka: Kafka, topic: str, settings: Made, postgres: Postgres
) -> None:
    """Before its effect or after it, which nobody can tell: it is tried again, and the effect is there once."""
    make_topic(kafka.brokers, topic)

    def is_commit(message: Passing) -> bool:
        return b"COMMIT" in message.request

    with Proxy(postgres.port) as proxy:
        url = postgres.url.replace(f":{postgres.port}/", f":{proxy.port}/")
        kind = type("Projected", (Postgresql,), {"url": url, "schema": f"s{uuid.uuid4().hex}"})
        async with member(settings(**QUICK | {"consumer_attempts": 1}), kind) as one:
            await one.until(one.partitions)
            for amount, gate in enumerate([proxy.up, proxy.down] * 2):
                gate.cut(is_commit, times=1)
                write(kafka.brokers, topic, plain([amount]))
                await one.until(lambda: one.consumer.counts.handled == amount + 1)  # noqa: B023
                assert gate.count == 1
            # A group whose commit is lost is no attempt of its events: each is given again, alone.
            assert (one.consumer.counts.dead, one.consumer.counts.retried) == (0, 0)
            assert await one.actor.amounts() == [0, 1, 2, 3]
            for gate in (proxy.up, proxy.down):
                gate.cut(is_commit, times=1)
                with pytest.raises(Unavailable, match="PostgreSQL"):
                    await one.actor.take(at(0), 4)


class Counted(PostgresProjection):
    tables = "CREATE TABLE IF NOT EXISTS line (number SERIAL, amount BIGINT)"
    performed = 0

    async def perform(self, event: Deposited, context: Context) -> None:
        self.performed += 1
        await self.once(context, lambda db: db.execute("INSERT INTO line (amount) VALUES (%s)", (event.amount,)))


@pytest.mark.fault(84)
async def test_84_postgresql_is_killed_in_the_middle_of_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the statements of the group, behind them, and while it commits: each event is there once."""
    count, killed = 2_000, 0
    partition = Partition([(b"k%d" % (i % 20), wire(i), []) for i in range(count)])
    send, commit = pipeline.send, psycopg.AsyncConnection.commit
    with Postgres() as server:

        def due(place: int) -> bool:
            """Whether the server is killed now: once at each place, after some hundred events."""
            up = all(task.done() for task in restarts)
            return up and killed == place and one.actor.performed > 400 * (killed + 1)

        async def kill() -> None:
            nonlocal killed
            killed += 1
            server.kill()
            restarts.append(asyncio.create_task(asyncio.to_thread(wait_until, started, 30)))

        def started() -> bool:
            try:
                server.start()
            except ServiceFailed:  # a session of the killed one has not noticed yet
                return False
            return True

        async def sending(db: Any, statements: Any) -> None:
            if due(0):
                await kill()
            await send(db, statements)
            if due(1):
                await kill()

        async def committing(db: Any) -> None:
            committed = asyncio.create_task(commit(db))
            if due(2):
                await asyncio.sleep(0)
                await kill()
            await committed

        monkeypatch.setattr("hiveio.projection.postgres.send", sending)
        monkeypatch.setattr(psycopg.AsyncConnection, "commit", committing)
        kind = type("Counted", (Counted,), {"url": server.url})
        restarts: list[asyncio.Task[None]] = []
        async with partition.member(kind, buffer=200, consumer_backoff_limit_ms=50) as one:
            async with asyncio.timeout(90):
                while killed < 3 or one.consumer.workers["t", 0].done[0] < count:
                    await asyncio.sleep(0.01)
            await asyncio.gather(*restarts)
            assert one.consumer.counts.dead == 0
        with psycopg.connect(server.url) as other:
            rows = other.execute("SELECT amount FROM projection.line ORDER BY number").fetchall()
            assert [amount for (amount,) in rows] == [*range(count)]
            assert other.execute("SELECT next FROM projection.hive_position").fetchall() == [(count,)]


@pytest.mark.fault(70)
async def test_70_a_store_ahead_of_the_commit_behind_as_many_repeats_as_there_may_be(
    kafka: Kafka, topic: str, settings: Made
) -> None:
    """All other sessions but one had their most events under way, and wrote what it had published long before."""
    published, repeats = positioned(range(MAX_GROUP + 2)), [*positioned(range(MAX_GROUP))] * (OVERLAPPING - 1)

    class Ahead(Recorder):
        """Another instance has stored all that is there, and was killed before its commit."""

        def position(self, topic: str, partition: int) -> int:
            return len(published) + len(repeats)

    make_topic(kafka.brokers, topic)
    write(kafka.brokers, topic, [*published, *repeats, *positioned([MAX_GROUP + 2, MAX_GROUP + 3])])
    async with member(settings(), Ahead) as one:
        await one.until(lambda: len(one.actor.seen) == 2 or one.consumer.stopped())
        assert (one.consumer.stopped(), one.actor.amounts()) == (None, [MAX_GROUP + 2, MAX_GROUP + 3])


@pytest.mark.fault(70)
async def test_70_more_sessions_overlap_than_the_look_back_allows_for(
    kafka: Kafka, topic: str, settings: Made, caplog: pytest.LogCaptureFixture
) -> None:
    """The store is ahead of the commit as well. What it did not see there is looked for further back."""
    published, repeats = positioned(range(MAX_GROUP + 2)), [*positioned(range(MAX_GROUP))] * (OVERLAPPING + 1)
    stored = len(published) + len(repeats)

    class Ahead(Recorder):
        def position(self, topic: str, partition: int) -> int:
            return stored + len(self.seen)

    make_topic(kafka.brokers, topic)
    write(kafka.brokers, topic, [*published, *repeats])
    async with member(settings(), Ahead) as one:
        await one.ready()
        write(kafka.brokers, topic, positioned([MAX_GROUP - 1, MAX_GROUP + 2, MAX_GROUP + 3]))
        await one.until(lambda: len(one.actor.seen) == 2 or one.consumer.stopped())
        assert (one.consumer.stopped(), one.actor.amounts()) == (None, [MAX_GROUP + 2, MAX_GROUP + 3])
        assert "it looks further back" in caplog.text
        write(kafka.brokers, topic, positioned([MAX_GROUP + 5]))
        await one.unready("events are missing")
        assert one.actor.amounts() == [MAX_GROUP + 2, MAX_GROUP + 3], (
            "nothing is handled twice, and what is missing stops it"
        )


@pytest.mark.fault(71)
async def test_71_a_letter_is_written_twice(kafka: Kafka, topic: str, settings: Made) -> None:
    """The answer to the first was lost: its copy counts for nothing."""
    made = settings(**QUICK)
    make_topic(kafka.brokers, topic)
    write(kafka.brokers, topic, keyed(("a", 0), ("b", 1)))
    dead = f"{topic}.{made.group_id}.dead"
    async with member(made) as one:
        choosy = Choosy(one, 0)
        await one.until(lambda: one.consumer.counts.dead and one.consumer.counts.handled == 1)
        headers = {name: text.decode() for name, text in headers_of(read_all(kafka.brokers, dead)[0]).items()}
        write(kafka.brokers, dead, [(0, "a", b"{}", headers)])
        write(kafka.brokers, topic, keyed(("a", 2)))
        await one.until(lambda: one.consumer.counts.parked == 1)
        choosy.bad = set()
        ask(kafka, made, "retry", "a")
        await one.until(lambda: one.consumer.counts.redriven == 2)  # counted once the marks are read back
        assert one.actor.amounts() == [1, 0, 2]
        assert not one.consumer.workers[topic, 0].store.busy


@pytest.mark.fault(73)
async def test_73_a_letter_of_an_earlier_owner_comes_late(
    broker: Broker, topic: str, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """It was cut off while it wrote the dead letter, and the next owner has handled the record: it is void for all."""
    monkeypatch.setenv("EVENT_STORE_BROKERS", broker.brokers)
    group = uuid.uuid4().hex
    quick: dict[str, Any] = QUICK
    made = Settings(brokers=broker.brokers, topic=topic, group_id=group, from_start=True, **quick)
    dead = f"{topic}.{group}.dead"

    async def listed() -> str:
        assert await asyncio.to_thread(main, ["dead", "list", "--group", group]) == 0
        return capsys.readouterr().out

    def send(amount: int) -> None:
        write(broker.brokers, topic, keyed(("a", amount)))

    make_topic(broker.brokers, topic)
    send(0)
    async with member(replace(made, brokers=broker.proxied)) as old:
        Choosy(old, 0)
        dead_letter = broker.proxy.up.hold(of_kafka(PRODUCE, dead))
        try:
            await old.until(dead_letter.struck.is_set)
            broker.proxy.up.hold()  # and its heartbeats
            async with member(made) as new:
                send(1)
                await new.until(lambda: new.actor.amounts() == [0, 1])
                await new.until(lambda: committed(broker.brokers, group, topic)[0] == 2)
                assert not read_all(broker.brokers, dead)
                broker.open()
                await new.until(lambda: read_all(broker.brokers, dead))
                await old.until(lambda: not old.consumer.positions())
                late = len(read_all(broker.brokers, dead))
                text = await listed()
                assert text.startswith("0 dead letters of 0 keys\n")
                assert f"{late} dead letter" in text
                send(2)
                await new.until(lambda: new.actor.amounts() == [0, 1, 2])
        finally:
            broker.open()
    assert not old.actor.seen
    for amount in (3, 4):  # the next owner closes them, and then the one after it
        caplog.clear()
        async with member(made) as next_one:
            send(amount)
            await next_one.until(lambda: next_one.actor.amounts() or next_one.consumer.counts.parked)
            assert next_one.actor.amounts() == [amount]
        assert any(f"the dead letter of {topic}/0/0 came late" in line for line in caplog.messages) == (amount == 3)
        assert await listed() == "0 dead letters of 0 keys\n"
