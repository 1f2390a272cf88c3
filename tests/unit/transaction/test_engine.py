"""Interleavings that real servers show once in a thousand runs, made to happen in memory.

Two instances are one cluster. ``hold`` keeps what comes from the log from one of them.
"""

import asyncio
import base64
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec
import pytest

from hiveio import Transaction, testing
from hiveio.config import Settings
from hiveio.errors import AWAY, Conflict, Rejected, Unavailable, Unknown, VersionMismatch, backend_away
from hiveio.testing.memory import MemoryCache, MemoryTail
from hiveio.transaction import applier, engine
from hiveio.transaction import scope as scopes
from hiveio.transaction.command import Token
from hiveio.transaction.lock import Locked
from hiveio.transaction.pipeline_state import PAUSED
from hiveio.transaction.record import Commit
from hiveio.transaction.rule import IdRecord
from tests.actors.purses import FULL, Purses, Send
from tests.faults.actors import Account, AccountActor, Deposit, Deposited, Think, Transfer, Withdraw, Witness


@asynccontextmanager
async def cluster(settings: Settings | None = None) -> AsyncIterator[tuple[testing.Service, testing.Service]]:
    async with (
        testing.Service(AccountActor, settings=settings) as one,
        testing.Service(AccountActor, log=one.log, cache=one.cache) as two,
    ):
        yield one, two


def hold(service: testing.Service) -> Callable[[], None]:
    """The instance reads nothing of the log any more, until what is returned is called."""
    tail = service.transactions.tail
    assert isinstance(tail, MemoryTail)
    tail.hold()
    return tail.release


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


async def patiently(ask: Callable[[], Awaitable[Any]]) -> Any:
    """A 503 says that nothing happened and to try again: so does this one, for a while."""
    async with asyncio.timeout(10):
        while True:
            with suppress(Unavailable):
                return await ask()
            await asyncio.sleep(0.001)


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
        await until(lambda: (b := one.transactions.engine.pipelines.get("Account/b")) and b.performing)
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
        await until(lambda: before.transactions.scopes[0].mirror.watermark.offset == 2)
    async with testing.Service(AccountActor, log=before.log, cache=before.cache) as service:
        service.lose_cache()  # there was nothing to apply, so nothing has brought a watermark
        with suppress(Unavailable):
            await service.submit(AccountActor, "a", Deposit(1, "notices it"))
        await until(lambda: service.transactions.scopes[0].ready)
        assert (await service.submit(AccountActor, "a", Deposit(1, "after"))).version in (2, 3)


async def test_a_pipeline_whose_own_set_is_refused_serves_those_who_have_its_lock() -> None:
    async with cluster() as (one, two):
        for id in "abc":
            await two.submit(AccountActor, id, Deposit(10, id))
        await until(lambda: not one.cache.locks)
        engine = one.transactions.engine
        lock = (one.cache.scope(0), "Account/c")
        one.cache.locks[lock] = "an instance that works on it"
        waits = asyncio.create_task(one.submit(AccountActor, "b", Transfer("c", 1, "waits for c")))
        await until(lambda: (b := engine.pipelines.get("Account/b")) and b.state is PAUSED and b.queue)
        assert (await one.submit(AccountActor, "a", Transfer("b", 1, "needs a and b"))).version == 2
        assert (await two.submit(AccountActor, "b", Deposit(1, "b was given back"))).version == 3
        del one.cache.locks[lock]
        await waits


async def test_who_gives_up_on_what_another_one_executed_gets_its_answer() -> None:
    async with cluster() as (one, two):
        access = one.transactions.engine.pipelines.access

        def refuse(scope: scopes.Scope, names: Sequence[str], done: Callable[[Locked], None], queue: Any = ()) -> None:
            asyncio.get_running_loop().call_soon(done, Locked(0.0, reason="another instance has it, always"))

        setattr(access, "acquire", refuse)  # noqa: B010
        one.transactions.scopes[0].contention.note(["Account/a", "Account/b"])
        waits = asyncio.create_task(one.submit(AccountActor, "a", Deposit(5, "once"), key="k"))
        await until(lambda: (a := one.transactions.engine.pipelines.get("Account/a")) and a.queue)
        first = await two.submit(AccountActor, "a", Deposit(5, "once"), key="k")
        assert first.version == 1
        assert await waits == first
        with pytest.raises(Conflict, match="is locked by another instance"):
            await one.submit(AccountActor, "b", Deposit(5, "never"), key="k")
        with pytest.raises(Conflict, match="closed"):
            await two.submit(AccountActor, "b", Deposit(5, "never"), key="k")


async def test_who_gives_up_is_not_told_of_the_aggregates_of_others() -> None:
    async with cluster(Settings(lock_retry_count=0)) as (one, two):
        for id in ("a", "b", "secret"):
            await two.submit(AccountActor, id, Deposit(10, id))
        await until(lambda: not one.cache.locks)
        one.cache.locks[one.cache.scope(0), "Account/secret"] = "an instance that works on it"
        for id in "ab":  # locked, and soon after
            with pytest.raises(Conflict) as raised:
                await one.submit(AccountActor, id, Transfer("secret", 1, id))
            assert "secret" not in raised.value.detail


async def test_a_pipeline_is_not_closed_by_the_reply_that_brings_its_next_command() -> None:
    async with cluster() as (one, two):
        scope = one.transactions.scopes[0]
        setattr(scope.applier, "wake", lambda: None)  # noqa: B010 - the other one applies
        await one.submit(AccountActor, "a", Deposit(1, "first"))
        await until(lambda: two.transactions.scopes[0].mirror.watermark.offset == 2)
        assert scope.mirror.watermark.offset < 2, "the pipeline waits for an apply of which the next reply tells"
        assert (await one.submit(AccountActor, "a", Deposit(1, "second"), key="k")).version == 2
        assert not scope.failed


async def test_one_instance_alone_has_no_void_record() -> None:
    """Every void record costs a pause to all that are chained behind it, and here no other instance can be faster."""
    dice = random.Random(20)
    refused = 0
    async with testing.Service(Purses) as service:

        async def client(number: int) -> None:
            nonlocal refused
            for n in range(20):
                one, other = dice.sample(range(20), 2)
                key = f"{number}-{n}" if n % 2 else None
                try:
                    await service.submit(Purses, str(one), Send(str(other), dice.randint(1, FULL)), key=key)
                except Rejected:
                    refused += 1

        await asyncio.gather(*[client(number) for number in range(64)])
        states = [await service.read(Purses, str(number)) for number in range(20)]
        assert sum(state.balance if state else FULL for state, _ in states) == 20 * FULL
        assert refused > 100
        assert not [logged for logged in service.records() if not logged.verdict]


async def test_if_match_is_checked_again_with_what_has_moved() -> None:
    async with testing.Service(AccountActor) as service:
        await service.submit(AccountActor, "a", Deposit(1, "first"))
        await service.submit(AccountActor, "b", Deposit(9, "of the sender"))
        engine = service.transactions.engine
        thinking = asyncio.create_task(service.submit(AccountActor, "a", Think(0.05, 1, "slow"), if_match=1))
        await until(lambda: (a := engine.pipelines.get("Account/a")) and a.performing)
        await service.submit(AccountActor, "b", Transfer("a", 1, "moves it"))
        with pytest.raises(VersionMismatch, match="version 2"):
            await thinking
        assert (await service.read(AccountActor, "a"))[1] == 2


async def test_what_a_perform_raises_on_a_state_that_has_moved_is_not_its_answer() -> None:
    seen: list[int] = []

    class Doubter(AccountActor):
        async def perform(  # type: ignore[override]
            self, account: Account | None, command: Deposit, tx: Transaction
        ) -> Deposited:
            if command.marker == "doubts":
                other = await tx.get(Doubter, "b")
                seen.append(other.balance)
                await asyncio.sleep(0.02)
                if len(seen) == 1:
                    raise ZeroDivisionError
            return Deposited(command.amount, command.marker)

    async with testing.Service(Doubter) as service:
        await service.submit(Doubter, "b", Deposit(1, "first"))
        doubts = asyncio.create_task(service.submit(Doubter, "a", Deposit(1, "doubts")))
        await until(lambda: seen)
        await service.submit(Doubter, "b", Deposit(1, "moves it"))
        assert (await doubts).version == 1
        assert seen == [1, 2]


async def test_nothing_stays_of_commands_that_are_over() -> None:
    async with cluster() as (one, _):
        refused = [
            one.submit(AccountActor, f"a{n}", Withdraw(1, "m"), key=f"k{n}" if n % 2 else None) for n in range(300)
        ]
        answers = await asyncio.gather(*refused, return_exceptions=True)
        assert {type(answer) for answer in answers} == {Rejected}
        engine = one.transactions.engine
        await until(lambda: not engine.pipelines)
        assert not engine.keys_in_work


async def test_a_deadline_holds_although_an_instance_without_work_rarely_looks_at_deadlines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine, "LAGS_S", 60.0)
    async with testing.Service(AccountActor, settings=Settings(request_timeout_ms=60)) as service:
        for _ in range(2):  # the second time after it has worked
            await until(lambda: service.transactions.engine.resting)
            release = hold(service)
            async with asyncio.timeout(10):
                with pytest.raises(Unknown):
                    await service.submit(AccountActor, "a", Deposit(1, "not read back in time"))
            release()


async def test_a_scope_that_fails_while_it_waits_for_its_cache_lets_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(applier, "UNAPPLIED", 2)
    monkeypatch.setattr(scopes, "CHUNK", 5)
    async with testing.Service(AccountActor) as before:
        for id in range(20):
            await before.submit(AccountActor, f"a{id}", Deposit(1, "before"))
    cache = MemoryCache(before.log.settings, "another")
    service = testing.Service(AccountActor, log=before.log, cache=cache)

    async def never(*_: Any) -> bytes:
        raise Unavailable("it is away")

    setattr(cache, "apply", never)  # noqa: B010
    starting = asyncio.create_task(service.transactions.start())
    await until(lambda: service.transactions.scopes)
    (scope,) = service.transactions.scopes
    await until(lambda: len(scope.applier.judged) == 5)
    waits = asyncio.create_task(scope.reach(21))
    await asyncio.sleep(0)
    scope.fail("never mind")
    await until(lambda: scope.stopped)
    with pytest.raises(Unavailable, match="has stopped"):
        await waits
    with pytest.raises(Unavailable, match="has stopped"):
        await scope.reach(21)
    await starting
    await service.transactions.stop()


async def test_whatever_goes_wrong_with_a_refusal_its_pipeline_closes() -> None:
    async with testing.Service(AccountActor) as service:
        (scope,) = service.transactions.scopes

        async def ill(consistency: str) -> None:
            raise RuntimeError("never mind")

        setattr(scope, "caught_up", ill)  # noqa: B010
        with pytest.raises(RuntimeError, match="never mind"):
            await service.submit(AccountActor, "a", Withdraw(1, "refused"))
        await until(lambda: not service.transactions.engine.pipelines)


@pytest.mark.parametrize("key", [None, "k"])
@pytest.mark.parametrize("known", [True, False], ids=["known to be away", "not known yet"])
async def test_a_client_is_not_told_where_a_backend_is(
    known: bool, key: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "Redis at 10.0.0.7:6379 does not answer: ConnectionError"

    class Away(MemoryCache):
        def away(self, partition: int | None = None) -> str:
            return reason if known else ""

    async with testing.Service(AccountActor) as service:
        cache, engine = service.cache, service.transactions.engine
        service.transactions.scopes[0].contention.note(["Account/a"])  # so the cache is asked

        def read(*_: Any) -> Any:
            future = asyncio.get_running_loop().create_future()
            future.set_exception(backend_away(reason))
            return future

        monkeypatch.setattr(cache, "__class__", Away)
        with monkeypatch.context() as patch:
            patch.setattr(cache, "read", read)
            with pytest.raises(Unavailable) as raised:
                await service.submit(AccountActor, "a", Deposit(1, "x"), key=key)
            assert (raised.value.status, raised.value.detail) == (503, AWAY)
            assert str(raised.value) == reason, "for those who operate it"
            with pytest.raises(Unavailable) as raised:
                await engine.read(service.contracts[0], "a", "cached")
            assert raised.value.detail == AWAY
        monkeypatch.undo()


async def test_a_key_that_is_forgotten_is_a_new_one_also_where_its_record_was_void() -> None:
    async with cluster(Settings(idempotency_count=2, idempotency_time_s=0)) as (one, two):
        await one.submit(AccountActor, "a", Deposit(5, "five"), key="k")
        view = two.transactions.scopes[0].view
        used = IdRecord(1, one.transactions.scopes[0].view.time, True)
        while view.remembers(used, IdRecord(view.next, view.time, True)):
            await asyncio.sleep(0.001)  # the log's clock goes on with the timestamps of records
            await two.submit(AccountActor, "b", Deposit(1, "other"))
        await one.submit(AccountActor, "b", Deposit(1, "and two knows of all of them"))
        await until(lambda: view.next == len(one.log.partitions[0]))
        release, applied, apply = hold(two), asyncio.Event(), one.cache.apply

        async def apply_later(*given: Any) -> Any:
            await applied.wait()
            return await apply(*given)

        one.cache.apply = apply_later  # type: ignore[assignment,method-assign]
        # Applied at once, this deposit might be in the cache before the other one reads there, and no record were void.
        await one.submit(AccountActor, "a", Deposit(7, "seven"))
        before = len(one.log.partitions[0])
        sent = asyncio.create_task(two.submit(AccountActor, "a", Deposit(5, "five"), key="k"))
        await until(lambda: len(one.log.partitions[0]) == before + 1)
        applied.set()
        release()
        answer = await sent
        assert not one.records()[before].verdict
        assert answer.version == 3
