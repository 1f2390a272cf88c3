"""What waits in a scope that has failed, or for longer than its time, is let go of."""

import asyncio

import pytest

from hiveio import testing
from hiveio.config import Settings
from hiveio.errors import Unavailable, Unknown
from hiveio.transaction.record import CommandId
from hiveio.transaction.rule import IdRecord
from tests.faults.actors import AccountActor, Deposit
from tests.unit.transaction.test_engine import hold, token, until


async def test_a_wait_that_came_to_its_time_stays_nowhere() -> None:
    async with testing.Service(AccountActor) as service:
        (scope,) = service.transactions.scopes
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await scope.reach(1_000)
        assert not scope.waiting


async def test_a_scope_that_fails_lets_go_of_all_that_waits_in_it() -> None:
    async with testing.Service(AccountActor, settings=Settings(request_timeout_ms=4_000)) as one:
        engine, (scope,) = one.transactions.engine, one.transactions.scopes
        await one.submit(AccountActor, "a", Deposit(1, "m"))
        hold(one)
        commands = [asyncio.create_task(one.submit(AccountActor, f"a{n}", Deposit(1, "m"))) for n in range(5)]
        applied = asyncio.Event()
        scope.applier.when_applied(1_000, applied.set)
        await until(lambda: len(scope.journal.pending) == 5)
        asked = asyncio.create_task(one.outcome(token("a", "never")))
        await until(lambda: len(scope.journal.pending) == 6)  # its barrier
        proved = asyncio.create_task(scope.caught_up("linearizable"))
        await until(lambda: len(scope.journal.pending) == 7)  # and that of the proof
        scope.fail("never mind")
        async with asyncio.timeout(1.8):
            for each in (asked, proved):
                with pytest.raises(Unavailable):
                    await each
            await applied.wait()
        assert not scope.journal.pending
        await until(lambda: not engine.pipelines)
        assert engine.work.weight == 0
        for command in commands:  # they may be executed: others judge them
            with pytest.raises(Unknown):
                await command
        assert not engine.work.open
        assert not engine.work.body_bytes
        await until(lambda: not engine.tasks)


async def test_who_asks_a_failed_scope_for_an_outcome_is_told_at_once() -> None:
    async with testing.Service(AccountActor) as service:
        engine, (scope,) = service.transactions.engine, service.transactions.scopes
        scope.fail("never mind")
        await until(lambda: scope.stopped)
        with pytest.raises(Unavailable):
            scope.journal.append_barrier()
        with pytest.raises(Unavailable):
            await engine.recovery.outcome(scope, CommandId("Account/a", "key"), IdRecord(0, 0, True))
        assert not scope.journal.pending
