"""The first attempt takes no lock; where several instances work on an aggregate, the lock decides whose turn it is."""

import asyncio
import itertools
from contextlib import suppress
from typing import Any

import pytest

from hiveio import testing
from hiveio.errors import Conflict, Rejected
from hiveio.transaction import applier, predecessors, view
from hiveio.transaction.contention import MOST, REMEMBERED_S, Contention
from hiveio.transaction.entry import CacheReply
from hiveio.transaction.record import Barrier, CommandId, Commit, Write
from tests.faults.actors import AccountActor, Deposit, Think, Transfer, Withdraw, Witness
from tests.unit.transaction.test_engine import cluster, hold, until


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is busy makes neither the cache slow nor a record late, unless a test says so."""
    monkeypatch.setattr(applier, "SLOW_S", 60.0)
    monkeypatch.setattr(predecessors, "WAIT_S", 60.0)


def test_an_aggregate_is_forgotten_after_its_time_and_many_at_once_are_bounded() -> None:
    now = 0.0
    contention = Contention(lambda: now)
    assert "a" not in contention
    contention.note(["a"])
    assert "a" in contention
    now = 0.99 * REMEMBERED_S
    assert "a" in contention
    contention.note(["b"])
    now = 1.5 * REMEMBERED_S
    assert "b" in contention
    now = 3 * REMEMBERED_S
    assert "a" not in contention
    assert "b" not in contention
    for n in range(5 * MOST):
        contention.note([str(n)])
    assert sum(str(n) in contention for n in range(5 * MOST)) <= 2 * MOST + 1
    assert str(5 * MOST - 1) in contention
    now = 5 * REMEMBERED_S
    assert str(5 * MOST - 1) not in contention


def test_what_another_instance_does_for_this_one_is_no_contention() -> None:
    now = 0.0
    contention = Contention(lambda: now)
    ours, others, last = (Commit(CommandId("A/a", key), (Write("A/a", "", 0),)) for key in ("ours", "others", "last"))
    contention.forward(ours.command.text)
    contention.met(ours)
    assert not contention
    contention.met(others)
    assert "A/a" in contention
    contention.met(Barrier(("A/b",)))
    assert "A/b" in contention
    now = 3 * REMEMBERED_S
    contention.forward(ours.command.text)
    for n in range(3 * MOST):  # as many are not remembered
        contention.forward(str(n))
    contention.forward(last.command.text)
    contention.met(last)
    assert not contention
    contention.met(ours)
    assert "A/a" in contention


class Calls:
    """Counts what the engine asks of locks and of the cache."""

    def __init__(self, service: testing.Service, monkeypatch: pytest.MonkeyPatch) -> None:
        self.locks = self.reads = 0
        access = service.transactions.engine.pipelines.access
        acquire, read = access.acquire, access.read

        def counted_acquire(*given: Any) -> None:
            self.locks += 1
            acquire(*given)

        def counted_read(*given: Any) -> "asyncio.Future[CacheReply]":
            self.reads += 1
            return read(*given)

        monkeypatch.setattr(access, "acquire", counted_acquire)
        monkeypatch.setattr(access, "read", counted_read)


async def test_one_instance_alone_neither_locks_nor_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    async with testing.Service(AccountActor) as one:
        calls = Calls(one, monkeypatch)
        for n in range(3):
            await asyncio.gather(*[one.submit(AccountActor, id, Deposit(1, f"{id}{n}")) for id in "abab"])
        await one.submit(AccountActor, "a", Transfer("b", 1, "to b"))
        await one.submit(AccountActor, "c", Deposit(1, "keyed"), key="k")
        with suppress(Exception):
            await one.submit(AccountActor, "d", Withdraw(1, "refused"))
        assert (calls.locks, calls.reads) == (0, 0)
        assert not one.transactions.engine.pipelines


async def test_what_the_view_does_not_know_is_read_without_a_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    async with testing.Service(AccountActor) as before:
        await before.submit(AccountActor, "a", Deposit(1, "before"))
        await until(lambda: before.transactions.scopes[0].mirror.watermark.offset == 2)
    async with testing.Service(AccountActor, log=before.log, cache=before.cache) as one:
        calls = Calls(one, monkeypatch)
        assert (await one.submit(AccountActor, "a", Deposit(1, "first"))).version == 2
        assert (await one.submit(AccountActor, "a", Deposit(1, "second"))).version == 3
        assert (calls.locks, calls.reads) == (0, 1)


async def test_what_was_refused_to_aggregates_that_never_were_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """No record is judged, after which the view would be trimmed."""
    monkeypatch.setattr(view, "AGGREGATES", 10)
    async with testing.Service(AccountActor) as one:
        for number in range(50):
            with pytest.raises(Rejected):
                await one.submit(AccountActor, f"a{number}", Withdraw(1, "refused"))
        assert len(one.transactions.scopes[0].view.entries) <= 10
        assert len(one.records()) == 1, "that of the format alone"


async def test_the_next_attempt_after_a_void_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """An instance that reads late performs a chain on what it has; all of that is void once, and done once."""
    async with cluster() as (late, other):
        await other.submit(AccountActor, "a", Deposit(10, "first"))
        await until(lambda: late.transactions.scopes[0].view.next == 2)
        late.transactions.scopes[0].contention = Contention()
        calls, release = Calls(late, monkeypatch), hold(late)
        await other.submit(AccountActor, "a", Withdraw(10, "all of it"))
        chain = [asyncio.create_task(late.submit(AccountActor, "a", Deposit(1, f"{n}"))) for n in range(5)]
        await until(lambda: len(late.log.partitions[0]) == 8)
        assert calls.locks == 0
        release()
        assert [(await each).version for each in chain] == [3, 4, 5, 6, 7]
        assert calls.locks >= 1
        assert [logged.verdict for logged in late.records()] == 3 * [True] + 5 * [False] + 5 * [True]


async def test_what_is_read_without_a_lock_is_as_new_as_the_record() -> None:
    """Not only what is written: a command that came after the answer to another one rests on what that one wrote."""
    async with cluster() as (late, other):
        for id in "ab":
            await other.submit(AccountActor, id, Deposit(10, id))
        await until(lambda: late.transactions.scopes[0].view.next == 3)
        late.transactions.scopes[0].contention = Contention()
        release = hold(late)
        await other.submit(AccountActor, "b", Deposit(5, "answered before"))
        witness = asyncio.create_task(late.submit(AccountActor, "a", Witness(["b"], "witness")))
        await until(lambda: len(late.log.partitions[0]) == 5)
        release()
        witnessed: Any = (await witness).events[0]
        assert witnessed.seen["b"][0] == 15


async def test_a_pipeline_at_work_takes_the_lock_when_another_instance_comes() -> None:
    async with cluster() as (one, two):
        services = (("one", one), ("two", two))

        async def client(service: testing.Service, name: str) -> None:
            for n in range(60):
                await service.submit(AccountActor, "a", Deposit(1, f"{name}-{n}"))

        async with asyncio.timeout(20):
            await asyncio.gather(*[client(each, f"{name}-{k}") for k in range(8) for name, each in services])
        assert (await one.read(AccountActor, "a"))[1] == 16 * 60
        void = [logged for logged in one.records() if not logged.verdict]
        assert len(void) <= 2 * 8, "each has tried what its clients had sent before it knew of the other one"
        assert two.cache.locks or not two.transactions.engine.pipelines
        await until(lambda: not two.cache.locks)


def turns(*services: testing.Service, seconds: float = 0.0) -> None:
    """Each of them gives up the lock of the account a after so long, while others wait for it."""
    for service in services:
        service.transactions.engine.pipelines.access.turn_s = seconds
        service.transactions.scopes[0].contention.note(["Account/a"])


async def test_a_turn_ends_while_its_records_are_under_way_and_the_next_holder_waits_for_them() -> None:
    async with cluster() as (one, two):
        turns(one, two)
        release_one, release_two = hold(one), hold(two)
        first = [asyncio.create_task(one.submit(AccountActor, "a", Deposit(1, f"one {n}"))) for n in range(3)]
        await until(lambda: len(one.log.partitions[0]) == 4)
        second = [asyncio.create_task(two.submit(AccountActor, "a", Deposit(1, f"two {n}"))) for n in range(2)]
        await until(lambda: two.cache.waiting)
        first.append(asyncio.create_task(one.submit(AccountActor, "a", Deposit(1, "ends the turn"))))
        await until(lambda: two.transactions.scopes[0].predecessors.waiting)
        behind = asyncio.create_task(one.submit(AccountActor, "a", Deposit(1, "behind those who wait")))
        assert list(one.cache.tips.values()) == [one.log.partitions[0][4].key]
        assert len(one.log.partitions[0]) == 5
        release_two()
        assert [(await each).version for each in second] == [5, 6]
        release_one()
        assert [(await each).version for each in first] == [1, 2, 3, 4]
        assert (await behind).version == 7
        assert all(logged.verdict for logged in one.records())


async def test_a_lock_that_comes_back_for_a_set_is_used_and_released(monkeypatch: pytest.MonkeyPatch) -> None:
    """The turn of b has ended, and its records are under way, when a transfer of the same instance locks a and b."""
    async with testing.Service(AccountActor) as one:
        await one.submit(AccountActor, "a", Deposit(10, "a"))
        turns(one, seconds=0.05)
        one.transactions.scopes[0].contention.note(["Account/b"])
        release = hold(one)
        commands = [asyncio.create_task(one.submit(AccountActor, "b", Deposit(1, "first")))]
        await until(lambda: one.cache.locks)
        ((key, _),) = one.cache.locks.items()
        one.cache.waiting[key] = {"another"}
        await until(lambda: len(one.log.partitions[0]) == 3)  # so its turn has begun
        await asyncio.sleep(0.06)
        commands.append(asyncio.create_task(one.submit(AccountActor, "b", Deposit(1, "ends the turn"))))
        await until(lambda: not one.cache.locks)
        turns(one, seconds=60.0)
        commands.append(asyncio.create_task(one.submit(AccountActor, "a", Transfer("b", 5, "to b"))))
        await until(lambda: len(one.cache.locks) == 2)
        del one.cache.waiting[key]
        calls = Calls(one, monkeypatch)
        release()
        await asyncio.gather(*commands)
        assert not calls.locks, "it has both"
        await until(lambda: not one.transactions.engine.pipelines)
        assert not one.cache.locks


async def test_a_record_that_never_comes_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predecessors, "WAIT_S", 0.02)
    async with testing.Service(AccountActor) as one:
        turns(one)
        one.cache.tips["hive:{hive.transactions/0/memory}", "Account/a"] = "gone-1"
        assert (await one.submit(AccountActor, "a", Deposit(1, "first"))).version == 1
        assert not one.transactions.scopes[0].predecessors.waiting


async def test_turns_change_many_times_and_nothing_is_void() -> None:
    async with cluster() as (one, two):
        turns(one, two, seconds=0.002)

        async def client(service: testing.Service, name: str) -> None:
            for n in range(40):
                await service.submit(AccountActor, "a", Deposit(1, f"{name}-{n}"))

        async with asyncio.timeout(20):
            await asyncio.gather(*[client(each, f"{each}-{k}") for k in range(8) for each in (one, two)])
        verdicts = [logged.verdict for logged in one.records()]
        assert verdicts.count(True) == 1 + 16 * 40
        assert all(verdicts)


async def test_who_leaves_the_applying_to_the_leader_takes_locks_too_while_the_cache_does_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with cluster() as (_, two):
        scope, read = two.transactions.scopes[0], two.cache.read
        scope.applier.take_turns(lambda: False)
        silent: list[asyncio.Future[CacheReply]] = []

        def no_answer(*given: Any) -> "asyncio.Future[CacheReply]":
            silent.append(asyncio.get_running_loop().create_future())
            return silent[-1]

        await two.submit(AccountActor, "a", Deposit(1, "first"))
        await until(lambda: scope.applied)
        monkeypatch.setattr(applier, "SLOW_S", 0.02)
        monkeypatch.setattr(two.cache, "read", no_answer)
        assert scope.uncontended(["Account/b"])
        await two.submit(AccountActor, "a", Deposit(1, "second"))
        await until(lambda: silent)
        await until(lambda: not scope.uncontended(["Account/b"]))
        monkeypatch.setattr(two.cache, "read", read)
        silent[0].set_result(await read(0))
        await until(lambda: scope.uncontended(["Account/b"]))


async def test_a_slow_perform_is_not_overtaken_again_and_again() -> None:
    """Without its lock it would be performed until REPEATS, while others are faster each time."""
    async with cluster() as (one, two):
        await one.submit(AccountActor, "a", Deposit(100, "first"))
        ended = asyncio.Event()

        async def others() -> None:
            for n in itertools.count():
                if ended.is_set():
                    return
                with suppress(Conflict):
                    await two.submit(AccountActor, "a", Deposit(1, f"other {n}"))
                await asyncio.sleep(0.01)

        busy = asyncio.create_task(others())
        async with asyncio.timeout(5):
            await one.submit(AccountActor, "a", Think(0.1, 1, "slow"))
        ended.set()
        await busy


async def test_transfers_between_two_instances_lose_nothing_and_release_all_locks() -> None:
    async with cluster() as (one, two):
        for id in "abcd":
            await one.submit(AccountActor, id, Deposit(1_000, id))

        async def client(service: testing.Service, k: int) -> None:
            for n in range(20):
                source, to = "abcd"[(k + n) % 4], "abcd"[(k + 3 * n + 1) % 4]
                if source != to:
                    await service.submit(AccountActor, source, Transfer(to, 1, f"{k}-{n}"))

        async with asyncio.timeout(30):
            await asyncio.gather(*[client(service, k) for k in range(6) for service in (one, two)])
        balances = [(await two.read(AccountActor, id))[0].balance for id in "abcd"]
        assert sum(balances) == 4_000
        await until(lambda: not one.cache.locks)
        assert not one.transactions.engine.pipelines
        assert not two.transactions.engine.pipelines
