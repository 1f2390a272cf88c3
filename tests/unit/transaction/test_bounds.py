"""What commands in work hold in memory is bounded in bytes: chains, aggregates that are open, and bodies."""

import asyncio

import pytest

from hiveio import testing
from hiveio.config import Settings
from hiveio.errors import TooLarge, Unavailable
from hiveio.transaction import journal, work
from hiveio.transaction.bounds import LEAST_BYTES, Bounds
from hiveio.transaction.quarantine import MAX_UNKNOWN_ACTORS, Quarantine
from tests.faults.actors import AccountActor, Deposit
from tests.unit.transaction.test_engine import hold, until

MARKER = "m" * 10_000


def test_scopes_share_what_an_instance_may_hold() -> None:
    one, many = Bounds.of(1), Bounds.of(200)
    assert one == Bounds()
    assert sum(200 * each for each in many[:3]) < 1_000_000_000
    assert many.view == many.unapplied == many.live == LEAST_BYTES


def test_the_names_of_actors_that_are_not_here_are_bounded() -> None:
    quarantine = Quarantine("log", 0)
    for number in range(2 * MAX_UNKNOWN_ACTORS):
        quarantine.add_unknown_actor(f"Actor{number}")
    assert len(quarantine.unknown_actors) == MAX_UNKNOWN_ACTORS


async def test_a_chain_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "IN_WORK_BYTES", 50_000)
    async with testing.Service(AccountActor) as service:
        engine, (scope,) = service.transactions.engine, service.transactions.scopes
        release = hold(service)
        commands = [asyncio.create_task(service.submit(AccountActor, "a", Deposit(1, MARKER))) for _ in range(30)]
        await until(lambda: engine.work.full)
        for _ in range(50):
            await asyncio.sleep(0)
        assert len(scope.journal.pending) <= 6
        release()
        await asyncio.gather(*commands)
        assert (await service.read(AccountActor, "a"))[1] == 30
        await until(lambda: not engine.pipelines)
        assert engine.work.weight == 0


async def test_where_too_much_is_in_work_other_aggregates_wait_and_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "IN_WORK_BYTES", 50_000)
    settings = Settings(lock_retry_delay_ms=1, lock_retry_jitter_ms=1)
    async with testing.Service(AccountActor, settings=settings) as service:
        engine, (scope,) = service.transactions.engine, service.transactions.scopes
        release = hold(service)
        first = [asyncio.create_task(service.submit(AccountActor, f"a{n}", Deposit(1, MARKER))) for n in range(5)]
        await until(lambda: engine.work.full)
        later = [asyncio.create_task(service.submit(AccountActor, f"b{n}", Deposit(1, MARKER))) for n in range(20)]
        for command in later:
            with pytest.raises(Unavailable, match="Too much is in work"):
                await command
        assert len(scope.journal.pending) == 5
        release()
        await asyncio.gather(*first)
        await until(lambda: not engine.pipelines)
        assert engine.work.weight == 0
        await service.submit(AccountActor, "b1", Deposit(1, MARKER))


async def test_the_bodies_of_commands_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "BODIES_BYTES", 25_000)
    async with testing.Service(AccountActor) as service:
        release = hold(service)
        commands = [asyncio.create_task(service.submit(AccountActor, f"a{n}", Deposit(1, MARKER))) for n in range(3)]
        await until(lambda: len(service.transactions.engine.work.open) == 3)
        with pytest.raises(Unavailable, match="commands are in work"):
            await service.submit(AccountActor, "b", Deposit(1, "m"))
        release()
        await asyncio.gather(*commands)
        assert service.transactions.engine.work.body_bytes == 0
        await service.submit(AccountActor, "b", Deposit(1, "m"))


async def test_a_transaction_whose_snapshots_the_cache_would_not_take_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(journal, "SNAPSHOTS_BYTES", 500)
    async with testing.Service(AccountActor) as service:
        with pytest.raises(TooLarge, match="at most 500 are allowed"):
            await service.submit(AccountActor, "a", Deposit(1, "m"))
        assert len(service.records()) == 1
