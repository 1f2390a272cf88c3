"""A request leaves nothing behind that only Python's collector could free: under load that is many MB, and pauses.

An error is the usual way to do so: its traceback has the frames that it has passed, and one of these may have it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest

from hiveio import Command, testing
from hiveio.errors import NotFound, Rejected
from hiveio.http.edge import Edge
from tests.actors.purses import FULL, Purses, Send
from tests.faults.actors import AccountActor, Deposit, Transfer, Withdraw
from tests.garbage import TIMES, nothing_to_collect
from tests.unit.auth.test_authenticator import NEW, OLD, Source, started
from tests.unit.http.test_edge import call, deposit, routes, service
from tests.unit.transaction.test_engine import cluster, until


async def accepted(served: testing.Service, number: int) -> None:
    await served.submit(AccountActor, f"a{number}", Deposit(1, "accepted"))


async def repeated(served: testing.Service, number: int) -> None:
    await served.submit(AccountActor, "r", Deposit(1, "repeated"), key="k")


async def refused(served: testing.Service, number: int) -> None:
    with suppress(Rejected):
        await served.submit(AccountActor, f"b{number}", Withdraw(1, "refused"))


async def refused_at_once(served: testing.Service, number: int) -> None:
    with suppress(Rejected):
        await served.submit(Purses, f"p{number}", Send("other", FULL + 1))


async def refused_transfer(served: testing.Service, number: int) -> None:
    with suppress(Rejected):
        await served.submit(AccountActor, f"c{number}", Transfer("other", 1, "refused"))


async def not_found(served: testing.Service, number: int) -> None:
    with suppress(NotFound):
        await served.read(AccountActor, f"n{number}")


def contend(served: testing.Service, *ids: str) -> None:
    """Another instance has worked on these accounts, so a command on them takes their locks."""
    served.transactions.scopes[0].contention.note([f"Account/{id}" for id in ids])


async def locked(served: testing.Service, number: int) -> None:
    contend(served, f"d{number}")
    await served.submit(AccountActor, f"d{number}", Deposit(1, "locked"))


async def while_another_locks(id: str, served: testing.Service, target: str, message: Command) -> None:
    """Send a command to ``target`` that needs ``id``, and release that once the command waits for it."""
    contend(served, id)
    lock = served.cache.scope(0), f"Account/{id}"
    served.cache.locks[lock] = "another instance"
    command = asyncio.create_task(served.submit(AccountActor, target, message))
    await until(lambda: served.cache.waiting.get(lock))
    del served.cache.locks[lock]
    await command


async def locked_by_another(served: testing.Service, number: int) -> None:
    await while_another_locks(f"e{number}", served, f"e{number}", Deposit(1, "waits"))


async def transfer_to_a_locked_one(served: testing.Service, number: int) -> None:
    await served.submit(AccountActor, f"f{number}", Deposit(1, "there"))
    await while_another_locks(f"g{number}", served, f"f{number}", Transfer(f"g{number}", 1, "waits"))


REQUESTS = [
    accepted,
    repeated,
    refused,
    refused_at_once,
    refused_transfer,
    not_found,
    locked,
    locked_by_another,
    transfer_to_a_locked_one,
]


@pytest.mark.parametrize("request_of", REQUESTS)
async def test_a_command_or_a_read(request_of: Callable[[testing.Service, int], Awaitable[None]]) -> None:
    actor = Purses if request_of is refused_at_once else AccountActor
    async with testing.Service(actor) as served:
        for number in range(TIMES):
            await request_of(served, number)
        with nothing_to_collect():
            for number in range(TIMES, 2 * TIMES):
                await request_of(served, number)


async def test_transfers_of_which_each_has_the_lock_that_the_other_needs() -> None:
    async with cluster() as both:
        one, _ = both

        async def cross(numbers: range) -> None:
            for number in numbers:
                a, b = f"a{number}", f"b{number}"
                for served in both:
                    contend(served, a, b)
                await asyncio.gather(*[one.submit(AccountActor, id, Deposit(5, "crossed")) for id in (a, b)])
                transfers = [(a, Transfer(b, 1, "there")), (b, Transfer(a, 1, "back"))]
                await asyncio.gather(
                    *[served.submit(AccountActor, id, transfer) for served in both for id, transfer in transfers]
                )

        await asyncio.gather(*[served.submit(AccountActor, "z", Deposit(1, "ready")) for served in both])
        await cross(range(TIMES))
        with nothing_to_collect():
            await cross(range(TIMES, 2 * TIMES))


@pytest.mark.parametrize(
    ("amount", "status"),
    [(1, 200), (13, 422), (500, 500), (-2, 500), ("x", 422)],
    ids=["accepted", "refused", "fault", "bad reply", "invalid"],
)
async def test_a_request_at_the_edge(amount: Any, status: int) -> None:
    made = service()
    edge = Edge(made, routes(made.contracts[0]))
    for _ in range(TIMES):
        assert (await call(edge, "POST", "/accounts/1", deposit(amount))).status == status
    with nothing_to_collect():
        for _ in range(TIMES):
            await call(edge, "POST", "/accounts/1", deposit(amount))


async def test_a_request_with_a_token_of_an_unknown_key() -> None:
    made = service()
    async with started(Source(OLD)) as made.authenticator:
        while await made.authenticator.ready() is not None:
            await asyncio.sleep(0)
        edge = Edge(made, routes(made.contracts[0]))
        headers = {"authorization": f"Bearer {NEW.token()}"}
        for _ in range(TIMES):
            assert (await call(edge, "POST", "/accounts/1", deposit(1), headers)).status == 401
        with nothing_to_collect():
            for _ in range(TIMES):
                await call(edge, "POST", "/accounts/1", deposit(1), headers)
