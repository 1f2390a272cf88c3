"""The effects of several events in one transaction of a real PostgreSQL; tests/unit has those of SQLite."""

import asyncio
import logging
import uuid
from collections import Counter
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from hiveio import Context
from hiveio.consumer.dead_letters.format import headers_of
from hiveio.projection.postgres import PostgresProjection
from tests.integration.consumers import Deposited, wire
from tests.services import Pgbouncer, Postgres
from tests.unit.consumer.consumer_memory import Member, Partition

TABLES = """
CREATE TABLE IF NOT EXISTS account (id BIGINT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS line (
    number SERIAL, amount BIGINT, account BIGINT REFERENCES account DEFERRABLE INITIALLY DEFERRED);
"""
INSERT = "INSERT INTO line (amount, account) VALUES (%s, %s)"


class Stored(PostgresProjection):
    """What is in ``bad`` refers to an account that is not there, which the commit finds."""

    tables = TABLES

    def __init__(self) -> None:
        super().__init__()
        self.performed: Counter[int] = Counter()
        self.bad: set[int] = set()
        self.raising: set[int] = set()

    async def perform(self, event: Deposited, context: Context) -> None:
        self.performed[event.amount] += 1
        await self.once(context, lambda db: self.effect(db, event.amount))

    async def effect(self, db: Any, amount: int) -> None:
        await db.execute(INSERT, (amount, 1 if amount in self.bad else None))
        if amount in self.raising:
            raise ValueError(f"{amount} is bad")

    async def amounts(self) -> list[int]:
        async with self.pool.connection() as db:
            return [
                amount for (amount,) in await (await db.execute("SELECT amount FROM line ORDER BY number")).fetchall()
            ]

    async def transactions(self) -> int:
        async with self.pool.connection() as db:
            found = await (await db.execute("SELECT count(DISTINCT xmin::text) FROM line")).fetchone()
            return int(found[0]) if found else 0


def kind_of(base: type[Stored], server: Postgres | Pgbouncer) -> type[Stored]:
    return type("Stored", (base,), {"url": server.url, "schema": f"s{uuid.uuid4().hex}"})


def many(count: int) -> Partition:
    return Partition([(b"k%d" % (i % 20), wire(i), []) for i in range(count)])


def done(one: Member) -> int:
    return one.consumer.workers["t", 0].done[0]


async def test_the_events_of_a_chunk_share_a_transaction(postgres: Postgres) -> None:
    partition = many(400)
    async with partition.member(kind_of(Stored, postgres)) as one:
        await one.until(lambda: done(one) == 400)
        assert await one.actor.amounts() == [*range(400)]
        assert await one.actor.transactions() < 100
        assert await one.actor.position("t", 0) == (400, "id")
    assert set(one.actor.performed.values()) == {1}


async def test_they_share_it_through_a_pooler(postgres: Postgres) -> None:
    partition = many(200)
    with Pgbouncer(postgres) as pooler:
        async with partition.member(kind_of(Stored, pooler)) as one:
            one.actor.bad = {7}
            await one.until(lambda: done(one) == 200)
            assert await one.actor.amounts() == [i for i in range(200) if i % 20 != 7]


async def test_what_fails_is_found_and_fails_alone(postgres: Postgres) -> None:
    partition = many(60)
    async with partition.member(kind_of(Stored, postgres)) as one:
        one.actor.bad, one.actor.raising = {7}, {9}
        await one.until(lambda: done(one) == 60)
        assert await one.actor.amounts() == [i for i in range(60) if i % 20 not in {7, 9}]
        assert sorted(partition.kept()) == sorted(
            [(7, "failed"), (9, "failed"), *((i, "parked") for i in range(20, 60) if i % 20 in {7, 9})]
        )
        reasons = {
            headers_of(one).get("hive-dead-exception", b"").split(b":")[0] for one in partition.dead_letters.messages
        }
        assert reasons == {b"ForeignKeyViolation", b"ValueError", b""}
        counts = one.consumer.counts
        assert (counts.handled, counts.dead, counts.parked) == (54, 2, 4)
        one.actor.bad, one.actor.raising = set(), set()
        await partition.mark("retry")
        await one.until(lambda: counts.redriven == 6)
        assert sorted(await one.actor.amounts()) == [*range(60)]


@pytest.mark.parametrize("stored", [True, False])
async def test_a_commit_whose_answer_is_lost_stores_each_event_once(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch, stored: bool
) -> None:
    lost: list[bool] = []
    commit = psycopg.AsyncConnection.commit

    async def committing(db: Any) -> None:
        if lost and lost[0]:
            lost[0] = False
            if stored:
                await commit(db)
            db.pgconn.finish()
            raise psycopg.OperationalError("the connection is lost at the commit")
        await commit(db)

    monkeypatch.setattr(psycopg.AsyncConnection, "commit", committing)
    partition = many(30)
    async with partition.member(kind_of(Stored, postgres), consumer_backoff_limit_ms=10) as one:
        await one.until(lambda: done(one) == 30)
        lost.append(True)
        partition.write(*[(b"k", wire(i), []) for i in range(30, 90)])
        await one.until(lambda: done(one) == 90)
        assert lost == [False]
        assert await one.actor.amounts() == [*range(90)]
    assert one.consumer.counts.dead == 0


class Reading(Stored):
    """Reads what is stored before it stores."""

    async def perform(self, event: Deposited, context: Context) -> None:
        async with self.pool.connection() as db:
            found = await (await db.execute("SELECT coalesce(max(amount), -1) FROM line")).fetchone()
        assert found == (event.amount - 1,), "the event before it"
        await self.once(context, lambda db: db.execute(INSERT, (event.amount, None)))


class Answered(Stored):
    async def effect(self, db: Any, amount: int) -> None:
        assert (await db.execute(INSERT, (amount, 1 if amount in self.bad else None))).rowcount == 1


@pytest.mark.parametrize("base", [Reading, Answered])
async def test_an_actor_that_needs_to_know_what_is_stored_finds_it(
    postgres: Postgres, base: type[Stored], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "hiveio.projection")
    partition = many(20)
    async with partition.member(kind_of(base, postgres)) as one:
        await one.until(lambda: done(one) == 20)
        assert await one.actor.amounts() == [*range(20)]
    assert one.consumer.counts.retried == 0
    alone = "commits each event alone, because an effect uses the cursor's rowcount"
    assert (alone in caplog.text) is (base is Answered)


class Swallowing(Stored):
    async def effect(self, db: Any, amount: int) -> None:
        try:
            await db.execute("SELECT 1 / %s", (amount,))
        except psycopg.errors.DivisionByZero:
            pass
        await db.execute(INSERT, (amount, None)) if amount else None


async def test_an_effect_that_goes_on_after_an_error_is_not_taken_for_stored(postgres: Postgres) -> None:
    partition = many(3)
    async with partition.member(kind_of(Swallowing, postgres)) as one:
        await one.until(lambda: done(one) == 3)
        assert await one.actor.amounts() == [1, 2]
    assert partition.kept() == [(0, "failed")]
    assert b"went on after an error" in headers_of(partition.dead_letters.messages[0])["hive-dead-exception"]


async def test_two_owners_at_once_store_each_event_once(postgres: Postgres) -> None:
    """An instance that was paused goes on, while the next owner has handled some of its events."""
    kind = kind_of(Stored, postgres)
    partition, other = many(50), many(80)
    async with partition.member(kind) as one, other.member(kind) as two:
        ends: list[Callable[[], bool]] = [lambda: done(one) == 50, lambda: done(two) == 80]
        await asyncio.gather(*(member.until(end) for member, end in zip((one, two), ends, strict=True)))
        assert await two.actor.amounts() == [*range(80)]
    assert one.consumer.counts.dead + two.consumer.counts.dead == 0
