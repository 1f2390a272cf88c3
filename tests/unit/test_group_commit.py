"""The effects of several events in one transaction, of a real consumer and a SQLite file."""

import asyncio
import sqlite3
from collections import Counter
from pathlib import Path

import pytest

from hiveio import Context, Event
from hiveio.consumer.dead_letters.format import headers_of
from hiveio.projection import SqliteProjection
from tests.integration.consumers import wire
from tests.unit.consumer.consumer_memory import Member, Partition, Record


class Deposited(Event, frozen=True):
    amount: int


TABLES = """
CREATE TABLE IF NOT EXISTS account (id INTEGER PRIMARY KEY);
CREATE TABLE IF NOT EXISTS line (
    amount INTEGER, account INTEGER REFERENCES account DEFERRABLE INITIALLY DEFERRED);
"""


class Stored(SqliteProjection):
    """Stores the amounts. What is in ``bad`` refers to an account that is not there, which the commit finds."""

    tables = TABLES

    def __init__(self) -> None:
        super().__init__()
        self.performed: Counter[int] = Counter()
        self.stored: Counter[int] = Counter()
        self.bad: set[int] = set()
        self.raising: set[int] = set()
        self.commits = 0

    def start(self) -> None:
        super().start()
        self.connection.execute("PRAGMA foreign_keys = ON")
        self.connection.set_trace_callback(self.trace)

    def trace(self, statement: str) -> None:
        self.commits += statement == "COMMIT"

    def perform(self, event: Deposited, context: Context) -> None:
        self.take(event.amount, context)

    def take(self, amount: int, context: Context) -> None:
        self.performed[amount] += 1

        def effect(db: sqlite3.Connection) -> None:
            db.execute("INSERT INTO line VALUES (?, ?)", (amount, 1 if amount in self.bad else None))
            if amount in self.raising:
                raise ValueError(f"{amount} is bad")

        self.stored[amount] += self.once(context, effect)

    def amounts(self) -> list[int]:
        with sqlite3.connect(self.file) as other:
            return [amount for (amount,) in other.execute("SELECT amount FROM line ORDER BY rowid")]


@pytest.fixture
def kind(tmp_path: Path) -> type[Stored]:
    return type("Stored", (Stored,), {"database": str(tmp_path / "stored.sqlite")})


def events(*pairs: tuple[str, int]) -> list[Record]:
    return [(key.encode(), wire(amount), []) for key, amount in pairs]


def many(count: int) -> Partition:
    return Partition(events(*[(f"k{i}", i) for i in range(count)]))


def done(one: Member) -> int:
    return one.consumer.workers["t", 0].done[0]


async def test_the_events_of_a_chunk_share_a_commit(kind: type[Stored]) -> None:
    partition = many(400)
    async with partition.member(kind) as one:
        await one.until(lambda: done(one) == 400)
        assert one.actor.commits < 100
        assert one.actor.amounts() == [*range(400)]
        before = one.actor.commits
        partition.write(*events(("k", 400)))
        await one.until(lambda: done(one) == 401)
        assert one.actor.commits == before + 1, "a lone event waits for no other"
        assert one.actor.position("t", 0) == (401, "id")
    assert set(one.actor.performed.values()) == {1}


async def test_an_event_that_fails_takes_nothing_else_with_it(kind: type[Stored]) -> None:
    partition = Partition(events(*[(f"k{i % 20}", i) for i in range(60)]))
    async with partition.member(kind) as one:
        one.actor.raising = {7}
        await one.until(lambda: done(one) == 60)
        assert one.actor.amounts() == [i for i in range(60) if i % 20 != 7]
    assert partition.kept() == [(7, "failed"), (27, "parked"), (47, "parked")]
    assert one.actor.performed == Counter({i: 1 for i in range(60) if i % 20 != 7} | {7: 3}), "the others stay"
    assert (one.consumer.counts.handled, one.consumer.counts.dead, one.consumer.counts.parked) == (57, 1, 2)


async def test_what_cannot_be_committed_is_found_and_fails_alone(kind: type[Stored]) -> None:
    partition = Partition(events(*[(f"k{i % 20}", i) for i in range(60)]))
    async with partition.member(kind) as one:
        one.actor.bad = {7}
        await one.until(lambda: done(one) == 60)
        assert one.actor.amounts() == [i for i in range(60) if i % 20 != 7]
        assert partition.kept() == [(7, "failed"), (27, "parked"), (47, "parked")]
        reason = headers_of(partition.dead_letters.messages[0])["hive-dead-exception"]
        assert reason == b"IntegrityError: FOREIGN KEY constraint failed"
        counts = one.consumer.counts
        assert (counts.handled, counts.dead, counts.parked) == (57, 1, 2)
        one.actor.bad = set()
        await partition.mark("retry")
        await one.until(lambda: counts.redriven == 3)
        assert one.actor.amounts()[-3:] == [7, 27, 47]


class Other(Stored):
    name = "Other"


async def test_an_actor_whose_commit_worked_handles_nothing_again(kind: type[Stored], tmp_path: Path) -> None:
    other = type("Other", (Other,), {"database": str(tmp_path / "other.sqlite")})
    partition = Partition(events(*[(f"k{i % 20}", i) for i in range(60)]))
    async with partition.member(kind, other) as one:
        one.actor.bad = {7}
        await one.until(lambda: done(one) == 60)
        second = one.actors[1]
        assert second.amounts() == [*range(60)]
        assert set(second.performed.values()) == {1}
        assert one.actor.amounts() == [i for i in range(60) if i % 20 != 7]
        assert {headers_of(one)["hive-dead-actors"] for one in partition.dead_letters.messages} == {b"Stored"}
        one.actor.bad = set()
        await partition.mark("retry")
        await one.until(lambda: one.consumer.counts.redriven == 3)
        assert (len(one.actor.amounts()), len(second.amounts())) == (60, 60)


async def test_an_actor_that_fails_before_or_behind_another_loses_nothing_of_it(
    kind: type[Stored], tmp_path: Path
) -> None:
    other = type("Other", (Other,), {"database": str(tmp_path / "other.sqlite")})
    partition = Partition(events(*[(f"k{i}", i) for i in range(40)]))
    async with partition.member(kind, other) as one:
        one.actor.raising, one.actors[1].raising = {5}, {6}
        one.actor.bad = {6}  # and the other fails on the same event
        await one.until(lambda: done(one) == 40)
        assert one.actor.amounts() == [i for i in range(40) if i not in {5, 6}]
        assert one.actors[1].amounts() == [i for i in range(40) if i != 6]
    assert partition.kept() == [(5, "failed"), (6, "failed")]
    actors = [headers_of(one)["hive-dead-actors"] for one in partition.dead_letters.messages]
    assert actors == [b"Stored", b"Other,Stored"]


class Ending(Stored):
    """Ends the transaction by statements of its own."""

    statement = ""

    def perform(self, event: Deposited, context: Context) -> None:
        self.take(event.amount, context)
        if event.amount == 5 and self.performed[5] == 1:
            self.connection.execute(self.statement)


@pytest.mark.parametrize("statement", ["COMMIT", "ROLLBACK"])
async def test_a_transaction_that_an_actor_ends_stores_each_event_once(tmp_path: Path, statement: str) -> None:
    ending = type("Ending", (Ending,), {"database": str(tmp_path / "ending.sqlite"), "statement": statement})
    partition = many(20)
    async with partition.member(ending) as one:
        await one.until(lambda: done(one) == 20)
        assert one.actor.amounts() == [*range(20)]
    assert one.consumer.counts.dead == 0


class Waiting(Stored):
    """Waits after the effect of an event, while a query may run."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = asyncio.Event()
        self.waits = asyncio.Event()

    async def perform(self, event: Deposited, context: Context) -> None:  # type: ignore[override]
        self.take(event.amount, context)
        if event.amount == 3:
            self.waits.set()
            await self.go_on.wait()


async def test_a_query_sees_what_is_committed_and_writes_of_its_own_are_its_own(tmp_path: Path) -> None:
    waiting = type("Waiting", (Waiting,), {"database": str(tmp_path / "waiting.sqlite")})
    partition = many(10)
    async with partition.member(waiting) as one:
        await one.actor.waits.wait()
        assert not one.actor.connection.in_transaction
        assert one.actor.amounts() == [0, 1, 2, 3], "what has happened before it waits is committed"
        one.actor.go_on.set()
        await one.until(lambda: done(one) == 10)
        assert one.actor.amounts() == [*range(10)]


async def test_a_query_between_two_steps_of_the_loop_finds_no_open_transaction(kind: type[Stored]) -> None:
    partition = many(10)
    found: list[tuple[bool, int]] = []
    async with partition.member(kind) as one:

        def ask() -> None:
            db = one.actor.connection
            found.append((db.in_transaction, db.execute("SELECT count(*) FROM line").fetchone()[0]))

        loop = asyncio.get_running_loop()
        while done(one) < 10:
            loop.call_soon(ask)
            await asyncio.sleep(0)
    assert not any(open for open, _ in found)


async def test_a_file_that_is_locked_is_waited_for_and_nothing_is_stored_twice(kind: type[Stored]) -> None:
    partition = many(30)
    async with partition.member(kind, consumer_backoff_limit_ms=1) as one:
        await one.until(lambda: done(one) == 30)
        other = sqlite3.connect(one.actor.file, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        partition.write(*events(*[("k", i) for i in range(30, 60)]))
        await one.until(lambda: one.consumer.counts.retried > 1)
        other.execute("ROLLBACK")
        other.close()
        await one.until(lambda: done(one) == 60)
        assert one.actor.amounts() == [*range(60)]
    assert one.consumer.counts.dead == 0


async def test_nothing_counts_as_handled_before_the_commit(kind: type[Stored]) -> None:
    partition = many(50)
    at: list[int] = []
    async with partition.member(kind) as one:
        actor = one.actor

        def trace(statement: str) -> None:
            if statement == "COMMIT":
                at.append(done(one))

        actor.connection.set_trace_callback(trace)
        await one.until(lambda: done(one) == 50)
    stored = actor.amounts()
    assert stored == [*range(50)]
    assert at
    assert all(offset < 50 for offset in at)


@pytest.mark.parametrize("lost", [False, True])
async def test_a_partition_that_moves_in_the_middle_of_a_group(kind: type[Stored], lost: bool) -> None:
    partition = many(2000)
    async with partition.member(kind) as one:
        worker = one.consumer.workers["t", 0]
        await one.until(lambda: one.actor.performed.total() > 300)
        await one.consumer.close([worker], lost=lost)
        handled, (stored, _) = worker.done[0], one.actor.position("t", 0)
        assert handled <= stored < 2000
        assert lost or handled == stored
    async with partition.member(kind) as two:
        await two.until(lambda: done(two) == 2000)
        assert two.actor.amounts() == [*range(2000)]
