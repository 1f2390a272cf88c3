"""How new a read is, and a refusal: where Kafka names an old end of the log, and which record proves that it is not."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from hiveio import Rejected, testing
from hiveio.errors import TooLarge
from hiveio.transaction.proof import Proofs
from hiveio.transaction.record import Barrier
from tests.faults.actors import AccountActor, Deposit, Withdraw
from tests.unit.transaction.test_engine import cluster, hold, until


class StrictActor(AccountActor):
    reads = "linearizable"


@asynccontextmanager
async def behind(kind: type[AccountActor]) -> AsyncIterator[tuple[testing.Service, Callable[[], None]]]:
    """An instance whose Kafka names an old end, and gives nothing after it until what is returned with it is called; a
    deposit was acknowledged since. Its cache does not have that either: it is another instance's Redis that has."""
    async with testing.Service(kind) as late, testing.Service(kind, log=late.log) as other:
        await other.submit(kind, "a", Deposit(10, "seen"))
        assert (await late.read(kind, "a"))[1] == 1
        reader: Any = late.transactions.scopes[0].reader
        old = await reader.end(0)

        async def end(partition: int) -> int:
            return int(old)

        reader.end = end
        release = hold(late)
        await other.submit(kind, "a", Deposit(10, "not seen"))
        yield late, release


async def test_a_current_read_trusts_the_end_that_kafka_names_and_a_linearizable_one_does_not() -> None:
    async with behind(AccountActor) as (late, _):
        assert (await late.read(AccountActor, "a"))[1] == 1, "the stated exception of current reads"
    async with behind(StrictActor) as (late, release):
        reading = asyncio.ensure_future(late.read(StrictActor, "a"))
        await until(lambda: late.transactions.scopes[0].journal.pending)
        release()
        assert (await reading)[1] == 2


async def test_so_it_is_with_a_refusal_that_no_record_bears() -> None:
    async with behind(AccountActor) as (late, _):
        with pytest.raises(Rejected):
            await late.submit(AccountActor, "a", Withdraw(20, "both"))
    async with behind(StrictActor) as (late, release):
        withdrawn = asyncio.ensure_future(late.submit(StrictActor, "a", Withdraw(20, "both")))
        await until(lambda: late.transactions.scopes[0].journal.pending)
        release()
        assert (await withdrawn).version == 3


async def test_reads_that_wait_share_a_record_and_need_none_beside_a_command() -> None:
    async with cluster() as (one, _):
        await one.submit(AccountActor, "a", Deposit(1, "first"))
        engine = one.transactions.engine
        (contract,) = one.contracts

        def barriers() -> int:
            return sum(isinstance(logged.record, Barrier) for logged in one.records())

        reads = [engine.read(contract, "a", "linearizable") for _ in range(100)]
        assert {version for _, version in await asyncio.gather(*reads)} == {1}
        assert barriers() == 1
        before = barriers()
        reading = asyncio.ensure_future(engine.read(contract, "a", "linearizable"))
        release = hold(one)
        await until(lambda: barriers() == before + 1)
        late = asyncio.ensure_future(engine.read(contract, "a", "linearizable"))  # the one under way is too old for it
        await asyncio.sleep(0)
        command = asyncio.ensure_future(one.submit(AccountActor, "b", Deposit(1, "carries the late one")))
        await until(lambda: len(one.transactions.scopes[0].journal.pending) == 2)
        assert not late.done()
        release()
        await asyncio.gather(reading, late, command)
        assert barriers() == before + 1


async def test_a_record_that_is_not_delivered_is_followed_by_another() -> None:
    appended: list[str] = []

    def append() -> str:
        appended.append(f"proof-{len(appended)}")
        proofs.appended(appended[-1])
        return appended[-1]

    proofs = Proofs(append)
    waiting = asyncio.ensure_future(proofs.proved())
    await until(lambda: appended == ["proof-0"])
    joined = asyncio.ensure_future(proofs.proved())
    await asyncio.sleep(0)
    assert appended == ["proof-0"], "one is under way"
    proofs.over("proof-0", read_back=False)
    await until(lambda: len(appended) == 2)
    assert not waiting.done()
    assert not joined.done()
    proofs.over("proof-1", read_back=True)
    await joined
    await until(lambda: len(appended) == 3)  # of the one whose record was lost, which asks again
    proofs.over("proof-2", read_back=True)
    await waiting
    assert not proofs.under_way


async def test_a_record_that_cannot_be_appended_is_told_to_all_who_wait() -> None:
    errors = [TooLarge("the queue is full"), RuntimeError("a fault of ours")]

    def append() -> str:
        raise errors[0]

    proofs = Proofs(append)
    async with asyncio.timeout(5):
        while errors:
            results = await asyncio.gather(proofs.proved(), proofs.proved(), return_exceptions=True)
            assert list(results) == [errors[0], errors[0]]
            errors.pop(0)
