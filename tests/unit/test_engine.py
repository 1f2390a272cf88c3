"""Interleavings that real servers show once in a thousand runs, made to happen in memory.

Two instances are one cluster. ``hold`` keeps what comes from the log from one of them.
"""

import asyncio
import base64
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec
import pytest

from hiveio import testing
from hiveio.errors import Conflict, Unavailable
from hiveio.testing.memory import MemoryTail
from hiveio.transaction.command import Token
from hiveio.transaction.lock import Locked
from hiveio.transaction.record import Commit
from hiveio.transaction.run import PAUSED
from tests.faults.actors import AccountActor, Deposit, Think, Transfer, Withdraw, Witness


@asynccontextmanager
async def cluster() -> AsyncIterator[tuple[testing.Service, testing.Service]]:
    async with testing.Service(AccountActor) as one, testing.Service(AccountActor, log=one.log, cache=one.cache) as two:
        yield one, two


def hold(service: testing.Service) -> Callable[[], None]:
    """The instance reads nothing of the log any more, until what is returned is called."""
    tail: Any = service.transactions._tail
    assert isinstance(tail, MemoryTail)
    pass_on = tail._pass_on
    setattr(tail, "_pass_on", lambda: setattr(tail, "_woken", False))  # noqa: B010

    def release() -> None:
        setattr(tail, "_pass_on", pass_on)  # noqa: B010
        tail._loop.call_soon(pass_on)

    return release


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


def token(id: str, key: str) -> str:
    """The transaction id of a command."""
    made = Token("Account", id, key, 0, 0, True)
    text = base64.urlsafe_b64encode(msgspec.json.encode(made)).rstrip(b"=").decode()
    assert Token.parse(text) == made
    return text


async def test_a_record_performed_beyond_a_barrier_is_not_void_by_it() -> None:
    async with cluster() as (late, other):
        await other.submit(AccountActor, "a", Deposit(23, "all there is"))
        await until(lambda: late.transactions.scopes[0].view.next == 2)
        release = hold(late)
        await other.outcome(token("a", "never sent"))  # a barrier on the account, which the late one has not read
        withdrawn = asyncio.create_task(late.submit(AccountActor, "a", Withdraw(23, "all of it")))
        await until(lambda: len(late.log.partitions[0]) == 4)  # it is there, and rests on the barrier
        release()
        assert (await withdrawn).version == 2
        assert len(late.log.partitions[0]) == 4  # not performed again, on a state where there may be nothing left


async def test_what_a_transaction_reads_is_one_cut_also_without_its_locks() -> None:
    async with cluster() as (one, two):
        await two.submit(AccountActor, "b", Deposit(10, "b"))
        await two.submit(AccountActor, "c", Deposit(10, "c"))
        thinking = asyncio.create_task(one.submit(AccountActor, "b", Think(0.3, 1, "slow")))
        await until(lambda: (run := one.transactions.engine.runs.get("Account/b")) and run.performing)
        one.cache.locks.clear()  # lost: both have b now
        await two.submit(AccountActor, "b", Transfer("c", 5, "moved"))
        with suppress(Conflict):
            await one.submit(AccountActor, "a", Witness(["b", "c"], "witness"))
        await thinking
        seen = [
            msgspec.json.decode(write.events[0])["payload"]["seen"]
            for logged in one.records()
            for write in (logged.record.writes if isinstance(logged.record, Commit) and logged.verdict else ())
            if b"Witnessed" in bytes(write.events[0])
        ]
        assert all(s["b"][0] + s["c"][0] == 20 for s in seen), seen


async def test_a_cache_lost_before_any_reply_came_is_noticed() -> None:
    async with testing.Service(AccountActor) as before:
        await before.submit(AccountActor, "a", Deposit(1, "before"))
        await until(lambda: before.transactions.scopes[0].stands.offset == 2)
    async with testing.Service(AccountActor, log=before.log, cache=before.cache) as service:
        service.lose_cache()  # there was nothing to apply, so nothing has brought a watermark
        with suppress(Unavailable):
            await service.submit(AccountActor, "a", Deposit(1, "notices it"))
        await until(lambda: service.transactions.scopes[0].ready)
        assert (await service.submit(AccountActor, "a", Deposit(1, "after"))).version in (2, 3)


async def test_a_run_whose_own_set_is_refused_serves_those_who_have_its_lock() -> None:
    async with cluster() as (one, two):
        for id in "abc":
            await two.submit(AccountActor, id, Deposit(10, id))
        await until(lambda: not one.cache.locks)
        engine = one.transactions.engine
        taken = (engine.cache.scope(0), "Account/c")
        one.cache.locks[taken] = "an instance that works on it"
        waits = asyncio.create_task(one.submit(AccountActor, "b", Transfer("c", 1, "waits for c")))
        await until(lambda: (run := engine.runs.get("Account/b")) and run.state == PAUSED and run.queue)
        assert (await one.submit(AccountActor, "a", Transfer("b", 1, "needs a and b"))).version == 2
        assert (await two.submit(AccountActor, "b", Deposit(1, "b was given back"))).version == 3
        del one.cache.locks[taken]
        await waits


async def test_who_gives_up_on_what_another_one_executed_gets_its_answer() -> None:
    async with cluster() as (one, two):
        lock = one.transactions.engine.lock

        def refuse(scope: str, names: Sequence[str], done: Callable[[Locked], None], waited_s: float = 0.0) -> None:
            asyncio.get_running_loop().call_soon(done, Locked(0.0, reason="another instance has it, always"))

        setattr(lock, "acquire", refuse)  # noqa: B010
        waits = asyncio.create_task(one.submit(AccountActor, "a", Deposit(5, "once"), key="k"))
        await until(lambda: (run := one.transactions.engine.runs.get("Account/a")) and run.queue)
        first = await two.submit(AccountActor, "a", Deposit(5, "once"), key="k")
        assert first.version == 1
        assert await waits == first
        with pytest.raises(Conflict, match="another instance has it"):
            await one.submit(AccountActor, "b", Deposit(5, "never"), key="k")
        with pytest.raises(Conflict, match="closed"):
            await two.submit(AccountActor, "b", Deposit(5, "never"), key="k")


async def test_a_run_is_not_closed_by_the_reply_that_brings_its_next_command() -> None:
    async with cluster() as (one, two):
        scope = one.transactions.scopes[0]
        setattr(scope.applier, "wake", lambda: None)  # noqa: B010 - the other one applies
        await one.submit(AccountActor, "a", Deposit(1, "first"))
        await until(lambda: two.transactions.scopes[0].stands.offset == 2)
        assert scope.stands.offset < 2, "the run waits for an apply of which the next reply tells"
        assert (await one.submit(AccountActor, "a", Deposit(1, "second"), key="k")).version == 2
        assert not scope.failed
