"""Effects exactly once, in SQLite and PostgreSQL, over crashes, retried dead letters and overlapping instances."""

import asyncio
import sqlite3
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from hiveio import Context, Unavailable
from hiveio.config import Settings
from hiveio.projection import SqliteProjection
from hiveio.projection.postgres import PostgresProjection
from tests.integration.consumers import Deposited, member, plain, settings
from tests.integration.test_dead_letters import QUICK, ask, keyed
from tests.integration.topics import make_topic, write
from tests.services import Kafka, Postgres

__all__ = ["settings"]

Made = Callable[..., Settings]
TABLE = "CREATE TABLE IF NOT EXISTS line (amount BIGINT)"


class Sqlite(SqliteProjection):
    tables = TABLE
    bad: set[int] = set()  # noqa: RUF012 - set by a test

    async def perform(self, event: Deposited, context: Context) -> None:
        if event.amount in self.bad:
            raise ValueError("never")
        self.once(context, lambda db: db.execute("INSERT INTO line VALUES (?)", (event.amount,)))

    async def amounts(self) -> list[int]:
        return [amount for (amount,) in self.connection.execute("SELECT amount FROM line")]

    async def take(self, context: Any, amount: int, error: Exception | None = None) -> bool:
        def effect(db: sqlite3.Connection) -> None:
            db.execute("INSERT INTO line (amount) VALUES (?)", (amount,))
            if error:
                raise error

        return self.once(context, effect)

    async def open(self) -> None:
        self.start()

    async def close(self) -> None:
        self.stop()

    async def at(self, topic: str, partition: int) -> int:
        return self.position(topic, partition)[0]


class Postgresql(PostgresProjection):
    tables = TABLE
    bad: set[int] = set()  # noqa: RUF012 - set by a test

    async def perform(self, event: Deposited, context: Context) -> None:
        if event.amount in self.bad:
            raise ValueError("never")
        await self.once(context, lambda db: db.execute("INSERT INTO line VALUES (%s)", (event.amount,)))

    async def amounts(self) -> list[int]:
        async with self.pool.connection() as db:
            rows: list[tuple[int]] = await (await db.execute("SELECT amount FROM line")).fetchall()
            return [amount for (amount,) in rows]

    async def take(self, context: Any, amount: int, error: Exception | None = None) -> bool:
        async def effect(db: Any) -> None:
            await db.execute("INSERT INTO line (amount) VALUES (%s)", (amount,))
            if error:
                raise error

        return await self.once(context, effect)

    async def open(self) -> None:
        await self.start()

    async def close(self) -> None:
        await self.stop()

    async def at(self, topic: str, partition: int) -> int:
        return (await self.position(topic, partition))[0]


Kind = type[Sqlite] | type[Postgresql]


@pytest.fixture(params=["sqlite", "postgres"])
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Kind:
    if request.param == "sqlite":
        return type("Projected", (Sqlite,), {"database": str(tmp_path / "projection.sqlite")})
    server: Postgres = request.getfixturevalue("postgres")
    return type("Projected", (Postgresql,), {"url": server.url, "schema": f"s{uuid.uuid4().hex}"})


@pytest.fixture
async def store(kind: Kind) -> AsyncIterator[Sqlite | Postgresql]:
    made = kind()
    await made.open()
    yield made
    await made.close()


def at(offset: int, *, redriven: bool = False, id: str | None = None) -> Context:
    return Context(topic="t", topic_id=id, partition=0, offset=offset, redriven=redriven)


async def test_effect_and_position_move_together(store: Sqlite | Postgresql) -> None:
    assert await store.at("t", 0) == 0
    assert await store.take(at(0), 1)
    assert await store.take([at(1), at(2), at(5)], 2)
    assert (await store.at("t", 0), await store.at("t", 1)) == (6, 0)
    with pytest.raises(ValueError, match="broken"):
        await store.take(at(6), 3, ValueError("broken"))
    assert await store.at("t", 0) == 6
    assert await store.amounts() == [1, 2]


async def test_the_events_of_a_topic_made_anew_are_new(store: Sqlite | Postgresql) -> None:
    assert await store.take([at(0), at(1), at(2)], 1), "of an older version, or of a broker without ids"
    assert not await store.take(at(2, id="one"), 2), "which may be this topic"
    assert await store.take(at(3, id="one"), 3)
    assert not await store.take(at(3, id="one"), 4)
    assert await store.take(at(0, id="two"), 5)
    assert not await store.take(at(0, id="two"), 6)
    found: Any = store.position("t", 0)
    assert (await found if isinstance(store, Postgresql) else found) == (1, "two")
    assert await store.take(at(9, redriven=True, id="one"), 7)
    assert await store.take(at(9, redriven=True, id="two"), 8)
    assert not await store.take(at(9, redriven=True, id="two"), 9)
    assert await store.amounts() == [1, 3, 5, 7, 8]


def test_the_table_of_an_older_version_is_taken_over(tmp_path: Path) -> None:
    old = sqlite3.connect(tmp_path / "old.sqlite")
    columns = "topic TEXT, partition INTEGER, next BIGINT NOT NULL, PRIMARY KEY (topic, partition)"
    old.execute(f"CREATE TABLE hive_position ({columns})")
    old.execute("INSERT INTO hive_position VALUES ('t', 0, 7)")
    old.commit()
    old.close()
    store = type("Projected", (Sqlite,), {"database": str(tmp_path / "old.sqlite")})()
    store.start()
    assert store.position("t", 0) == (7, "")
    store.stop()


async def test_what_is_stored_is_not_taken_again(store: Sqlite | Postgresql) -> None:
    await store.take(at(5), 1)
    assert not await store.take(at(5), 2)
    assert not await store.take([at(3), at(4)], 3)
    with pytest.raises(Unavailable, match="another instance has stored"):
        await store.take([at(5), at(6)], 4)
    assert await store.take(at(3, redriven=True), 5), "a dead letter is older than the position"
    assert not await store.take(at(3, redriven=True), 6), "and is taken once too"
    assert (await store.amounts(), await store.at("t", 0)) == ([1, 5], 6)


async def test_only_events_have_a_place(store: Sqlite | Postgresql) -> None:
    with pytest.raises(ValueError, match="context of an event"):
        await store.take(Context(id="1"), 1)


async def test_it_is_emptied(store: Sqlite | Postgresql) -> None:
    await store.take(at(5), 1)
    await store.take(at(2, redriven=True), 1)
    found: Any = store.reset()
    if found is not None:
        await found
    assert (await store.amounts(), await store.at("t", 0)) == ([], 0)
    assert await store.take(at(2, redriven=True), 1)


async def test_a_shadow_takes_the_place_of_what_is_in_use(kind: Kind, store: Sqlite | Postgresql) -> None:
    await store.take(at(5), 1)
    shadow = kind()
    kind.tables = "CREATE TABLE IF NOT EXISTS line (amount BIGINT, note TEXT DEFAULT 'new')"  # it may have changed
    if (began := shadow.begin_shadow()) is not None:
        await began
    await shadow.open()
    await shadow.take(at(4), 7)
    swapped: Any = shadow.end_shadow(swap=True)
    assert not (swapped if isinstance(swapped, bool) else await swapped), "it is behind"
    await shadow.take(at(6), 8)
    assert await store.amounts() == [1]
    swapped = shadow.end_shadow(swap=True)
    assert swapped if isinstance(swapped, bool) else await swapped
    if isinstance(shadow, Postgresql):
        await shadow.close()
    assert (await store.amounts(), await store.at("t", 0)) == ([7, 8], 7)


async def test_a_consumer_continues_where_the_store_is(
    kafka: Kafka, topic: str, settings: Made, kind: Kind, store: Sqlite | Postgresql
) -> None:
    make_topic(kafka.brokers, topic)
    write(kafka.brokers, topic, plain(range(20)))
    await store.take(Context(topic=topic, partition=0, offset=11), 11)
    async with member(settings(), kind) as one:
        one.actor = store  # another object of the same store
        async with asyncio.timeout(30):
            while await store.at(topic, 0) != 20:
                await asyncio.sleep(0.02)
    assert await store.amounts() == [*range(11, 20)]


async def test_letters_are_projected_once(
    kafka: Kafka, topic: str, settings: Made, kind: Kind, store: Sqlite | Postgresql
) -> None:
    kind.bad = {0}
    make_topic(kafka.brokers, topic)
    write(kafka.brokers, topic, keyed(("a", 0), ("b", 1), ("a", 2)))
    made = settings(**QUICK)
    async with member(made, kind) as one:
        await one.until(one.partitions)
        await one.until(lambda: one.consumer.workers[topic, 0].done[0] == 3)
        assert await store.amounts() == [1]
        kind.bad = set()
        ask(kafka, made, "retry")
        await one.until(lambda: not one.consumer.workers[topic, 0].store.busy)
        assert await store.amounts() == [1, 0, 2]


async def test_a_database_that_is_away_is_waited_for(
    kafka: Kafka, topic: str, settings: Made, postgres: Postgres, tmp_path: Path
) -> None:
    with Postgres() as own:
        kind = type("Projected", (Postgresql,), {"url": own.url, "schema": "away"})
        make_topic(kafka.brokers, topic)
        async with member(settings(**QUICK), kind) as one:
            await one.until(one.partitions)
            await asyncio.to_thread(own.kill)
            write(kafka.brokers, topic, plain([1, 2]))
            await one.until(lambda: one.consumer.counts.retried > 3, 60)
            await asyncio.to_thread(own.start)
            await one.until(lambda: one.consumer.workers[topic, 0].done[0] == 2, 60)
            assert one.consumer.counts.dead == 0
            assert await one.actor.amounts() == [1, 2]
