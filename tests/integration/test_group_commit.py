"""The effects of several events in one transaction of a real PostgreSQL; tests/unit has those of SQLite."""

import asyncio
import logging
import uuid
from collections import Counter
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from typing import Any

import psycopg
import pytest

from hiveio import Context
from hiveio.consumer.dead_letters.format import headers_of
from hiveio.projection import collected
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


VALUES: list[tuple[Any, ...]] = [
    (None, None, None, None, None, None),
    (True, 1, "plain", b"\x00\xff", Decimal("1.50"), date(2026, 1, 2)),
    (False, 70_000, "100% 'of' %s $1 \\", b"", Decimal(-3), date(1, 1, 1)),
    (None, -(2**40), "ö 漢 \U0001f41d", b"'", Decimal("1e20"), None),
    (True, 2, "", None, Decimal(0), date(9999, 12, 31)),
]
COLUMNS = "flag BOOLEAN, number BIGINT, text TEXT, bytes BYTEA, price NUMERIC, day DATE"
INTO = "INSERT INTO line (amount, flag, number, text, bytes, price, day) VALUES "


class Valued(Stored):
    """Stores values of each type, with statements of several forms."""

    tables = f"CREATE TABLE IF NOT EXISTS line (position SERIAL, amount BIGINT, {COLUMNS})"

    async def effect(self, db: Any, amount: int) -> None:
        values = VALUES[amount % len(VALUES)]
        if amount % 2:
            await db.execute(INTO + "(%s, %s, %s, %s, %s, %s, %s)", [amount, *values])
        else:
            names = ("flag", "number", "text", "bytes", "price", "day")
            query = INTO + "(%(amount)s, %(flag)s, %(number)s, %(text)s, %(bytes)s, %(price)s, %(day)s)"
            await db.execute(query, {"amount": amount, **dict(zip(names, values, strict=True))})
        await db.execute("UPDATE line SET text = text || '%s' WHERE text LIKE 'pl%%'")
        await db.execute("UPDATE line SET text = replace(text, '%%', %s) WHERE amount = %s", ("%", amount))

    async def rows(self) -> list[tuple[Any, ...]]:
        async with self.pool.connection() as db:
            found = await db.execute("SELECT amount, flag, number, text, bytes, price, day FROM line ORDER BY position")
            return await found.fetchall()


class Alone(Valued):
    def __init__(self) -> None:
        super().__init__()
        self._collects = False


async def test_values_arrive_as_in_a_transaction_of_their_own(postgres: Postgres) -> None:
    found = []
    for base in (Valued, Alone):
        async with many(20).member(kind_of(base, postgres)) as one:
            await one.until(lambda: done(one) == 20)
            assert one.actor._collects is (base is Valued)
            found.append(await one.actor.rows())
    assert found[0] == found[1]
    assert found[0][2][3] == "100% 'of' %s $1 \\"


async def test_a_value_that_cannot_be_sent_fails_alone(postgres: Postgres) -> None:
    """It is found before anything of its group is sent."""

    class Texts(Valued):
        async def effect(self, db: Any, amount: int) -> None:
            text = "\0" if amount == 7 else "text"
            await db.execute("INSERT INTO line (amount, text) VALUES (%s, %s)", (amount, text))

    partition = many(20)
    async with partition.member(kind_of(Texts, postgres)) as one:
        await one.until(lambda: done(one) == 20)
        assert [row[0] for row in await one.actor.rows()] == [i for i in range(20) if i != 7]
        assert one.actor._collects
    assert partition.kept() == [(7, "failed")]


@pytest.mark.parametrize("bound", ["MAX_STATEMENTS", "MAX_BYTES"])
async def test_a_group_that_is_full_is_stored_before_it_takes_more(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    monkeypatch.setattr(collected, bound, 1)
    partition = many(20)
    async with partition.member(kind_of(Stored, postgres)) as one:
        await one.until(lambda: done(one) == 20)
        assert await one.actor.amounts() == [*range(20)]
        assert await one.actor.transactions() == 20


@pytest.mark.parametrize("lost", [False, True])
async def test_a_partition_that_moves_in_the_middle_of_a_group(postgres: Postgres, lost: bool) -> None:
    """What it has handled is committed. What it has not is handled by the next owner, and nothing is stored twice."""
    kind = kind_of(Stored, postgres)
    partition = many(3000)
    async with partition.member(kind) as one:
        worker = one.consumer.workers["t", 0]
        await one.until(lambda: one.actor.performed.total() > 700 and worker.slots[0].group.open)
        await one.consumer.close([worker], lost=lost)
        handled, (stored, _) = worker.done[0], await one.actor.position("t", 0)
        assert handled <= stored < 3000
        assert lost or handled == stored
    async with partition.member(kind) as two:
        await two.until(lambda: done(two) == 3000)
        assert await two.actor.amounts() == [*range(3000)]


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
